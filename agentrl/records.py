"""The typed, frozen records that flow between the stages of a run.

Nothing here imports torch. Arrays are numpy columns; there are no per-token objects. Records cross process boundaries and reach
the disk through `agentrl.wire`, which encodes exactly these fields.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA_VERSION = 2
"""Version of every record below; a reader refuses a newer one. 2: turns that are not trained."""

FinishReason = Literal["stop", "length", "abort"]
"""Why the engine stopped: an end token, the token or context budget, or a cancelled request."""

Ending = Literal["complete", "truncated", "timeout", "environment_error", "cancelled"]
"""How an episode ended. `truncated`: a token, turn or context budget ran out."""

Disposition = Literal["pending", "trained", "no_signal", "filtered", "unscorable", "dropped"]
"""What became of a rollout; exactly one other than `pending` by the end of a run."""


class Source(IntEnum):
    """Where a token came from. Only `SAMPLED` tokens can be trained."""

    PROMPT = 0
    SAMPLED = 1
    ENVIRONMENT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A state of the policy: optimizer steps done, within one lineage. A resume starts a new lineage."""

    lineage: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRun:
    """Tokens `[start, end)` of a span were sampled by the weights of `version`."""

    version: Version
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What an environment is asked to solve. The row travels with its rollout and is never looked up by index.

    Example: `Task.from_row("arithmetic", {"prompt": "2+3=", "answer": "5"})`.
    """

    id: str
    """Stable across runs: a hash of environment name and row unless the row brings an `id`."""
    environment: str
    row: dict[str, Any]
    """JSON-serializable."""
    schema_version: int = SCHEMA_VERSION

    @staticmethod
    def from_row(environment: str, row: Mapping[str, Any]) -> Task:
        """Make a task of a dataset row; raises `TypeError` where the row is not JSON-serializable."""
        text = json.dumps(row, sort_keys=True, ensure_ascii=False)
        digest = hashlib.blake2b(f"{environment}\n{text}".encode(), digest_size=8).hexdigest()
        return Task(id=str(row.get("id", digest)), environment=environment, row=dict(row))


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingContract:
    """How the tokens of a turn were drawn; the learner must score the very same distribution."""

    policy: str = "policy"
    adapter: str | None = None
    temperature: float = 1.0
    """Log-probs are those of softmax(logits / temperature). 0 is greedy: evaluation only."""
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    reference_share: float = 0.0
    """Share s of the frozen reference in the geometric mixture that was sampled: log-probs are those of
    softmax(((1-s) x policy logits + s x reference logits) / temperature). 0 is the policy alone, 1 the reference alone."""
    dtype: str = "float32"
    engine: str = "embedded"

    @property
    def truncated(self) -> bool:
        """Whether the sampler renormalized over a part of the vocabulary."""
        return self.top_p < 1.0 or self.top_k > 0 or self.min_p > 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSpan:
    """A run of tokens as equal-length columns; the constructor refuses unequal lengths.

    Example: prompt [7, 8] and sampled [9]: `ids=[7, 8, 9]`, `source=[0, 0, 1]`, `logprobs=[nan, nan, -0.1]`,
    `versions=(VersionRun(version=Version(step=4), start=2, end=3),)`.
    """

    ids: np.ndarray
    """[length] int32, as the engine returned them or as the renderer wrote them."""
    source: np.ndarray
    """[length] uint8, a `Source` each."""
    logprobs: np.ndarray
    """[length] float32 nats under the policy and contract that sampled; NaN where not sampled, and never read there."""
    versions: tuple[VersionRun, ...] = ()
    """Runs over the sampled tokens, stamped by the engine, in order and without overlap."""
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    """Optional further columns, [length] or [length, k] each (a teacher's top-k, routed experts)."""
    attachments: tuple[str, ...] = ()
    """Content hashes of images and the like."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", np.asarray(self.ids, dtype=np.int32))
        object.__setattr__(self, "source", np.asarray(self.source, dtype=np.uint8))
        object.__setattr__(self, "logprobs", np.asarray(self.logprobs, dtype=np.float32))
        length = len(self.ids)
        for name, column in (("source", self.source), ("logprobs", self.logprobs), *self.columns.items()):
            if len(column) != length:
                raise ValueError(f"token columns differ in length: ids has {length}, {name} has {len(column)}")
        sampled = self.source == Source.SAMPLED
        if np.isnan(self.logprobs[sampled]).any():
            raise ValueError("a sampled token has no log-prob; the engine must return one for each token that it samples")
        covered = np.zeros(length, dtype=bool)
        for run in self.versions:
            covered[run.start : run.end] = True
        if not np.array_equal(covered, sampled):
            raise ValueError("weight versions must cover exactly the sampled tokens")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sampled(self) -> np.ndarray:
        """[length] bool: the tokens that the engine drew."""
        result: np.ndarray = self.source == Source.SAMPLED
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One call of the engine: the tokens that were new to its context, then the tokens it sampled."""

    parent: int
    """Index of the turn whose tokens come before these in the same rollout; -1 at a root. Two turns with one parent are a fork."""
    span: TokenSpan
    contract: SamplingContract
    finish_reason: FinishReason
    reward: float = 0.0
    """What the environment gave for this turn alone, beside the score of the end; `Rollout.score` is the sum of both."""
    trained: bool = True
    """Whether the learner may train on it: not where a frozen policy sampled it, or the environment keeps it out."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.reward):
            raise ValueError(f"the reward of a turn must be finite, got {self.reward}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A finite number with named parts, or unscorable with a reason. Never a plausible number for a failure."""

    value: float | None
    parts: dict[str, float] = field(default_factory=dict)
    """What the value is made of; objectives may normalize each by itself."""
    reason: str = ""
    details: dict[str, float] = field(default_factory=dict)
    """Further numbers for people, such as those that a reward function logs; nothing is trained on them."""

    def __post_init__(self) -> None:
        if self.value is None and not self.reason:
            raise ValueError("an unscorable score needs a reason")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"a score must be finite, got {self.value}; return Score.unscorable(reason) for a failure")
        if not all(map(math.isfinite, (*self.parts.values(), *self.details.values()))):
            got = f"{self.parts} and details {self.details}"
            raise ValueError(f"the parts of a score must be finite, got {got}; return Score.unscorable(reason) for a failure")

    @property
    def scorable(self) -> bool:
        """Whether the score may enter means, baselines and losses."""
        return self.value is not None

    @staticmethod
    def unscorable(reason: str) -> Score:
        """The outcome of a grader that could not tell."""
        return Score(value=None, reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One episode: a tree of turns over tokens, how it ended and what it scored."""

    task: Task
    member: int
    """Index within its group."""
    turns: tuple[Turn, ...]
    messages: tuple[dict[str, Any], ...]
    """The conversation for people and reward functions: `role`, `content`, `tool_calls`. Never tokenized again."""
    ending: Ending
    score: Score
    reason: str = ""
    """What went wrong, for `timeout`, `environment_error` and `cancelled`."""
    counters: dict[str, float] = field(default_factory=dict)
    """Named counts and seconds of this episode (`tool/calls`, `tool/malformed`, `time/engine_s`, ...)."""
    teacher_prompt: np.ndarray | None = None
    """[length] int32: what a teacher reads in place of the tokens before the first sampled one; None where it reads the same."""
    schema_version: int = SCHEMA_VERSION

    @property
    def own_turns(self) -> tuple[Turn, ...]:
        """The turns that may be trained: all but those of frozen policies and those that the environment keeps out."""
        return tuple(turn for turn in self.turns if turn.trained)

    @property
    def own_rewards(self) -> tuple[float, ...]:
        """One for each of `own_turns`: what was given from it on until the next one ended, for turns that are not trained, too.

        Turns are in the order in which they ended, whatever branch they lie in. What came before the first of them counts as its own.
        """
        rewards: list[float] = []
        early = 0.0
        for turn in self.turns:
            if turn.trained:
                rewards.append(turn.reward + (0.0 if rewards else early))
            elif rewards:
                rewards[-1] += turn.reward
            else:
                early += turn.reward
        return tuple(rewards)

    @property
    def num_sampled(self) -> int:
        """Sampled tokens over the turns that may be trained."""
        return int(sum(turn.span.sampled.sum() for turn in self.own_turns))

    def oldest_step(self, floor: int) -> int:
        """Step of the oldest weights that sampled what may be trained; `floor` where there is nothing."""
        return min((run.version.step for turn in self.own_turns for run in turn.span.versions), default=floor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The rollouts of one task that share a baseline."""

    index: int
    """Place in dispatch order, from 0; unique within a run across resumes."""
    task: Task
    rollouts: tuple[Rollout, ...]
    dispatched: Version
    """The policy's version when the group was admitted."""
    preferences: tuple[float | None, ...] = ()
    """One a pair of members (m, m + len(rollouts) // 2): the judge's probability, in [0, 1], that the first is better; None where there
    is no verdict. Empty where no judge was asked."""
    schema_version: int = SCHEMA_VERSION

    @property
    def scores(self) -> tuple[float | None, ...]:
        """One value a member, None where unscorable."""
        return tuple(rollout.score.value for rollout in self.rollouts)
