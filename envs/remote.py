"""An environment that another machine serves: `http://HOST:PORT` as a spec, `agentrl serve-env SPEC` over there."""

from __future__ import annotations

import asyncio
import os
import re
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

from agentrl.environment import Environment, Episode, FunctionTool, Split, ToolError
from agentrl.envs.lazy_rows import LazyRows
from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.llm import LLM, BudgetSpent, Message, Reply, SamplingFailed
from agentrl.records import Score, Task
from agentrl.servers.env_server import protocol
from agentrl.servers.env_server.client import PATIENCE_S, EnvClient, finite, headers
from agentrl.servers.env_server.connections import Connections

T = TypeVar("T")

BLOCK = 128
"""Rows that are fetched at once."""
MOST_CACHED = 256
"""Blocks of rows that are kept."""
LATE_S = 15.0
"""How much longer than the server's deadline for a tool this side's is."""
NOTICE_CHARS = 200
"""Room for what the server writes below a result that it has cut, so that it is not cut again."""
FOREVER_S = 1e9


def remote(url: str, patience_s: float = PATIENCE_S) -> Remote:
    """The environment behind a URL.

    Args:
        url: of the server, `http://HOST:PORT` or `https://...`; its arguments belong to the spec that it serves.
        patience_s: how long the server may be away, full or broken before an episode is given up.
    """
    if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", url):
        raise ConfigError(f"environment {url!r}: a server is http://HOST:PORT, or https://")
    return Remote(_client(url.rstrip("/"), float(patience_s), os.environ.get(protocol.KEY_VARIABLE, "")))


@cache
def _client(url: str, patience_s: float, key: str) -> EnvClient:
    """One a process: its episodes share connections."""
    return EnvClient(Connections(url, headers(key)), patience_s=patience_s)


class RemoteTasks(LazyRows):
    """The rows of a split, fetched when they are asked for."""

    def __init__(self, client: EnvClient, split: Split) -> None:
        self._client = client
        self._split = split
        self._length = client.length(split)
        self._blocks: OrderedDict[int, list[dict[str, Any]]] = OrderedDict()

    def __len__(self) -> int:
        return self._length

    def row(self, index: int) -> Mapping[str, Any]:
        """A row, fetched with its neighbours."""
        number, place = divmod(index, BLOCK)
        if number not in self._blocks:
            start = number * BLOCK
            self._blocks[number] = self._client.rows(self._split, start, min(BLOCK, self._length - start))
            if len(self._blocks) > MOST_CACHED:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number][place]


