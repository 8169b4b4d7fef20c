"""The rows of an environment server: each split in a process of its own, loaded at the start and again after that process has died."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, get_args

import trio

from agentrl.environment import Split
from agentrl.errors import ConfigError, WorkerDied

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class Rows(Protocol):
    """A split behind a process: `agentrl.rollout.rows.RemoteRows`. Each call blocks, under a deadline of its own."""

    compares: bool
    plays: bool

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...

    def close(self) -> None:
        """End the process."""
        ...


class Splits:
    """Both splits of an environment.

    Args:
        load: starts a split's process. Raises `ConfigError` where the environment does not give it.
    """

    def __init__(self, load: Callable[[Split], Rows]) -> None:
        self._load = load
        self._rows: dict[str, Rows] = {}
        self._faults: dict[str, ConfigError] = {}
        self._locks = {split: trio.Lock() for split in get_args(Split)}
        self.compares = False
        """Whether the environment says which of two episodes is better."""
        self.plays = False
        """Whether it plays its episodes itself."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Splits]:
        """Load both and keep them; ends their processes. Raises the `ConfigError` of the training split where neither loads."""
        try:
            async with trio.open_nursery() as nursery:
                for split in get_args(Split):
                    nursery.start_soon(self._try, split)
            if not self._rows:
                raise self._faults["train"]
            yield self
        finally:
            for rows in self._rows.values():
                rows.close()

    async def length(self, split: Split) -> int:
        """How many rows it has. Raises `ConfigError` where the environment does not give it, `WorkerDied` where its process has died."""
        return len(await self._loaded(split))

    async def fetch(self, split: Split, start: int, count: int) -> list[dict[str, Any]]:
        """Rows from `start` on, at most so many; raises as `length` does."""
        rows = await self._loaded(split)
        async with self._locks[split]:
            try:
                return await trio.to_thread.run_sync(partial(_read, rows, start, count))
            except WorkerDied:
                self._rows.pop(split, rows).close()
                raise

    def described(self) -> str:
        """The splits in words: `train 3,645 rows, eval 405 rows`."""
        return ", ".join(f"{split} {len(self._rows[split]):,} rows" if split in self._rows else f"no {split}" for split in self._locks)

    async def _try(self, split: Split) -> None:
        with contextlib.suppress(ConfigError):
            await self._loaded(split)

    async def _loaded(self, split: Split) -> Rows:
        async with self._locks[split]:
            if split in self._faults:
                raise self._faults[split]
            if split not in self._rows:
                try:
                    rows = await trio.to_thread.run_sync(self._load, split, abandon_on_cancel=True)
                except ConfigError as error:
                    self._faults[split] = error
                    raise
                self._rows[split] = rows
                self.compares, self.plays = rows.compares, rows.plays
            return self._rows[split]


def _read(rows: Rows, start: int, count: int) -> list[dict[str, Any]]:
    return [rows[index] for index in range(start, min(start + count, len(rows)))]
