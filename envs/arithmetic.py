"""Arithmetic on two whole numbers, graded by the math verifier: the first thing to train on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from agentrl.environment import Split
from agentrl.envs.lazy_rows import LazyRows
from agentrl.errors import ConfigError
from agentrl.registry import register
from agentrl.rewards.math_answer import math_reward
from agentrl.single_turn import SingleTurn

OPERATORS = {"add": "+", "sub": "-", "mul": "*"}
_STRIDE = 104_729
"""A prime, so that stepping by it visits every task once, in an order that mixes large and small numbers."""


class Exercises(LazyRows):
    """Every unordered pair of `digits`-digit numbers under every operator, once; a tenth of the pairs is for evaluation.

    `57+26` and `26+57` are one task, shown in one order only: evaluation never asks what training has seen turned round.
    """

    def __init__(self, *, digits: int, symbols: str, prompt: str, split: Split) -> None:
        self._low, self._symbols, self._prompt = 10 ** (digits - 1), symbols, prompt
        count = 9 * self._low
        pairs = count * (count + 1) // 2
        self._pairs = pairs
        held_out = max(1, pairs // 10)
        self._window = range(held_out) if split == "eval" else range(held_out, pairs)

    def __len__(self) -> int:
        return len(self._window) * len(self._symbols)

    def row(self, index: int) -> Mapping[str, Any]:
        """One exercise."""
        place, kind = divmod(index, len(self._symbols))
        pair = self._window[place] * _STRIDE % self._pairs
        row = (math.isqrt(8 * pair + 1) - 1) // 2
        large, small = self._low + row, self._low + pair - row * (row + 1) // 2
        symbol = self._symbols[kind]
        first, second = (small, large) if symbol != "-" and (large + small) % 2 else (large, small)
        answer = {"+": first + second, "-": first - second, "*": first * second}[symbol]
        text = self._prompt.replace("{task}", f"{first}{symbol}{second}")
        return {"prompt": [{"role": "user", "content": text}], "answer": str(answer)}


@register("arithmetic")
def arithmetic(digits: int = 2, ops: str = "add", prompt: str = "What is {task}?") -> SingleTurn:
    """Sums, differences or products of two numbers.

    Args:
        digits: of each number, 1 to 6.
        ops: any of `add`, `sub` (never negative) and `mul`, separated by commas.
        prompt: what the user says; `{task}` becomes `57+26`.
    """
    names = ops.split(",")
    if not 1 <= digits <= 6:
        raise ConfigError(f"arithmetic: digits must be 1 to 6, got {digits}")
    if unknown := [name for name in names if name not in OPERATORS]:
        raise ConfigError(f"arithmetic: ops may hold {', '.join(OPERATORS)}, got {unknown[0]!r}")
    if "{task}" not in prompt:
        raise ConfigError(f"arithmetic: prompt must hold {{task}}, got {prompt!r}")
    symbols = "".join(OPERATORS[name] for name in names)
    train, held_out = (Exercises(digits=digits, symbols=symbols, prompt=prompt, split=split) for split in ("train", "eval"))
    return SingleTurn(train=train, eval=held_out, rewards=[math_reward])
