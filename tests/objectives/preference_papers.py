"""Losses of whole steps of pairs and labelled texts by the papers' formulas, as one would write them with all texts at hand.

Nothing here calls agentrl: every step is a list of rows, every row a list of texts, and sorts and means are over all of them. Slopes are
autograd's of these formulas. Used on enumerated completions, on random ones, and behind a model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from report_papers import Slopes
from torch.nn.functional import logsigmoid

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from report_ours import Step

Options = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the models say of one text: [tokens] each."""

    now: torch.Tensor
    reference: torch.Tensor
    collision: torch.Tensor | None = None
    """log sum p^2 of the policy's distributions."""
    good: bool = False
    """The label of a single text."""
    weight: float = 1.0
    """Its row's."""

    @property
    def ratio(self) -> torch.Tensor:
        return (self.now - self.reference).sum()


Rows = list[list[Known]]


def smooth(x: torch.Tensor, e: float) -> torch.Tensor:
    return -(1 - e) * logsigmoid(x) - e * logsigmoid(-x)


def nll(texts: Sequence[Known]) -> torch.Tensor:
    """Mean over all tokens of the texts."""
    return -torch.cat([one.now for one in texts]).mean()


def score(h: torch.Tensor, o: Options) -> torch.Tensor:
    """f'(exp(h)) of the divergence f."""
    kind, a = o.get("f_divergence", "reverse_kl"), o.get("f_alpha", 0.5)
    t = h.exp()
    return {
        "reverse_kl": lambda: t.log(),
        "forward_kl": lambda: 1 - 1 / t,
        "js_divergence": lambda: (2 * t / (1 + t)).log(),
        "alpha_divergence": lambda: (t ** (a - 1) - 1) / (a - 1),
    }[kind]()


def decoupled(values: torch.Tensor, shared: int, alpha: float) -> torch.Tensor:
    """LD-DPO's log-prob: the tokens up to the shorter text's length, and alpha times the rest."""
    return values[:shared].sum() + alpha * values[shared:].sum()


def dpo(o: Options, rows: Rows) -> torch.Tensor:
    """DPO and its relatives; MPO's sum of several."""
    b, e, alpha = o.get("beta", 0.1), o.get("label_smoothing", 0.0), o.get("ld_alpha", 1.0)
    free = o.get("reference_free", False)
    w, lost = [row[0] for row in rows], [row[1] for row in rows]
    shared = [min(len(x.now), len(y.now)) for x, y in zip(w, lost, strict=True)]

    def sums(texts: Sequence[Known], name: str) -> torch.Tensor:
        return torch.stack([decoupled(getattr(x, name), n, alpha) for x, n in zip(texts, shared, strict=True)])

    pw, pl = sums(w, "now"), sums(lost, "now")
    rw, rl = (torch.zeros_like(pw),) * 2 if free else (sums(w, "reference"), sums(lost, "reference"))
    hw, hl = pw - rw, pl - rl
    sw, sl = score(hw, o), score(hl, o)
    lw, ll = (torch.tensor([float(len(x.now)) for x in texts], dtype=torch.float64) for texts in (w, lost))
    d = sw - sl
    per = sw / lw - sl / ll
    sorts = (pw - pl).sort().values - (rw - rl).sort().values, hw.sort().values - hl.sort().values
    gate = (b * d / o.get("discopop_tau", 0.05)).sigmoid()
    losses: dict[str, Callable[[], torch.Tensor]] = {
        "sigmoid": lambda: smooth(b * d, e),
        "hinge": lambda: torch.clamp(1 - b * d, min=0),
        "ipo": lambda: ((d if o.get("ipo_sums") else per) - 1 / (2 * b)) ** 2,
        "exo_pair": lambda: (
            (b * d).sigmoid() * ((b * d).sigmoid().log() - math.log(1 - e)) + (-b * d).sigmoid() * ((-b * d).sigmoid().log() - math.log(e))
        ),
        "nca_pair": lambda: -logsigmoid(b * hw) - 0.5 * logsigmoid(-b * hw) - 0.5 * logsigmoid(-b * hl),
        "bco_pair": lambda: -logsigmoid(b * hw) - logsigmoid(-b * hl),
        "robust": lambda: (-(1 - e) * logsigmoid(b * d) + e * logsigmoid(-b * d)) / (1 - 2 * e),
        "sppo_hard": lambda: (hw - 1 / (2 * b)) ** 2 + (hl + 1 / (2 * b)) ** 2,
        "aot": lambda: smooth(b * sorts[0], e),
        "aot_unpaired": lambda: smooth(b * sorts[1], e),
        "apo_zero": lambda: 1 - (b * hw).sigmoid() + (b * hl).sigmoid(),
        "apo_down": lambda: (b * hw).sigmoid() + 1 - (b * (hw - hl)).sigmoid(),
        "discopop": lambda: -logsigmoid(b * d) * (1 - gate) + (-b * d).exp() * gate,
        "sigmoid_norm": lambda: smooth(b * per, e),
    }
    names = [o.get("loss", "sigmoid")] if isinstance(o.get("loss", "sigmoid"), str) else o["loss"]
    weights = torch.ones_like(hw)
    if o.get("weighting"):
        both = [[(x.now.detach() - x.collision).mean().exp() for x in row[:2]] for row in rows]
        weights = torch.stack([x * y for x, y in both])
    total = hw.sum() * 0.0
    for name, factor in zip(names, o.get("loss_weights") or [1.0] * len(names), strict=True):
        total = total + factor * (nll(w) if name == "sft" else (weights * losses[name]()).mean())
    return total


