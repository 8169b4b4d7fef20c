"""From the groups of a step to weighted samples: what is trained, against which baseline, over which denominator.

Everything here covers the whole step and is the same on every rank, so each weight is final before the first backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from agentrl.errors import ConfigError
from agentrl.objectives.base import GroupSignals, TokenBatch
from agentrl.records import rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.config import RunConfig
    from agentrl.objectives.base import Objective, ObjectiveConfig
    from agentrl.records import Group, Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One rollout as the learner computes it: next-token prediction over its rows."""

    group: int
    """Place of its group in the step; rollouts of one group may share the start of their rows."""
    rows: tuple[np.ndarray, ...]
    """[length] int32 each: the inputs, up to the token before the last trained one."""
    sources: tuple[np.ndarray, ...]
    """[trained in the row] int64 each: the place in its row of the token before a trained one."""
    targets: np.ndarray
    """[trained] int64: the trained tokens, row after row."""
    sampler_logprobs: np.ndarray
    """[trained] float32 nats."""
    masked: bool
    """Not trained by the user's wish, but part of its group's baseline."""

    @property
    def num_trained(self) -> int:
        """Tokens that a loss could train."""
        return len(self.targets)

    @property
    def num_tokens(self) -> int:
        """Inputs, before shared starts are merged."""
        return sum(map(len, self.rows))


