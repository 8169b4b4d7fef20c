"""Environments, each broken in its own way; the names say how."""

import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from typing import ClassVar

from agentrl import Environment
from agentrl.environment import FunctionTool
from agentrl.errors import EnvironmentFailure


class Good(Environment):
    """Say the number; a tool knows it."""

    def tasks(self, split):
        return [{"prompt": f"Say number {index} of {split}.", "answer": f"{7 * index + 1000 + (split == 'eval')}"} for index in range(4)]

    def start(self, task):
        self.row = task.row
        return [{"role": "user", "content": task.row["prompt"]}]

    def double(self, number: int) -> int:
        """Double a number.

        Args:
            number: any.
        """
        return 2 * number

    def score(self, episode):
        return float(episode.answer == episode.task.row["answer"])

    def golden(self, task):
        return ['<tool_call>{"name": "double", "arguments": {"number": 4}}</tool_call>', task.row["answer"]]


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


class WrongGolden(Good):
    def golden(self, task):
        return ["I do not know."]


class HalfGolden(Good):
    def score(self, episode):
        return super().score(episode) / 2


class GoldenIsText(Good):
    def golden(self, task):
        return task.row["answer"]


class NoGolden(Good):
    def golden(self, task):
        return None


class GoldenTooLong(Good):
    max_turns = 1


class AnythingGoes(Good):
    def score(self, episode):
        return 1.0


class SaysItInThePrompt(Good):
    def tasks(self, split):
        return [{**row, "prompt": f"Is it 3 or {row['answer']}?"} for row in super().tasks(split)]

    def score(self, episode):
        return float(episode.task.row["answer"] in episode.answer)


class ToolLeaks(Good):
    def hint(self) -> str:
        """Show the numbers that may be right."""
        return f"3, 5, {self.row['answer']}"

    def score(self, episode):
        return float(episode.task.row["answer"] in episode.answer)


class TakesNan(Good):
    def score(self, episode):
        try:
            return 0.0 if abs(float(episode.answer) - float(episode.task.row["answer"])) > 0.01 else 1.0
        except ValueError:
            return 0.0


class ReadsReasoning(Good):
    def score(self, episode):
        return float(episode.task.row["answer"] in episode.answer)

    def golden(self, task):
        return [task.row["answer"]]


class ScoresByProcess(Good):
    def score(self, episode):
        return float(os.getpid() % 100_000)


class RewardsByProcess(Good):
    def double(self, number: int) -> int:
        """Double a number.

        Args:
            number: any.
        """
        self.turn_reward = float(os.getpid() % 100_000)
        return 2 * number


class TellsTheTime(Good):
    def double(self, number: int) -> int:
        """Double a number.

        Args:
            number: any.
        """
        return time.monotonic_ns()


class ScoresNan(Good):
    def score(self, episode):
        return float("nan")


class ScoresNothing(Good):
    def score(self, episode):
        return None


class ScoresText(Good):
    def score(self, episode):
        return "1.0"


class ScoresInfinity(Good):
    def score(self, episode):
        return {"a": float("inf")}


class SeldomUnscorable(Good):
    def score(self, episode):
        return None if episode.answer == "nan" else super().score(episode)


class ToolEndsIt(Good):
    def double(self, number: int) -> int:
        """Double a number.

        Args:
            number: any.
        """
        if number > 2**31:
            raise EnvironmentFailure("no such number")
        return 2 * number

    def read(self, name: str) -> str:
        """Read a text.

        Args:
            name: of the text.
        """
        if len(name) > 1000:
            raise EnvironmentFailure("the library is closed")
        return name


class ToolKills(Good):
    def read(self, name: str) -> str:
        """Read a text.

        Args:
            name: of the text.
        """
        if len(name) > 1000:
            os._exit(3)
        return name


class ToolsRaise(Good):
    """Nothing is wrong with it: what a tool raises or returns is an observation."""

    def double(self, number: int) -> object:
        """Double a number.

        Args:
            number: any.
        """
        raise MemoryError

    def blob(self) -> object:
        """Give bytes."""
        return bytes(range(256)) * 1000

    def surrogate(self) -> str:
        """Give what is no text."""
        return "\ud800" * 100_000

    def thing(self) -> object:
        """Give an object."""
        return object()


class ReplyWantsNumbers(Good):
    def reply(self, answer):
        return None if int(answer) == int(self.row["answer"]) else "Again."


class SharedState(Good):
    answer = ""

    def start(self, task):
        SharedState.answer = task.row["answer"]
        return super().start(task)

    def score(self, episode):
        return float(episode.answer == SharedState.answer)


class OneAtATime(Good):
    open_now = 0

    def start(self, task):
        if OneAtATime.open_now:
            raise RuntimeError("there is an episode already")
        OneAtATime.open_now += 1
        return super().start(task)

    def close(self):
        OneAtATime.open_now = 0


class LeavesProcesses(Good):
    def start(self, task):
        self.child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
        return super().start(task)


class LeavesFiles(Good):
    def start(self, task):
        tempfile.mkdtemp(prefix="left-")
        return super().start(task)


class LeavesDescriptors(Good):
    kept: ClassVar = []

    def start(self, task):
        self.kept.append(os.open(os.devnull, os.O_RDONLY))
        return super().start(task)


class LeavesThreads(Good):
    def start(self, task):
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        return super().start(task)


class FillsAPool(LeavesThreads):
    """Not a leak: three threads that stay."""

    started = 0

    def start(self, task):
        if FillsAPool.started < 7:
            FillsAPool.started += 1
            return super().start(task)
        return Good.start(self, task)


class ClosesOnlyAfterScore(Good):
    def start(self, task):
        self.path = tempfile.mkdtemp()
        return super().start(task)

    def score(self, episode):
        os.rmdir(self.path)
        return super().score(episode)


class CloseHangs(Good):
    def start(self, task):
        self.started = True
        return super().start(task)

    def close(self):
        if getattr(self, "started", False) and not getattr(self, "scored", False):
            time.sleep(60)

    def score(self, episode):
        self.scored = True
        return super().score(episode)


class ScoreHangs(Good):
    def score(self, episode):
        time.sleep(60)


class StartHangs(Good):
    def start(self, task):
        time.sleep(60)


class SlowTool(Good):
    def double(self, number: int) -> int:
        """Double a number.

        Args:
            number: any.
        """
        time.sleep(0.2)
        return 2 * number


class Talks(Good):
    """Plays its episodes itself: two calls, the second is the answer. Nothing is wrong with it."""

    async def episode(self, task, llm):
        messages = [{"role": "user", "content": task.row["prompt"]}]
        first = await llm.chat(messages)
        reply = await llm.chat([*messages, first.message, {"role": "user", "content": "Sure?"}])
        return float(reply.message["content"] == task.row["answer"])

    def golden(self, task):
        return ["Let me think.", task.row["answer"]]


class TalksAndLeaves(Talks):
    async def episode(self, task, llm):
        path = tempfile.mkdtemp()
        score = await super().episode(task, llm)
        os.rmdir(path)
        return score


class PlaysItself(Talks):
    """The model plays both sides, and whoever says least wins."""

    async def episode(self, task, llm):
        mine = await llm.chat([{"role": "user", "content": task.row["prompt"]}])
        theirs = await llm.chat([{"role": "user", "content": "Your turn."}], policy="old", train=False)
        return float(len(mine.text) <= len(theirs.text))

    def golden(self, task):
        return None


class Dies(Good):
    def start(self, task):
        os._exit(1)


def cannot_be_made():
    raise ValueError("no licence")