class Remote(Environment):
    """An episode on an environment server. Whatever goes wrong on the way is an `EnvironmentFailure`, never a score."""

    def __init__(self, client: EnvClient) -> None:
        self._client = client
        self._session = uuid.uuid4().hex
        self._number = 0
        self._opened: protocol.Opened | None = None
        self._asked = False
        """The server may hold a session."""
        self._verdict: Score | None = None

    def tasks(self, split: Split) -> RemoteTasks:
        """The server's rows."""
        return RemoteTasks(self._client, split)

    @property
    def plays(self) -> bool:
        """What the server's environment does."""
        return self._client.info().plays

    @property
    def replies(self) -> bool:
        """What the server's environment does, in this episode."""
        return self._opened is not None and self._opened.replies

    @property
    def compares(self) -> bool:
        """What the server's environment does."""
        return self._client.info().compares

    def start(self, task: Task) -> str | list[Message]:
        """Open a session."""
        opened = self._open(task)
        if opened.plays:
            raise EnvironmentFailure(f"the server {self._client.url} serves another kind of environment than when the run began")
        self.max_turns = opened.max_turns  # type: ignore[misc]  # of this episode
        self.max_tokens = opened.max_tokens
        return opened.prompt

    def toolbox(self) -> list[FunctionTool]:
        """The server's tools."""
        return [] if self._opened is None else [self._tool(schema) for schema in self._opened.tools]

    def reply(self, answer: str) -> str | None:
        """Ask the server's environment."""
        said = self._ask(protocol.Answer(text=answer), protocol.Replied, self._client.info().call_s)
        self.done, self.turn_reward = said.done, finite("turn_reward", said.reward)
        return said.text

    def score(self, episode: Episode) -> Score:
        """Ask the server's environment; ends the session."""
        if self._verdict is not None:
            return self._verdict
        request = protocol.Grade(messages=episode.messages, completion_ids=episode.completion_ids, ending=episode.ending)
        graded = self._ask(request, protocol.Graded, self._client.info().score_s)
        self._asked = False
        return _score(graded)

    def compare(self, first: Episode, second: Episode) -> float | None:
        """Ask the server's environment; ends the session."""
        if self._opened is None:  # one that plays its episodes itself is not started
            self._open(first.task)
        compared = self._ask(protocol.Compare(first=first, second=second), protocol.Compared, self._client.info().score_s)
        self._asked = False
        return compared.value

    def close(self) -> None:
        """End the session, where it has not ended by itself."""
        if self._asked:
            self._asked = False
            self._client.close(self._session)

    async def episode(self, task: Task, llm: LLM) -> Score | None:
        """Let the server's environment play, with this run's model."""
        replies: dict[int, Reply] = {}
        try:
            await asyncio.to_thread(self._open, task)
            finished = await self._play(llm, replies)
        except BaseException:
            self.close()  # also ends the request that a thread still waits for
            raise
        for number, reward in finished.rewards.items():
            llm.reward(finite("the reward of a turn", reward), reply=replies.get(number))
        if finished.score is not None:
            self._verdict = _score(finished.score)
        if finished.spent:
            raise BudgetSpent("the episode on the server ran out of a budget")
        return self._verdict

    async def _play(self, llm: LLM, replies: dict[int, Reply]) -> protocol.Finished:
        turns: dict[int, asyncio.Task[None]] = {}
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    news = await asyncio.to_thread(self._ask, protocol.Play(), protocol.Turns, FOREVER_S)
                    for number in turns if news.finished else news.dropped:
                        if number in turns:
                            turns[number].cancel()
                    if news.finished:
                        return news.finished
                    for sample in news.samples:
                        turns[sample.number] = group.create_task(self._sample(llm, sample, replies))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _sample(self, llm: LLM, sample: protocol.Sample, replies: dict[int, Reply]) -> None:
        try:
            reply = await llm.chat(
                sample.prompt, tools=sample.tools, policy=sample.policy, max_tokens=sample.max_tokens, train=sample.train
            )
        except BudgetSpent as spent:
            sampled = protocol.Sampled(number=sample.number, spent=str(spent) or "spent")
        except SamplingFailed as refused:
            sampled = protocol.Sampled(number=sample.number, refused=str(refused) or "refused")
        else:
            replies[sample.number] = reply
            sampled = _sampled(sample.number, reply)
        await asyncio.to_thread(self._client.sampled, self._session, sampled)

    def _open(self, task: Task) -> protocol.Opened:
        self._asked = True
        self._opened = self._client.open(self._session, task)
        return self._opened

    def _ask(self, request: protocol.Request, kind: type[T], deadline_s: float) -> T:
        self._number += 1
        return self._client.ask(self._session, self._number, request, kind, deadline_s)

    def _tool(self, schema: Mapping[str, Any]) -> FunctionTool:
        assert self._opened is not None
        function = schema.get("function")
        if not isinstance(function, dict) or not isinstance(name := function.get("name"), str):
            raise EnvironmentFailure(f"the server {self._client.url} gave a tool that is none: {schema!r:.200}")
        deadline_s = self._opened.timeouts.get(name, self._client.info().call_s)
        most_chars = self._opened.output_chars.get(name)
        return FunctionTool(
            name=name,
            description=str(function.get("description", "")),
            parameters=function.get("parameters") or {},
            call=self._caller(name, deadline_s),
            timeout_s=deadline_s + LATE_S,
            max_output_chars=None if most_chars is None else most_chars + NOTICE_CHARS,
        )

    def _caller(self, name: str, deadline_s: float) -> Callable[..., str]:
        def call(**arguments: Any) -> str:
            seen = self._ask(protocol.CallTool(name=name, arguments=arguments), protocol.Observation, deadline_s)
            self.done, self.turn_reward = seen.done, finite("turn_reward", seen.reward)
            if seen.error:
                raise ToolError(seen.text)
            return seen.text

        return call


def _sampled(number: int, reply: Reply) -> protocol.Sampled:
    return protocol.Sampled(
        number=number,
        message=reply.message,
        text=reply.text,
        calls=[{"id": call.id, "name": call.name, "arguments": call.arguments} for call in reply.calls],
        malformed=list(reply.malformed),
        finish_reason=reply.finish_reason,
        version=reply.version,
        usage=dict(reply.usage),
    )


def _score(graded: protocol.Graded) -> Score:
    parts, details = (
        {name: finite(f"{kind} {name} of a score", number) for name, number in given.items()}
        for kind, given in (("part", graded.parts), ("detail", graded.details))
    )
    if graded.value is None:
        reason = graded.reason or "the environment server gave no reason"
        return Score(value=None, parts=parts, reason=reason, details=details)
    return Score(value=finite("a score", graded.value), parts=parts, reason=graded.reason, details=details)
