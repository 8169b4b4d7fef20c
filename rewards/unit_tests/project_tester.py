"""pytest in a sandbox, with proxies for the modules of a candidate that runs in another: reports one outcome a test.

Runs inside a sandbox: the standard library and pytest.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import os
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from agentrl.rewards.unit_tests.candidate import write_files
from agentrl.rewards.unit_tests.remote import Answers, CandidateObject, NotFound, Unsendable
from agentrl.rewards.unit_tests.values import read_job

PROJECT = "/tmp/tests"
MOST_REASON_CHARS = 500

Report = Callable[..., None]


def main(job: int, verdicts: int, requests: int, answers: int) -> None:
    """Entry point.

    Args:
        job: descriptor of a file of JSON: `files` of the tests by path, and `modules` of the candidate.
        verdicts: descriptor to write lines of JSON to: how many tests there are, one for each, and one at the end.
        requests: descriptor that the candidate reads from.
        answers: descriptor that it writes to.
    """
    told = read_job(job)

    def report(**line: Any) -> None:
        os.write(verdicts, json.dumps(line).encode() + b"\n")

    channel = Answers(requests, answers)
    finder = CandidateFinder(told["modules"], list(told["files"]), channel)
    try:
        channel.load()
    except BaseException as error:  # whatever the candidate raised
        report(candidate=f"the candidate does not load: {type(error).__name__}: {error}"[:MOST_REASON_CHARS])
        os._exit(0)
    os.makedirs(PROJECT, exist_ok=True)
    write_files(PROJECT, told["files"])
    sys.meta_path.insert(0, finder)
    _run_pytest(finder, channel, report)
    os._exit(0)


def _run_pytest(finder: CandidateFinder, channel: Answers, report: Report) -> None:
    import pytest

    os.chdir(PROJECT)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    plugin = Reporter(finder, channel, report)
    options = ["-p", "no:cacheprovider", "-p", "no:faulthandler", "-p", "no:terminal", f"--rootdir={PROJECT}", PROJECT]
    status = pytest.main(options, plugins=[plugin])
    if plugin.collected is None:
        plugin.say_why_not(f"pytest ended with status {int(status)} before it had found the tests")
        return
    report(end=plugin.done, calls=channel.calls)


class Reporter:
    """A pytest plug-in that reports what the grader must know.

    Args:
        finder: knows what the candidate lacks.
        channel: knows how often it was asked.
        report: writes one line.
    """

    def __init__(self, finder: CandidateFinder, channel: Answers, report: Report) -> None:
        self.collected: int | None = None
        self.done = 0
        self._finder, self._channel, self._report = finder, channel, report
        self._fault = ""
        self._outcome, self._reason = "passed", ""

    def pytest_collectreport(self, report: Any) -> None:
        """Remember why a file could not be read."""
        if report.failed and not self._fault:
            self._fault = str(report.longrepr)[-MOST_REASON_CHARS:]

    def pytest_collection_finish(self, session: Any) -> None:
        """Say how many tests there are, unless not all could be read."""
        if self._fault:
            return
        self.collected = len(session.items)
        self._report(collected=self.collected)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Say how a test ended: passed only where its set-up, itself and its clean-up did."""
        if report.when == "setup":
            self._outcome, self._reason = "passed", ""
        if report.failed:
            self._outcome, self._reason = "failed", self._reason or _last_line(report)
        elif report.skipped and self._outcome == "passed":
            self._outcome = "skipped"
        if report.when == "teardown":
            self._report(case=self.done, outcome=self._outcome, reason=f"{report.nodeid}: {self._reason}" if self._reason else "")
            self.done += 1

    def say_why_not(self, reason: str) -> None:
        """Report that the tests could not be read: for the candidate's fault, or their own."""
        if self._finder.lacking:
            self._report(candidate=self._finder.lacking)
        elif self._channel.calls or self._finder.values:
            self._report(candidate=self._fault or reason)
        else:
            self._report(broken=self._fault or reason)


class CandidateFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives proxies for the modules of the candidate.

    Args:
        modules: their dotted names; whatever lies below one of their packages is the candidate's as well. Names of Python's own modules
            and of installed packages stay those: the tests may measure with them.
        files: of the tests, which come first: the candidate cannot replace them.
        channel: to the candidate.
    """

    def __init__(self, modules: Sequence[str], files: Sequence[str], channel: Answers) -> None:
        taken = {name for name in (top.partition(".")[0] for top in modules) if _is_known(name)}
        self._tops = {name.partition(".")[0] for name in modules} - taken
        own = {path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in files if path.endswith(".py")}
        self._own = own
        self._inside_own = {name[: at + 1] for name in own for at in range(len(name)) if at + 1 == len(name) or name[at + 1] == "."}
        self._channel = channel
        self.values = 0
        """How many plain values the candidate has given."""
        self.lacking = ""
        """What the tests wanted of the candidate and it could not give."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """A specification for the candidate's modules."""
        if fullname.partition(".")[0] not in self._tops or fullname in self._own:
            return None
        spec = importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        assert spec.submodule_search_locations is not None
        spec.submodule_search_locations.append(os.path.join(PROJECT, *fullname.split(".")))  # where the tests may have files of their own
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """A module that asks the candidate for its names."""
        module = types.ModuleType(spec.name)

        def ask(name: str) -> Any:
            if name.startswith("__") or f"{spec.name}.{name}" in self._inside_own:
                raise AttributeError(name)
            try:
                found = self._channel.find(spec.name, name)
                self.values += type(found) is not CandidateObject
                return found
            except NotFound as error:
                self.lacking = self.lacking or f"the candidate lacks a name: {error}"
                raise AttributeError(str(error)) from None

        module.__getattr__ = ask  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Let the candidate import the module now, so that an error of its comes here."""
        try:
            self._channel.find(module.__name__)
        except Unsendable:
            raise
        except BaseException as error:
            self.lacking = (
                self.lacking or f"the candidate's {module.__name__} does not load: {type(error).__name__}: {error}"[:MOST_REASON_CHARS]
            )
            raise ImportError(str(error)) from None


def _is_known(name: str) -> bool:
    return name in sys.stdlib_module_names or importlib.machinery.PathFinder.find_spec(name) is not None


def _last_line(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash is not None else report.longrepr)[:MOST_REASON_CHARS]
