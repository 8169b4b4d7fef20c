"""What an environment says without a model, asked in a process of its own: `python -m agentrl.env_kit.probe`, its question as JSON.

The answer is a file that is written again after each stage, so that of a process that hung there is left what it had found.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from agentrl.errors import ConfigError
from agentrl.records import Task
from agentrl.rollout.rows import load_rows, name_of, plain_row
from agentrl.rollout.user_values import clean, describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agentrl.environment import Environment, Split

T = TypeVar("T")

CLOSE_S = 5.0
MOST_SAMPLED = 2_000
"""Rows of a split that are looked at, spread over all of it."""
FETCH_S = 5.0
"""Longest time to look at the rows of a split."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is to look at."""

    spec: str
    imports: list[str]
    num_tasks: int
    timeout_s: float
    """Longest time for one solution."""
    answer: str
    """Path of the answer's file."""


class SplitFacts(msgspec.Struct, kw_only=True):
    """A split as it was found."""

    count: int = 0
    load_s: float = 0.0
    fetch_s: float = 0.0
    """Time for the rows that were looked at."""
    fault: str = ""
    digests: dict[int, str] = {}
    """Row number -> a digest of what is in it, but for its id."""
    ids: dict[int, str] = {}
    """Row number -> id of its task."""


class Facts(msgspec.Struct, kw_only=True):
    """The answer."""

    stage: str = "import"
    """What was being done when it was written; `end` at the end."""
    wrong: str = ""
    """Why the environment cannot be made at all."""
    plays: bool = False
    splits: dict[str, SplitFacts] = {}
    rows: list[dict[str, Any]] = []
    """The training rows to play, spread over the split; evaluation rows where there are none."""
    numbers: list[int] = []
    """Their numbers in the split."""
    golden: list[list[str] | None] = []
    """The solution of each, None where the environment knows none."""
    golden_faults: dict[int, str] = {}
    """Row number -> why its solution could not be had."""
    close_faults: list[str] = []


class Probe:
    """Asks an environment what the question wants to know."""

    def __init__(self, question: Question) -> None:
        self.facts = Facts()
        self._question = question
        self._factory: Callable[[], Environment] | None = None

    def run(self) -> None:
        """Go through the stages. Never raises."""
        for stage, action in (("import", self._load), ("tasks", self._tasks), ("golden", self._golden), ("close", self._close)):
            self.facts.stage = stage
            self._write()
            try:
                action()
            except BaseException as error:  # the boundary to the environment's own code, which may also call sys.exit
                self.facts.wrong = _said(error, self._question.spec, stage)
                break
        else:
            self.facts.stage = "end"
        self._write()

    def _write(self) -> None:
        path = Path(self._question.answer)
        part = path.with_suffix(".part")
        part.write_bytes(msgspec.msgpack.encode(self.facts))
        part.replace(path)

    def _load(self) -> None:
        from agentrl import registry

        for name in self._question.imports:
            registry.import_module(name)
        self._factory = registry.load(self._question.spec)
        with self._made() as environment:
            self.facts.plays = environment.plays

    def _tasks(self) -> None:
        splits: tuple[Split, ...] = ("train", "eval")
        for split in splits:
            found = self.facts.splits[split] = SplitFacts()
            self.facts.stage = f"tasks({split!r})"
            self._write()
            try:
                self._split(split, found)
            except BaseException as error:  # the same
                found.fault = _said(error, self._question.spec, f"tasks({split!r})")

    def _split(self, split: Split, found: SplitFacts) -> None:
        spec = self._question.spec
        started = time.monotonic()
        rows = load_rows(spec, split, ())
        found.count, found.load_s = len(rows), time.monotonic() - started
        started = time.monotonic()
        for index in spread(found.count, MOST_SAMPLED):
            row = plain_row(name_of(spec, split), rows, index)
            task = Task.from_row(spec, row)
            found.digests[index], found.ids[index] = _digest(row), task.id
            if time.monotonic() - started > FETCH_S:
                break
        found.fetch_s = time.monotonic() - started
        if not self.facts.rows:
            self.facts.numbers = spread(found.count, self._question.num_tasks)
            self.facts.rows = [plain_row(name_of(spec, split), rows, index) for index in self.facts.numbers]

    def _golden(self) -> None:
        for number, row in zip(self.facts.numbers, self.facts.rows, strict=True):
            try:
                self.facts.golden.append(_bounded(partial(self._solution, row), self._question.timeout_s))
            except BaseException as error:  # the same
                self.facts.golden.append(None)
                self.facts.golden_faults[number] = _said(error, self._question.spec, "golden")

    def _solution(self, row: dict[str, Any]) -> list[str] | None:
        with self._made() as environment:
            task = Task.from_row(self._question.spec, row)
            environment.prepare(task)
            return _turns(_resolved(environment.golden(task)))

    def _close(self) -> None:
        """Close an environment that was only made, as after a failed start, and one that has started."""
        for row in [None, *self.facts.rows[:1]]:
            environment = self._new()
            if row is not None:
                _started(environment, Task.from_row(self._question.spec, row))
            try:
                _bounded(partial(_closed, environment), CLOSE_S)
            except BaseException as error:  # the same
                self.facts.close_faults.append(_said(error, self._question.spec, "close after start" if row else "close without start"))

    def _new(self) -> Environment:
        assert self._factory is not None
        return self._factory()

    @contextmanager
    def _made(self) -> Iterator[Environment]:
        environment = self._new()
        try:
            yield environment
        finally:
            _closed(environment)


