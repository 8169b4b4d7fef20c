"""Environments whose tasks, tools or starts are broken, each in its own way; the names say how."""

import os
import random
import time

from well_made import Good

from agentrl.environment import FunctionTool


class SetOrder(Good):
    def tasks(self, split):
        return [{"prompt": word, "answer": split} for word in {f"{split} {index}" for index in range(50)}]


class Growing(Good):
    def tasks(self, split):
        return [*super().tasks(split), *([{"prompt": "more", "answer": "1"}] * (os.getpid() % 1000 + 1))]


class EvalInTrain(Good):
    def tasks(self, split):
        return super().tasks("train")


class OneIdForTwo(Good):
    def tasks(self, split):
        return [{**row, "id": "same"} for row in super().tasks(split)]


class NoRows(Good):
    def tasks(self, split):
        return []


class NoEval(Good):
    def tasks(self, split):
        return super().tasks(split) if split == "train" else []


class RowsTwice(Good):
    def tasks(self, split):
        return super().tasks(split) * 2


class RowOfBytes(Good):
    def tasks(self, split):
        return [*super().tasks(split), {"prompt": object()}]


class TasksRaise(Good):
    def tasks(self, split):
        raise OSError("no such data")


class TasksHang(Good):
    def tasks(self, split):
        time.sleep(60)


class CloseNeedsStart(Good):
    def close(self):
        self.row.clear()


class RandomPrompt(Good):
    def start(self, task):
        return f"{super().start(task)[0]['content']} {random.random()}"


class RandomTools(Good):
    def toolbox(self):
        return [FunctionTool(name=f"tool{time.monotonic_ns()}", description="A tool.", parameters={}, call=lambda: "")]


class OddName(Good):
    def toolbox(self):
        return [FunctionTool(name="not a name", description="A tool.", parameters={}, call=lambda: "")]


class BareTool(Good):
    def bare(self, x):
        return x


class DeveloperRole(Good):
    def start(self, task):
        return [{"role": "developer", "content": "Be brief."}, *super().start(task)]


class NothingToAnswer(Good):
    def start(self, task):
        return [*super().start(task), {"role": "assistant", "content": "Here it is:"}]


class NeedsGold(Good):
    def tasks(self, split):
        rows = super().tasks(split)
        del rows[2]["answer"]
        return rows

    def start(self, task):
        self.gold = task.row["answer"]
        return super().start(task)


class NeverStarts(Good):
    def start(self, task):
        raise KeyError("board")


class StartHangs(Good):
    def start(self, task):
        time.sleep(60)


class Dies(Good):
    def start(self, task):
        os._exit(1)


def cannot_be_made():
    raise ValueError("no licence")
