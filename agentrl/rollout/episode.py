"""One episode: prompt, sample, run the tools, extend the context, score. One group: its episodes side by side in one nursery.

Nothing that a model or an environment does ends more than its own episode. Only the engine's failures and a wrong configuration are
raised; cancelling a group closes its requests and its environments.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from agentrl.environment import Episode
from agentrl.errors import EnvironmentFailure, RequestRefused
from agentrl.llm import POLICY
from agentrl.records import Ending, Rollout, SamplingContract, Score, Task
from agentrl.rollout.conversation import Conversations
from agentrl.rollout.judge import PlayedGroup, judged_group
from agentrl.rollout.pool import EnvironmentTimeout, EnvPool, EnvSession, alone
from agentrl.rollout.render import Rendered, off_loop
from agentrl.rollout.teaching import Told, Tutor
from agentrl.rollout.toolcalls import Malformed, ToolCall, call_id, read_calls
from agentrl.rollout.tree import ROOT, Sampler, Tree
from agentrl.rollout.turns import whole_return

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from agentrl.config import RolloutConfig
    from agentrl.config_engine import SamplingConfig

T = TypeVar("T")
Message = dict[str, Any]


async def play_group(
    task: Task,
    group_size: int,
    *,
    sampler: Sampler,
    others: Mapping[str, Sampler],
    pool: EnvPool,
    sampling: SamplingConfig,
    rollout: RolloutConfig,
    seed: int,
    rival: SamplingContract | None = None,
    judged: bool = False,
    tutor: Tutor | None = None,
) -> PlayedGroup:
    """Play all members of a group at once; the results are ordered by member.

    Those from `group_size // 2` on draw their tokens as `rival` says, where there is one. Where the group is `judged`, the environment
    compares each member m with member m + group_size // 2 once all have ended. A `tutor` then adds what a teacher says of them.

    Raises what `play_episode` raises, the first of several; the other episodes are then cancelled and closed.
    """
    played: dict[int, Rollout] = {}
    episodes: dict[int, Episode] = {}
    told: dict[int, Told] = {}

    async def play(member: int) -> None:
        played[member] = await play_episode(
            task,
            member,
            sampler=replace(sampler, contract=rival) if rival is not None and member >= group_size // 2 else sampler,
            others=others,
            pool=pool,
            sampling=sampling,
            rollout=rollout,
            seed=seed,
            on_end=partial(episodes.__setitem__, member) if judged else None,
            on_told=partial(told.__setitem__, member) if tutor is not None else None,
        )

    try:
        async with trio.open_nursery() as nursery:
            for member in range(group_size):
                nursery.start_soon(play, member)
    except BaseExceptionGroup as group:
        raise alone(group) from None
    rollouts = [played[member] for member in range(group_size)]
    if tutor is not None:
        rollouts = await tutor.taught(rollouts, told)
    if not judged:
        return PlayedGroup(rollouts)
    return await judged_group(rollouts, [episodes[member] for member in range(group_size)], pool)


async def play_episode(
    task: Task,
    member: int,
    *,
    sampler: Sampler,
    others: Mapping[str, Sampler],
    pool: EnvPool,
    sampling: SamplingConfig,
    rollout: RolloutConfig,
    seed: int,
    on_end: Callable[[Episode], None] | None = None,
    on_told: Callable[[Told], None] | None = None,
) -> Rollout:
    """Play one episode to its end and score it.

    Args:
        task: what to play.
        member: index within its group.
        sampler: the policy that is trained.
        others: further policies, by the names that environments call them.
        pool: where the environment runs.
        sampling: budgets of tokens and turns.
        rollout: deadlines.
        seed: of the run; with task, member and turn it names the random stream of each call.
        on_end: told the whole episode, as the environment sees it.
        on_told: told what the environment began it with, where it gives a prompt.
    Returns: a rollout whose ending and score say what happened; failures of the environment are unscorable.
    Raises: `SamplerUnavailable` from the engine; `ConfigError` where the prompt cannot be rendered at all.
    """
    play = _Play(sampler, others, sampling, f"{seed}\n{task.id}\n{member}")
    deadline_s = rollout.episode_timeout_s
    started = trio.current_time()
    session: EnvSession | None = None
    try:
        with trio.move_on_after(deadline_s) as scope:
            session = await play.in_environment(pool.open(task))
            if on_told is not None and not session.opened.plays:
                on_told(Told(prompt=session.opened.prompt, tools=session.opened.tools))
            outcome = await (play.follow(session) if session.opened.plays else play.run(session))
        if scope.cancelled_caught:
            outcome = _unscorable("timeout", f"the episode took longer than {deadline_s:g} s")
        elif session is not None:
            score = outcome.score
            if score is None:
                score = await play.in_environment(session.score(play.episode(task, outcome.ending)))
            outcome = _Outcome(ending=outcome.ending, score=whole_return(score, play.tree.turns), reason=outcome.reason)
    except EnvironmentTimeout as error:
        outcome = _unscorable("timeout", str(error))
    except EnvironmentFailure as error:
        outcome = _unscorable("environment_error", str(error))
    except RequestRefused as error:
        outcome = _unscorable("cancelled", str(error))
    finally:
        if session is not None:
            session.close()
    play.counters["time/episode_s"] = trio.current_time() - started
    assert outcome.score is not None
    if on_end is not None:
        on_end(play.episode(task, outcome.ending))
    return Rollout(
        task=task,
        member=member,
        turns=tuple(play.tree.turns),
        messages=tuple(play.messages),
        ending=outcome.ending,
        score=outcome.score,
        reason=outcome.reason,
        counters=dict(play.counters),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """How an episode ended; the environment is still to be asked where `score` is None."""

    ending: Ending
    score: Score | None = None
    reason: str = ""


def _unscorable(ending: Ending, reason: str) -> _Outcome:
    return _Outcome(ending=ending, score=Score.unscorable(reason), reason=reason)


class _Play:
    """What an episode gathers while it is played."""

    def __init__(self, sampler: Sampler, others: Mapping[str, Sampler], sampling: SamplingConfig, stream: str) -> None:
        self.counters: defaultdict[str, float] = defaultdict(float)
        self.tree = Tree(sampling, stream, self.counters)
        self.messages: list[Message] = []
        self._sampler = sampler
        self._others = others
        self._sampling = sampling
        self._prompt: str | list[Message] = ""
        self._max_tokens = sampling.max_tokens

    async def follow(self, session: EnvSession) -> _Outcome:
        """Sample what an environment asks for that plays the episode itself."""
        opened, sampling = session.opened, self._sampling
        limits = {
            "max_turns": min(sampling.max_turns, opened.max_turns or sampling.max_turns),
            "max_tokens": min(sampling.max_tokens, opened.max_tokens or sampling.max_tokens),
        }
        samplers = {POLICY: self._sampler, **self._others}
        talk = Conversations(self.tree, samplers, sampling.model_copy(update=limits), self.counters)
        try:
            finished = await session.play(talk.answer)
        finally:
            self._prompt, self.messages = talk.prompt, talk.messages
        for number, reward in finished.rewards.items():
            talk.reward(number, reward)
        own = [turn for turn in self.tree.turns if turn.trained]
        cut = finished.spent or (bool(own) and own[-1].finish_reason == "length")
        return _Outcome(ending="truncated" if cut else "complete", score=finished.score)

    async def run(self, session: EnvSession) -> _Outcome:
        """Sample and answer until the environment, or a budget, ends the episode."""
        opened = session.opened
        renderer = self._sampler.renderer
        self._prompt = opened.prompt
        self._max_tokens = min(self._max_tokens, opened.max_tokens or self._max_tokens)
        plain = isinstance(opened.prompt, str)
        self.messages = [{"role": "user", "content": opened.prompt}] if isinstance(opened.prompt, str) else list(opened.prompt)
        added = await off_loop(self.messages, partial(renderer.prompt, opened.prompt, opened.tools))
        turn = ROOT
        for number in range(min(self._sampling.max_turns, opened.max_turns or self._sampling.max_turns)):
            if not number and not len(added.ids):
                return _unscorable("environment_error", "the prompt is empty: the model needs at least one token to go on from")
            if self.tree.room(self._sampler, turn, added) < 1:
                return self._no_room(added)
            turn = await self.tree.sample(self._sampler, turn, added, self._max_tokens, number)
            last = self.tree.turns[turn]
            if last.finish_reason == "abort":
                return _unscorable("cancelled", "the engine aborted the request")
            text = renderer.text(last.span.ids[last.span.sampled])
            if last.finish_reason == "length":
                self.messages.append({"role": "assistant", "content": text})
                return _Outcome(ending="truncated")
            news = await self._answer(session, text, thinking=added.thinking)
            if news is None:
                return _Outcome(ending="complete")
            extend = partial(renderer.extension, news, opened.tools, last_id=self.tree.last_id(turn), plain=plain)
            added = await off_loop(news, extend)
        return _Outcome(ending="truncated")

    def episode(self, task: Task, ending: Ending) -> Episode:
        """The episode as the environment scores it."""
        return Episode(task=task, prompt=self._prompt, messages=self.messages, completion_ids=self.tree.sampled_ids(), ending=ending)

    async def in_environment(self, asked: Awaitable[T]) -> T:
        """Await an answer of the environment, on its clock."""
        started = trio.current_time()
        try:
            return await asked
        finally:
            self.counters["time/env_s"] += trio.current_time() - started

    def _no_room(self, added: Rendered) -> _Outcome:
        if self.tree.turns:
            return _Outcome(ending="truncated")
        limit = self.tree.limit(self._sampler)
        budget = "context" if limit == self._sampler.engine.context_length else "sampling.max_episode_tokens"
        reason = f"prompt of {len(added.ids)} tokens does not fit in {budget} {limit} with one sampled token"
        return _Outcome(ending="truncated", score=Score.unscorable(reason))

    async def _answer(self, session: EnvSession, text: str, *, thinking: bool) -> list[Message] | None:
        """What the environment says to an assistant turn; None ends the episode."""
        opened = session.opened
        calls = read_calls(text, opened.tools, thinking=thinking, tool_format=self._sampler.renderer.tool_format) if opened.tools else []
        message: Message = {"role": "assistant", "content": text}
        self.messages.append(message)
        if calls:
            return await self._run_calls(session, message, calls)
        if not opened.replies:
            return None
        reply = await self.in_environment(session.reply(text))
        self._reward(reply.reward)
        if reply.text is None:
            return None
        self.messages.append({"role": "user", "content": reply.text})
        return None if reply.done else self.messages[-1:]

    def _reward(self, reward: float) -> None:
        self.tree.reward(len(self.tree.turns) - 1, reward)

    async def _run_calls(self, session: EnvSession, message: Message, calls: list[ToolCall | Malformed]) -> list[Message] | None:
        before = len(self.messages)
        done = False
        for number, call in enumerate(calls):
            key = call_id(len(self.tree.turns), number)
            self.counters["tool/calls"] += 1
            if isinstance(call, Malformed):
                self.counters["tool/malformed"] += 1
                content = call.message
            else:
                function = {"name": call.name, "arguments": call.arguments}
                message.setdefault("tool_calls", []).append({"type": "function", "id": key, "function": function})
                observation = await self.in_environment(session.call_tool(call.name, call.arguments))
                self._reward(observation.reward)
                self.counters["tool/errors"] += observation.error
                content, done = observation.text, observation.done
            self.messages.append({"role": "tool", "name": call.name, "content": content, "tool_call_id": key})
            if done:
                return None
        return self.messages[before:]
