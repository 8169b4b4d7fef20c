"""The report's rows of the objectives over pairs and labelled texts: every loss of each, and every option that changes it."""

from __future__ import annotations

import dataclasses
from math import log, sqrt
from typing import TYPE_CHECKING, Any

import report_enumeration as world
import report_preferences as checks
from preference_papers import paper
from report_hand import Hand
from report_preferences import PAIR, TRIPLE, differenced, pair, plain, soft, trl
from report_rows import Case, Row

if TYPE_CHECKING:
    from collections.abc import Callable

    from report_cells import Cell

Options = dict[str, Any]
D = log(2.7)
"""Of the worked pair; the sigmoid of it is 27 / 37."""
NLL = -log(0.18) / 2
"""Of the worked chosen text's tokens."""
GOLD_NLL = -log(0.4)


def row(
    title: str,
    options: Options,
    hand: Callable[[], Hand],
    check: Callable[[], Cell],
    *others: Options,
    texts: int = 2,
    groups: int = 1,
    worlds: tuple[world.World, ...] = (world.OFF_POLICY,),
    differs_from: Options | None = None,
    **fields: Any,
) -> Row:
    """A row whose options are those of the first case; `others` are further options that are enumerated."""
    cases = [Case(options=one, paper=paper(one), worlds=worlds, groups=groups, texts=texts) for one in (options, *others)]
    if differs_from is not None:
        cases[0] = dataclasses.replace(cases[0], differs_from=differs_from)
    fields.setdefault("differences", differenced(texts))
    return Row(title=title, section="Preferences, from a dataset", cases=tuple(cases), hand=hand, trl=check, **fields)


def dpo(loss: Any, hand: Callable[[], Hand], check: Callable[[], Cell], title: str = "", **more: Any) -> Row:
    """A loss of DPO with beta 1, or what else is said."""
    options = {"name": "dpo", "beta": 1.0, "loss": loss} | more.pop("options", {})
    return row(title or f"dpo: {loss}", options, hand, check, **more)


RANKS = differenced(2, again=True, note="ranks follow the log-probs")
SIGMOID = {"name": "dpo", "beta": 1.0, "loss": "sigmoid"}

LOSSES: tuple[Row, ...] = (
    dpo("sigmoid", pair(soft(D)), plain("dpo", "dpo", "sigmoid"), title="dpo"),
    dpo("hinge", pair(1 - 0.5 * D, beta=0.5), plain("dpo", "dpo", "hinge")),
    dpo(
        "ipo",
        pair(
            (log(1.8) / 2 - log(2 / 3) - 0.5) ** 2,
            also=(Hand(loss=(D - 0.5) ** 2, step=PAIR, options={"ipo_sums": True}),),
        ),
        plain("dpo", "dpo", "ipo"),
    ),
    dpo(
        "exo_pair",
        pair(27 / 37 * (log(27 / 37) - log(0.9)) + 10 / 37 * (log(10 / 37) - log(0.1))),
        plain("dpo", "dpo", "exo_pair"),
        options={"label_smoothing": 0.1},
    ),
    dpo("nca_pair", pair(-log(9 / 14) - log(5 / 14) / 2 - log(3 / 5) / 2), plain("dpo", "dpo", "nca_pair")),
    dpo("bco_pair", pair(-log(9 / 14) - log(3 / 5)), plain("dpo", "dpo", "bco_pair")),
    dpo(
        "robust",
        pair((-0.8 * log(27 / 37) + 0.2 * log(10 / 37)) / 0.6),
        plain("dpo", "dpo", "robust"),
        options={"label_smoothing": 0.2},
    ),
    dpo("sppo_hard", pair((log(1.8) - 0.5) ** 2 + (log(2 / 3) + 0.5) ** 2), plain("dpo", "dpo", "sppo_hard")),
    dpo("aot", checks.aot, plain("dpo", "dpo", "aot"), groups=2, differences=RANKS),
    dpo("aot_unpaired", checks.aot_unpaired, plain("dpo", "dpo", "aot_unpaired"), groups=2, differences=RANKS),
    dpo("apo_zero", pair(5 / 14 + 2 / 5), plain("dpo", "dpo", "apo_zero")),
    dpo("apo_down", pair(9 / 14 + 10 / 37), plain("dpo", "dpo", "apo_down")),
    dpo(
        "discopop",
        pair((soft(D) + 2.7**2 / 2.7) / (1 + 2.7**2)),
        plain("dpo", "dpo", "discopop"),
        options={"discopop_tau": 0.5},
    ),
    dpo("sigmoid_norm", pair(soft(log(sqrt(1.8) * 1.5))), plain("dpo", "dpo", "sigmoid_norm")),
    dpo(
        ["sigmoid", "bco_pair", "sft"],
        pair(0.8 * soft(D) + 0.2 * (-log(9 / 14) - log(3 / 5)) + NLL),
        plain("dpo", "dpo", ["sigmoid", "bco_pair", "sft"]),  # type: ignore[arg-type]
        title="dpo: sigmoid, bco_pair and sft (MPO)",
        groups=2,
        options={"loss_weights": [0.8, 0.2, 1.0]},
    ),
    dpo(
        ["sigmoid", "sft"],
        pair(soft(D) + NLL),
        plain("dpo", "dpo", ["sigmoid", "sft"]),  # type: ignore[arg-type]
        title="dpo: sigmoid and sft",
        groups=2,
    ),
)


def option(title: str, hand: Callable[[], Hand], check: Callable[[], Cell], loss: str = "sigmoid", **options: Any) -> Row:
    return dpo(loss, hand, check, title=f"dpo: {title}", differs_from=SIGMOID, options=options)


