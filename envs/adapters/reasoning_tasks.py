"""Data sets of the reasoning-gym library as single-turn tasks: `reasoning-gym:chain_sum?max_terms=3`.

Several names make a mixture: `reasoning-gym:gcd,lcm`.
"""

from __future__ import annotations

import random
import typing
import zlib
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, cast, get_args

from agentrl.environment import Environment, Episode, Split, finite
from agentrl.envs.adapters import import_extra
from agentrl.envs.adapters.answers import Extraction, found_answer
from agentrl.envs.adapters.global_random import Dice
from agentrl.envs.adapters.plain_json import packed, unpacked
from agentrl.envs.adapters.reasoning_guards import may_be_scored
from agentrl.envs.procedural import Procedural
from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.llm import Message
from agentrl.records import Score, Task

BLOCK = 5000
"""Questions that share a data set object: some read files, or draw all their questions, when they are made."""
MOST_DRAWS = 500
"""Draws in a row that all fall into the other split; then there are too few different questions to split."""
ROUNDING = 1e-9
"""Some scores are sums of shares and come out as 1.0000000000000002."""

_GOLDS_IN_METADATA = ("example_answer", "example_correct_answer")


def reasoning_tasks(
    name: str,
    /,
    *,
    size: int = 20_000,
    eval_size: int = 500,
    seed: int = 0,
    extract: Extraction = "auto",
    system: str = "",
    plain: bool = False,
    short: bool = False,
    exact: bool = False,
    **options: Any,
) -> ReasoningTasks:
    """Questions of a reasoning-gym data set, scored by its own scorer.

    No question of the evaluation split occurs in training. Within a split, questions of a small space may repeat.

    Args:
        name: of the data set; several, with commas between them, are mixed evenly.
        size: training tasks.
        eval_size: evaluation tasks.
        seed: of the questions.
        extract: how the answer is read off the text: `auto` takes the last `<answer>...</answer>`, else the last box, `####` line, "answer
            is" or line; `tags` takes the tags alone; `text` takes all of the text after the thinking.
        system: the system message: a text, or a name of reasoning-gym's own (`default`, `DeepSeekZero`, `direct`, ...).
        plain: prompt with the question as a text to continue, without a chat template.
        short: ask only what follows the colon of a question, where what precedes it is the same in all of them.
        exact: a score below 1 counts as 0. Many scorers give a little to any answer.
        options: the data set's own configuration.
    """
    gym = import_extra("reasoning_gym", "reasoning-gym")
    if extract not in get_args(Extraction):
        raise ConfigError(f"reasoning-gym:{name}: extract must be one of {', '.join(get_args(Extraction))}, got {extract!r}")
    if system and plain:
        raise ConfigError(f"reasoning-gym:{name}: a plain prompt has no place for the system message; leave out `system` or `plain`")
    source = Source(name, seed=seed, size=max(size, eval_size), options=options)
    system = gym.utils.SYSTEM_PROMPTS.get(system, system)
    sizes: dict[Split, int] = {"train": size, "eval": eval_size}
    return ReasoningTasks(source, sizes=sizes, extract=extract, system=system, plain=plain, short=short, exact=exact)


class Source:
    """A data set of any number of questions, made in blocks. Raises `ConfigError` for a name or an option that it does not have."""

    def __init__(self, name: str, *, seed: int, size: int, options: Mapping[str, Any]) -> None:
        self.name, self._options = name, _configured(name, options)
        self._seed = zlib.crc32(f"{seed}".encode()) % 2**30
        self._num_blocks = 2 + 2 * size // BLOCK
        self._block = lru_cache(maxsize=16)(self._made)
        self.scorer: Any = self._block(0)
        """Any block scores the answers to all."""
        self.key = f"reasoning-gym:{name}/{seed}/{sorted(options.items(), key=str)}"

    def draw(self, stream: random.Random) -> dict[str, Any]:
        """An entry: its question, gold (may be None) and metadata. Raises `EnvironmentFailure` for one that is malformed."""
        block, index = stream.randrange(self._num_blocks), stream.randrange(BLOCK)
        with Dice(block * BLOCK + index).held():  # some draw from the global generators
            entry = self._block(block)[index]
        question, answer, metadata = entry["question"], entry["answer"], entry.get("metadata", {})
        if not isinstance(question, str) or not isinstance(answer, str | None) or not isinstance(metadata, Mapping):
            raise EnvironmentFailure(f"reasoning-gym:{self.name} gave an entry without a text question: {entry!r:.200}")
        return {"question": question, "answer": answer, "metadata": packed(metadata)}

    def _made(self, block: int) -> Any:
        gym = import_extra("reasoning_gym", "reasoning-gym")
        several = "," in self.name
        try:
            seed = self._seed + block * BLOCK  # entry i is drawn from seed + i: blocks must not overlap
            with Dice(seed).held():
                return gym.create_dataset("composite" if several else self.name, seed=seed, size=BLOCK, **self._options)
        except (AssertionError, ValueError, TypeError) as error:
            raise ConfigError(f"reasoning-gym:{self.name} refuses its options {self._options}: {error}") from error


