"""Mathematics with Python at hand: a sandboxed session that keeps its variables, and a final answer that is graded as ever."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentrl.environment import Split
from agentrl.envs.math_problems import MathProblems
from agentrl.envs.procedural import Procedural
from agentrl.envs.sandbox_tools import SandboxTools
from agentrl.errors import ConfigError
from agentrl.llm import Message
from agentrl.records import Task
from agentrl.registry import register
from agentrl.servers.sandbox import Limits, Sandbox, open_sandbox

SIZES: Mapping[Split, int] = {"train": 20_000, "eval": 400}
LIMITS = Limits(cpu_s=10, wall_s=20, memory_mib=512, processes=16)


def draw(stream: random.Random) -> tuple[str, Mapping[str, Any]]:
    """A problem that is easy with a few lines of Python, and long without."""
    a, b, n = stream.randint(100, 999), stream.randint(100, 999), stream.randint(10, 60)
    problem, gold = stream.choice(
        (
            (f"What is {a} * {b} - {n}?", a * b - n),
            (f"What is the sum of all whole numbers from {n} to {a} that {n} divides?", sum(range(n, a + 1, n))),
            (f"What is the remainder when {a}^{n} is divided by {b}?", pow(a, n, b)),
            (f"How many of the numbers from {n} to {a} have the digit sum {n % 15 + 1}?", _with_digit_sum(n, a, n % 15 + 1)),
        )
    )
    return problem, {"problem": problem, "gold": str(gold)}


def _with_digit_sum(low: int, high: int, wanted: int) -> int:
    return sum(sum(map(int, str(number))) == wanted for number in range(low, high + 1))


@register("python-math")
class PythonMath(MathProblems):
    """Problems with known answers, and a tool `run_python` in a sandbox of the episode's own.

    Args:
        sandbox: what the code runs in: `bubblewrap`, the URL of `agentrl serve-sandbox`, or `unsafe-subprocess`.
        options: those of the environment `math`; without `path` and `dataset`, problems are made on demand.
    """

    max_turns = 8

    def __init__(self, sandbox: str = "bubblewrap", **options: Any) -> None:
        self._kind = sandbox
        self._sandbox: Sandbox | None = None
        self._made = not {"path", "dataset"} & set(options)
        try:
            super().__init__(**({"path": "", **options} if self._made else options))
        except TypeError as error:
            raise ConfigError(f"python-math: {error}; it takes sandbox, and the arguments of `math`") from None
        if self._system:
            self._system += " You may run Python code first."

    def tasks(self, split: Split) -> Sequence[Mapping[str, Any]]:
        """The rows of a split, as `math` gives them."""
        if self._made:
            return Procedural(draw, split=split, size=SIZES[split], name="python-math")
        return super().tasks(split)

    def start(self, task: Task) -> list[Message]:
        """Open the sandbox, and put the problem."""
        self._sandbox = open_sandbox(self._kind, limits=LIMITS)
        return super().start(task)

    def toolbox(self) -> Sequence[Callable[..., Any]]:
        """A Python session that keeps its variables."""
        assert self._sandbox is not None
        return SandboxTools(self._sandbox, timeout_s=LIMITS.wall_s).choose("run_python")

    def close(self) -> None:
        """End the sandbox."""
        if self._sandbox is not None:
            self._sandbox.close()
