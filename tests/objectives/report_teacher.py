"""What the report checks of distillation from a teacher: papers' formulas, exact statements, values by hand, and TRL's.

Papers, statements and values by hand do not call agentrl but for what is checked.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import cache
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import report_claims as claims
import report_enumeration as world
import report_hand as hand
import report_papers as papers
import torch
from report_cells import Cell, gap, verdict
from report_differences import BOUND, STENCIL, H
from report_hand import Hand
from report_ours import Play, Scores, Step, batch_of, loss_of, prepare, slopes_of
from report_texts import FLOAT32, TextRow, texts
from report_texts import prepare as prepare_texts
from report_trl import merged

from agentrl.learner.batch import token_batch
from agentrl.learner.divergence import divergence
from agentrl.learner.logprobs import Head
from agentrl.learner.model import Scores as LearnerScores
from agentrl.learner.projection import Projection
from agentrl.learner.top_tokens import top_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from report_credit import Advantages
    from report_papers import Paper, Slopes

Options = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Taught:
    """A paper's loss, and beside it each token's divergence from the teacher's distribution."""

    paper: Paper

    def __call__(self, step: Step, max_tokens: int, advantages: Sequence[float] | None = None) -> Slopes:
        found, plays = self.paper(step, max_tokens, advantages), [play for group in step for play in group]
        weights = papers.weights_of([len(play) for play in plays], self.paper.reduction, max_tokens)
        loss = found.loss + sum(weight * float(play.divergence.sum()) for play, weight in zip(plays, weights, strict=True))
        slopes = [np.full(len(play), weight) for play, weight in zip(plays, weights, strict=True)]
        return dataclasses.replace(found, loss=loss, divergence=slopes)


def plain_weight(play: Play, a: np.ndarray) -> np.ndarray:
    return np.ones(len(play))


def each(of: Callable[[np.ndarray], np.ndarray]) -> Advantages:
    """A function of log(teacher / sampler) of the tokens of each rollout."""

    def advantages(step: Step) -> list[np.ndarray]:
        return [of(play.teacher - play.sampler) for group in step for play in group]

    return advantages


def nothing(step: Step) -> list[np.ndarray]:
    return [np.zeros(len(play)) for group in step for play in group]


def importance(gamma: float) -> Advantages:
    """w_t a_t, w_t = 1 + gamma (1 - (sum over s < t of |a_s|) / (sum of |a_s|))."""

    def weighted(a: np.ndarray) -> np.ndarray:
        return np.array([(1 + gamma * (1 - np.abs(a[:place]).sum() / np.abs(a).sum())) * a[place] for place in range(len(a))])

    return each(weighted)


def later(gamma: float, *, own: bool, normalized: bool) -> Advantages:
    """MiniLLM, arXiv:2306.08543: sum over s of gamma^(s - t) a_s, from t or t + 1 on, over the sum of the powers where it is normalized."""

    def credited(a: np.ndarray) -> np.ndarray:
        found = []
        for place in range(len(a)):
            powers = np.array([gamma ** (other - place) if other > place or own else 0.0 for other in range(place, len(a))])
            total = float((powers * a[place:]).sum())
            found.append(total if not normalized else total / powers.sum() if powers.sum() > 0 else 0.0)
        return np.array(found)

    return each(credited)


def of_prefixes(options: Options, where: world.World, says: str) -> claims.Claim:
    """The exact gradient of the divergence at the prefixes that the sampler reaches."""

    def error() -> float:
        found = claims.gradient(where, options | {"normalization": "constant"}) * world.LONGEST
        policy, gaps = np.exp(world.logs(where.now)), world.logs(where.now) - world.logs(where.teacher)
        exact = policy * (gaps - (policy * gaps).sum(1, keepdims=True))
        return gap(found, world.visits(where.sampler)[:, None] * exact)

    return claims.Claim(says=says, error=error)


def of_completions(options: Options, says: str) -> claims.Claim:
    """The gradient of KL(policy | teacher) between whole completions, on policy."""

    def error() -> float:
        where = world.ON_POLICY
        found = claims.gradient(where, options | {"normalization": "constant", "length_normalization": False}) * world.LONGEST
        policy, exact = np.exp(world.logs(where.now)), np.zeros((4, 3))
        for one in world.RAGGED:
            rows, tokens = world.contexts(one), list(one)
            worth = (world.logs(where.now) - world.logs(where.teacher))[rows, tokens].sum()
            for row, token in zip(rows, tokens, strict=True):
                exact[row] += world.chance(where.now, one) * worth * (np.eye(3)[token] - policy[row])
        return gap(found, exact)

    return claims.Claim(says=says, error=error)


