"""An environment's tasks, served by a process of their own: its code may hang or crash without touching the learner.

`python -m agentrl.rollout.rows FD` loads the spec, calls `tasks(split)` and answers requests for rows until its socket closes.
"""

from __future__ import annotations

import itertools
import os
import socket
import sys
import traceback
from typing import TYPE_CHECKING, Any, cast

import msgspec

from agentrl import wire
from agentrl.errors import AgentRLError, ConfigError
from agentrl.processes import start_child

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from agentrl.environment import Split

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


class Row(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One row."""

    row: dict[str, Any]


class Broken(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The environment's code failed."""

    message: str


class RemoteRows:
    """A `Rows` behind a process. Raises `ConfigError` where the environment does not load, hangs, or gives rows that are no JSON objects."""

    def __init__(self, environment: str, split: Split, *, imports: Sequence[str], log: Path) -> None:
        self._what = f"environment {environment!r}, tasks({split!r})"
        ours, theirs = socket.socketpair()
        with theirs:
            self._child = start_child(self._what, "agentrl.rollout.rows", [str(theirs.fileno())], log=log, pass_fds=[theirs.fileno()])
        self._sock = ours
        self._receiver: wire.Receiver[Loaded | Row | Broken] = wire.Receiver(ours, Loaded | Row | Broken)
        try:
            loaded = self._ask(Load(environment=environment, split=split, imports=list(imports)), LOAD_S)
        except BaseException:
            self.close()
            raise
        self._length = cast("Loaded", loaded).length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return cast("Row", self._ask(Fetch(index=index), FETCH_S)).row

    def _ask(self, message: object, timeout_s: float) -> Loaded | Row:
        self._sock.settimeout(timeout_s)
        try:
            wire.send(self._sock, message)
            answer = self._receiver.receive()
        except TimeoutError:
            raise ConfigError(f"{self._what} did not answer within {timeout_s:.0f} s; tasks must load and be indexed quickly") from None
        except OSError:
            answer = None
        if answer is None:
            self._child.process.wait()
            raise ConfigError(f"{self._what}: {self._child.describe_end()}")
        if isinstance(answer, Broken):
            raise ConfigError(answer.message)
        return answer

    def close(self) -> None:
        """End the process."""
        self._sock.close()
        self._child.stop()


def load_rows(environment: str, split: Split, imports: Sequence[str]) -> Sequence[Any]:
    """The rows of a split, in this process. Raises `ConfigError` naming what the environment did wrong."""
    from agentrl import registry

    for name in imports:
        registry.import_module(name)
    instance = registry.load(environment)()
    try:
        rows = instance.tasks(split)
    except NotImplementedError as error:
        raise ConfigError(f"environment {environment!r}: {error}") from error
    if hasattr(rows, "__len__") and hasattr(rows, "__getitem__") and not isinstance(rows, dict):
        return cast("Sequence[Any]", rows)
    return list(itertools.islice(rows, MOST_ROWS))


def _serve(sock: socket.socket) -> None:
    receiver: wire.Receiver[Load | Fetch] = wire.Receiver(sock, Load | Fetch)
    rows: Sequence[Any] = ()
    what = ""
    while (message := receiver.receive()) is not None:
        try:
            if isinstance(message, Load):
                what = f"environment {message.environment!r}, tasks({message.split!r})"
                rows = load_rows(message.environment, cast("Split", message.split), message.imports)
                wire.send(sock, Loaded(length=len(rows)))
            else:
                wire.send(sock, Row(row=dict(rows[message.index])))
        except AgentRLError as error:
            wire.send(sock, Broken(message=str(error)))
        except Exception as error:  # the boundary to the environment's own code
            traceback.print_exc()
            wire.send(sock, Broken(message=f"{what} failed: {type(error).__name__}: {error}"))


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
