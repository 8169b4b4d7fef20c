"""What the report checks of the objectives over pairs and labelled texts: worked values, differences, and TRL's batches."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from math import exp, log, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import report_trl
from report_cells import Cell, gap, reason, verdict
from report_differences import BOUND, STENCIL, H
from report_hand import PLAY_A, PLAY_B, Hand
from report_ours import Play, Scores, Step, loss_of, prepare, slopes_of

if TYPE_CHECKING:
    from collections.abc import Callable

Options = dict[str, Any]
Entry = dict[str, Any]
SINGLE = 1e-6
"""Bound where TRL computes in float32."""

SUMS_OF_SQUARES = {"A": (0.44, 0.26), "B": (0.28,)}
CHOSEN = dataclasses.replace(PLAY_A, more={"collision": np.log(SUMS_OF_SQUARES["A"])})
REJECTED = dataclasses.replace(PLAY_B, more={"collision": np.log(SUMS_OF_SQUARES["B"])})
PAIR: Step = [[CHOSEN, REJECTED]]
"""Rollout A of `report_hand` is chosen, B is rejected: h_w = log(1.8), h_l = log(2 / 3), D = log(2.7), log p_w = log(0.18), log p_l =
log(0.2)."""


def one_token(now: float, reference: float) -> Play:
    return dataclasses.replace(REJECTED, now=np.log([now]), reference=np.log([reference]))


GOLD = one_token(0.4, 0.5)
TRIPLE: Step = [[CHOSEN, REJECTED, GOLD]]
LABELLED: Step = [[PLAY_A, PLAY_B], [PLAY_B, PLAY_A]]
"""A is good, B is bad, and each lends the other its completion."""


def soft(x: float) -> float:
    """-log sigmoid(x)."""
    return log(1 + exp(-x))


def pair(loss: float, *, also: tuple[Hand, ...] = (), **options: Any) -> Callable[[], Hand]:
    return lambda: Hand(loss=loss, step=PAIR, options=options, also=also)


def aot() -> Hand:
    # log p_w - log p_l: log 0.9 and log 2.5; of the reference log(1 / 3) and log(1 / 6), whose ranks are the other way round.
    loss = (soft(log(0.9 * 6)) + soft(log(2.5 * 3))) / 2
    return Hand(loss=loss, step=[[CHOSEN, REJECTED], [one_token(0.5, 0.05), one_token(0.2, 0.3)]])


def aot_unpaired() -> Hand:
    # h_w: log 1.8 and log 1.25; h_l: log(2 / 3) and log 2: the chosen text of each pair is compared with the other's rejected one.
    loss = (soft(log(1.8 / 2)) + soft(log(1.25 * 1.5))) / 2
    of_first, of_second = 1 / 1.9 / 2, 1 / 2.875 / 2
    slopes = (-of_first, -of_first, of_second, -of_second, of_first)
    return Hand(loss=loss, slopes=slopes, step=[[CHOSEN, REJECTED], [one_token(0.5, 0.4), one_token(0.2, 0.1)]])


def kto() -> Hand:
    # z = (log 1.8 + log(2 / 3)) / 2 = log(1.2) / 2. With worse policies on both, z would be below 0 and is 0.
    root = sqrt(1.2)
    loss = (root / (1.8 + root) + (2 / 3) / (2 / 3 + root)) / 2
    down = [[PLAY_B, PLAY_B], [PLAY_B, PLAY_B]]
    return Hand(loss=loss, step=LABELLED, also=(Hand(loss=2 / 5, step=down),))


def bco() -> Hand:
    # r - delta: log(1.8 / 1.2) of A and log(2 / 3 / 1.2) = log(5 / 9) of B.
    step: Step = [[PLAY_A], [PLAY_B]]
    heavy: Step = [[PLAY_A], [dataclasses.replace(PLAY_B, parts={"weight": 3.0})]]
    good, bad, delta = -log(0.6), log(14 / 9), {"delta": log(1.2)}
    weighed = Hand(loss=(good + 3 * bad) / 2, step=heavy, options=delta)
    return Hand(loss=(good + bad) / 2, step=step, options=delta, also=(weighed,))


# TRL


@cache
def stored() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "trl_preferences.json").read_text())


RENAMED = {
    "loss_type": "loss",
    "f_divergence_type": "f_divergence",
    "f_alpha_divergence_coef": "f_alpha",
    "use_weighting": "weighting",
    "simpo_gamma": "gamma",
    "tpo_l_gamma": "gamma",
}
SHAPED = ("f_divergence_type", "ld_alpha", "use_weighting")
"""Options of DPO that have rows of their own."""


def translated(entry: Entry, name: str) -> Options:
    """TRL's options under our names, for the objective of that name."""
    options = {RENAMED.get(key, key): value for key, value in entry["case"].items() if key != "reference_shift"}
    if options.get("loss") == "tpo-l":
        options["loss"] = "tpo_l"
    if name in ("simpo", "cpo_simpo", "alphapo"):
        options.pop("loss")
        if name != "cpo_simpo":
            options.pop("cpo_alpha")
    return {"name": name, **options}


