"""Teachers on vLLM servers: what rollout processes are told of them, their check at the start, and the rows of an offline run."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import trio

from agentrl.dispatch import TeacherPlace, Teaching
from agentrl.engines.vllm_setup import PROBED_TEXT
from agentrl.errors import ConfigError, RequestRefused
from agentrl.offline_batches import Changed
from agentrl.rollout.pool import alone
from agentrl.rollout.teaching import connected
from agentrl.teacher_prompt import TEACHER, top_names

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentrl.config import RunConfig
    from agentrl.engines.teacher_client import TeacherServers
    from agentrl.examples import Example, Text
    from agentrl.objectives import Needs
    from agentrl.offline_batches import Batches, Examples


def teaching_of(config: RunConfig, needs: Needs) -> Teaching | None:
    """What rollout processes do for an objective's teacher; None where they do nothing."""
    asked = needs.teacher
    if asked is None:
        return None
    places = _places(config) if asked.who == "others" else ()
    if asked.prompt is None and not places:
        return None
    top_k = 0 if asked.divergence is None else asked.top_k or 0
    return Teaching(prompt=asked.prompt, places=places, top_k=top_k, routed=len(config.teacher) > 1)


def _places(config: RunConfig) -> tuple[TeacherPlace, ...]:
    return tuple(
        TeacherPlace(name=one.name, servers=tuple(one.servers), weight=one.weight, timeout_s=one.timeout_s, api_key_env=one.api_key_env)
        for one in config.teacher
        if one.servers
    )


def check_served(config: RunConfig, needs: Needs, tokenizer: Any) -> None:
    """Raise `ConfigError` unless every server of a teacher answers, with the policy's tokenizer and the log-probs that are needed."""
    teaching = teaching_of(config, needs)
    if teaching is None or not teaching.places:
        return
    ids = list(tokenizer(PROBED_TEXT, add_special_tokens=False).input_ids)

    async def check(servers: Sequence[TeacherServers]) -> None:
        for one in servers:
            await one.check(PROBED_TEXT, ids)

    _with_servers(teaching, check)


class Tutor:
    """Has the texts of a dataset scored by the teachers that are on servers.

    Args:
        teaching: which teachers, and what of them.
        connect: makes the servers of a teacher, for a trio run of its own.
    """

    def __init__(self, teaching: Teaching, connect: Callable[[TeacherPlace, int, int | None], TeacherServers] = connected) -> None:
        self._teaching = teaching
        self._connect = connect

    def taught(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with what their teachers say of their trained tokens; blocks.

        Raises `ConfigError` for a text that a teacher cannot take, naming its row, and `SamplerUnavailable` where the servers of one do
        not answer in time.
        """
        texts = [(example, text) for example in examples for text in example.texts]
        known: list[dict[str, np.ndarray]] = [{} for _ in texts]

        async def score(servers: Sequence[TeacherServers]) -> None:
            async with trio.open_nursery() as nursery:
                for index, (example, text) in enumerate(texts):
                    if text.num_trained:
                        nursery.start_soon(one, servers, index, example, text)

        async def one(servers: Sequence[TeacherServers], index: int, example: Example, text: Text) -> None:
            try:
                known[index] = await self._known(servers, example, text)
            except RequestRefused as error:
                raise ConfigError(f"{example.where}: {error}") from error

        _with_servers(self._teaching, score, self._connect)
        left = iter(known)
        return [
            replace(example, texts=tuple(replace(text, known={**text.known, **next(left)}) for text in example.texts))
            for example in examples
        ]

    async def _known(self, servers: Sequence[TeacherServers], example: Example, text: Text) -> dict[str, np.ndarray]:
        pairs = zip(self._teaching.places, servers, strict=True)
        asked = [pair for pair in pairs if example.teacher in (None, pair[0].name)]
        total = sum(place.weight for place, _ in asked)
        trained = np.flatnonzero(text.trained)
        found: dict[str, np.ndarray] = {}
        mean = np.zeros(len(trained))
        for place, server in asked:
            scores = await server.score(text.ids, int(trained[0]))
            mean += place.weight / total * scores.logprobs[trained - trained[0]]
            if self._teaching.top_k:
                ids, logprobs = top_names(place.name)
                found |= {ids: scores.top_ids[trained - trained[0]], logprobs: scores.top_logprobs[trained - trained[0]]}
        return found if self._teaching.top_k else {TEACHER: mean.astype(np.float32)}


class TaughtBatches:
    """Batches whose texts are scored while the learner takes the step before.

    Args:
        batches: as they are.
        tutor: scores them.
        steps: of the whole run; nothing is scored beyond.
    """

    def __init__(self, batches: Batches, tutor: Tutor, steps: int) -> None:
        self._batches, self._tutor, self._steps = batches, tutor, steps
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="teacher")
        self._next: tuple[int, Future[list[Example]]] | None = None

    def take(self, step: int) -> list[Example]:
        """Those of the optimizer step of this number, from 0."""
        at, waiting = self._next or (-1, None)
        taught = waiting.result() if waiting is not None and at == step else self._tutor.taught(self._batches.take(step))
        self._next = (step + 1, self._pool.submit(self._ahead, step + 1)) if step + 1 < self._steps else None
        return taught

    def epoch(self, step: int) -> float:
        """How often the data was gone over before this step."""
        return self._batches.epoch(step)

    def place_of(self, step: int) -> dict[str, Any] | None:
        """As that of the batches."""
        return self._batches.place_of(step)

    def close(self) -> None:
        """Wait for what is being scored, and drop it."""
        self._pool.shutdown(cancel_futures=True)

    def _ahead(self, step: int) -> list[Example]:
        return self._tutor.taught(self._batches.take(step))


def taught(examples: Examples, tutor: Tutor) -> Changed:
    """Rows that are evaluated, all of them scored once."""
    known = tutor.taught([examples[index] for index in range(len(examples))])
    return Changed(examples, lambda index, example: known[index])


def tutor_of(config: RunConfig, needs: Needs) -> Tutor | None:
    """What scores the rows of an offline run; None where its teachers are in process."""
    teaching = teaching_of(config, needs)
    return Tutor(teaching) if teaching is not None and teaching.places else None


def scored(further: Callable[[int], Sequence[Example]] | None, tutor: Tutor | None) -> Callable[[int], Sequence[Example]] | None:
    """The dataset's texts of each step of a run that also samples, with what teachers on servers say of them."""
    if further is None or tutor is None:
        return further
    return lambda step: tutor.taught(further(step))


def _with_servers(
    teaching: Teaching,
    work: Callable[[Sequence[TeacherServers]], Any],
    connect: Callable[[TeacherPlace, int, int | None], TeacherServers] = connected,
) -> None:
    async def main() -> None:
        servers = [connect(place, teaching.top_k, teaching.vocab_size) for place in teaching.places]
        try:
            await work(servers)
        finally:
            for one in servers:
                await one.aclose()

    try:
        trio.run(main)
    except BaseExceptionGroup as group:
        raise alone(group) from None
