"""How a chat template begins the assistant's turn: when it asks for one, and in a conversation that has one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentrl.data.differences import common_length

if TYPE_CHECKING:
    import re


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What stands at the start of a turn and was not sampled."""

    asking: str
    """What it writes to ask for one."""
    header: str
    """What it writes before one in a conversation."""

    def length(self, turn: str, borders: re.Pattern[str]) -> int | None:
        """How much of a turn's text was not sampled; None where it begins otherwise."""
        if turn.startswith(self.asking):
            return len(self.asking)
        # a template that opens reasoning when it asks, and not, or otherwise, in a conversation
        common = common_length(turn, self.asking, self.header)
        if common < len(self.header):
            ends = [found.end() for found in borders.finditer(self.header[:common])]
            common = ends[-1] if ends else 0
        return common if common or not self.header else None