def step_of(entry: Entry) -> Step:
    """TRL's rollouts as rows of the objective: two or three texts a row, or a text and the mismatched one of the row before."""
    shift = entry["case"].get("reference_shift", 0.0)
    plays = [
        dataclasses.replace(play, reference=play.reference + shift, more=columns)
        for play, columns in zip(report_trl.plays(), more_columns(), strict=True)
    ]
    if entry["kind"] == "tpo":
        size = 3 if entry["case"].get("tpo_alpha") != 0.0 else 2
        return [plays[:3][:size], plays[3:6][:size]]
    if entry["kind"] in ("kto", "bco"):
        own = [dataclasses.replace(play, reward=float(label)) for play, label in zip(plays, stored()["labels"], strict=True)]
        return [[play, plays[place - 1]] for place, play in enumerate(own)] if entry["kind"] == "kto" else [[play] for play in own]
    return report_trl.grouped(plays, 2)


def more_columns() -> list[dict[str, np.ndarray]]:
    """What the table of logits says beside log-probs."""
    inputs = report_trl.stored()["inputs"]
    found = []
    for ids, table in zip(inputs["ids"], inputs["logits"], strict=True):
        logits = np.array(table)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        correct = logits.argmax(1) == np.array(ids)
        found.append({"collision": np.log((p**2).sum(1)), "mean_logits": logits.mean(1), "correct": correct})
    return found


def table_gaps(entry: Entry, options: Options, *, factors: Options | None = None, plus: float = 0.0) -> list[float]:
    """Relative errors of loss and gradient in the table of logits; `factors` are of terms by name, for what TRL divides otherwise."""
    step = step_of(entry)
    rows = _rows(entry, step)
    scores, tables = report_trl.table_scores(range(len(report_trl.stored()["inputs"]["ids"])))
    picked = Scores(
        now=[scores.now[row] for row in rows], entropy=[scores.entropy[row] for row in rows], values=[scores.values[row] for row in rows]
    )
    loss = loss_of(prepare(options, step), picked, factors=factors)
    found = np.concatenate([slope.ravel() for slope in slopes_of(loss, tables)])
    expected = np.concatenate([np.ravel(table) for table in entry["gradient"]])
    return [gap(loss.item() + plus, entry["loss"]), gap(found, expected)]


def _rows(entry: Entry, step: Step) -> list[int]:
    """Which of TRL's rollouts each play of the step is."""
    if entry["kind"] == "tpo":
        return [3 * row + text for row in range(2) for text in range(len(step[0]))]
    if entry["kind"] == "kto":
        return [place for row in range(len(step)) for place in (row, (row - 1) % len(step))]
    return list(range(len(report_trl.plays())))


def entries(kind: str, **case: Any) -> list[Entry]:
    """Entries whose case says this; None: does not say."""
    found = [
        entry
        for entry in stored()["preferences"]
        if entry["kind"] == kind and all(entry["case"].get(key) == value for key, value in case.items())
    ]
    if not found:
        raise LookupError(f"trl_preferences.json has nothing of {kind} with {case}")
    return found


def trl(name: str, kind: str, note: str = "", **case: Any) -> Callable[[], Cell]:
    """Every such entry's loss and gradient."""

    def cell() -> Cell:
        found = entries(kind, **case)
        single = any(entry.get("single") for entry in found)
        gaps = [error for entry in found for error in table_gaps(entry, translated(entry, name))]
        said = ", ".join(filter(None, [report_trl.batches(found), note, "float32" if single else ""]))
        return verdict(gaps, bound=SINGLE, note=said) if single else verdict(gaps, note=said)

    return cell


