"""Whole runs whose vLLM server is killed, stopped and lied about; with `-s` what each met is printed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fault_proxy import Fault, FaultProxy
from whole_runs import WholeRun

from agentrl.engines.vllm_launch import free_port
from agentrl.quickstart import model_path
from agentrl.rollout_log import read_dispositions, read_groups

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1500)]

GROUPS, STEPS, ETA = 4, 200, 1
LOAD_S = 300


class RealServer:
    """A vLLM server of the test's own, which may be killed, stopped and started again on the same port; a context manager."""

    def __init__(self, python: str, log: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._options = json.dumps({"model": model_path(), "port": self.port, "python": python, "context_length": 512, "threads": 1})
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        # A fault kills from the proxy's thread, and the run may say that the server is out of use before the kill is done.
        self._changing = threading.Lock()
        self.starts = 0

    def __enter__(self) -> RealServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self._changing, self._log.open("ab") as log:
            command = [sys.executable, "-m", "agentrl.servers.vllm_server", "--options", self._options]
            self._process = process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        self.starts += 1
        deadline = time.monotonic() + LOAD_S
        while time.monotonic() < deadline:
            assert process.poll() is None, self._log.read_text()[-3000:]
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return
            time.sleep(0.5)  # vLLM tells nobody that it is ready
        raise AssertionError("the server did not load")

    def processes(self) -> list[int]:
        """Everything that serves, by the port or by descent."""
        assert self._process is not None
        parents, found = {}, {self._process.pid}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, IndexError):
                    parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        for _ in range(8):
            found |= {pid for pid, parent in parents.items() if parent in found}
        return sorted(found - {self._process.pid})

    def signal(self, number: int) -> None:
        """Signal every process of vLLM."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """`kill -9` all of it."""
        with self._changing:
            if self._process is not None:
                self.signal(signal.SIGKILL)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGTERM)
                self._process.wait(60)
                self._process = None


def spoil(**changes: Any) -> Any:
    """Change fields of an answer's choice."""

    def change(answer: Any) -> bytes:
        choice = answer["choices"][0]
        for name, value in changes.items():
            if name == "logprob":
                choice["logprobs"]["content"][-1]["logprob"] = value
            else:
                choice[name] = value
        return json.dumps(answer).encode()

    return change


def slowly() -> None:
    time.sleep(3)


def faults(server: RealServer) -> Iterator[tuple[Fault, str]]:
    """Each with what ends it: the server is started again, goes on, or recovers by itself."""
    yield Fault("killed while generating", skip=10, before=server.kill), "start"
    yield Fault("killed while paused", "/pause", after=server.kill), "start"
    yield Fault("killed in the middle of an update", "/update_weights", before=server.kill), "start"
    yield Fault("stopped", skip=10, before=lambda: server.signal(signal.SIGSTOP)), "continue"
    yield Fault("answers 500", times=12, before=lambda: 500), ""
    yield Fault("answers garbage", times=12, change=lambda answer: b"\x00\xffgarbage"), ""
    yield Fault("answers nulls", times=12, change=spoil(logprobs=None, token_ids=None)), ""
    yield Fault("answers NaN log-probs", times=12, change=spoil(logprob=float("nan"))), ""
    yield Fault("answers slowly", times=24, after=slowly), ""


class Chaos:
    """A run that joined the server through the proxy, and what it has said so far."""

    def __init__(self, run: WholeRun) -> None:
        self.run = run
        self.step = 0

    def reach(self, step: int) -> None:
        """Read on until this step is done."""
        while self.step < step:
            line = self.run.wait_for("step ")
            self.step = int(line.split()[1].partition("/")[0])


