"""The report's rows of policies that teach themselves.

Worked by hand: rollout A with the tokens A1 and A2 of probabilities 0.60 and 0.30 under the policy, 0.50 and 0.40 under the sampler, and
0.75 and 0.20 under the teacher; rollout B with one token of 0.20, 0.28 and 0.35, whose teacher has nothing to see.
"""

from __future__ import annotations

import json
from functools import cache
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from report_cells import Cell, gap, reason, verdict
from report_differences import BOUND, STENCIL, H
from report_texts import TextRow

from agentrl.learner.batch import parts_of, token_batch
from agentrl.learner.divergence import divergence
from agentrl.learner.logprobs import Head
from agentrl.learner.loss import weighted
from agentrl.learner.model import Scores
from agentrl.learner.projection import Projection
from agentrl.learner.samples import TAUGHT, Candidates, Member, Sample
from agentrl.learner.signals import TEACHER, signals_of
from agentrl.learner.top_tokens import TopTokens, bucketed, chosen_logprobs, top_tokens
from agentrl.objectives import get, validate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Options = dict[str, Any]
Rows = list[torch.Tensor]


def step_loss(
    options: Mapping[str, Any],
    now: Rows,
    *,
    sampler: Sequence[Sequence[float]],
    rewards: Sequence[Sequence[float]],
    taught: Sequence[float],
    teacher: Rows | None = None,
    apart: Rows | None = None,
    texts: Sequence[str] = (),
) -> torch.Tensor:
    """agentrl's loss of some rollouts, from what the models say of their tokens.

    Args:
        options: of the objective.
        now: [tokens] log-probs of each rollout under the policy, with gradient.
        sampler: the same under the sampler.
        rewards: of each group's rollouts.
        taught: 1 for each rollout whose teacher had something to see.
        teacher: [tokens] log-probs of each rollout under the teacher.
        apart: [tokens] divergence of each rollout.
        texts: what each rollout says.
    """
    objective, config = get(options["name"]), validate(options)
    needs = objective.needs(config)
    samples, members, place = [], [], 0
    for group, given in enumerate(rewards):
        found = []
        for member in range(len(given)):
            count = len(now[place])
            columns = {TAUGHT: np.full(count, taught[place])}
            columns |= {} if teacher is None else {TEACHER: teacher[place].detach().numpy()}
            samples.append(
                Sample(
                    group=group,
                    rows=(np.zeros(count, dtype=np.int32),),
                    sources=(np.arange(count),),
                    targets=np.zeros(count, dtype=np.int64),
                    sampler_logprobs=np.array(sampler[place]),
                    masked=False,
                    turn=np.zeros(count, dtype=np.int32),
                    version_steps=np.zeros(count, dtype=np.int32),
                    columns=columns,
                )
            )
            said = texts[place] if texts else ""
            found.append(Member(place=place, member=member, rival=False, truncated=False, parts={}, turn_rewards=np.zeros(1), text=said))
            place += 1
        members.append(tuple(found))
    candidates = Candidates(
        rewards=tuple(np.array(given, dtype=np.float64) for given in rewards),
        members=tuple(members),
        preferences=tuple({} for _ in rewards),
        sizes=tuple(map(len, rewards)),
        samples=tuple(samples),
        counts={},
    )
    signals = signals_of(candidates, [dict(one.columns) for one in samples], objective, config, needs, seed=(0, 0))
    (part,) = parts_of(
        samples,
        signals,
        needs,
        normalization=objective.normalization(config),
        max_tokens=1,
        skips_zero=objective.zero_advantage_is_zero_loss(config),
        seed=(0, 0),
    )
    kept = [one.place for one in signals.credited]
    logprobs = torch.cat([now[place] for place in kept])
    distance = None if apart is None else torch.cat([apart[place] for place in kept])
    batch, weights = token_batch(part.active, part, Scores(logprobs, torch.zeros_like(logprobs), divergence=distance), step=0)
    losses = objective.loss(batch, config)
    total = (losses.loss * weights[losses.per]).sum()
    for term in losses.terms.values():
        total = total + weighted(term, weights)
    return total


NOW = ([log(0.6), log(0.3)], [log(0.2)])
SAMPLER = ([log(0.5), log(0.4)], [log(0.28)])
SAID = ([log(0.75), log(0.2)], [log(0.35)])
APART = ([0.12, 0.08], [0.05])


