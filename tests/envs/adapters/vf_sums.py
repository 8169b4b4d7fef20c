"""A taskset without tools, in the API of verifiers 0.4."""

import verifiers.v1 as vf

__all__ = ["SumsTaskset"]


class SumsData(vf.TaskData):
    answer: int


class SumsTask(vf.Task[SumsData, vf.State, vf.TaskConfig]):
    @vf.reward(weight=1.0)
    async def right(self, task: SumsData, trace: vf.Trace) -> float:
        return float(trace.last_reply == str(task.answer))

    @vf.reward(weight=0.5)
    async def short(self, trace: vf.Trace) -> float:
        return 1.0 / max(1, len(trace.last_reply))

    @vf.metric
    async def turns(self, trace: vf.Trace) -> float:
        return float(trace.num_turns)


class SumsConfig(vf.TasksetConfig):
    first: int = 0
    size: int = 40


class SumsTaskset(vf.Taskset[SumsTask, SumsConfig]):
    def load(self):
        for n in range(self.config.first, self.config.first + self.config.size):
            data = SumsData(prompt=f"{n}+1=?", system_prompt="Answer with the number alone.", answer=n + 1)
            yield SumsTask(data, self.config.task)
