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
    prompt: str | list[dict[str, Any]] | None = None
    """What the conversation began with, where the environment has played it; else the worker knows it."""


class Compare(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Ask which of two finished episodes of the task is better; the session itself was opened for that alone."""

    call: int
    session: int
    first: Episode
    second: Episode


class Play(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Have the environment play its episode itself; it asks for turns with `Sample` until it has `Finished`."""

    call: int
    session: int


class Sampled(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answer to `Sample`: one assistant turn, or why there is none."""

    session: int
    number: int
    message: dict[str, Any] = {}
    text: str = ""
    calls: list[dict[str, Any]] = []
    """`id`, `name` and `arguments` each."""
    malformed: list[str] = []
    finish_reason: str = "stop"
    version: tuple[int, int] = (0, 0)
    usage: dict[str, int] = {}
    spent: str = ""
    """No token or call is left, and which budget it was."""
    refused: str = ""
    """The request cannot be played, and why."""


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
    plays: bool = False
    """Whether the environment plays the episode itself; it has no prompt and no tools then."""
    timeouts: dict[str, float] = {}
    """Seconds that a call of a tool may take, for those with a limit of their own."""
    output_chars: dict[str, int] = {}
    """Characters of a tool's result, for those with a limit of their own."""


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


class Sample(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Asks for an assistant turn; unasked, while the environment plays. Answered by `Sampled` with the same number."""

    session: int
    number: int
    """Counts the requests of the episode, from 0."""
    prompt: str | list[dict[str, Any]]
    """The whole conversation, or a plain text."""
    tools: list[dict[str, Any]] = []
    policy: str
    max_tokens: int | None = None
    train: bool = True


class Drop(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A `Sample` that nobody waits for any more."""

    session: int
    number: int


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The environment has played its episode."""

    call: int
    score: Score | None
    """None leaves it to `Grade`."""
    spent: bool = False
    """A spent budget ended it."""
    rewards: dict[int, float] = {}
    """Of single turns, by the number of their `Sample`."""


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


Request = Setup | Open | CallTool | Answer | Play | Sampled | Grade | Compare | Close
Response = Ready | Opened | Observation | Replied | Sample | Drop | Finished | Graded | Compared | Closed | Failed
