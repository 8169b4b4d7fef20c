"""The model as an environment sees it that plays its own episodes: `async def episode(self, task, llm)`.

A call gives the whole conversation, as with a chat API. Where it goes on from an answer of the model, that answer's own token ids are
extended and nothing is rendered again; where the history was rewritten, the episode forks. Every sampled token of a trained policy is
trained exactly once, in whichever branch it lies.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Message = dict[str, Any]
"""`role` (system, user, assistant, tool), `content`, and for tools `tool_calls` or `name` and `tool_call_id`."""

POLICY = "policy"
"""Name of the policy that the run trains; others are those of `policies` in the run file, frozen."""


class BudgetSpent(Exception):
    """No token is left in this conversation, or no call to this episode; catch it to score what there is.

    Calls are counted over all policies (`max_turns`), tokens in each conversation for itself (`sampling.max_episode_tokens`).
    """


class SamplingFailed(Exception):
    """The request cannot be played: an unknown policy, messages that the chat template refuses, what is no text or no schema of a tool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A tool call of the model that fits the schema of its tool."""

    id: str
    """For the `tool_call_id` of the result."""
    name: str
    arguments: dict[str, Any]
    """Moved towards the declared types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the model said."""

    message: Message
    """To be appended to the conversation: `content` without reasoning and calls, and `reasoning_content` and `tool_calls` (OpenAI's form,
    arguments as JSON text) where there are any."""
    text: str
    """All of it as it was sampled, without its end token."""
    calls: tuple[Call, ...] = ()
    malformed: tuple[str, ...] = ()
    """A message for the model for each call that cannot be made; the calls themselves stay in the content."""
    finish_reason: Literal["stop", "length"] = "stop"
    """`length`: a token budget cut it off."""
    number: int = 0
    """Which answer of the episode this is, from 0."""
    version: tuple[int, int] = (0, 0)
    """Lineage and step of the weights that sampled the last token."""
    usage: Mapping[str, int] = field(default_factory=dict)
    """`prompt_tokens` and `completion_tokens`."""


class LLM(Protocol):
    """What `Environment.episode` gets. Calls may overlap."""

    async def chat(
        self,
        messages: str | Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        policy: str = POLICY,
        max_tokens: int | None = None,
        train: bool = True,
    ) -> Reply:
        """Sample the next assistant turn.

        Args:
            messages: the whole conversation so far, or a plain text to continue.
            tools: OpenAI function schemas that the model is shown, and that its calls are held against.
            policy: who answers: `policy`, or one of the run file's `policies`.
            max_tokens: of this turn, where fewer than `sampling.max_tokens` are wanted.
            train: False keeps the policy's own turn out of training, such as that of an opponent it plays against.
        Raises: `BudgetSpent` where no token or call is left, `SamplingFailed` for a request that cannot be played.
        """
        ...

    def reward(self, value: float, *, reply: Reply | None = None) -> None:
        """Add a reward to one turn, by default the newest; beside the score of the end, as `Environment.turn_reward` is."""
        ...