def plain(name: str, kind: str, loss: str, **case: Any) -> Callable[[], Cell]:
    """Those of one loss without options that have rows of their own."""
    return trl(name, kind, loss_type=loss, **dict.fromkeys(SHAPED), **case)


def without(note: str) -> Callable[[], Cell]:
    """Nothing to compare with."""
    return lambda: reason(note)


def orpo_by_trl() -> Cell:
    """TRL's likelihood is a mean over prompts too: one token more a row, of a constant log-prob here."""
    found = entries("orpo")
    lengths = [len(row) for row in report_trl.stored()["inputs"]["ids"][::2]]
    share = sum(lengths) / (sum(lengths) + len(lengths))
    prompts = log(7) * len(lengths) / (sum(lengths) + len(lengths))
    gaps = [error for entry in found for error in table_gaps(entry, translated(entry, "orpo"), factors={"nll": share}, plus=prompts)]
    return verdict(gaps, bound=SINGLE, note=f"differs: it trains prompts too; ours with that divisor, {report_trl.batches(found)}, float32")


def bco_by_trl() -> Cell:
    """TRL 1.13 takes a batch into the running mean before its loss: the same loss where ours is given that mean."""
    gaps: list[float] = []
    for entry in (entry for entry in stored()["removed"] if not entry["case"].get("weighed")):
        for one in entry["steps"]:
            options = {"name": "bco", "beta": entry["case"]["beta"], "delta": one["metrics"]["delta"]}
            gaps += table_gaps(entry | {"loss": one["loss"], "gradient": one["gradient"]}, options)
    return verdict(gaps, note=f"TRL {stored()['removed'][0]['trl']}; differs: its delta has the step's own texts in it, ours earlier ones")


# Differences


def random_rows(seed: int, *, texts: int = 2, rows: int = 4) -> Step:
    """Ragged texts with labels, off the reference."""
    draw = np.random.default_rng(seed)

    def text(row: int) -> Play:
        length = int(draw.integers(1, 5))
        now = -draw.uniform(0.2, 3.0, length)
        more = {"collision": -draw.uniform(0.1, 2.0, length)}
        return Play(now=now, sampler=now, reference=now + draw.normal(0, 0.4, length), reward=float(row % 2), more=more)

    return [[text(row) for _ in range(texts)] for row in range(rows)]


def differenced(texts: int, *, again: bool = False, note: str = "") -> Callable[[Options], Cell]:
    """The gradient of a step of random rows against differences of its loss.

    With `again`, the signal is made anew for each difference: the ranks of a step follow its log-probs. Otherwise what it said stays, and
    so does what a weight without a gradient is made of.
    """

    def cell(options: Options) -> Cell:
        step = random_rows(3, texts=texts)
        prepared, scores = prepare(options, step), Scores.of(step)
        exact = slopes_of(loss_of(prepared, scores), scores.now)
        rough = [np.zeros(len(one)) for one in exact]
        plays = [play for row in step for play in row]
        for which, play in enumerate(plays):
            for place in range(len(play)):
                for steps, weight in STENCIL:
                    change = np.zeros(len(play))
                    change[place] = steps * H
                    rough[which][place] += weight * _moved(options, step, which, change, again=again) / (12 * H)
        return verdict([gap(np.concatenate(exact), np.concatenate(rough))], bound=BOUND, note=note)

    return cell


def _moved(options: Options, step: Step, which: int, change: np.ndarray, *, again: bool) -> float:
    """The loss with the log-probs of one text moved."""
    flat = [play for row in step for play in row]
    play = flat[which]
    more = {"collision": play.more["collision"] + change}  # a weight of policy / collision stays
    flat[which] = dataclasses.replace(play, now=play.now + change, more=more)
    size = len(step[0])
    moved = [flat[start : start + size] for start in range(0, len(flat), size)]
    held = [[dataclasses.replace(one, start=old.now) for one, old in zip(*rows, strict=True)] for rows in zip(moved, step, strict=True)]
    known = moved if again else held
    return float(loss_of(prepare(options, known), Scores.of(moved)).detach())