def test_a_run_survives_everything_that_may_become_of_its_server(tmp_path: Path, vllm_python: str) -> None:
    with RealServer(vllm_python, tmp_path / "server.log") as server, FaultProxy(server.url) as proxy:
        arguments = ["train", "--env", "arithmetic", "--model", "quickstart", "--output", "run"]
        settings = {
            "steps": STEPS,
            "group_size": 4,
            "groups_per_step": GROUPS,
            "max_staleness": ETA,
            "sampling.max_tokens": 8,
            "learner.lr": 1e-5,
            "engine.kind": "vllm",
            "engine.servers": f"[{proxy.url}]",
            "engine.timeout_s": 240,
            "engine.context_length": 512,
        }
        sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        met: dict[str, int] = {}
        with WholeRun(tmp_path, *arguments, *sets) as run:
            chaos = Chaos(run)
            for fault, cure in faults(server):
                chaos.reach(chaos.step + 3)
                proxy.fault = fault
                if cure:
                    run.wait_for(proxy.url + " is out of use")
                    server.start() if cure == "start" else server.signal(signal.SIGCONT)
                    run.wait_for(proxy.url + " is in use again")
                chaos.reach(chaos.step + 3)
                met[fault.name] = fault.met
                print(f"{fault.name}: met {fault.met} times, at step {chaos.step}", flush=True)
            chaos.reach(STEPS)
            status, _, errors = run.end()
        assert status == 0, errors
        assert all(met.values()), met
        assert server.starts == 4
        check_log(tmp_path / "run", STEPS)


def check_log(folder: Path, steps: int) -> None:
    """Every dispatched task has one disposition, the trained ones are a prefix, and no token's version is out of order or too old."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [one["step"] for one in metrics] == list(range(1, steps + 1))
    assert max(one["staleness/max"] for one in metrics) <= ETA
    disposed = read_dispositions(folder / "rollouts")
    assert max(Counter(record.index for record in disposed).values()) == 1
    trained = {record.index: record.step for record in disposed if record.step is not None}
    groups = {group.index: group for group in read_groups(folder / "rollouts")}
    assert len(trained) == GROUPS * steps
    lost = [record.index for record in disposed if record.step is None and not record.at_end]
    for index, step in trained.items():
        for rollout in groups[index].rollouts:
            for turn in rollout.turns:
                versions = [run.version.step for run in turn.span.versions]
                assert versions == sorted(versions)
                assert all(step - 1 - ETA <= version <= step - 1 for version in versions), (step, versions)
    print(f"{len(trained)} groups trained, {len(lost)} unscorable", flush=True)


def test_a_server_of_the_runs_own_is_restarted_and_without_it_the_run_stops_with_a_checkpoint(tmp_path: Path, vllm_python: str) -> None:
    arguments = ["train", "--env", "arithmetic", "--model", "quickstart", "--output", "run"]
    settings = {
        "steps": 100000,
        "group_size": 4,
        "groups_per_step": GROUPS,
        "sampling.max_tokens": 8,
        "engine.kind": "vllm",
        "engine.launch.python": vllm_python,
        "engine.launch.max_restarts": 1,
        "engine.context_length": 512,
    }
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    with WholeRun(tmp_path, *arguments, *sets) as run:
        chaos = Chaos(run)
        chaos.reach(3)
        run.kill("servers.vllm_plugin.launch")
        run.wait_for("vLLM server 0")
        chaos.reach(chaos.step + 3)
        run.kill("servers.vllm_plugin.launch")
        started = time.monotonic()
        status, _, errors = run.end()
        assert status == 1
        assert time.monotonic() - started < 60
    assert "no vLLM server is left" in errors
    assert "was started again 1 times" in errors
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_nothing_survives_the_kill_of_a_run_with_servers_of_its_own(tmp_path: Path, vllm_python: str) -> None:
    arguments = ["train", "--env", "arithmetic", "--model", "quickstart", "--output", "run"]
    settings = {"steps": 100000, "groups_per_step": 4, "engine.kind": "vllm", "engine.launch.python": vllm_python}
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    with WholeRun(tmp_path, *arguments, *sets) as run:
        Chaos(run).reach(2)
        run.send(signal.SIGKILL)
        run.end()
