"""A*-PO, Nash-MD, Online DPO and XPO by their papers' formulas, in plain numpy: nothing here calls agentrl.

Each takes a step and gives its loss and slopes; the second half of a group are rivals, or the other members of the pairs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from report_papers import Slopes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from report_ours import Play, Step

    Whole = Callable[[Step, int, Sequence[float] | None], Slopes]


def _slopes(step: Step, loss: float, by_play: dict[int, float]) -> Slopes:
    """The same slope at each token of a rollout; 0 for rollouts that are not named."""
    plays = [play for group in step for play in group]
    blank = [np.zeros(len(play)) for play in plays]
    return Slopes(loss=loss, now=[np.full(len(play), by_play.get(id(play), 0.0)) for play in plays], entropy=blank, values=blank)


def _pairs(step: Step) -> list[tuple[Play, Play]]:
    """Each member of the first half of a group with its counterpart in the second."""
    return [(group[index], group[index + len(group) // 2]) for group in step for index in range(len(group) // 2)]


def _against_reference(play: Play) -> float:
    """log(policy / reference) of the whole rollout."""
    return float((play.now - play.reference).sum())


def regression(beta1: float = 0.5, beta2: float = 1e-3, *, filtered: bool = True) -> Whole:
    """(beta2 h - (R - V))^2, V = beta1 log mean exp(R / beta1) over the reference's samples: A*-PO, arXiv:2505.20686."""

    def paper(step: Step, max_tokens: int, advantages: Sequence[float] | None = None) -> Slopes:
        errors = []
        for group in step:
            rewards = [play.reward for play in group if play.rival]
            if filtered and max(rewards) <= 0:
                continue
            value = beta1 * math.log(sum(math.exp(reward / beta1) for reward in rewards) / len(rewards))
            errors += [(play, beta2 * _against_reference(play) - (play.reward - value)) for play in group if not play.rival]
        count = max(1, len(errors))
        slopes = {id(play): 2 * error * beta2 / count for play, error in errors}
        return _slopes(step, sum(error**2 for _, error in errors) / count, slopes)

    return paper


def nash(beta: float = 0.1, most: float = 5.0) -> Whole:
    """-(P - 1/2 - beta h) grad log policy, P = sigmoid(R - R') against the rival: Nash-MD, arXiv:2312.00886, sec. 7.

    A rollout of another policy is weighted by its whole ratio, at most `most`.
    """

    def paper(step: Step, max_tokens: int, advantages: Sequence[float] | None = None) -> Slopes:
        pairs, loss, slopes = _pairs(step), 0.0, {}
        for play, rival in pairs:
            chance = 1 / (1 + math.exp(rival.reward - play.reward))
            weight = min(float(np.prod(np.exp(play.now - play.sampler))), most)
            slope = -weight * (chance - 0.5 - beta * _against_reference(play)) / len(pairs)
            loss += slope * float(play.now.sum())
            slopes[id(play)] = slope
        return _slopes(step, loss, slopes)

    return paper


def preference(beta: float = 0.1, kind: str = "sigmoid", alpha: float = 0.0) -> Whole:
    """-log sigmoid(beta D) (DPO, arXiv:2305.18290, eq. 7) or (D - 1 / (2 beta))^2 (IPO, arXiv:2310.12036, eq. 17); ties are left out.

    With alpha, alpha log policy of the reference's own sample beside it: XPO, arXiv:2405.21046, algorithm 1.
    """

    def paper(step: Step, max_tokens: int, advantages: Sequence[float] | None = None) -> Slopes:
        pairs = [(first, second) for first, second in _pairs(step) if first.reward != second.reward]
        loss, slopes = 0.0, {}
        for first, second in pairs:
            chosen, rejected = (first, second) if first.reward > second.reward else (second, first)
            margin = _against_reference(chosen) - _against_reference(rejected)
            if kind == "sigmoid":
                loss += math.log(1 + math.exp(-beta * margin)) / len(pairs)
                slope = -beta / (1 + math.exp(beta * margin)) / len(pairs)
            else:
                loss += (margin - 1 / (2 * beta)) ** 2 / len(pairs)
                slope = 2 * (margin - 1 / (2 * beta)) / len(pairs)
            slopes[id(chosen)], slopes[id(rejected)] = slope, -slope
            loss += alpha * float(second.now.sum()) / len(pairs)
            slopes[id(second)] += alpha / len(pairs)
        return _slopes(step, loss, slopes)

    return paper
