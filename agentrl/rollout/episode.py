"""One episode: prompt, sample, run the tools, extend the context, score. One group: its episodes side by side in one nursery.

Nothing that a model or an environment does ends more than its own episode. Only the engine's failures and a wrong configuration are
raised; cancelling a group closes its requests and its environments.
"""

from __future__ import annotations

import hashlib
import uuid
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import trio

from agentrl.engines.protocol import Completion, Engine, Request
from agentrl.environment import Episode
from agentrl.errors import EnvironmentFailure, RequestRefused
from agentrl.records import Ending, Rollout, SamplingContract, Score, Source, Task, Turn
from agentrl.rollout.judge import PlayedGroup, judged_group
from agentrl.rollout.pool import EnvironmentTimeout, EnvPool, EnvSession, alone
from agentrl.rollout.render import Rendered, Renderer, off_loop
from agentrl.rollout.toolcalls import Malformed, ToolCall, read_calls
from agentrl.rollout.turns import rewarded, sampled_turn, whole_return

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agentrl.config import RolloutConfig, SamplingConfig

T = TypeVar("T")
Message = dict[str, Any]


async def play_group(
    task: Task,
    group_size: int,
    *,
    engine: Engine,
    renderer: Renderer,
    pool: EnvPool,
    sampling: SamplingConfig,
    rollout: RolloutConfig,
    seed: int,
    contract: SamplingContract,
    rival: SamplingContract | None = None,
    judged: bool = False,
) -> PlayedGroup:
    """Play all members of a group at once; the results are ordered by member.

    Those from `group_size // 2` on draw their tokens as `rival` says, where there is one. Where the group is `judged`, the environment
    compares each member m with member m + group_size // 2 once all have ended.

    Raises what `play_episode` raises, the first of several; the other episodes are then cancelled and closed.
    """
    played: dict[int, Rollout] = {}
    episodes: dict[int, Episode] = {}

    async def play(member: int) -> None:
        played[member] = await play_episode(
            task,
            member,
            engine=engine,
            renderer=renderer,
            pool=pool,
            sampling=sampling,
            rollout=rollout,
            seed=seed,
            contract=rival if rival is not None and member >= group_size // 2 else contract,
            on_end=partial(episodes.__setitem__, member) if judged else None,
        )

    try:
        async with trio.open_nursery() as nursery:
            for member in range(group_size):
                nursery.start_soon(play, member)
    except BaseExceptionGroup as group:
        raise alone(group) from None
    rollouts = [played[member] for member in range(group_size)]
    if not judged:
        return PlayedGroup(rollouts)
    return await judged_group(rollouts, [episodes[member] for member in range(group_size)], pool)


async def play_episode(
    task: Task,
    member: int,
    *,
    engine: Engine,
    renderer: Renderer,
    pool: EnvPool,
    sampling: SamplingConfig,
    rollout: RolloutConfig,
    seed: int,
    contract: SamplingContract,
    on_end: Callable[[Episode], None] | None = None,
) -> Rollout:
    """Play one episode to its end and score it.

    Args:
        task: what to play.
        member: index within its group.
        engine: samples the turns.
        renderer: of the policy's tokenizer.
        pool: where the environment runs.
        sampling: budgets of tokens and turns.
        rollout: deadlines.
        seed: of the run; with task, member and turn it names the random stream of each call.
        contract: how tokens are drawn.
        on_end: told the whole episode, as the environment sees it.
    Returns: a rollout whose ending and score say what happened; failures of the environment are unscorable.
    Raises: `SamplerUnavailable` from the engine; `ConfigError` where the prompt cannot be rendered at all.
    """
    play = _Play(engine, renderer, sampling, contract, f"{seed}\n{task.id}\n{member}")
    deadline_s = rollout.episode_timeout_s
    started = trio.current_time()
    session: EnvSession | None = None
    try:
        with trio.move_on_after(deadline_s) as scope:
            session = await play.in_environment(pool.open(task))
            outcome = await play.run(session)
        if scope.cancelled_caught:
            outcome = _unscorable("timeout", f"the episode took longer than {deadline_s:g} s")
        elif session is not None and outcome.score is None:
            score = await play.in_environment(session.score(play.episode(task, outcome.ending)))
            outcome = _Outcome(ending=outcome.ending, score=whole_return(score, play.turns))
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
        turns=tuple(play.turns),
        messages=tuple(play.messages),
        ending=outcome.ending,
        score=outcome.score,
        reason=outcome.reason,
        counters=dict(play.counters),
    )


