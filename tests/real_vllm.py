"""Real vLLM servers for tests, started as a run starts them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from agentrl.processes import last_lines
from agentrl.quickstart import model_path

ROOT = Path(__file__).parent.parent
START_S = 400.0


@dataclass(frozen=True)
class RealServer:
    """A server that answers."""

    url: str
    log: Path
    pid: int
    """Of the supervising process."""
    model_dir: str


def vllm_python():
    """Python of vLLM's environment; skips the test where there is none."""
    path = os.environ.get("AGENTRL_VLLM_PYTHON") or str(ROOT / ".venv-vllm/bin/python")
    if not Path(path).exists():
        pytest.skip(f"there is no {path}: make setup-vllm, or name another vLLM's Python in AGENTRL_VLLM_PYTHON")
    return path


def options(**changes):
    """Options of a server of the quickstart model, as JSON."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    values = {"model": model_path(), "port": port, "python": vllm_python(), "context_length": 1024, "slots": 32, "threads": 1}
    return values | changes


def command(values, parent):
    """The command line of a supervised server that ends with its parent."""
    return [sys.executable, "-m", "agentrl.servers.vllm_server", "--options", json.dumps(values), "--die-with-parent", str(parent)]


@contextlib.contextmanager
def running(folder, *, environment=None, **changes):
    """A server that is ready, and ended afterwards."""
    values = options(**changes)
    log = folder / f"vllm-{values['port']}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(values, os.getpid()), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **(environment or {})}
        )
    try:
        url = f"http://127.0.0.1:{values['port']}"
        wait_until_healthy(url, process, log)
        yield RealServer(url=url, log=log, pid=process.pid, model_dir=values["model"])
        below = watch(process.pid)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()
    assert have_ended(below), f"processes outlived the server: {below}"


def wait_until_healthy(url, process, log):
    """Wait until a server answers; fails with its last lines where it ends first."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)  # a server tells nobody that it is ready
            break
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=5, trust_env=False).is_success:
                return
    pytest.fail(f"the server did not start; its last lines:\n{last_lines(log, 30)}")


def watch(pid):
    """Descriptors of a process's living descendants by their process ids."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    found, level = set(), {pid}
    while level := {one for one, parent in parents.items() if parent in level} - found:
        found |= level
    watched = {}
    for one in found:
        with contextlib.suppress(ProcessLookupError):
            watched[one] = os.pidfd_open(one)
    return watched


def have_ended(watched, wait_s=15.0):
    """Whether all watched processes end within a time; kills and forgets those that do not."""
    deadline = time.monotonic() + wait_s
    left = {pid for pid, descriptor in watched.items() if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]}
    for pid, descriptor in watched.items():
        if pid in left:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        os.close(descriptor)
    return not left
