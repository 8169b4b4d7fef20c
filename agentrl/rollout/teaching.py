"""What a finished group gets from its teachers before it leaves the rollout process: a prompt of the teacher's own, and its log-probs.

Other groups go on playing meanwhile, so a teacher on servers scores while the policy generates. A rollout that a teacher cannot take is
unscorable, with the reason; a teacher that does not answer in time ends the run, as an engine that does not answer does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import trio

from agentrl.engines.teacher_client import TeacherServers
from agentrl.errors import EnvironmentFailure, RequestRefused
from agentrl.records import Rollout, Score, Turn
from agentrl.rollout.pool import alone
from agentrl.rollout.render import off_loop
from agentrl.rows import Row, rows_of
from agentrl.teacher_prompt import TEACHER, Attempt, composed, shown_to, top_names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agentrl.dispatch import TeacherPlace, Teaching
    from agentrl.engines.teacher_api import TokenScores
    from agentrl.rollout.render import Renderer
    from agentrl.teacher_prompt import Prompt, TeacherPrompt

TAUGHT = "teacher/taught"
"""Counter of a rollout: 1 where its teacher had something to see that it had not."""
TOO_LONG = "teacher/too_long"
"""Counter of a rollout: 1 where the teacher's prompt was longer than it may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What an episode was begun with."""

    prompt: Prompt
    tools: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A teacher on servers, connected to."""

    place: TeacherPlace
    servers: TeacherServers


@dataclass(frozen=True, slots=True, kw_only=True)
class Tutor:
    """Teaches finished groups."""

    renderer: Renderer
    prompt: TeacherPrompt | None = None
    teachers: tuple[Asked, ...] = ()
    top_k: int = 0
    """Likeliest tokens of each place, in whose stead no log-probs of the sampled ones are kept; 0 keeps those."""
    routed: bool = False
    """Whether rows may name the one teacher that they are for."""
    context_length: int | None = None
    """Tokens that the teacher's row may hold; None where that is not known."""

    async def taught(self, rollouts: Sequence[Rollout], told: Mapping[int, Told]) -> list[Rollout]:
        """The rollouts of a group with all that their teachers give them.

        Args:
            rollouts: ordered by member.
            told: by member, of those whose environment gave a prompt.

        Raises `SamplerUnavailable` where the servers of a teacher do not answer in time.
        """
        prompted = await self._prompted(rollouts, told) if self.prompt is not None else list(rollouts)
        if not self.teachers:
            return prompted
        found = list(prompted)

        async def score(index: int) -> None:
            found[index] = await self._scored(prompted[index])

        try:
            async with trio.open_nursery() as nursery:
                for index, rollout in enumerate(prompted):
                    if rollout.score.scorable and rollout.num_sampled:
                        nursery.start_soon(score, index)
        except BaseExceptionGroup as group:
            raise alone(group) from None
        return found

    async def _prompted(self, rollouts: Sequence[Rollout], told: Mapping[int, Told]) -> list[Rollout]:
        assert self.prompt is not None
        attempts = [_attempt(rollout) for rollout in rollouts]
        found = []
        for place, rollout in enumerate(rollouts):
            try:
                found.append(
                    await self._own_prompt(rollout, place, attempts, told.get(rollout.member)) if rollout.score.scorable else rollout
                )
            except EnvironmentFailure as error:
                found.append(replace(rollout, score=Score.unscorable(str(error))))
        return found

    async def _own_prompt(self, rollout: Rollout, place: int, attempts: Sequence[Attempt], told: Told | None) -> Rollout:
        how = self.prompt
        assert how is not None
        if told is None or _num_roots(rollout) > 1:
            raise EnvironmentFailure(
                "its environment plays the episode itself, and gives no prompt that a teacher could be shown more with"
            )
        shown = shown_to(place, attempts, rollout.task.row, how)
        if shown is None:
            return replace(rollout, counters={**rollout.counters, TAUGHT: 0.0})
        prompt = composed(told.prompt, shown, how.template)
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        rendered = await off_loop(messages, partial(self.renderer.prompt, prompt, told.tools))
        most = how.max_tokens
        longest = len(rendered.ids) - _prompt_length(rollout) + max((len(row.ids) for row in rows_of(rollout)), default=0)
        if (most is not None and len(rendered.ids) > most) or (self.context_length is not None and longest > self.context_length):
            return replace(rollout, counters={**rollout.counters, TAUGHT: 0.0, TOO_LONG: 1.0})
        return replace(rollout, teacher_prompt=rendered.ids, counters={**rollout.counters, TAUGHT: 1.0})

    async def _scored(self, rollout: Rollout) -> Rollout:
        """With the log-probs of its teachers in the columns of its turns."""
        named = rollout.task.row.get("teacher") if self.routed else None
        asked = [one for one in self.teachers if named is None or named == one.place.name]
        total = sum(one.place.weight for one in asked)
        turns = list(rollout.turns)
        try:
            for row in rows_of(rollout) if asked else ():
                trained = np.flatnonzero(row.trained)
                if len(trained):
                    said = [(one.place, await _ask(one, rollout, row, int(trained[0]))) for one in asked]
                    columns: dict[str, np.ndarray] = {}
                    if self.top_k:
                        for place, scores in said:
                            columns |= _top_columns(place.name, scores)
                    else:
                        mean = sum(place.weight / total * scores.logprobs for place, scores in said)
                        columns[TEACHER] = np.asarray(mean, dtype=np.float32)
                    _spread(turns, row, {name: column[trained - trained[0]] for name, column in columns.items()})
        except RequestRefused as error:
            return replace(rollout, score=Score.unscorable(str(error)))
        return replace(rollout, turns=tuple(turns))