def spread(count: int, most: int) -> list[int]:
    """Up to `most` numbers below `count`, evenly spread: `spread(10, 5)` is `[0, 2, 4, 6, 8]`."""
    taken = min(count, most)
    return [index * count // taken for index in range(taken)]


def _started(environment: Environment, task: Task) -> None:
    """Start an episode, whatever comes of it: that is for another check to say."""
    try:
        environment.prepare(task)
        if not environment.plays:
            _resolved(environment.start(task))
    except BaseException:  # the boundary to the environment's own code
        return


def _closed(environment: Environment) -> None:
    close: Callable[[], Any] = environment.close  # annotated as returning nothing, and yet it may be async
    _resolved(close())


def _bounded(action: Callable[[], T], within_s: float) -> T:
    """What an action gives or raises, on a thread that is left alone where it does not end in time."""
    answers: SimpleQueue[Callable[[], T]] = SimpleQueue()

    def run() -> None:
        try:
            value = action()
        except BaseException as error:  # raised again where it is waited for
            answers.put(partial(_raised, error))
        else:
            answers.put(lambda: value)

    threading.Thread(target=run, daemon=True).start()
    try:
        answer = answers.get(timeout=within_s)
    except Empty:
        raise ConfigError(f"it took longer than {within_s:g} s") from None
    return answer()


def _raised(error: BaseException) -> Any:
    raise error


def _digest(row: dict[str, Any]) -> str:
    plain = {key: value for key, value in row.items() if key != "id"}
    return hashlib.blake2b(msgspec.json.encode(plain, order="sorted"), digest_size=16).hexdigest()


def _turns(value: Any) -> list[str] | None:
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(turn, str) for turn in value) or not len(value):
        raise ConfigError(f"it returned {repr(value)[:80]}; allowed: a list of at least one assistant turn, or None")
    return [clean(turn) for turn in value]


def _resolved(value: Any) -> Any:
    if not inspect.isawaitable(value):
        return value
    with asyncio.Runner() as runner:
        return runner.run(_awaited(value))


async def _awaited(value: Any) -> Any:
    return await value


def _said(error: BaseException, spec: str, boundary: str) -> str:
    if isinstance(error, ConfigError):
        return clean(str(error)) if boundary in ("import", "tasks") else f"{boundary}: {clean(str(error))}"
    return describe(repr(spec), boundary, error)


def main() -> None:
    """Entry point of the process."""
    from agentrl.lifeline import die_with_parent

    die_with_parent(int(sys.argv[2]))
    sys.path.insert(0, os.getcwd())
    try:
        Probe(msgspec.json.decode(sys.argv[1], type=Question)).run()
    finally:
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
