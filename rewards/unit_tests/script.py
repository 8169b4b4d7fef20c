"""A program that is fed its standard input: the code of a candidate, run as a script. Runs inside sandboxes: only the standard library."""

from __future__ import annotations

import atexit
import builtins
import io
import os
import sys
import traceback
import types
from typing import TextIO

from agentrl.rewards.unit_tests.values import read_job


def main(job: int, stdin: int, stdout: int, stderr: int) -> int:
    """Entry point: run the code as `__main__` and return its exit status.

    Args:
        job: descriptor of a file of JSON: `{"code": text}`.
        stdin: descriptor of its input; `stdout` and `stderr` of its output and error.
        stdout: see stdin.
        stderr: see stdin.
    """
    code = read_job(job)["code"]
    for place, fd in enumerate((stdin, stdout, stderr)):
        os.dup2(fd, place)
        os.close(fd)
    sys.stdin = _text(0, "r")
    sys.stdout, sys.stderr = _text(1, "w"), _text(2, "w")
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = ["solution.py"]
    define_exit()
    status = _run(code, module)
    _end()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            status = status or 1
    return status


def define_exit() -> None:
    """Give programs `exit` and `quit`, which Python's `site` defines and an interpreter without it lacks."""
    for name in ("exit", "quit"):
        setattr(builtins, name, sys.exit)


def _end() -> None:
    """What an interpreter does at its end: wait for threads, then call what was registered for it, where programs may print."""
    try:
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()


def _run(code: str, module: types.ModuleType) -> int:
    try:
        exec(compile(code, "solution.py", "exec"), vars(module))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException as error:
        own = error.__traceback__.tb_next if error.__traceback__ else None  # without this function
        traceback.print_exception(error.with_traceback(own))
        return 1
    return 0


def _text(fd: int, mode: str) -> TextIO:
    return io.TextIOWrapper(open(fd, mode + "b", closefd=False), encoding="utf-8", write_through=False)
