"""Unit-test gradings a second with warm workers against a cold sandboxed interpreter for each; prints one JSON line.

All sides grade the same canonical solutions of HumanEval, all of which must pass. `warm` keeps solution and tests in a sandbox each, two
forks a grading. `cold` opens a sandbox with the same limits and starts one interpreter in it, for solution and tests together; `cold_pair`
one for each, the same separation. `bare` is what Bubblewrap and Python cost alone: one interpreter, without limits or anybody who watches.

    python examples/benchmarks/unit_tests.py --problems 60 --at-once 2
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from agentrl.envs.code import human_eval
from agentrl.rewards.unit_tests import grade_code
from agentrl.rewards.unit_tests.pools import LIMITS
from agentrl.servers.sandbox import open_sandbox
from agentrl.servers.sandbox.syscalls import filter_program
from agentrl.servers.sandbox.view import FILES, view_of
from agentrl.servers.sandbox.warm_watch import job_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

PER_SIDE = 3
"""Runs of each side, in turn; the median counts."""


def bubblewrap(filters: int) -> list[str]:
    """The command that starts a program with the file system and the system call filter that warm workers have."""
    view = view_of()
    words = [
        "bwrap",
        "--unshare-all",
        "--cap-drop",
        "ALL",
        "--die-with-parent",
        "--new-session",
        "--clearenv",
        "--uid",
        "1000",
        "--gid",
        "1000",
    ]
    for path, source in view.binds.items():
        words += ["--ro-bind", str(source), path]
    for path, target in view.links.items():
        words += ["--symlink", target, path]
    for path in view.hidden:
        words += ["--tmpfs", path]
    for name, text in FILES.items():
        words += ["--ro-bind-data", str(job_file(text.encode())), f"/etc/{name}"]
    return [*words, "--dev", "/dev", "--tmpfs", "/tmp", "--chdir", "/tmp", "--seccomp", str(filters), view.interpreter, "-I", "-S", "-"]


def script(row: Mapping[str, Any]) -> bytes:
    """Solution and tests in one program."""
    return f"{row['prompt']}{row['canonical_solution']}\n{row['test']}\ncheck({row['entry_point']})\n".encode()


def cold(row: Mapping[str, Any], *, interpreters: int = 1) -> bool:
    """Open a sandbox a program and run it; the last has the tests."""
    for _ in range(interpreters):
        with open_sandbox(limits=LIMITS) as box:
            if not box.run(["python3", "-I", "-S", "-"], stdin=script(row)).ok:
                return False
    return True


def bare(row: Mapping[str, Any]) -> bool:
    """Run a program under Bubblewrap alone."""
    filters = job_file(filter_program())
    words = bubblewrap(filters)
    lent = [filters, *(int(words[at + 1]) for at, word in enumerate(words) if word == "--ro-bind-data")]
    try:
        return subprocess.run(words, input=script(row), pass_fds=lent, capture_output=True, check=False).returncode == 0
    finally:
        for fd in lent:
            os.close(fd)


def rate(grade: Callable[[Mapping[str, Any]], bool], rows: Sequence[Mapping[str, Any]], at_once: int) -> float:
    """Gradings a second; every one must pass."""
    started = time.perf_counter()
    with ThreadPoolExecutor(at_once) as threads:
        verdicts = list(threads.map(grade, rows))
    seconds = time.perf_counter() - started
    if not all(verdicts):
        failed = [row["task_id"] for row, passed in zip(rows, verdicts, strict=True) if not passed]
        sys.exit(f"these canonical solutions did not pass: {', '.join(failed)}")
    return len(rows) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=60)
    parser.add_argument("--at-once", type=int, default=2)
    options = parser.parse_args()
    rows = human_eval()[: options.problems]
    sides: dict[str, Callable[[Mapping[str, Any]], bool]] = {
        "warm": lambda row: grade_code(row["canonical_solution"], row).verdict == "pass",
        "cold": cold,
        "cold_pair": lambda row: cold(row, interpreters=2),
        "bare": bare,
    }
    for grade in sides.values():
        grade(rows[0])  # opens the pool, and warms the file cache of all
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(PER_SIDE):
        for name, grade in sides.items():
            rates[name].append(rate(grade, rows, options.at_once))
    result = {f"{name}_per_s": round(sorted(each)[PER_SIDE // 2], 1) for name, each in rates.items()}
    ratios = {f"ratio_to_{name}": round(result["warm_per_s"] / result[f"{name}_per_s"], 2) for name in sides if name != "warm"}
    print(json.dumps({"problems": len(rows), "at_once": options.at_once, **result, **ratios}))


if __name__ == "__main__":
    main()
