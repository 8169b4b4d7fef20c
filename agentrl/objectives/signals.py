"""What a signal function sees of the groups of a step, and the credit that it gives them: numpy alone, before the first backward pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberSignals:
    """What a signal function sees of one rollout. Columns are [trained]; a rollout in which nothing was sampled has empty ones."""

    member: int
    """Index within its group as it was played."""
    rival: bool
    """Sampled by the rival policy, not by the one that is trained."""
    truncated: bool
    turn_rewards: np.ndarray
    """[turns] float64: what the environment gave for each turn alone; part of `rewards`. In the order in which turns ended, also those of
    several branches; turns that are not trained are left out, and what they were given belongs to the one before."""
    turn: np.ndarray
    """Index of the turn that sampled the token, among these."""
    sampler_logprobs: np.ndarray
    text: str = ""
    """What it says, where the objective asks for it: the assistant's messages, one a line."""
    start_logprobs: np.ndarray | None = None
    start_entropy: np.ndarray | None = None
    reference_logprobs: np.ndarray | None = None
    teacher_logprobs: np.ndarray | None = None
    values: np.ndarray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSignals:
    """What a signal function sees of one group; unscorable members are already left out."""

    rewards: np.ndarray
    """[members] float64."""
    reference_kl: np.ndarray | None = None
    """[members] float64: sum over trained tokens of sampler log-prob - reference log-prob, where the objective asks for it."""
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)
    """[members] float64 each: the named parts of the rewards, NaN where a member has none of that name."""
    members: tuple[MemberSignals, ...] = ()
    size: int = 0
    """Members that were played, unscorable ones included."""
    preferences: Mapping[tuple[int, int], float] = field(default_factory=dict)
    """What the judge said, by places of the two members: the probability that the first is better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """What a signal function gives a group, where it is more than an advantage a member."""

    advantages: np.ndarray | Sequence[np.ndarray]
    """[members] float64, or [trained] for each member."""
    returns: Sequence[np.ndarray] | None = None
    """[trained] for each member: what the critic is to predict."""
    trained: np.ndarray | None = None
    """[members] bool: whose tokens the loss counts; None: everybody's."""
    pairs: Sequence[tuple[int, ...]] = ()
    """Places of (chosen, rejected) members, or of (chosen, rejected, gold) ones; a member is in one pair at most."""
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)
    """[members] each: what the loss is to know of each member beside its advantage: `TokenBatch.parts`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepColumns:
    """The trained tokens of a whole step, as `select` sees them; the same on every rank. All [tokens] float64 but `rollout`."""

    advantages: np.ndarray
    sampler_logprobs: np.ndarray
    start_logprobs: np.ndarray
    start_entropy: np.ndarray
    rollout: np.ndarray
    """Int64, from 0."""
    seed: tuple[int, ...]
    """Of this step, for those that draw; what `numpy.random.default_rng` takes."""