@asynccontextmanager
async def tutor_of(teaching: Teaching | None, renderer: Renderer) -> AsyncIterator[Tutor | None]:
    """Connect to the teachers that this process asks; None where it has nothing to do for one.

    Args:
        teaching: what is to be done.
        renderer: of the policy.
    """
    if teaching is None:
        yield None
        return
    asked = tuple(Asked(place=place, servers=connected(place, teaching.top_k, teaching.vocab_size)) for place in teaching.places)
    try:
        yield Tutor(renderer=renderer, prompt=teaching.prompt, teachers=asked, top_k=teaching.top_k, routed=teaching.routed)
    finally:
        for one in asked:
            await one.servers.aclose()


def connected(place: TeacherPlace, top_k: int, vocab_size: int | None) -> TeacherServers:
    """The servers of a teacher."""
    key = os.environ.get(place.api_key_env, "")
    return TeacherServers(place.servers, timeout_s=place.timeout_s, top_k=top_k, vocab_size=vocab_size, api_key=key)


async def _ask(asked: Asked, rollout: Rollout, row: Row, first: int) -> TokenScores:
    """The scores of a row from its first trained token on, as the teacher reads it."""
    if rollout.teacher_prompt is None:
        return await asked.servers.score(row.ids, first)
    ids = np.concatenate([rollout.teacher_prompt, row.ids[row.prompt_length :]])
    return await asked.servers.score(ids, first + len(rollout.teacher_prompt) - row.prompt_length)


def _top_columns(name: str, scores: TokenScores) -> dict[str, np.ndarray]:
    ids, logprobs = top_names(name)
    return {ids: scores.top_ids, logprobs: scores.top_logprobs}


def _spread(turns: list[Turn], row: Row, columns: Mapping[str, np.ndarray]) -> None:
    """Give the turns of a row the columns of its trained tokens."""
    owner = row.turn[row.trained]
    for index in np.unique(owner).tolist():
        span = turns[index].span
        own = {}
        for name, column in columns.items():
            nothing = -1 if np.issubdtype(column.dtype, np.integer) else np.nan
            whole = np.full((len(span), *column.shape[1:]), nothing, dtype=column.dtype)
            whole[span.sampled] = column[owner == index]
            own[name] = whole
        turns[index] = replace(turns[index], span=replace(span, columns={**span.columns, **own}))


def _attempt(rollout: Rollout) -> Attempt:
    said = [place for place, message in enumerate(rollout.messages) if message["role"] == "assistant"]
    after = rollout.messages[said[-1] + 1 :] if said else ()
    feedback = "\n".join(str(message.get("content") or "") for message in after)
    text = "\n".join(str(rollout.messages[place].get("content") or "") for place in said)
    return Attempt(score=rollout.score.value, text=text, feedback=feedback or None)


def _num_roots(rollout: Rollout) -> int:
    return sum(turn.parent == -1 for turn in rollout.turns)


def _prompt_length(rollout: Rollout) -> int:
    return max((row.prompt_length for row in rows_of(rollout)), default=0)