FILLER = Sample(
    group=0,
    rows=(np.zeros(1, dtype=np.int32),),
    sources=(np.zeros(1, dtype=np.int64),),
    targets=np.zeros(1, dtype=np.int64),
    sampler_logprobs=np.zeros(1, dtype=np.float32),
    masked=False,
)
"""The least that a forward pass takes, for a rank that has nothing left while others go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighted:
    """A sample with its share in the step's loss."""

    sample: Sample
    advantage: float
    token_weight: float
    """Factor of each token's loss, its denominator over the whole step included."""
    rollout_weight: float
    """Factor of the rollout's loss, where the objective returns one a rollout."""
    reference_logprobs: np.ndarray | None
    """[trained] float32 nats under the reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """All of a step that is to be computed, and its denominators."""

    active: tuple[Weighted, ...]
    num_rollouts: int
    """Rollouts with a token that the loss counts, computed or not."""
    num_tokens: int
    """Tokens that the loss counts, computed or not."""
    counts: dict[str, float]
    """What was left out and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The scorable rollouts of a step, before advantages."""

    rewards: tuple[np.ndarray, ...]
    """[members] float64 a group."""
    members: tuple[tuple[int, ...], ...]
    """For each member of each group the place of its sample, or -1 where it sampled nothing."""
    samples: tuple[Sample, ...]
    counts: dict[str, float]


def candidates(groups: Sequence[Group], config: RunConfig, objective: Objective) -> Candidates:
    """Take the scorable rollouts of groups that are large enough to have a signal.

    Raises `ConfigError` where the sampler drew from another distribution than the learner scores.
    """
    rewards: list[np.ndarray] = []
    members: list[tuple[int, ...]] = []
    samples: list[Sample] = []
    counts = {"mask/unscorable": 0.0, "mask/small_group": 0.0, "mask/truncated": 0.0}
    for group in groups:
        scorable = [(rollout, score) for rollout, score in zip(group.rollouts, group.scores, strict=True) if score is not None]
        counts["mask/unscorable"] += len(group.rollouts) - len(scorable)
        if len(scorable) < objective.min_group_size:
            counts["mask/small_group"] += len(scorable)
            continue
        places = []
        for rollout, _ in scorable:
            _check_contracts(rollout, config.sampling.temperature)
            masked = config.learner.mask_truncated and rollout.ending == "truncated"
            counts["mask/truncated"] += masked
            sample = _sample(rollout, len(rewards), masked=masked)
            places.append(len(samples) if sample else -1)
            samples += [sample] if sample else []
        rewards.append(np.array([score for _, score in scorable], dtype=np.float64))
        members.append(tuple(places))
    return Candidates(rewards=tuple(rewards), members=tuple(members), samples=tuple(samples), counts=counts)


def _check_contracts(rollout: Rollout, temperature: float) -> None:
    for turn in rollout.turns:
        contract = turn.contract
        if contract.truncated or contract.temperature != temperature:
            raise ConfigError(
                f"task {rollout.task.id} was sampled at temperature={contract.temperature}, top_p={contract.top_p}, "
                f"top_k={contract.top_k}, min_p={contract.min_p}, but the learner scores the whole distribution at "
                f"temperature={temperature}; sample as the run file says"
            )


def _sample(rollout: Rollout, group: int, *, masked: bool) -> Sample | None:
    """None where nothing was sampled."""
    rows, sources, targets, logprobs = [], [], [], []
    for row in rows_of(rollout):
        trained = np.flatnonzero(row.trained)
        if not len(trained):
            continue
        if trained[0] == 0:
            raise ValueError(f"rollout {rollout.member} of task {rollout.task.id} samples its first token; a row must begin with a prompt")
        rows.append(row.ids[: trained[-1]])
        sources.append(trained - 1)
        targets.append(row.ids[trained].astype(np.int64))
        logprobs.append(row.sampler_logprobs[trained])
    if not rows:
        return None
    return Sample(
        group=group,
        rows=tuple(rows),
        sources=tuple(sources),
        targets=np.concatenate(targets),
        sampler_logprobs=np.concatenate(logprobs),
        masked=masked,
    )


def weigh(
    found: Candidates,
    reference_logprobs: Sequence[np.ndarray] | None,
    config: RunConfig,
    objective: Objective,
    options: ObjectiveConfig,
) -> Step:
    """Advantages over the whole step, then the weight of every sample that can have a gradient.

    Args:
        found: the scorable rollouts.
        reference_logprobs: [trained] for each sample, where the objective needs a reference.
        config: `sampling.max_tokens` is the constant normalization's length.
        objective: says the advantages, the normalization, and whether a zero advantage makes the loss zero.
        options: the objective's own.
    """
    advantages = _advantages(found, reference_logprobs, objective, options)
    counted = [index for index, sample in enumerate(found.samples) if not sample.masked]
    num_tokens = sum(found.samples[index].num_trained for index in counted)
    normalization = objective.normalization(options)
    skips_zero = objective.zero_advantage_is_zero_loss(options)
    active = []
    for index in counted:
        sample, advantage = found.samples[index], advantages[index]
        if skips_zero and advantage == 0.0:
            continue
        token_weight, rollout_weight = {
            "sequence_mean": (1.0 / (len(counted) * sample.num_trained), 1.0 / len(counted)),
            "token_mean": (1.0 / num_tokens, 1.0 / num_tokens),
            "constant": (1.0 / (len(counted) * config.sampling.max_tokens),) * 2,
        }[normalization]
        active.append(
            Weighted(
                sample=sample,
                advantage=advantage,
                token_weight=token_weight,
                rollout_weight=rollout_weight,
                reference_logprobs=reference_logprobs[index] if reference_logprobs is not None else None,
            )
        )
    counts = found.counts | {"learner/zero_advantage": float(sum(advantages[index] == 0.0 for index in counted))}
    return Step(active=tuple(active), num_rollouts=len(counted), num_tokens=num_tokens, counts=counts)


def _advantages(
    found: Candidates, reference_logprobs: Sequence[np.ndarray] | None, objective: Objective, options: ObjectiveConfig
) -> np.ndarray:
    """[samples] float64."""
    gaps = None
    if reference_logprobs is not None:
        pairs = zip(found.samples, reference_logprobs, strict=True)
        sums = [np.sum(sample.sampler_logprobs - reference, dtype=np.float64) for sample, reference in pairs]
        gaps = np.array([*sums, 0.0])  # the last for place -1: nothing sampled, nothing lost
    signals = [
        GroupSignals(rewards=rewards, reference_kl=None if gaps is None else gaps[list(places)])
        for rewards, places in zip(found.rewards, found.members, strict=True)
    ]
    result = np.zeros(len(found.samples))
    for places, values in zip(found.members, objective.advantages(signals, options), strict=True):
        for place, value in zip(places, values, strict=True):
            if place >= 0:
                result[place] = value
    return result


def token_batch(active: Sequence[Weighted], logprobs: torch.Tensor) -> tuple[TokenBatch, dict[str, torch.Tensor]]:
    """What the objective sees of a micro-batch, and the weights of a loss for each `token` or each `rollout`."""
    device, dtype = logprobs.device, logprobs.dtype

    def column(values: Sequence[float] | np.ndarray) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values), dtype=dtype).to(device)

    lengths = [item.sample.num_trained for item in active]
    rollout = torch.from_numpy(np.repeat(np.arange(len(active)), lengths)).to(device)
    advantages = column([item.advantage for item in active])
    references = [item.reference_logprobs for item in active if item.reference_logprobs is not None]
    batch = TokenBatch(
        logprobs=logprobs,
        sampler_logprobs=column(np.concatenate([item.sample.sampler_logprobs for item in active])),
        advantages=advantages[rollout],
        rollout=rollout,
        num_rollouts=len(active),
        rollout_advantages=advantages,
        reference_logprobs=column(np.concatenate(references)) if references else None,
    )
    token_weights, rollout_weights = column([item.token_weight for item in active]), column([item.rollout_weight for item in active])
    return batch, {"token": token_weights[rollout], "rollout": rollout_weights}