def by_hand(options: Options, loss: float, slopes: Sequence[float], *, taught: Sequence[float] = (1, 0), texts: Sequence[str] = ()) -> Cell:
    """The loss, and its slopes in the log-probs and then in the divergences."""
    now, apart = ([torch.tensor(row, dtype=torch.float64, requires_grad=True) for row in rows] for rows in (NOW, APART))
    said = [torch.tensor(row, dtype=torch.float64) for row in SAID]
    found = step_loss(options, now, sampler=SAMPLER, rewards=[[1.0, 0.0]], taught=taught, teacher=said, apart=apart, texts=texts)
    grads = torch.autograd.grad(found, [*now, *apart], allow_unused=True)
    flat = [
        0.0 if grad is None else value for row, grad in zip([*now, *apart], grads, strict=True) for value in (row if grad is None else grad)
    ]
    return verdict([gap(found.item(), loss), gap([float(value) for value in flat], slopes)], note="slopes as well as the loss")


def sdft_by_hand() -> Cell:
    # r of A1 is 1.2, below the bound of 2; r of A2 is 0.75. B's teacher has nothing to see: it counts in the mean of two rollouts, with 0.
    return by_hand({"name": "sdft", "estimate": "full"}, (1.2 * 0.12 + 0.75 * 0.08) / 2 / 2, [0, 0, 0, 1.2 / 4, 0.75 / 4, 0])


def sdpo_by_hand() -> Cell:
    # Sampled: r sg(log S - log T) log S of A's tokens, weight 0.4. GRPO: advantages +-a, where a1 r is 1.2 at the clip, a2 r 0.75, b r 5/7
    # below the clip of 0.8, where what is bad is held: its slope is 0.
    a = 0.5 / (0.5**0.5 + 1e-4)
    gaps = (log(0.6 / 0.75), log(0.3 / 0.2))
    policy = ((-1.2 * a - 0.75 * a) / 2 + 0.8 * a) / 2
    distilled = (1.2 * gaps[0] * log(0.6) + 0.75 * gaps[1] * log(0.3)) / 2 / 2
    slopes = [-0.6 * 1.2 * a / 4 + 0.4 * 1.2 * gaps[0] / 4, -0.6 * 0.75 * a / 4 + 0.4 * 0.75 * gaps[1] / 4, 0.0, 0, 0, 0]
    return by_hand({"name": "sdpo", "weight": 0.4}, 0.6 * policy + 0.4 * distilled, slopes)


def ssd_by_hand() -> Cell:
    # B says too little and is left out; A's two tokens are the mean.
    loss = -(log(0.6) + log(0.3)) / 2
    return by_hand({"name": "ssd"}, loss, [-0.5, -0.5, 0, 0, 0, 0], texts=("a sentence of its own", " yes "))


@cache
def stored() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "trl_self.json").read_text())


def identity(rows: torch.Tensor) -> Projection:
    """A head that makes logits of themselves."""
    return Projection(hidden=rows, weight=torch.eye(rows.shape[1], dtype=rows.dtype), bias=None, head=Head())


def tables(name: str) -> Rows:
    return [torch.tensor(rows, dtype=torch.float64, requires_grad=name == "logits") for rows in stored()["inputs"][name]]


def from_tables(options: Options, leaves: Rows, taught: Sequence[float], rewards: Sequence[Sequence[float]]) -> torch.Tensor:
    """agentrl's loss of TRL's eight rollouts, with the tables and the learner's kernels in front of it."""
    ids = stored()["inputs"]["ids"]
    now = [leaf.log_softmax(-1)[range(len(row)), row] for leaf, row in zip(leaves, ids, strict=True)]
    said = [leaf.log_softmax(-1)[range(len(row)), row] for leaf, row in zip(tables("teacher"), ids, strict=True)]
    config: Any = validate(options)
    apart = None
    if config.estimate != "sampled":
        apart = [distance(identity(own), identity(other), config) for own, other in zip(leaves, tables("teacher"), strict=True)]
    sampler = stored()["inputs"]["sampler"]
    return step_loss(options, now, sampler=sampler, rewards=rewards, taught=taught, teacher=said, apart=apart)


def distance(own: Projection, other: Projection, config: Any) -> torch.Tensor:
    """[tokens] as the learner takes it of the student's likeliest tokens."""
    if config.estimate == "full":
        return divergence(own, other, beta=config.alpha)
    with torch.no_grad():
        ids = top_tokens(own, config.top_k).ids
        top = TopTokens(ids=ids, logprobs=chosen_logprobs(other, ids))
    return bucketed(chosen_logprobs(own, ids), top.logprobs, beta=config.alpha, tail=config.tail)


ESTIMATES = {"full_logits": "full", "topk_logits": "top_k", "sampled_token": "sampled"}


def options_of(name: str, case: Mapping[str, Any]) -> Options:
    found: Options = {"name": name, "estimate": ESTIMATES[case["mode"]], "alpha": case["alpha"], "is_clip": case["clip"]}
    found |= {"top_k": case["topk"], "tail": case["tail"]} if case["topk"] else {"top_k": None}
    return found | ({"skip_tokens": case["skip"]} if name == "sdft" else {"weight": case["weight"], "scale_rewards": "none"})


