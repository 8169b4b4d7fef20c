"""What an environment in its worker answers to the requests of a session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from agentrl.environment import Episode
from agentrl.servers.env_server import protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import trio

    from agentrl.records import Score, Task
    from agentrl.rollout import messages
    from agentrl.servers.env_server.relay import Relay


class Opened(Protocol):
    """An episode in the environment's own process: `agentrl.rollout.pool.EnvSession`."""

    opened: messages.Opened

    async def call_tool(self, name: str, arguments: dict[str, Any]) -> messages.Observation:
        """Call a tool."""
        ...

    async def reply(self, text: str) -> messages.Replied:
        """What the user says next."""
        ...

    async def play(self, answer: Callable[[messages.Sample], Awaitable[messages.Sampled]]) -> messages.Finished:
        """Let the environment play its episode."""
        ...

    async def score(self, episode: Episode) -> Score:
        """Score the episode."""
        ...

    async def compare(self, first: Episode, second: Episode) -> float | None:
        """Prefer one of two episodes."""
        ...

    def close(self) -> None:
        """Have the environment closed, without waiting."""
        ...


class Pool(Protocol):
    """Where environments run: `agentrl.rollout.pool.EnvPool`."""

    async def open(self, task: Task) -> Opened:
        """Start an episode."""
        ...


async def answer_of(request: protocol.Request, environment: Opened, task: Task, relay: Relay, nursery: trio.Nursery) -> protocol.Reply:
    """What the environment answers to a request. Raises `EnvironmentFailure`."""
    match request:
        case protocol.CallTool():
            seen = await environment.call_tool(request.name, request.arguments)
            return protocol.Observation(text=seen.text, done=seen.done, error=seen.error, reward=seen.reward)
        case protocol.Answer():
            said = await environment.reply(request.text)
            return protocol.Replied(text=said.text, done=said.done, reward=said.reward)
        case protocol.Grade():
            return protocol.graded(await environment.score(_episode(request, environment, task)))
        case protocol.Compare():
            return protocol.Compared(value=await environment.compare(request.first, request.second))
        case protocol.Play():
            if not relay.started:
                relay.started = True
                nursery.start_soon(relay.run, environment.play)
            return await relay.news()


def _episode(request: protocol.Grade, environment: Opened, task: Task) -> Episode:
    return Episode(
        task=task,
        prompt=environment.opened.prompt,
        messages=request.messages,
        completion_ids=request.completion_ids,
        ending=request.ending,
    )


def opened_as(opened: messages.Opened) -> protocol.Opened:
    """The start of an episode as it is sent."""
    return protocol.Opened(
        prompt=opened.prompt,
        tools=opened.tools,
        max_turns=opened.max_turns,
        max_tokens=opened.max_tokens,
        replies=opened.replies,
        plays=opened.plays,
        timeouts=opened.timeouts,
        output_chars=opened.output_chars,
    )
