"""Environments whose scores, right answers or tools are broken, each in its own way; the names say how."""

import os
import time

from well_made import Good, Talks

from agentrl.errors import EnvironmentFailure


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


class ReplyWantsNumbers(Good):
    def reply(self, answer):
        return None if int(answer) == int(self.row["answer"]) else "Again."


class PlaysItself(Talks):
    """The model plays both sides, and whoever says least wins."""

    async def episode(self, task, llm):
        mine = await llm.chat([{"role": "user", "content": task.row["prompt"]}])
        theirs = await llm.chat([{"role": "user", "content": "Your turn."}], policy="old", train=False)
        return float(len(mine.text) <= len(theirs.text))

    def golden(self, task):
        return None
