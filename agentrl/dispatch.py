"""Messages between the supervisor and its rollout processes."""

from __future__ import annotations

from typing import Any

import msgspec

from agentrl.records import SCHEMA_VERSION, Group, SamplingContract, Task, Version
from agentrl.teacher_prompt import TeacherPrompt


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A vLLM server that rollouts may use now."""

    url: str
    model: str
    """What requests ask for: the served name, or the adapter of the newest version."""
    version: Version
    """Of the weights that a new request meets."""
    fixed: bool = False
    """Whether nobody gives it new weights; its answers say nothing of versions then, or somebody else's."""


class Serving(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The vLLM servers that are in use from now on; requests in flight on any other are sent again elsewhere. May be none for a while."""

    servers: tuple[Served, ...]
    context_length: int
    """Tokens of prompt and completion together: the least of any server's."""
    vocab_size: int | None = None
    """Rows of the model's embeddings, where a server says so; sampled ids lie below it."""


class PolicyPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where a frozen policy samples."""

    name: str
    """What environments call it."""
    tokenizer: str
    """Folder or Hub name."""
    temperature: float
    socket: str
    """Of its embedded engine; empty where it has servers."""
    servers: tuple[str, ...] = ()
    """URLs of vLLM servers, which say themselves what they serve."""


class TeacherPlace(msgspec.Struct, frozen=True, kw_only=True):
    """A teacher on vLLM servers."""

    name: str
    """By which rows name it."""
    servers: tuple[str, ...]
    """URLs."""
    weight: float
    timeout_s: float
    """Longest wait for the scores of one text."""
    api_key_env: str
    """Environment variable that holds the servers' key, where they ask for one."""


class Teaching(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done for a teacher with each finished group."""

    prompt: TeacherPrompt | None = None
    """What it reads in place of the rollouts' prompt."""
    places: tuple[TeacherPlace, ...] = ()
    """Teachers that score the rollouts from here; others are in the learner."""
    routed: bool = False
    """Whether a row's `teacher` names the one that it is for; where there is but one, it means nothing."""
    top_k: int = 0
    """Likeliest tokens of each place that are kept, in the stead of the log-probs of the sampled ones; 0 keeps those."""
    vocab_size: int | None = None
    """Of the policy: ids that a teacher gives must be below it; None leaves that open."""


class Setup(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The first message to a rollout process."""

    config: dict[str, Any]
    """The run's configuration, as JSON values."""
    environment: str
    """The environment's spec."""
    tokenizer: str
    """Folder or Hub name of the policy's tokenizer."""
    engine_socket: str
    """Of the embedded engine; empty for vLLM, whose servers come in `Serving` messages."""
    log_folder: str
    policies: tuple[PolicyPlace, ...] = ()
    teaching: Teaching | None = None
    schema_version: int = SCHEMA_VERSION


class Play(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Play one group."""

    index: int
    task: Task
    dispatched: Version
    group_size: int
    contract: SamplingContract
    seed: int
    """The run's seed; with the task, the member and the turn it names a random stream."""
    rival: SamplingContract | None = None
    """How members from `group_size // 2` on are sampled instead."""
    judged: bool = False
    """Whether the environment compares member m with member m + group_size // 2 once all have ended."""


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Stop playing a group; nothing comes back of it."""

    index: int


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The process has imported the environment, loaded the tokenizer and reached the engine."""

    context_length: int


class Played(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A group is finished, whatever became of its episodes."""

    group: Group


class Beat(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Sent once a second; a process that stops sending is stuck."""

    loop_lag_s: float
    """How much later than asked the event loop woke up."""
    episodes: int
    """In flight."""


class Suspect(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A vLLM server gave a rollout process trouble."""

    url: str
    why: str


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The process cannot go on; it exits after this."""

    kind: str
    """Name of the error class in `agentrl.errors`."""
    message: str


ToRollout = Setup | Serving | Play | Cancel
FromRollout = Ready | Played | Beat | Suspect | Failed