A1, A2, A3 = log(0.5 / 0.4), log(0.6 / 0.4), log(0.35 / 0.28)
"""log(teacher / sampler) of the tokens of `report_hand`."""
DIVERGENCE = (0.12 + 0.08 + 0.05) / 3
LOGS = (log(0.6), log(0.3), log(0.2))
RATIOS = (hand.R1, hand.R2, hand.R3)


def _gradient(advantages: Sequence[float], weights: Sequence[float]) -> float:
    return -sum(w * a * p for w, a, p in zip(weights, advantages, LOGS, strict=True)) / 3


def opd() -> Hand:
    sampled = Hand(
        loss=_gradient((A1, A2, A3), RATIOS),
        advantages=(A1, A2, A3),
        slopes=tuple(-r * a / 3 for r, a in zip(RATIOS, (A1, A2, A3), strict=True)),
        options={"estimate": "sampled"},
    )
    a = hand.A
    rewarded = Hand(
        loss=DIVERGENCE + 0.5 * _gradient((a, a, -a), (1.25, hand.R2, hand.R3)), options={"reward_coef": 0.5, "ratio_max": 1.25}
    )
    return Hand(loss=DIVERGENCE, advantages=(0.0, 0.0, 0.0), also=(sampled, rewarded))


def minillm() -> Hand:
    # A1 is credited with A2 alone, and clipped at 1.2; nothing comes after A2 and B.
    # Halved by gamma, with themselves: A2's r of 0.75 and B's of 5/7 are below the clip, which only holds back what is bad.
    both = Hand(
        loss=(-1.2 * (A1 + 0.5 * A2) - hand.R2 * A2 - hand.R3 * A3) / 3,
        advantages=(A1 + 0.5 * A2, A2, A3),
        options={"own": True, "gamma": 0.5, "length_normalization": False, "single_step": False},
    )
    mean = Hand(
        loss=(-1.2 * (A1 + 0.5 * A2) / 1.5 - hand.R2 * A2 - hand.R3 * A3) / 3 + DIVERGENCE,
        advantages=((A1 + 0.5 * A2) / 1.5, A2, A3),
        options={"own": True, "gamma": 0.5},
    )
    return Hand(loss=-1.2 * A2 / 3 + DIVERGENCE, advantages=(A2, 0.0, 0.0), also=(both, mean))


def iw_opd() -> Hand:
    # All three disagree in one direction. A1 counts 1.5 times, A2 as much less as A1 is of the rollout's whole, B 1.5 times.
    weights = (1.5, 1 + 0.5 * (1 - A1 / (A1 + A2)), 1.5)
    advantages = tuple(w * a for w, a in zip(weights, (A1, A2, A3), strict=True))
    return Hand(loss=_gradient(advantages, (1.0, 1.0, 1.0)), advantages=advantages)


@cache
def stored() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "trl_distillation.json").read_text())


def tables(name: str) -> list[torch.Tensor]:
    return [torch.tensor(rows, dtype=torch.float64, requires_grad=name == "logits") for rows in stored()["inputs"][name]]


def identity(rows: torch.Tensor, heat: float) -> Projection:
    """A head that makes logits of themselves."""
    return Projection(hidden=rows, weight=torch.eye(rows.shape[1], dtype=rows.dtype), bias=None, head=Head(temperature=heat))


def of_tables(beta: float, heat: float, top_k: int | None = None) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The student's tables, and [tokens] of each row's divergence by the learner's own kernel."""
    leaves, found = tables("logits"), []
    for own, other in zip(leaves, tables("teacher"), strict=True):
        teacher = identity(other, heat)
        found.append(divergence(identity(own, heat), teacher if top_k is None else top_tokens(teacher, top_k), beta=beta))
    return leaves, found


def against(entry: dict[str, Any], loss: torch.Tensor, leaves: Sequence[torch.Tensor]) -> list[float]:
    """Relative errors of loss and gradient in the logits."""
    found = np.concatenate([slope.ravel() for slope in slopes_of(loss, leaves)])
    return [gap(loss.item(), entry["loss"]), gap(found, np.concatenate([np.ravel(rows) for rows in entry["gradient"]]))]


