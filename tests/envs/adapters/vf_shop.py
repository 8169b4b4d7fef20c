"""A taskset with tools and a state, in the API of verifiers 0.4."""

import verifiers.v1 as vf
from pydantic import Field

__all__ = ["ShopTaskset"]


class ShopState(vf.State):
    basket: list[str] = Field(default_factory=list)
    opened: int = 0


class ShopData(vf.TaskData):
    wanted: list[str]


class Shop(vf.Toolset[vf.ToolsetConfig, ShopState]):
    async def setup_task(self, task):
        self._wanted = task.wanted

    @vf.tool
    async def put(self, item: str, count: int = 1) -> str:
        """Put an item into the basket."""
        if item == "unicorn":
            raise ValueError("we do not sell unicorns")
        self.state.basket += [item] * count
        return ", ".join(self.state.basket)

    @vf.tool(name="look")
    def look_into(self) -> list[str]:
        """What is in the basket."""
        return self.state.basket


class ShopTask(vf.Task[ShopData, ShopState, vf.TaskConfig]):
    @classmethod
    def toolsets(cls, config):
        return [Shop(vf.ToolsetConfig())]

    async def setup(self, trace, runtime):
        trace.state.opened += 1

    async def finalize(self, trace, runtime):
        trace.info["basket"] = sorted(trace.state.basket)

    @vf.reward
    async def bought(self, task: ShopData, trace: vf.Trace[ShopData, ShopState]) -> dict[str, float]:
        return {f"has_{item}": float(item in trace.info["basket"]) for item in task.wanted}

    @vf.metric
    async def tool_messages(self, trace: vf.Trace) -> float:
        return float(len(trace.tool_messages))


class ShopTaskset(vf.Taskset[ShopTask, vf.TasksetConfig]):
    INFINITE = True

    def load(self):
        n = 0
        while True:
            yield ShopTask(ShopData(prompt=f"Buy an apple and a pear. ({n})", wanted=["apple", "pear"]), self.config.task)
            n += 1


if __name__ == "__main__":
    Shop.run()
