"""Environments that share, keep or hold up what they should not, each in its own way; the names say how."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from typing import ClassVar

from well_made import Good, Talks


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


class SlowTool(Good):
    def double(self, number: int) -> int:
        """Double a number.

        Args:
            number: any.
        """
        time.sleep(0.8)
        return 2 * number


class TalksAndLeaves(Talks):
    async def episode(self, task, llm):
        path = tempfile.mkdtemp()
        score = await super().episode(task, llm)
        os.rmdir(path)
        return score
