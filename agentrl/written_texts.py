"""Sequence-level distillation: the teacher answers the prompts of a step, and the policy learns from what it wrote.

The embedded engine's batch runs in the learner's own process, on a second copy of the teacher's weights. What a step trains is a function
of seed and step, and of nothing that was drawn before: a resumed run draws the same texts again.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from accelerate import Accelerator  # type: ignore[import-untyped]

    from agentrl.config import RunConfig
    from agentrl.engines.decoder import Loaded
    from agentrl.examples import DataKind, Example
    from agentrl.learner import Learner
    from agentrl.objectives import Needs
    from agentrl.offline_batches import Batches

Answer = tuple[list[int], bool]
"""Sampled ids, and whether they end with a token that ends a text."""


def trained_kind(kind: DataKind, needs: Needs) -> DataKind:
    """What the rows that are trained have to be: prompts alone where a teacher writes the rest."""
    return "prompts" if writes(needs) else kind


def writes(needs: Needs) -> bool:
    """Whether the run's teacher writes the texts that a dataset has no part in but their prompts."""
    return needs.teacher is not None and needs.teacher.writes


class Author:
    """Has a teacher write completions.

    Args:
        loaded: the teacher, ready to decode.
        config: the run file, for its seed, `sampling` and `data.max_length`.
        stop_ids: tokens that end a text.
        accelerator: the ranks, each of which writes a part of every step's texts.
    """

    def __init__(self, loaded: Loaded, config: RunConfig, stop_ids: Sequence[int], accelerator: Accelerator) -> None:
        self._loaded, self._config = loaded, config
        self._stop_ids, self._accelerator = tuple(stop_ids), accelerator

    def written(self, step: int, examples: Sequence[Example]) -> list[Example]:
        """The examples of a step with the teacher's completion behind each prompt, which is all that is kept of them; a collective.

        Raises `ConfigError` for a prompt that leaves the teacher no room, naming its row.
        """
        from agentrl.learner import ranks

        count, rank = self._accelerator.num_processes, self._accelerator.process_index
        mine = self._answers(step, {place: examples[place] for place in range(rank, len(examples), count)})
        found: dict[int, Answer] = {}
        for message in ranks.gather_messages(self._accelerator, json.dumps(list(mine.items())), str):
            found |= {place: (ids, ended) for place, (ids, ended) in json.loads(message)}
        return [_with_answer(example, *found[place]) for place, example in enumerate(examples)]

    def _answers(self, step: int, examples: dict[int, Example]) -> dict[int, Answer]:
        """What the teacher writes for these places of a step. Each step begins with an empty cache, so that none depends on others."""
        from agentrl.engines.embedded_server import KV_SHARE, free_bytes
        from agentrl.engines.scheduler import Scheduler
        from agentrl.records import Version

        if not examples:
            return {}
        scheduler = Scheduler(
            self._loaded,
            num_slots=min(len(examples), self._config.engine.slots),
            recompute=False,
            version=Version(),
            memory_bytes=int(KV_SHARE * free_bytes(str(self._loaded.device))),
        )
        for place, example in examples.items():
            scheduler.submit((0, place), self._request(step, place, example))
        found: dict[int, Answer] = {}
        while len(found) < len(examples):
            for done in scheduler.step():
                place, result = done.key[1], done.result
                if isinstance(result, str):
                    raise ConfigError(f"{examples[place].where}: the teacher cannot answer this prompt: {result}")
                found[place] = (result.ids.tolist(), bool(result.ids[-1] in self._stop_ids))
        return found

    def _request(self, step: int, place: int, example: Example) -> Any:
        from agentrl.engines.protocol import Request
        from agentrl.records import SamplingContract
        from agentrl.rollout.tree import request_seed

        (text,) = example.texts
        prompt, sampling = text.ids[: text.prompt_length], self._config.sampling
        most = min(self._loaded.context_length, self._config.data.max_length or self._loaded.context_length)
        if len(prompt) >= most:
            raise ConfigError(
                f"{example.where}: a prompt of {len(prompt)} tokens leaves no room for the teacher's answer, as both together have at most "
                f"{most}: shorten it, leave long rows out with data.max_length and data.long_rows=drop, or raise engine.context_length"
            )
        return Request(
            ids=prompt,
            max_tokens=min(sampling.max_tokens, most - len(prompt)),
            contract=SamplingContract(temperature=sampling.temperature, dtype=str(self._loaded.dtype).removeprefix("torch.")),
            seed=request_seed(f"{self._config.seed}\nwritten\n{step}", place),
            stop_ids=self._stop_ids,
        )


class WrittenBatches:
    """Batches whose completions a teacher writes.

    Args:
        batches: as they are.
        author: writes.
    """

    def __init__(self, batches: Batches, author: Author) -> None:
        self._batches, self._author = batches, author

    def take(self, step: int) -> list[Example]:
        """Those of the optimizer step of this number, from 0."""
        return self._author.written(step, self._batches.take(step))

    def epoch(self, step: int) -> float:
        """How often the data was gone over before this step."""
        return self._batches.epoch(step)

    def place_of(self, step: int) -> dict[str, Any] | None:
        """As that of the batches."""
        return self._batches.place_of(step)


def author_of(config: RunConfig, learner: Learner) -> Author | None:
    """What writes the texts of a run; None where nobody does. Raises `ConfigError` for a teacher that cannot be decoded here."""
    if not writes(learner.models.needs):
        return None
    from agentrl.engines.decoder import load_decoder
    from agentrl.rollout.render import Renderer
    from agentrl.rollout.tokenizer import generation_eos, load_tokenizer

    folder = str(learner.config.teacher[0].model)
    device = learner.accelerator.device
    engine = config.engine.model_copy(update={"device": "cpu" if device.type == "cpu" else f"cuda:{device.index or 0}"})
    loaded = load_decoder(folder, engine)
    renderer = Renderer(load_tokenizer(folder), eos_ids=generation_eos(folder), stop=config.sampling.stop)
    return Author(loaded, config, renderer.stop_ids, learner.accelerator)


def with_author(further: Callable[[int], Sequence[Example]] | None, author: Author | None) -> Callable[[int], Sequence[Example]] | None:
    """The dataset's part of each step of a run that also samples, its completions written by the teacher."""
    if further is None or author is None:
        return further
    return lambda step: author.written(step, further(step))


def _with_answer(example: Example, answer: Sequence[int], ended: bool) -> Example:
    (text,) = example.texts
    ids = np.concatenate([text.ids[: text.prompt_length], np.array(answer, dtype=np.int32)])
    trained = np.arange(len(ids)) >= text.prompt_length
    return replace(example, texts=(replace(text, ids=ids, trained=trained),), ended=ended)
