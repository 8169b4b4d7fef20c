"""The side of the tests: a program that runs them against a candidate in another process, and reports one verdict for each case.

It runs in a sandbox of its own, since tests come with data sets. The pipe of its verdicts leads to the grader, and nothing of this process
is within the candidate's reach. Only the standard library.
"""

from __future__ import annotations

import base64
import builtins
import importlib
import json
import marshal
import os
from typing import TYPE_CHECKING, Any

from agentrl.rewards.unit_tests.candidate import MODULE
from agentrl.rewards.unit_tests.remote import Answers, CandidateObject, NotFound, Unsendable
from agentrl.rewards.unit_tests.values import ChannelBroken, read_job

if TYPE_CHECKING:
    from collections.abc import Callable

CANDIDATE = "candidate"
"""A name for the function that is tested, beside its own."""
MOST_REASON_CHARS = 500
COUNT = "__agentrl_count_assertion__"
"""What compiled tests call before each assertion."""


class Broken(Exception):
    """The tests themselves failed, before the candidate had a part in it."""


def main(job: int, verdicts: int, requests: int, answers: int) -> None:
    """Entry point.

    Args:
        job: descriptor of a file of JSON: `steps`, `before` and `modules` (see `compiled`), `standard` (see `plan`), `names` of the
            candidate's that the tests may use, `entry` among them (may be null), and `in_place` (see `Answers`).
        verdicts: descriptor to write a line of JSON a case to, and one at the end.
        requests: descriptor that the candidate reads from.
        answers: descriptor that it writes to.
    """
    told = read_job(job)

    def report(**line: Any) -> None:
        os.write(verdicts, json.dumps(line).encode() + b"\n")

    channel = Answers(requests, answers, in_place=told["in_place"])
    try:
        _Tests(told, channel, report).run()
    except (Broken, Unsendable) as error:
        report(broken=str(error)[:MOST_REASON_CHARS])
    except BaseException as error:
        if not channel.calls:  # later on it may be the candidate who has brought it about
            report(broken=f"the program that runs the tests failed: {_described(error)}"[:MOST_REASON_CHARS])
    os._exit(0)


class _Tests:
    def __init__(self, told: dict[str, Any], answers: Answers, report: Callable[..., None]) -> None:
        self._told, self._answers, self._report = told, answers, report
        self._space: dict[str, Any] = {"__name__": "tests", COUNT: self._count}
        self._assertions = 0
        self._missing: set[str] = set()
        self._values = 0

    def run(self) -> None:
        spoiled = self._meet_candidate()
        case = 0
        for kind, code, text in self._told["steps"]:
            if kind == "prepare":
                spoiled = spoiled or self._prepare(code, text)
                continue
            fault = spoiled or self._judge(kind, code, text)
            self._report(case=case, passed=not fault, reason=fault[:MOST_REASON_CHARS])
            case += 1
        self._report(end=case, wanted=len(self._told["names"]), asked=self._involved(), assertions=self._assertions)

    def _meet_candidate(self) -> str:
        """Fill the name space; returns why no case can pass, if so."""
        try:
            self._run(self._told["before"])
        except BaseException as error:
            raise Broken(f"the code before the tests raised {_described(error)}") from None
        entry = self._told["entry"]
        try:
            self._answers.load()
        except BaseException as error:  # whatever the candidate raised
            return f"the candidate does not load: {_described(error)}"
        for name in self._told["names"]:
            try:
                found = self._space[name] = self._answers.find(MODULE, name)
                self._values += type(found) is not CandidateObject
            except NotFound:
                self._missing.add(name)
                if name == entry:
                    return f"the candidate does not define {entry}"
            except BaseException as error:
                return f"the candidate cannot be asked: {_described(error)}"
        if entry:
            self._space[CANDIDATE] = self._space[entry]
        for name, module in self._told["standard"].items():
            self._space.setdefault(name, getattr(importlib.import_module(module), name))
        for name in self._told["modules"]:
            if name not in self._space:
                self._space[name] = importlib.import_module(name)
        return ""

    def _prepare(self, code: str, text: str) -> str:
        try:
            self._run(code)
        except Unsendable:
            raise
        except BaseException as error:
            if not self._involved() and not (isinstance(error, NameError) and error.name in self._missing):
                raise Broken(f"`{text}` of the tests raised {_described(error)} without calling the candidate") from None
            return f"`{text}` raised {_described(error)}"
        return ""

    def _judge(self, kind: str, code: str, text: str) -> str:
        """Run a case; returns what is wrong, empty where nothing is."""
        if self._answers.broken:
            return f"the candidate cannot be asked any more: {self._answers.broken}"
        try:
            value = self._run(code)
            if kind == "run":
                return ""
            self._assertions += 1
            return "" if value else f"`{text}` is {_shown(value)}"
        except Unsendable:
            raise
        except (ImportError, SyntaxError) as error:
            if not self._involved():
                raise Broken(f"`{text}` of the tests raised {_described(error)}") from None
            return f"`{text}` raised {_described(error)}"
        except BaseException as error:
            return f"`{text}` raised {_described(error)}"

    def _run(self, code: str) -> Any:
        """Run compiled statements, or return the value of a compiled expression."""
        return eval(marshal.loads(base64.b64decode(code)), self._space)

    def _involved(self) -> int:
        """Whether the candidate had a part in what happens: it was called, or gave a value."""
        return self._answers.calls + self._values

    def _count(self) -> None:
        self._assertions += 1


def _described(error: BaseException) -> str:
    if isinstance(error, ChannelBroken):
        return f"an end of the talk: {error}"
    kind = type(error).__name__ if type(error).__name__ in vars(builtins) or isinstance(error, NotFound) else "an exception"
    return f"{kind}: {str(error)[:200]}"


def _shown(value: Any) -> str:
    try:
        return repr(value)[:100]
    except Exception:
        return f"of type {type(value).__name__}"
