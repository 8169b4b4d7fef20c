"""What a run and an environment server say to each other, as JSON over HTTP.

    GET    /health                          200 while the server lives; the one route without a key
    GET    /info                            Info
    GET    /tasks/{split}                   Length
    GET    /tasks/{split}/{start}?count=N   Rows: at most N of them, from row `start` on
    PUT    /sessions/{id}                   Opening -> Said; the client chooses the id, 16 to 64 letters, digits, - and _
    POST   /sessions/{id}                   Asked -> Said
    POST   /sessions/{id}/sampled           Sampled -> Taken; for environments that play their episodes themselves
    DELETE /sessions/{id}                   ends an episode, whatever it is doing; never fails

The requests of a session are numbered, opening it is number 0, and an answer repeats session and number. A request that is sent again,
because its answer was lost or was slow, is answered again and not done again; while it is being done the answer is 202. Only the newest
request can be repeated, and the next one is taken only once it has been answered. A refusal is an `Error` with the status 400 (not of
this protocol), 401 (the key, or without one a Host that is not this machine's), 404 (no such session: another server, or one that was
restarted), 409 (the number is not the next one, or the server serves another environment), 410 (the session is over), 413 (too large), 422
(the environment has no such rows), 500 (its process died) or 503 (no place is free; `Retry-After` says when to ask again).
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from agentrl.environment import Episode
from agentrl.records import SCHEMA_VERSION, Ending, Score, Task

T = TypeVar("T")

PROTOCOL = 1
"""Changes when either side would no longer understand the other."""
VERSION_HEADER = "agentrl-protocol"
"""Names the protocol's version with every request; a page in a browser cannot send it unasked, so none can reach a server on loopback."""
KEY_VARIABLE = "AGENTRL_ENV_API_KEY"
"""Environment variable with the API key, on both sides."""
MOST_ROWS = 256
"""Of one answer."""


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """Start an episode."""

    spec: str
    """What the server served when the run began: tasks of one environment must not reach another that has taken its place."""
    task: Task


class CallTool(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="tool"):
    """Call a tool."""

    name: str
    arguments: dict[str, Any]


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="reply"):
    """An assistant turn without tool calls; asks what the user says next."""

    text: str


class Grade(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="score"):
    """Score the episode; ends the session."""

    messages: list[dict[str, Any]]
    completion_ids: list[int]
    ending: Ending


class Compare(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="compare"):
    """Ask which of two finished episodes of the task is better; ends the session."""

    first: Episode
    second: Episode


class Play(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="play"):
    """Let the environment play its episode itself, or go on with that; answered with `Turns` until these say that it has finished."""


Request = CallTool | Answer | Grade | Compare | Play


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request of a session."""

    number: int
    """From 1."""
    request: Request


class Opened(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="opened"):
    """The episode has started; the fields are those of `agentrl.rollout.messages.Opened`."""

    prompt: str | list[dict[str, Any]]
    tools: list[dict[str, Any]]
    max_turns: int | None
    max_tokens: int | None
    replies: bool
    plays: bool
    timeouts: dict[str, float]
    output_chars: dict[str, int]


class Observation(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="observation"):
    """What a tool gave."""

    text: str
    done: bool
    error: bool
    reward: float


class Replied(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="replied"):
    """What the user says next; None ends the episode."""

    text: str | None
    done: bool
    reward: float


class Graded(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="graded"):
    """A score; without a value it is unscorable, for the reason given."""

    value: float | None
    parts: dict[str, float]
    reason: str
    details: dict[str, float]


class Compared(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="compared"):
    """The probability that the first episode is better; None where the judge cannot tell."""

    value: float | None


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """The environment asks for an assistant turn; the arguments of `agentrl.llm.LLM.chat`."""

    number: int
    prompt: str | list[dict[str, Any]]
    tools: list[dict[str, Any]]
    policy: str
    max_tokens: int | None
    train: bool


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """The environment has played its episode."""

    score: Graded | None
    """None leaves it to `Grade`."""
    spent: bool
    """A spent budget ended it."""
    rewards: dict[int, float]
    """Of single turns, by the number of their sample."""


class Turns(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="turns"):
    """What the environment asks for while it plays: at least one sample, or the end."""

    samples: list[Sample] = []
    dropped: list[int] = []
    """Numbers of samples that are no longer wanted."""
    finished: Finished | None = None


class Sampled(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a `Sample`; the fields are those of `agentrl.rollout.messages.Sampled`."""

    number: int
    message: dict[str, Any] = {}
    text: str = ""
    calls: list[dict[str, Any]] = []
    malformed: list[str] = []
    finish_reason: str = "stop"
    version: tuple[int, int] = (0, 0)
    usage: dict[str, int] = {}
    spent: str = ""
    refused: str = ""


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """A `Sampled` has arrived, now or before."""

    session: str
    number: int


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="failed"):
    """The environment's code or its worker failed; ends the session, unscored."""

    reason: str
    traceback: str = ""


Reply = Opened | Observation | Replied | Graded | Compared | Turns | Failed


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a request of a session; with status 202 there is none yet, and the request is to be sent again."""

    session: str
    number: int
    answer: Reply | None


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """What a server serves, and how busy it is."""

    spec: str
    agentrl: str
    """Version of the package."""
    protocol: int = PROTOCOL
    schema_version: int = SCHEMA_VERSION
    plays: bool
    compares: bool
    call_s: float
    """Deadline of a start, a tool call, a reply."""
    score_s: float
    idle_s: float
    """A session without a request for so long is closed."""
    max_sessions: int
    sessions: int
    """Open now."""
    waiting: int
    """Requests for a place."""
    opened: int
    """Sessions since the start."""
    idled: int
    """Of them, those that were closed because nobody asked."""
    failed: int
    """Of them, those whose environment failed."""


class Length(msgspec.Struct, frozen=True, kw_only=True):
    """How many rows a split has."""

    length: int


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of a split, in order."""

    rows: list[dict[str, Any]]


class Error(msgspec.Struct, frozen=True, kw_only=True):
    """A refusal, in words."""

    error: str


def graded(score: Score) -> Graded:
    """A score as it is sent."""
    return Graded(value=score.value, parts=score.parts, reason=score.reason, details=score.details)


_encoder = msgspec.json.Encoder()


def encode(message: object) -> bytes:
    """A message as JSON. Raises `ValueError`, `TypeError` or `RecursionError` for what is none."""
    return _encoder.encode(message)


def decode(body: bytes, kind: type[T]) -> T:
    """Read a message of a kind. Raises `ValueError` naming what is wrong; NaN and infinities are no JSON."""
    try:
        return msgspec.json.decode(body, type=kind)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