def divergence(kind: str, check: Callable[[], Cell], loss: float) -> Row:
    return option(f"f_divergence {kind}", pair(loss), check, f_divergence=kind)


OPTIONS: tuple[Row, ...] = (
    divergence("forward_kl", trl("dpo", "dpo", f_divergence_type="forward_kl"), soft(4 / 9 + 1 / 2)),
    divergence("js_divergence", trl("dpo", "dpo", f_divergence_type="js_divergence"), soft(log(45 / 28))),
    divergence("alpha_divergence", trl("dpo", "dpo", f_divergence_type="alpha_divergence"), soft(2 * sqrt(1.5) - 2 / sqrt(1.8))),
    option(
        "label_smoothing (cDPO)",
        pair(0.9 * soft(D) + 0.1 * soft(-D)),
        checks.without("TRL reads no label_smoothing with sigmoid"),
        label_smoothing=0.1,
    ),
    option("ld_alpha (LD-DPO)", pair(soft(log(1.2 * sqrt(1.5) * 1.5))), trl("dpo", "dpo", ld_alpha=0.4), ld_alpha=0.5),
    option(
        "weighting (WPO)",
        pair(sqrt(0.6 * 0.3 / (0.44 * 0.26)) * 0.2 / 0.28 * soft(D)),
        trl("dpo", "dpo", use_weighting=True),
        weighting=True,
    ),
    option("reference_free", pair(soft(log(0.9))), checks.without("not in TRL 1.16"), reference_free=True),
)


def cpo(name: str, hand: Callable[[], Hand], check: Callable[[], Cell], **options: Any) -> Row:
    title = f"{name}: {options['loss']}" if "loss" in options else name
    return row(title, {"name": name, **options}, hand, check)


def shaped(p: float) -> float:
    """(1 - p^-1/2) / (1/2)."""
    return 2 - 2 / sqrt(p)


ROOT = sqrt(0.18)
"""exp(mean log-prob) of the worked chosen text."""
OTHERS: tuple[Row, ...] = (
    row("orpo", {"name": "orpo", "beta": 1.0}, pair(NLL + soft(log(ROOT / (1 - ROOT) / 0.25))), checks.orpo_by_trl, groups=2),
    cpo("cpo", pair(soft(log(0.9)) + NLL, beta=1.0), plain("cpo", "cpo", "sigmoid")),
    cpo("cpo", pair(1 - 0.5 * log(0.9) + NLL, beta=0.5), plain("cpo", "cpo", "hinge"), loss="hinge"),
    cpo("cpo", pair((log(ROOT / 0.2) - 0.5) ** 2 + NLL, beta=1.0), plain("cpo", "cpo", "ipo"), loss="ipo"),
    cpo("cpo", pair(soft(log(ROOT / 0.2) - 0.5) + NLL, beta=1.0), plain("cpo", "cpo", "simpo"), loss="simpo"),
    cpo("simpo", pair(soft(log(4.5) - 1)), plain("simpo", "cpo", "simpo", cpo_alpha=0.0)),
    cpo("cpo_simpo", pair(soft(log(4.5) - 1) + 0.5 * NLL), plain("cpo_simpo", "cpo", "simpo", cpo_alpha=0.7), cpo_alpha=0.5),
    cpo("alphapo", pair(soft(2 * (shaped(ROOT) - shaped(0.2)) - 1), alpha=0.5), plain("alphapo", "cpo", "alphapo")),
    row(
        "tpo",
        {"name": "tpo", "beta": 1.0},
        lambda: Hand(loss=soft(log(0.9)) + GOLD_NLL, step=TRIPLE),
        plain("tpo", "tpo", "sigmoid"),
        texts=3,
    ),
    row(
        "tpo: hinge",
        {"name": "tpo", "loss": "hinge", "beta": 0.1},
        lambda: Hand(loss=1 - 0.1 * log(0.9) + GOLD_NLL, step=TRIPLE),
        plain("tpo", "tpo", "hinge"),
        texts=3,
    ),
    row(
        "tpo: ipo",
        {"name": "tpo", "loss": "ipo", "beta": 0.5},
        lambda: Hand(loss=(log(ROOT / 0.2) - 1) ** 2 + GOLD_NLL, step=TRIPLE),
        plain("tpo", "tpo", "ipo"),
        texts=3,
    ),
    row(
        "tpo: tpo_l",
        {"name": "tpo", "loss": "tpo_l", "beta": 1.0},
        lambda: Hand(loss=soft(log(ROOT / 0.2) - 0.5) + GOLD_NLL, step=TRIPLE),
        plain("tpo", "tpo", "tpo-l"),
        texts=3,
    ),
    row("kto", {"name": "kto", "beta": 1.0}, checks.kto, plain("kto", "kto", "kto"), groups=2),
    row(
        "kto: apo_zero_unpaired",
        {"name": "kto", "beta": 1.0, "loss": "apo_zero_unpaired"},
        lambda: Hand(loss=(5 / 14 + 2 / 5) / 2, step=[[checks.CHOSEN], [checks.REJECTED]]),
        plain("kto", "kto", "apo_zero_unpaired"),
        texts=1,
        groups=2,
    ),
    row("bco", {"name": "bco", "beta": 1.0}, checks.bco, checks.bco_by_trl, {"name": "bco", "delta": 0.3}, texts=1, groups=2),
)
PREFERENCES: tuple[Row, ...] = (*LOSSES, *OPTIONS, *OTHERS)
