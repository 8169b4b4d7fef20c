"""An environment's tasks, served by a process of their own: its code may hang or crash without touching the learner.

`python -m agentrl.rollout.rows FD` loads the spec, calls `tasks(split)` and answers requests for rows until its socket closes.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import msgspec

from agentrl import wire
from agentrl.errors import AgentRLError, ConfigError, WorkerDied
from agentrl.processes import start_child
from agentrl.rollout.user_values import clean, describe

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from agentrl.environment import Environment, Split

LOAD_S = 120.0
FETCH_S = 30.0
MOST_ROWS = 1_000_000
"""An iterable that is no sequence is read up to here; an endless generator of tasks ends there."""


class Load(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Import the environment and its tasks."""

    environment: str
    split: str
    imports: list[str]


class Fetch(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Ask for one row."""

    index: int


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """How many rows the split has."""

    length: int
    compares: bool
    """Whether the environment says which of two episodes is better."""
    plays: bool
    """Whether it plays its episodes itself."""
    notices: list[str] = []
    """What the environment has to tell the user."""


class Row(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One row."""

    row: dict[str, Any]


class Broken(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The environment's code failed."""

    message: str


class RemoteRows:
    """A `Rows` behind a process.

    Raises `ConfigError` where the environment does not load, hangs, or gives rows that are no JSON objects; `WorkerDied` where the
    process ends or hangs later.
    """

    def __init__(
        self, environment: str, split: Split, *, imports: Sequence[str], log: Path, load_s: float = LOAD_S, fetch_s: float = FETCH_S
    ) -> None:
        self._what = name_of(environment, split)
        self._fetch_s = fetch_s
        ours, theirs = socket.socketpair()
        with theirs:
            self._child = start_child("its process", "agentrl.rollout.rows", [str(theirs.fileno())], log=log, pass_fds=[theirs.fileno()])
        self._sock = ours
        self._receiver: wire.Receiver[Loaded | Row | Broken] = wire.Receiver(ours, Loaded | Row | Broken)
        try:
            loaded = self._ask(Load(environment=environment, split=split, imports=list(imports)), load_s, ConfigError)
        except BaseException:
            self.close()
            raise
        self._length = cast("Loaded", loaded).length
        self.compares = cast("Loaded", loaded).compares
        """Whether the environment says which of two episodes is better."""
        self.plays = cast("Loaded", loaded).plays
        """Whether it plays its episodes itself."""
        self.notices = cast("Loaded", loaded).notices
        """What the environment has to tell the user of its tasks."""

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return cast("Row", self._ask(Fetch(index=index), self._fetch_s, WorkerDied)).row

    def _ask(self, message: object, timeout_s: float, fault: type[AgentRLError]) -> Loaded | Row:
        self._sock.settimeout(timeout_s)
        try:
            wire.send(self._sock, message)
            answer, reason = self._receiver.receive(), ""
        except TimeoutError:
            raise fault(f"{self._what} did not answer within {timeout_s:g} s; tasks must load and be indexed quickly") from None
        except OSError as error:
            answer, reason = None, f" ({error})"
        if answer is None:
            if self._child.ended_by(signal.SIGKILL):  # nobody's configuration: the machine ran out of memory, or somebody ended it
                fault = WorkerDied
            self._child.stop()
            raise fault(f"{self._what}: {self._child.describe_end()}{reason}")
        if isinstance(answer, Broken):
            raise ConfigError(answer.message)
        return answer

    def close(self) -> None:
        """End the process."""
        self._sock.close()
        self._child.stop()


def load_rows(environment: str, split: Split, imports: Sequence[str]) -> Sequence[Any]:
    """The rows of a split, in this process. Raises `ConfigError` naming what the environment did wrong."""
    return _rows_of(_instance(environment, imports), environment, split)


def _instance(environment: str, imports: Sequence[str]) -> Environment:
    from agentrl import registry

    for name in imports:
        registry.import_module(name)
    return registry.load(environment)()


def _rows_of(instance: Environment, environment: str, split: Split) -> Sequence[Any]:
    what = name_of(environment, split)
    try:
        rows: Any = instance.tasks(split)
        if isinstance(rows, Mapping | str | bytes) or not isinstance(rows, Iterable):
            got = "None" if rows is None else f"an object of type {type(rows).__name__}"
            raise ConfigError(f"{what} returned {got}; it must return the rows: a list (or another iterable) of mappings")
        if hasattr(rows, "__len__") and hasattr(rows, "__getitem__"):
            return cast("Sequence[Any]", rows)
        return list(itertools.islice(rows, MOST_ROWS))
    except NotImplementedError as error:
        raise ConfigError(f"environment {environment!r}: {error}") from error


def plain_row(what: str, rows: Sequence[Any], index: int) -> dict[str, Any]:
    """One row as JSON gives it back: what is played is what the log holds. Raises `ConfigError` for a row that is no JSON object."""
    row = rows[index]
    if not isinstance(row, Mapping):
        got = f"{repr(row)[:80]}, of type {type(row).__name__}"
        raise ConfigError(f"{what}: row {index} is {got}; it must be a mapping of column names to values")
    try:
        return wire.from_json(wire.to_json_line(dict(row)), dict[str, Any])
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{what}: row {index} is not a JSON object ({error}); give plain numbers, strings, lists and dicts") from error


def name_of(environment: str, split: str) -> str:
    """A split of an environment, for messages."""
    return f"environment {environment!r}, tasks({split!r})"


def _serve(sock: socket.socket) -> None:
    receiver: wire.Receiver[Load | Fetch] = wire.Receiver(sock, Load | Fetch)
    rows: Sequence[Any] = ()
    environment = split = ""
    while (message := receiver.receive()) is not None:
        try:
            if isinstance(message, Load):
                environment, split = message.environment, message.split
                instance = _instance(environment, message.imports)
                rows = _rows_of(instance, environment, cast("Split", split))
                if len(rows):
                    plain_row(name_of(environment, split), rows, 0)  # what is wrong with all rows is told before anything else starts
                notices = [clean(str(notice)) for notice in instance.notices]
                wire.send(sock, Loaded(length=len(rows), compares=instance.compares, plays=instance.plays, notices=notices))
            else:
                wire.send(sock, Row(row=plain_row(name_of(environment, split), rows, message.index)))
        except AgentRLError as error:
            wire.send(sock, Broken(message=clean(str(error))))
        except BaseException as error:  # the boundary to the environment's own code, which may also call sys.exit
            traceback.print_exc()
            wire.send(sock, Broken(message=describe(repr(environment), f"tasks({split!r})", error)))


def main() -> None:
    """Entry point of the process."""
    from agentrl.lifeline import die_with_parent

    die_with_parent()
    sys.path.insert(0, os.getcwd())
    try:
        _serve(socket.socket(fileno=int(sys.argv[1])))
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