def against_trl(name: str) -> Cell:
    gaps = []
    for entry in stored()[name]:
        leaves = tables("logits")
        advantages = stored()["inputs"]["advantages"]
        taught = stored()["taught"] if name == "sdpo" else [1.0] * len(advantages)
        # each rollout is a group of its own, compared with nothing: its reward is the advantage that TRL is given
        options = options_of(name, entry["case"]) | ({"baseline": "none"} if name == "sdpo" else {})
        loss = from_tables(options, leaves, taught, [[one] for one in advantages])
        found = np.concatenate([slope.numpy().ravel() for slope in torch.autograd.grad(loss, leaves)])
        gaps += [gap(loss.item(), entry["loss"]), gap(found, np.concatenate([np.ravel(rows) for rows in entry["gradient"]]))]
    return verdict(gaps, note=f"{len(stored()[name])} batches")


def differenced(name: str, cases: Sequence[Options]) -> Cell:
    """Of the loss in the student's logits, through the kernel; the weights policy / sampler are under a stop-gradient, and so 1 here."""
    gaps = []
    ids = stored()["inputs"]["ids"][:4]
    for options in cases:
        start = [leaf.detach() for leaf in tables("logits")[:4]]
        other = tables("teacher")[:4]
        config: Any = validate({"name": name, **options})

        def value(leaves: Rows, config: Any = config, options: Options = options, other: Rows = other) -> torch.Tensor:
            now = [leaf.log_softmax(-1)[range(len(row)), row] for leaf, row in zip(leaves, ids, strict=True)]
            apart = [distance(identity(own), identity(one), config) for own, one in zip(leaves, other, strict=True)]
            given = stored()["inputs"]["sampler"][:4]
            return step_loss(
                {"name": name, **options}, now, sampler=given, rewards=[[1.0, 0.0], [0.5, 0.25]], taught=[1, 0, 1, 1], apart=apart
            )

        leaves = [leaf.clone().requires_grad_() for leaf in start]
        exact = torch.autograd.grad(value(leaves), leaves)
        for which, leaf in enumerate(start):
            rough = np.zeros(leaf.shape)
            for place in np.ndindex(*leaf.shape):
                for size, factor in STENCIL:
                    moved = [one.clone() for one in start]
                    moved[which][place] += size * H
                    rough[place] += factor * value(moved).item() / (12 * H)
            gaps.append(gap(exact[which].numpy(), rough))
    return verdict(gaps, bound=BOUND, note="in the logits, through the kernel")


def ssd_differences() -> Cell:
    start = torch.tensor([log(0.6), log(0.3), log(0.2)], dtype=torch.float64)

    def value(leaf: torch.Tensor) -> torch.Tensor:
        rows = list(leaf.split([2, 1]))
        return step_loss({"name": "ssd", "filter_empty": False}, rows, sampler=SAMPLER, rewards=[[1.0, 0.0]], taught=(1, 1))

    leaf = start.clone().requires_grad_()
    (exact,) = torch.autograd.grad(value(leaf), leaf)
    rough = np.zeros(3)
    for place in range(3):
        for size, factor in STENCIL:
            moved = start.clone()
            moved[place] += size * H
            rough[place] += factor * value(moved).item() / (12 * H)
    return verdict([gap(exact.numpy(), rough)], bound=BOUND)


class OwnRow(TextRow):
    """A row of an objective over rollouts that the report's worlds do not hold."""

    def enumeration(self) -> Cell:
        """None."""
        return reason("what a teacher sees is no part of the enumerated worlds")


SECTION = "Distillation from oneself"
OWN: tuple[TextRow, ...] = (
    OwnRow(
        title="sdft",
        options={"name": "sdft", "top_k": 7},
        hand=sdft_by_hand,
        differences=lambda: differenced(
            "sdft",
            [
                {"estimate": "full", "alpha": 0.3, "is_clip": None},
                {"top_k": 3, "is_clip": None, "skip_tokens": 1},
                {"top_k": 3, "tail": True, "alpha": 1.0, "is_clip": None},
            ],
        ),
        trl=lambda: against_trl("sdft"),
        section=SECTION,
    ),
    OwnRow(
        title="sdpo",
        options={"name": "sdpo", "weight": 0.5},
        learner={"teacher": "base"},
        learner_note="a running mean moves from step to step: the teacher is the base",
        hand=sdpo_by_hand,
        differences=lambda: differenced("sdpo", [{"weight": 0.5, "estimate": "full", "alpha": 0.3, "is_clip": None}]),
        trl=lambda: against_trl("sdpo"),
        section=SECTION,
    ),
    OwnRow(
        title="ssd",
        options={"name": "ssd", "filter_empty": False},
        hand=ssd_by_hand,
        differences=ssd_differences,
        trl=lambda: reason("gone from TRL 1.16; the loss is that of sft"),
        section=SECTION,
    ),
)
