"""The probes of an environment, seen from the parent: two processes whose hashes differ, each with a deadline."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING

import msgspec

from agentrl.env_kit.probe import Facts, Question
from agentrl.processes import start_child
from agentrl.rollout.guardian import guarded

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from agentrl.processes import Child

END_S = 10.0
"""A guardian gives up before this."""
HASH_SEEDS = ("1", "2")
"""PYTHONHASHSEED of the two: what depends on the order of a set comes out differently."""


def ask_twice(spec: str, imports: Sequence[str], num_tasks: int, folder: Path, *, timeout_s: float, within_s: float) -> tuple[Facts, Facts]:
    """Both answers. That of a process which did not end in time holds what it had found, and the stage that it was in.

    Args:
        spec: the environment.
        imports: modules or files to import first.
        num_tasks: training rows to give in full.
        folder: for answers and logs.
        timeout_s: of each solution.
        within_s: longest wait for all of it.
    """
    started = [_start(spec, imports, num_tasks, folder, seed, timeout_s) for seed in HASH_SEEDS]
    deadline = time.monotonic() + within_s
    first, second = (_answer(child, path, deadline, within_s) for child, path in started)
    return first, second


def _start(spec: str, imports: Sequence[str], num_tasks: int, folder: Path, seed: str, timeout_s: float) -> tuple[Child, Path]:
    path = folder / f"probe-{seed}"
    question = Question(spec=spec, imports=list(imports), num_tasks=num_tasks, timeout_s=timeout_s, answer=str(path))
    unused = os.open(os.devnull, os.O_RDONLY)  # a guardian closes a descriptor for its command, and this one has none
    try:
        child = start_child(
            f"probe {seed}",
            "agentrl.env_kit.probe",
            [msgspec.json.encode(question).decode()],
            log=folder / f"probe-{seed}.log",
            pass_fds=[unused],
            environment={"PYTHONHASHSEED": seed},
            below=guarded(unused),
        )
    finally:
        os.close(unused)
    return child, path


def _answer(child: Child, path: Path, deadline: float, within_s: float) -> Facts:
    try:
        child.process.wait(max(0.0, deadline - time.monotonic()))
        late = False
    except subprocess.TimeoutExpired:
        late = True
    finally:
        _end(child)
    facts = msgspec.msgpack.decode(path.read_bytes(), type=Facts) if path.exists() else Facts()
    if facts.stage != "end" and not facts.wrong:
        said = f"did not end within {within_s:g} s" if late else child.describe_end()
        facts.wrong = f"{facts.stage}: {said}"
    return facts


def _end(child: Child) -> None:
    """Have the guardian kill the probe and whatever it started."""
    assert child.process.stdin is not None
    child.process.stdin.close()
    child.process.wait(END_S)