def plays(columns: Sequence[torch.Tensor], *, cached: bool) -> Step:
    """TRL's eight rollouts in groups of four; sampled by the policy itself unless the sampler's log-probs were cached."""
    found = []
    for row, (ids, own, other, spread) in enumerate(
        zip(stored()["inputs"]["ids"], tables("logits"), tables("teacher"), columns, strict=True)
    ):
        now, teacher = (one.detach().log_softmax(-1)[range(len(ids)), ids].numpy() for one in (own, other))
        sampler = np.array(stored()["inputs"]["sampler"][row]) if cached else now
        found.append(Play(now=now, sampler=sampler, teacher=teacher, divergence=spread.detach().numpy(), entropy=np.zeros(len(ids))))
    return [found[:4], found[4:]]


def loss_from_tables(options: Options, leaves: Sequence[torch.Tensor], columns: Sequence[torch.Tensor], *, cached: bool) -> torch.Tensor:
    """agentrl's loss of these rollouts, with the tables in front of it."""
    ids = stored()["inputs"]["ids"]
    now = [leaf.log_softmax(-1)[range(len(row)), row] for leaf, row in zip(leaves, ids, strict=True)]
    blank = [torch.zeros(len(row), dtype=torch.float64) for row in ids]
    prepared = prepare(options, plays(columns, cached=cached))
    return loss_of(prepared, Scores(now=now, entropy=blank, values=blank, divergence=list(columns)))


def trl_opd() -> Cell:
    """DistillationTrainer's loss, and its top-k with a tail as IWOPDTrainer has it."""
    rough: list[float] = []
    gaps: list[float] = []
    for entry in (*stored()["distillation"], *stored()["top_k"]):
        case = entry["case"]
        leaves, columns = of_tables(case["beta"], case["temperature"], case.get("top_k"))
        options: Options = {"name": "opd", "mixture": case["beta"], "temperature": case["temperature"]}
        options |= {"estimate": "top_k", "top_k": case["top_k"]} if "top_k" in case else {}
        found = against(entry, loss_from_tables(options, leaves, columns, cached=False), leaves)
        gaps, rough = (gaps + found, rough) if "top_k" in case else (gaps, rough + found)
    count = len(stored()["top_k"])
    exact = verdict(gaps, note=f"top_k of {count} (at beta above 0 its are the student's)")
    return merged(verdict(rough, bound=FLOAT32, note=f"{len(rough) // 2} batches (float32)"), exact)


def trl_iw_opd() -> Cell:
    gaps = []
    for entry in stored()["iw_opd"]:
        leaves, columns = of_tables(1.0, 1.0)
        options = {"name": "iw_opd", "gamma": entry["case"]["iw_opd_gamma"]}
        cached = entry["case"].get("cached", False)
        gaps += against(entry, loss_from_tables(options, leaves, columns, cached=cached), leaves)
        prepared = prepare(options, plays(columns, cached=cached))
        gaps.append(gap(np.concatenate(prepared.advantages).mean(), entry["metrics"]["iw_opd/mean_advantage"]))
        gaps += metric_gaps(options, columns, entry["metrics"], cached=cached)
    return verdict(gaps, note=f"{len(stored()['iw_opd'])} batches, advantages and metrics too")


def metric_gaps(options: Options, columns: Sequence[torch.Tensor], given: dict[str, float], *, cached: bool) -> list[float]:
    """Relative errors of all metrics that TRL gives."""
    step = plays(columns, cached=cached)
    prepared = prepare(options, step)
    batch, _, _ = batch_of(prepared, Scores.of(step))
    losses = prepared.objective.loss(batch, prepared.config)
    found = {name: float(values.mean()) for name, values in losses.metrics.items()}
    found |= {name: float(values.min()) for name, values in losses.lowest.items()}
    found |= {name: float(values.max()) for name, values in losses.highest.items()}
    return [gap(found[name], value) for name, value in given.items()]


