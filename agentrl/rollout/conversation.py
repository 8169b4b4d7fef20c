"""Turns for environments that play their own episodes: each request gives a whole conversation, and finds the turn that it goes on from.

A conversation that continues an answer of the model extends that answer's own tokens; nothing sampled is rendered again. One whose
history was rewritten begins at a root of its own, where earlier answers are text like any other.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from agentrl.errors import AgentRLError, EnvironmentFailure, RequestRefused
from agentrl.rollout.history import Digests, check_conversation, check_tools, for_template, likeness
from agentrl.rollout.messages import Sample, Sampled
from agentrl.rollout.render import off_loop
from agentrl.rollout.toolcalls import AssistantTurn, ToolCall, call_id, read_turn
from agentrl.rollout.tree import ROOT, Sampler, Tree

if TYPE_CHECKING:
    from collections import defaultdict
    from collections.abc import Mapping, Sequence

    from agentrl.config_engine import SamplingConfig
    from agentrl.rollout.render import Rendered

Message = dict[str, Any]


class Conversations:
    """Answers the requests of one episode.

    Args:
        tree: where turns are recorded.
        samplers: the policies by name.
        sampling: budgets.
        counters: of the rollout.
    """

    def __init__(self, tree: Tree, samplers: Mapping[str, Sampler], sampling: SamplingConfig, counters: defaultdict[str, float]) -> None:
        self.messages: list[Message] = []
        """The conversation whose answer came last, with that answer: of those that are trained, if there are any."""
        self.prompt: str | list[Message] = ""
        """What it began with."""
        self._tree = tree
        self._samplers = samplers
        self._sampling = sampling
        self._counters = counters
        self._asked = 0
        self._ends: dict[bytes, list[int]] = {}
        self._digests: dict[int, Digests] = {}
        self._texts: dict[tuple[str, str], int] = {}
        self._said: dict[int, Message] = {}
        self._starts: dict[int, str | list[Message]] = {}
        self._turn_of: dict[int, int] = {}
        self._shows_own = False

    async def answer(self, request: Sample) -> Sampled:
        """Sample the turn that is asked for; what is wrong with the request is in the answer.

        Raises what the engine raises, `RequestRefused` where it gave up an answer half-way, and `ConfigError` where the chat template can
        render no such conversation at all.
        """
        try:
            return await self._answer(request)
        except EnvironmentFailure as error:
            return Sampled(session=request.session, number=request.number, refused=str(error))

    def reward(self, number: int, reward: float) -> None:
        """Reward the turn that answered a request; nothing happens where there was none."""
        if number in self._turn_of:
            self._tree.reward(self._turn_of[number], reward)

    async def _answer(self, request: Sample) -> Sampled:
        sampler = self._samplers.get(request.policy)
        if sampler is None:
            known = ", ".join(self._samplers)
            raise EnvironmentFailure(
                f"there is no policy {request.policy!r}; known: {known}. "
                "Name others under `policies` in the run file (for `agentrl env test`: --policy NAME)"
            )
        if self._asked >= self._sampling.max_turns:
            return self._spent(request, f"max_turns={self._sampling.max_turns} calls")
        self._asked += 1
        parent, added = await self._added(sampler, request)
        if not len(added.ids) and parent == ROOT:
            raise EnvironmentFailure("the prompt is empty: the model needs at least one token to go on from")
        if self._tree.room(sampler, parent, added) < 1:
            self._asked -= 1
            return self._spent(request, f"a context of {self._tree.limit(sampler)} tokens")
        most = min(request.max_tokens or self._sampling.max_tokens, self._sampling.max_tokens)
        turn = await self._tree.sample(sampler, parent, added, most, request.number, trained=request.train)
        if self._tree.turns[turn].finish_reason == "abort":
            raise RequestRefused("the engine aborted the request")
        self._turn_of[request.number] = turn
        return self._told(request, sampler, turn, thinking=added.thinking)

    def _spent(self, request: Sample, budget: str) -> Sampled:
        return Sampled(session=request.session, number=request.number, spent=f"the episode has used up {budget}")

    async def _added(self, sampler: Sampler, request: Sample) -> tuple[int, Rendered]:
        """The turn to go on from, and what is new behind it."""
        prompt = request.prompt
        check_tools(request.tools)
        if isinstance(prompt, str):
            return await self._added_text(sampler, request.policy, prompt)
        check_conversation(prompt)
        parent, rest = self._known(request, prompt, trained=request.train and sampler.trained)
        rest = list(map(for_template, rest))
        if parent != ROOT and all(message["role"] != "assistant" for message in rest):
            extend = partial(sampler.renderer.extension, rest, request.tools, last_id=self._tree.last_id(parent))
            try:
                return parent, await off_loop(rest, extend)
            except AgentRLError:  # what this template cannot put behind an answer it may still render as a whole
                self._counters["rollout/rendered_again"] += 1
        if self._ends and any(message["role"] == "assistant" for message in prompt):
            self._counters["rollout/forks"] += 1
        whole = list(map(for_template, prompt))
        return ROOT, await off_loop(whole, partial(sampler.renderer.prompt, whole, request.tools))

    async def _added_text(self, sampler: Sampler, policy: str, text: str) -> tuple[int, Rendered]:
        known = [(len(start), turn) for (who, start), turn in self._texts.items() if who == policy and text.startswith(start)]
        length, parent = max(known, default=(0, ROOT))
        if parent == ROOT:
            return ROOT, await off_loop([{"content": text}], partial(sampler.renderer.prompt, text))
        rest = [{"role": "user", "content": text[length:]}]
        return parent, await off_loop(rest, partial(sampler.renderer.extension, rest, last_id=self._tree.last_id(parent), plain=True))

    def _known(self, request: Sample, messages: list[Message], *, trained: bool) -> tuple[int, list[Message]]:
        """The turn that ends the longest known start of a conversation, and the messages behind it."""
        parent, rest = ROOT, messages
        digests = self._digests[request.number] = Digests(request.policy, request.tools, messages)
        for index, key in enumerate(digests.keys):
            if key in self._ends:
                parent, rest = self._likeliest(self._ends[key], messages[index], trained=trained), messages[index + 1 :]
        return parent, rest

    def _likeliest(self, turns: Sequence[int], message: Message, *, trained: bool) -> int:
        """Of turns that ended equal conversations with equal words, the one that this message is: the newest, where nothing tells."""
        # two seats of one policy that were asked the same and said the same must not be taken for each other
        return max(
            turns,
            key=lambda turn: (
                likeness(self._said[turn], message),
                self._tree.turns[turn].trained == trained,
                not self._tree.is_continued(turn),
                turn,
            ),
        )

    def _told(self, request: Sample, sampler: Sampler, turn: int, *, thinking: bool) -> Sampled:
        """The turn in words, remembered as the end of its conversation."""
        span = self._tree.turns[turn].span
        sampled = span.ids[span.sampled]
        text = sampler.renderer.text(sampled)
        read = read_turn(text, request.tools, thinking=thinking, tool_format=sampler.renderer.tool_format)
        calls = [call for call in read.calls if isinstance(call, ToolCall)]
        malformed = [call.message for call in read.calls if not isinstance(call, ToolCall)]
        told = [{"id": call_id(turn, at), "name": call.name, "arguments": call.arguments} for at, call in enumerate(calls)]
        message = _message(read, told)
        self._counters["tool/calls"] += len(read.calls)
        self._counters["tool/malformed"] += len(malformed)
        if isinstance(request.prompt, str):
            message = {"role": "assistant", "content": text}
        self._remember(request, turn, message)
        version = span.versions[-1].version if span.versions else None
        return Sampled(
            session=request.session,
            number=request.number,
            message=message,
            text=text,
            calls=told,
            malformed=malformed,
            finish_reason=self._tree.turns[turn].finish_reason,
            version=(version.lineage, version.step) if version else (0, 0),
            usage={"prompt_tokens": self._tree.length(turn) - len(sampled), "completion_tokens": len(sampled)},
        )

    def _remember(self, request: Sample, turn: int, message: Message) -> None:
        """Keep a turn as the end of its conversation, so that the next one can go on from it, and for whoever scores the episode."""
        if isinstance(request.prompt, str):
            self._texts[request.policy, request.prompt + message["content"]] = turn
            messages = [{"role": "user", "content": request.prompt}, message]
        else:
            messages = [*request.prompt, message]
            self._ends.setdefault(self._digests.pop(request.number).added(message), []).append(turn)
            self._said[turn] = message
        start = self._starts.setdefault(self._tree.root(turn), request.prompt)
        own = self._tree.turns[turn].trained
        if own or not self._shows_own:
            self.messages, self.prompt, self._shows_own = messages, start, own


def _message(read: AssistantTurn, calls: Sequence[Mapping[str, Any]]) -> Message:
    """An assistant message in OpenAI's form."""
    message: Message = {"role": "assistant", "content": read.content}
    if read.reasoning:
        message["reasoning_content"] = read.reasoning
    if calls:
        message["tool_calls"] = [
            {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": json.dumps(call["arguments"])}}
            for call in calls
        ]
    return message