def request_seed(stream: str, turn: int) -> int:
    """The random stream of one call, a number of 63 bits: the same for the same seed, task, member and turn."""
    digest = hashlib.blake2b(f"{stream}\n{turn}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


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

    def __init__(self, engine: Engine, renderer: Renderer, sampling: SamplingConfig, contract: SamplingContract, stream: str) -> None:
        self.turns: list[Turn] = []
        self.messages: list[Message] = []
        self.counters: defaultdict[str, float] = defaultdict(float)
        self._engine = engine
        self._renderer = renderer
        self._sampling = sampling
        self._contract = contract
        self._stream = stream
        self._key = uuid.uuid4().hex
        self._context = np.zeros(0, dtype=np.int32)
        self._prompt: str | list[Message] = ""
        self._max_tokens = sampling.max_tokens

    async def run(self, session: EnvSession) -> _Outcome:
        """Sample and answer until the environment, or a budget, ends the episode."""
        opened = session.opened
        self._prompt = opened.prompt
        self._max_tokens = min(self._max_tokens, opened.max_tokens or self._max_tokens)
        plain = isinstance(opened.prompt, str)
        self.messages = [{"role": "user", "content": opened.prompt}] if isinstance(opened.prompt, str) else list(opened.prompt)
        added = await off_loop(self.messages, partial(self._renderer.prompt, opened.prompt, opened.tools))
        for turn in range(min(self._sampling.max_turns, opened.max_turns or self._sampling.max_turns)):
            if not turn and not len(added.ids):
                return _unscorable("environment_error", "the prompt is empty: the model needs at least one token to go on from")
            if self._room(added) < 1:
                return self._no_room(added)
            completion = await self._sample(added, turn)
            if completion.finish_reason == "abort":
                return _unscorable("cancelled", "the engine aborted the request")
            text = self._renderer.text(completion.ids)
            if completion.finish_reason == "length":
                self.messages.append({"role": "assistant", "content": text})
                return _Outcome(ending="truncated")
            news = await self._answer(session, text, thinking=added.thinking)
            if news is None:
                return _Outcome(ending="complete")
            last_id = int(completion.ids[-1]) if len(completion.ids) else -1
            extend = partial(self._renderer.extension, news, opened.tools, last_id=last_id, plain=plain)
            added = await off_loop(news, extend)
        return _Outcome(ending="truncated")

    def episode(self, task: Task, ending: Ending) -> Episode:
        """The episode as the environment scores it."""
        sampled = [token for turn in self.turns for token in turn.span.ids[turn.span.sampled].tolist()]
        return Episode(task=task, prompt=self._prompt, messages=self.messages, completion_ids=sampled, ending=ending)

    async def in_environment(self, asked: Awaitable[T]) -> T:
        """Await an answer of the environment, on its clock."""
        started = trio.current_time()
        try:
            return await asked
        finally:
            self.counters["time/env_s"] += trio.current_time() - started

    @property
    def _limit(self) -> int:
        context = self._engine.context_length
        return min(context, self._sampling.max_episode_tokens or context)

    def _room(self, added: Rendered) -> int:
        return self._limit - len(self._context) - len(added.ids)

    def _no_room(self, added: Rendered) -> _Outcome:
        if self.turns:
            return _Outcome(ending="truncated")
        budget = "context" if self._limit == self._engine.context_length else "sampling.max_episode_tokens"
        reason = f"prompt of {len(added.ids)} tokens does not fit in {budget} {self._limit} with one sampled token"
        return _Outcome(ending="truncated", score=Score.unscorable(reason))

    async def _sample(self, added: Rendered, turn: int) -> Completion:
        context = np.concatenate([self._context, added.ids])
        request = Request(
            ids=context,
            max_tokens=min(self._max_tokens, self._room(added)),
            contract=self._contract,
            seed=request_seed(self._stream, turn),
            stop_ids=self._renderer.stop_ids,
            session=self._key,
        )
        started = trio.current_time()
        completion = await self._engine.generate(request)
        self.counters["time/engine_s"] += trio.current_time() - started
        self.counters["turns"] += 1
        self.counters["tokens/sampled"] += len(completion.ids)
        self.counters["tokens/given"] += len(added.ids)
        self._context = np.concatenate([context, completion.ids])
        source = Source.ENVIRONMENT if self.turns else Source.PROMPT
        self.turns.append(sampled_turn(len(self.turns) - 1, added.ids, source, completion, self._contract))
        return completion

    async def _answer(self, session: EnvSession, text: str, *, thinking: bool) -> list[Message] | None:
        """What the environment says to an assistant turn; None ends the episode."""
        opened = session.opened
        calls = read_calls(text, opened.tools, thinking=thinking) if opened.tools else []
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
        self.turns[-1] = rewarded(self.turns[-1], reward)

    async def _run_calls(self, session: EnvSession, message: Message, calls: list[ToolCall | Malformed]) -> list[Message] | None:
        before = len(self.messages)
        done = False
        for number, call in enumerate(calls):
            key = f"call{len(self.turns):02d}{number:03d}"  # nine letters and digits, as some templates demand
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
