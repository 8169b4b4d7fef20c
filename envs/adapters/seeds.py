"""Tasks that are nothing but a seed, for games of other libraries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentrl.environment import Split
from agentrl.envs.lazy_rows import LazyRows
from agentrl.errors import ConfigError

MOST = 2**30
"""Seeds of each split: training has those below, evaluation those from here on, and both stay below 2**31 as some libraries demand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeds:
    """How many seeds each split has. Raises `ConfigError` for what does not fit."""

    size: int
    eval_size: int
    shift: int = 0
    """Another shift gives other seeds in the same order."""
    seats: int = 1
    """Where there are several, the rows name them in turn."""

    def __post_init__(self) -> None:
        most = max(self.size, self.eval_size)
        if min(self.size, self.eval_size, self.shift) < 0 or (self.shift + 1) * most > MOST:
            raise ConfigError(
                f"size {self.size}, eval_size {self.eval_size} and seed {self.shift} must not be negative, and (seed + 1) times the larger "
                f"size must not exceed {MOST:,}"
            )

    def of(self, split: Split) -> SeedRows:
        """The rows of a split."""
        most = max(self.size, self.eval_size)
        first = (MOST if split == "eval" else 0) + self.shift * most
        return SeedRows(range(first, first + (self.eval_size if split == "eval" else self.size)), self.seats)


@dataclass(frozen=True, slots=True)
class SeedRows(LazyRows):
    """Rows `{"seed": ...}`, with a `"seat"` where there are several."""

    seeds: range
    seats: int = 1

    def __len__(self) -> int:
        return len(self.seeds)

    def row(self, index: int) -> Mapping[str, Any]:
        """A row."""
        seed = self.seeds[index]
        return {"seed": seed} if self.seats == 1 else {"seed": seed, "seat": seed % self.seats}