def trl_minillm() -> Cell:
    """Its advantages, and its single step. Without normalization TRL leaves a factor gamma^t in each token's advantage."""
    gaps, faulty = [], []
    for entry in stored()["minillm"]:
        case = entry["case"]
        leaves, columns = of_tables(1.0, 1.0)
        options: Options = {"name": "minillm", "gamma": case["gamma"], "length_normalization": case["length_normalization"], "own": True}
        ours = prepare(options, plays(columns, cached=False)).advantages
        right = [gap(np.concatenate(ours), np.concatenate([np.array(row) for row in entry["advantages"]]))]
        (gaps if case["length_normalization"] or case["gamma"] in (0, 1) else faulty).extend(right)
        single = loss_from_tables(options, leaves, columns, cached=False) - loss_from_tables(
            options | {"single_step": False}, leaves, columns, cached=False
        )
        gaps += against(entry, single, leaves)
    assert not faulty
    return verdict(gaps, note="advantages and single step of TRL 1.12; there gradients run through its advantages")


def gkd_loss(leaf: torch.Tensor, lengths: Sequence[int], options: Options) -> torch.Tensor:
    """agentrl's loss of texts with these divergences at their trained tokens."""
    prepared = prepare_texts({"name": "gkd", **options}, texts(lengths))
    blank = torch.zeros(len(leaf), dtype=torch.float64)
    batch, weights = token_batch(prepared.part.active, prepared.part, LearnerScores(blank, blank, divergence=leaf), step=0)
    losses = prepared.objective.loss(batch, prepared.config)
    return (losses.loss * weights[losses.per]).sum()


def gkd_by_hand() -> Cell:
    """Two words: S = (3/4, 1/4), T = (1/2, 1/2). KL(T | S) = log(2 / sqrt(3)); KL(S | T) = log 2 - H(S); M = (5/8, 3/8) at beta 1/2."""
    student, teacher = torch.tensor([[log(3.0), 0.0]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    forward = log(2) - 0.5 * log(3)
    reverse = log(2) + 0.75 * log(0.75) + 0.25 * log(0.25)
    middle = 0.5 * (0.5 * log(0.5 / 0.625) + 0.5 * log(0.5 / 0.375)) + 0.5 * (0.75 * log(0.75 / 0.625) + 0.25 * log(0.25 / 0.375))
    gaps = []
    for beta, expected in ((0.0, forward), (1.0, reverse), (0.5, middle)):
        leaf = divergence(identity(student, 1.0), identity(teacher, 1.0), beta=beta)
        three = torch.cat([leaf, leaf, 2 * leaf])
        gaps.append(gap(gkd_loss(three, [2, 1], {"beta": beta}).item(), 4 / 3 * expected))
    return verdict(gaps)


def gkd_differences() -> Cell:
    """Of the loss in the student's logits, through the kernel."""
    draw = torch.Generator().manual_seed(2)
    start, teacher = (torch.randn(4, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    gaps = []
    for options in ({"beta": 0.0}, {"beta": 0.3, "temperature": 0.9}, {"beta": 1.0}, {"beta": 0.5, "top_k": 2}):
        heat = options.get("temperature", 1.0)
        other = identity(teacher, heat)
        said = top_tokens(other, 2) if "top_k" in options else other

        def value(logits: torch.Tensor, said: Any = said, heat: float = heat, options: Options = options) -> torch.Tensor:
            return gkd_loss(divergence(identity(logits, heat), said, beta=options["beta"]), [3, 1], options)

        leaf = start.clone().requires_grad_()
        (exact,) = slopes_of(value(leaf), [leaf])
        rough = np.zeros(start.shape)
        for place in np.ndindex(*start.shape):
            for size, weight in STENCIL:
                moved = start.clone()
                moved[place] += size * H
                rough[place] += weight * value(moved).item() / (12 * H)
        gaps.append(gap(exact, rough))
    return verdict(gaps, bound=BOUND, note="in the logits, through the kernel")


def trl_gkd() -> Cell:
    gaps = []
    for entry in stored()["gkd"]:
        beta = entry["case"]["beta"]
        leaves, columns = of_tables(beta, 1.0)
        gaps += against(entry, gkd_loss(torch.cat(columns), [len(one) for one in columns], {"beta": beta}), leaves)
    return verdict(gaps, note=f"{len(stored()['gkd'])} batches; its temperature is of sampling alone, and in ours 1 here")


TAUGHT_TEXTS: tuple[TextRow, ...] = (
    TextRow(
        title="gkd",
        options={"name": "gkd"},
        hand=gkd_by_hand,
        differences=gkd_differences,
        trl=trl_gkd,
        section="Distillation",
    ),
)
