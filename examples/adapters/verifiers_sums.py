"""A taskset of verifiers 0.4 with a tool; it knows nothing of agentrl: agentrl env test verifiers:examples/adapters/verifiers_sums.py.

That needs a Python with both (pip install "verifiers==0.4.*"; make setup-adapters makes one).
"""

from collections.abc import Iterator

import verifiers.v1 as vf

__all__ = ["SumsTaskset"]


class SumsData(vf.TaskData):
    """A task."""

    answer: int


class Adder(vf.Toolset[vf.ToolsetConfig, vf.State]):
    """Tools of a task."""

    @vf.tool
    def add(self, a: int, b: int) -> int:
        """Add two numbers."""
        return a + b


class SumsTask(vf.Task[SumsData, vf.State, vf.TaskConfig]):
    """How a task is scored."""

    @classmethod
    def toolsets(cls, config: vf.TaskConfig) -> list[vf.Toolset]:
        return [Adder(vf.ToolsetConfig())]

    @vf.reward
    async def right(self, task: SumsData, trace: vf.Trace) -> float:
        return float(trace.last_reply == str(task.answer))

    @vf.reward(weight=0.1)
    async def used_the_tool(self, trace: vf.Trace) -> float:
        return float(bool(trace.tool_messages))


class SumsTaskset(vf.Taskset[SumsTask, vf.TasksetConfig]):
    """Sums of three digits."""

    def load(self) -> Iterator[SumsTask]:
        for n in range(200):
            a, b = 100 + 7 * n % 900, 100 + 11 * n % 900
            data = SumsData(prompt=f"{a} + {b} = ?", system_prompt="Say the number alone.", answer=a + b)
            yield SumsTask(data, self.config.task)


if __name__ == "__main__":
    Adder.run()