def kto(o: Options, rows: Rows) -> torch.Tensor:
    """The second text of a row is its mismatched one."""
    b = o.get("beta", 0.1)
    away = [row[1].ratio.detach() for row in rows if len(row) > 1]
    z = torch.stack(away).mean().clamp(min=0) if o.get("loss", "kto") == "kto" and away else 0.0
    losses = [
        o.get("desirable_weight", 1.0) * (1 - (b * (row[0].ratio - z)).sigmoid())
        if row[0].good
        else o.get("undesirable_weight", 1.0) * (1 - (b * (z - row[0].ratio)).sigmoid())
        for row in rows
    ]
    return torch.stack(losses).mean()


def bco(o: Options, rows: Rows) -> torch.Tensor:
    """The shift is what the options say."""
    b, delta = o.get("beta", 0.1), o.get("delta", 0.0)
    return torch.stack([-x.weight * logsigmoid((1 if x.good else -1) * (b * x.ratio - delta)) for (x, *_) in rows]).mean()


def orpo(o: Options, rows: Rows) -> torch.Tensor:
    def odds(text: Known) -> torch.Tensor:
        p = text.now.mean().exp()
        return (p / (1 - p)).log()

    ratios = torch.stack([logsigmoid(odds(row[0]) - odds(row[1])) for row in rows])
    return nll([row[0] for row in rows]) - o.get("beta", 0.1) * ratios.mean()


def cpo(o: Options, rows: Rows) -> torch.Tensor:
    """CPO, SimPO, CPO-SimPO and AlphaPO."""
    name = o["name"]
    kind = o.get("loss", "sigmoid") if name == "cpo" else "simpo"
    b, e = o.get("beta", 0.1 if name == "cpo" else 2.0), o.get("label_smoothing", 0.0)
    gamma = o.get("gamma", 0.5 if name == "cpo" else 1.0)
    alpha = o.get("alpha", 0.25) if name == "alphapo" else 0.0
    x = _differences(rows, means=kind in ("ipo", "simpo"), alpha=alpha)
    weight = o.get("cpo_alpha", 1.0) if name in ("cpo", "cpo_simpo") else 0.0
    return _of(kind, x, b, gamma, e) + weight * nll([row[0] for row in rows])


def tpo(o: Options, rows: Rows) -> torch.Tensor:
    kind, b, e = o.get("loss", "sigmoid"), o.get("beta", 0.01), o.get("label_smoothing", 0.0)
    x = _differences(rows, means=kind in ("ipo", "tpo_l"), alpha=0.0)
    weight = o.get("tpo_alpha", 1.0)
    return _of(kind, x, b, o.get("gamma", 0.5), e) + (weight * nll([row[2] for row in rows]) if weight else 0.0)


def _differences(rows: Rows, *, means: bool, alpha: float) -> torch.Tensor:
    def reward(text: Known) -> torch.Tensor:
        log = text.now.mean() if means else text.now.sum()
        return (1 - log.exp() ** -alpha) / alpha if alpha else log

    return torch.stack([reward(row[0]) - reward(row[1]) for row in rows])


def _of(kind: str, x: torch.Tensor, b: float, gamma: float, e: float) -> torch.Tensor:
    if kind == "hinge":
        return torch.clamp(1 - b * x, min=0).mean()
    if kind == "ipo":
        return ((x - 1 / (2 * b)) ** 2).mean()
    return smooth(b * (x - (0.0 if kind == "sigmoid" else gamma / b)), e).mean()


FORMULAS: dict[str, Callable[[Options, Rows], torch.Tensor]] = {
    "dpo": dpo,
    "kto": kto,
    "bco": bco,
    "orpo": orpo,
    "cpo": cpo,
    "simpo": cpo,
    "cpo_simpo": cpo,
    "alphapo": cpo,
    "tpo": tpo,
}


def rows_of(step: Step, leaves: Sequence[torch.Tensor]) -> Rows:
    """A step's plays with these log-probs now."""
    left = iter(leaves)
    return [
        [
            Known(
                now=next(left),
                reference=torch.from_numpy(play.reference),
                collision=torch.from_numpy(play.more["collision"]) if "collision" in play.more else None,
                good=play.reward > 0.5,
                weight=play.parts.get("weight", 1.0),
            )
            for play in group
        ]
        for group in step
    ]


def paper(options: Options) -> Callable[[Step, int], Slopes]:
    """A formula with its options, for the report."""

    def slopes(step: Step, max_tokens: int, advantages: Sequence[float] | None = None) -> Slopes:
        plays = [play for group in step for play in group]
        leaves = [torch.tensor(play.now, requires_grad=True) for play in plays]
        loss = FORMULAS[options["name"]](options, rows_of(step, leaves))
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        now = [np.zeros(len(play)) if one is None else one.numpy() for play, one in zip(plays, found, strict=True)]
        blank = [np.zeros(len(play)) for play in plays]
        return Slopes(loss=loss.item(), now=now, entropy=blank, values=blank)

    return slopes
