"""An environment that goes wrong where, and how, its arguments say: `bad_env.py:Bad?where=score&how=raise`."""

import itertools
import math
import os
import sys

from agentrl import Environment, SingleTurn

ROWS = [{"prompt": f"{number}+1=", "number": number} for number in range(100)]
GIVEN = {
    "None": None,
    "nan": math.nan,
    "inf": math.inf,
    "text": "5",
    "list": [1.0, 2.0],
    "mapping with nan": {"a": 1.0, "b": math.nan},
    "number": 5,
    "mapping": {"a": 1},
    "no rows": [],
    "numbers": [1, 2, 3],
    "object in a row": [{"prompt": "x", "when": object()}],
    "one row": ROWS[:1],
    "second row bad": [ROWS[0], None],
    "generator": (row for row in ROWS[:3]),
    "half": 0.5,
}


class Bad(Environment):
    """Rewards odd tokens, unless it goes wrong."""

    def __init__(self, where="", how=""):
        self._where, self._how = where, how
        self._act("init", None)

    def _act(self, where, otherwise):
        if where != self._where:
            return otherwise
        if self._how == "raise":
            raise RuntimeError(f"boom in {where}")
        if self._how == "spin":
            if os.path.exists("spinning"):  # a named pipe, through which a test is told
                open("spinning", "w").close()
            for _ in itertools.count():
                pass
        if self._how == "exit":
            sys.exit(3)
        if self._how == "die":
            os._exit(7)
        return GIVEN[self._how]

    def tasks(self, split):
        return self._act("tasks", ROWS)

    def start(self, task):
        return self._act("start", task.row["prompt"])

    def score(self, episode):
        ids = episode.completion_ids
        return self._act("score", sum(token % 2 for token in ids) / max(1, len(ids)))


def messages():
    """Prompts that need a chat template."""
    rows = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]
    return SingleTurn(train=rows, rewards=[lambda completions, **_: [1.0]])


def broken():
    """A mistake in the code that makes an environment is not a mistake in its arguments."""
    return None + 1


NUMBER = 5
