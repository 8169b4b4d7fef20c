"""From the signals of a step to weighted samples: over which denominator each counts, and in which optimizer step.

Everything here covers the whole step and is the same on every rank, so each weight is final before the first backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from agentrl.learner.signals import ENTROPY, REFERENCE, RETURNS, START, TEACHER, VALUES
from agentrl.learner.transfer import on_device
from agentrl.objectives.losses import TokenBatch
from agentrl.teacher_prompt import is_top

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.learner.model import Scores
    from agentrl.learner.samples import Sample
    from agentrl.learner.signals import Credited, Signals
    from agentrl.objectives.losses import Normalization
    from agentrl.objectives.needs import Needs

KNOWN_COLUMNS = frozenset({REFERENCE, START, ENTROPY, VALUES, RETURNS, TEACHER})


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighted:
    """A sample with its share in the loss of one optimizer step."""

    sample: Sample
    credit: Credited
    token_weight: float
    """Factor of each token's loss, its denominator over the whole step included."""
    rollout_weight: float
    """Factor of the rollout's loss, where the objective returns one a rollout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """All that one optimizer step computes, and its denominators."""

    active: tuple[tuple[Weighted, ...], ...]
    """Units: what must be in one micro-batch; pairs are (chosen, rejected)."""
    num_rollouts: int
    """Rollouts with a token that the loss counts, computed or not."""
    num_tokens: int
    """Tokens that the loss counts, computed or not."""
    num_pairs: int
    num_by_role: tuple[int, ...] = ()
    """Tokens that the loss counts of the chosen members of all pairs, of the rejected ones and of the gold ones."""


def parts_of(
    samples: Sequence[Sample],
    signals: Signals,
    needs: Needs,
    *,
    normalization: Normalization,
    max_tokens: int,
    skips_zero: bool,
    seed: tuple[int, ...],
) -> list[Part]:
    """The optimizer steps of a step: one, or `minibatches` for each of `passes` over its units, drawn anew for each pass.

    Args:
        samples: of the whole step.
        signals: which of them count, and how.
        needs: passes and minibatches.
        normalization: how token losses become one number.
        max_tokens: the constant normalization's length.
        skips_zero: whether a sample without an advantage has no gradient and need not be computed.
        seed: of the step.
    """
    units = signals.units
    parts = []
    for number in range(needs.passes):
        order = np.arange(len(units))
        if needs.minibatches > 1:
            order = np.random.default_rng((*seed, number)).permutation(len(units))
        for places in np.array_split(order, min(needs.minibatches, max(1, len(units)))):
            chosen = [units[place] for place in sorted(places.tolist())]
            parts.append(_part(samples, signals.credited, chosen, normalization, max_tokens, skips_zero=skips_zero, pairs=needs.pairs))
    return parts


def _part(
    samples: Sequence[Sample],
    credited: Sequence[Credited],
    units: Sequence[tuple[int, ...]],
    normalization: Normalization,
    max_tokens: int,
    *,
    skips_zero: bool,
    pairs: bool,
) -> Part:
    counted = [credited[index] for unit in units for index in unit]
    num_rollouts = len(counted)
    num_tokens = sum(samples[one.place].num_trained for one in counted)
    active = []
    for unit in units:
        members = []
        for one in (credited[index] for index in unit):
            sample = samples[one.place]
            if skips_zero and one.is_zero:
                continue
            token_weight, rollout_weight = {
                "sequence_mean": (1.0 / (num_rollouts * sample.num_trained), 1.0 / num_rollouts),
                "token_mean": (1.0 / num_tokens, 1.0 / num_tokens),
                "sequence_sum": (1.0 / num_rollouts,) * 2,
                "constant": (1.0 / (num_rollouts * max_tokens),) * 2,
            }[normalization]
            members.append(Weighted(sample=sample, credit=one, token_weight=token_weight, rollout_weight=rollout_weight))
        if members:
            active.append(tuple(members))
    roles = zip(*units, strict=True) if pairs else ()
    return Part(
        active=tuple(active),
        num_rollouts=num_rollouts,
        num_tokens=num_tokens,
        num_pairs=len(units) if pairs else 0,
        num_by_role=tuple(sum(samples[credited[index].place].num_trained for index in role) for role in roles),
    )


def token_batch(
    units: Sequence[Sequence[Weighted]],
    part: Part,
    scores: Scores,
    *,
    step: int,
) -> tuple[TokenBatch, dict[str, torch.Tensor]]:
    """What the objective sees of a micro-batch, and the weights of a loss for each `token`, each `rollout` or each `pair`.

    Args:
        units: of the micro-batch, in the order in which it was packed.
        part: the optimizer step that it belongs to.
        scores: of its forward pass, [tokens] each, with gradient.
        step: optimizer steps done, from which staleness counts.
    """
    device, dtype = scores.logprobs.device, scores.logprobs.dtype
    active = [one for unit in units for one in unit]

    def column(numbers: Sequence[float] | np.ndarray) -> torch.Tensor:
        return on_device(np.asarray(numbers), device).to(dtype)

    def tokens(name: str) -> torch.Tensor | None:
        if name not in active[0].credit.columns:
            return None
        return column(np.concatenate([one.credit.columns[name] for one in active]))

    lengths = [one.sample.num_trained for one in active]
    rollout = on_device(np.repeat(np.arange(len(active)), lengths), device)
    roles = len(units[0]) if part.num_pairs else 0
    members = torch.arange(len(active), device=device).reshape(len(units), roles).unbind(1) if roles else ()
    extra = {name: tokens(name) for name in active[0].credit.columns if name not in KNOWN_COLUMNS and not is_top(name)}
    batch = TokenBatch(
        logprobs=scores.logprobs,
        sampler_logprobs=column(np.concatenate([one.sample.sampler_logprobs for one in active])),
        advantages=column(np.concatenate([one.credit.advantages for one in active])),
        rollout=rollout,
        num_rollouts=len(active),
        rollout_advantages=column([one.credit.advantages[0] for one in active]),
        reference_logprobs=tokens(REFERENCE),
        teacher_logprobs=tokens(TEACHER),
        start_logprobs=tokens(START),
        entropy=scores.entropy,
        values=scores.values,
        start_values=tokens(VALUES),
        returns=tokens(RETURNS),
        staleness=column(step - np.concatenate([one.sample.version_steps for one in active])),
        columns={name: values for name, values in extra.items() if values is not None},
        rival=on_device(np.array([one.credit.rival for one in active]), device),
        chosen=members[0] if roles else None,
        rejected=members[1] if roles else None,
        gold=members[2] if roles > 2 else None,
        correct=scores.correct,
        mean_logits=scores.mean_logits,
        collision=scores.collision,
        uniform_logprobs=scores.uniform_logprobs,
        divergence=scores.divergence,
        outputs=scores.outputs,
        parts={name: column(values) for name, values in _parts(active).items()},
    )
    token_weights, rollout_weights = column([one.token_weight for one in active]), column([one.rollout_weight for one in active])
    weights = {"token": token_weights[rollout], "rollout": rollout_weights}
    if part.num_pairs:
        weights["pair"] = rollout_weights.new_full((len(units),), 1.0 / part.num_pairs)
        for name, role in (("chosen_token", 0), ("gold_token", 2)):
            if role < roles:
                own = (torch.arange(len(active), device=device) % roles == role)[rollout]
                weights[name] = own.to(dtype) / max(1, part.num_by_role[role])
    return batch, weights


def _parts(active: Sequence[Weighted]) -> dict[str, list[float]]:
    """What the rows of a dataset say of each rollout, and what the signal does, NaN where it has none of a name."""
    found = [{**one.sample.parts, **one.credit.parts} for one in active]
    return {name: [own.get(name, np.nan) for own in found] for name in sorted({name for own in found for name in own})}