def _configured(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the data set's configuration wants them: lists as tuples, names as enums, mappings as dataclasses."""
    factory = import_extra("reasoning_gym.factory", "reasoning-gym")
    names = name.split(",")
    unknown = [one for one in names if one not in factory.DATASETS]
    if unknown:
        raise ConfigError(f"reasoning-gym has no data set {unknown[0]!r}; it has: {', '.join(sorted(factory.DATASETS))}")
    if len(names) > 1:
        if options:
            raise ConfigError(f"reasoning-gym:{name}: options are those of one data set; use reasoning-gym:composite?datasets=[...]")
        spec = import_extra("reasoning_gym.composite", "reasoning-gym").DatasetSpec
        return {"datasets": [spec(name=one, weight=1.0, config={}) for one in names]}
    hints = {key: hint for key, hint in typing.get_type_hints(factory.DATASETS[name][1]).items() if key not in ("seed", "size")}
    return {key: _as_hinted(f"reasoning-gym:{name}", key, value, hints) for key, value in options.items()}


def _as_hinted(what: str, key: str, value: Any, hints: Mapping[str, Any]) -> Any:
    from pydantic import TypeAdapter, ValidationError  # for those who configure something

    if key not in hints:
        raise ConfigError(f"{what} has no option {key!r}; it has: {', '.join(sorted(hints)) or 'none'}")
    if isinstance(value, list) and " " in value:
        raise ConfigError(f"{what}: {key} holds a space, {value}; in a spec `+` is written %2B")
    try:
        return TypeAdapter(hints[key]).validate_python(value)
    except ValidationError as error:
        faults = "; ".join(fault["msg"] for fault in error.errors(include_url=False))
        raise ConfigError(f"{what}: {key} is {value!r}: {faults}") from None


class _Draw:
    """Draws rows for `Procedural`, and gives up where one split gets none."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._row: random.Random | None = None
        self._left = 0

    def __call__(self, stream: random.Random) -> tuple[str, Mapping[str, Any]]:
        if stream is not self._row:
            self._row, self._left = stream, MOST_DRAWS
        if self._left == 0:
            raise ConfigError(
                f"reasoning-gym:{self._source.name} has too few different questions to hold some out: {MOST_DRAWS} draws fell into one "
                "split; widen its options"
            )
        self._left -= 1
        entry = self._source.draw(stream)
        return entry["question"], entry


class ReasoningTasks(Environment):
    """One question, one answer."""

    max_turns = 1

    def __init__(
        self, source: Source, *, sizes: Mapping[Split, int], extract: Extraction, system: str, plain: bool, short: bool, exact: bool
    ) -> None:
        self._source, self._sizes, self._extract = source, sizes, extract
        self._system, self._plain, self._short, self._exact = system, plain, short, exact

    def tasks(self, split: Split) -> Procedural:
        """Rows of reasoning-gym's own entries, drawn when they are asked for."""
        return Procedural(_Draw(self._source), split=split, size=self._sizes[split], name=self._source.key)

    def start(self, task: Task) -> str | list[Message]:
        """The question."""
        question = task.row["question"]
        if self._short:
            question = question.rpartition(":")[2].strip()
        if self._plain:
            return str(question)
        system = [{"role": "system", "content": self._system}] if self._system else []
        return [*system, {"role": "user", "content": question}]

    def score(self, episode: Episode) -> Score:
        """The data set's own score, from 0 to 1."""
        answer = found_answer(episode.answer, self._extract)
        if answer is None:
            return Score(value=0.0, parts={"solved": 0.0}, reason="no answer in the text")
        value, reason = self._scored(answer, unpacked(episode.task.row))
        if value is None:
            return Score.unscorable(reason)
        solved = float(value >= 1)
        return Score(value=solved if self._exact else value, parts={"solved": solved}, reason=reason)

    def _scored(self, answer: str, entry: Mapping[str, Any]) -> tuple[float | None, str]:
        if not may_be_scored(answer, entry):
            return 0.0, "the answer is a program, or has not the form that is asked for"
        value, reason = self._asked(answer, entry)
        if not reason:
            return self._checked(value), ""
        gold = entry["answer"]
        works = self._asked(gold, entry) == (1.0, "") if isinstance(gold, str) else not self._asked("{}", entry)[1]
        if works:
            return 0.0, f"the answer cannot be read ({reason})"
        return None, f"reasoning-gym:{self._source.name} cannot score this task: {reason}"

    def _asked(self, answer: str, entry: Mapping[str, Any]) -> tuple[Any, str]:
        """What the scorer returned; or the error that it raised, as some do on an answer that they cannot read."""
        try:
            return self._source.scorer.score_answer(answer, entry), ""
        except MemoryError:
            raise
        except Exception as error:  # the boundary to the library
            return None, f"{type(error).__name__}: {error}"

    def _checked(self, value: Any) -> float:
        allowed = "a number from 0 to 1"
        number = finite(f"reasoning-gym:{self._source.name}: score_answer returned", value, allowed)
        if not -ROUNDING <= number <= 1 + ROUNDING:
            raise EnvironmentFailure(f"reasoning-gym:{self._source.name}: score_answer returned {number}; allowed: {allowed}")
        return min(max(number, 0.0), 1.0)

    def golden(self, task: Task) -> Sequence[str] | None:
        """The gold, or the example of one that some data sets keep; None for those without."""
        entry = cast("dict[str, Any]", unpacked(task.row))
        known = [entry["answer"], *(entry["metadata"].get(key) for key in _GOLDS_IN_METADATA)]
        gold = next((one for one in known if isinstance(one, str)), None)
        if gold is None:
            return None
        return [gold if self._extract == "text" else f"<answer>{gold}</answer>"]


@cache
def dataset_names() -> tuple[str, ...]:
    """Every data set that the installed library has, mixtures aside."""
    factory = import_extra("reasoning_gym.factory", "reasoning-gym")
    return tuple(sorted(set(factory.DATASETS) - {"composite"}))
