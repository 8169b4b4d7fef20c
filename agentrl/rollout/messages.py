"""What a rollout process and its environment workers say to each other, as frames of `agentrl.wire`.

Every request but `Setup` carries a `call` number that its answer repeats, so that answers may come in any order and a late one is
never taken for another's. `Closed` comes unasked where the worker itself ends an episode: after its score, and after a failed start.
"""

from __future__ import annotations

from typing import Any

import msgspec

from agentrl.environment import Episode
from agentrl.records import SCHEMA_VERSION, Ending, Score, Task


class Setup(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """First message to a worker: what to import."""

    imports: list[str]
    spec: str
    max_output_chars: int
    """Longer tool results are cut."""
    schema_version: int = SCHEMA_VERSION


class Open(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Make an environment and start an episode."""

    call: int
    session: int
    task: Task


class CallTool(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Call a tool; the arguments have been held against its schema."""

    call: int
    session: int
    name: str
    arguments: dict[str, Any]


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An assistant turn without tool calls; asks what the user says next."""

    call: int
    session: int
    text: str


class Grade(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Score the episode, then close it."""

    call: int
    session: int
    messages: list[dict[str, Any]]
    completion_ids: list[int]
    ending: Ending


class Compare(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Ask which of two finished episodes of the task is better; the session itself was opened for that alone."""

    call: int
    session: int
    first: Episode
    second: Episode


class Close(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """End an episode without a score."""

    session: int


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The environment imports and can be made."""


class Opened(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An episode has started."""

    call: int
    prompt: str | list[dict[str, Any]]
    tools: list[dict[str, Any]]
    """OpenAI function schemas."""
    max_turns: int | None
    max_tokens: int | None
    """Of one turn."""
    replies: bool
    """Whether the environment has a `reply` of its own; without one, a turn without tool calls ends the episode."""


class Observation(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What a tool gave."""

    call: int
    text: str
    done: bool
    """The environment ends the episode."""
    error: bool = False
    """The tool raised, or refused its arguments."""
    reward: float = 0.0
    """For the turn that called it."""


class Replied(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What the user says next; None ends the episode."""

    call: int
    text: str | None
    done: bool
    reward: float = 0.0
    """For the turn that was answered."""


class Graded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A validated score."""

    call: int
    score: Score


class Compared(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A validated preference."""

    call: int
    value: float | None
    """Probability that the first episode is better; None where the judge cannot tell."""


class Closed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An episode is over and its environment closed."""

    session: int


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Code of the environment failed. With `call` 0, the answer to `Setup`."""

    call: int
    reason: str
    """One line: environment, boundary, error and place."""
    traceback: str = ""
    """A few frames, for people."""


Request = Setup | Open | CallTool | Answer | Grade | Compare | Close
Response = Ready | Opened | Observation | Replied | Graded | Compared | Closed | Failed
