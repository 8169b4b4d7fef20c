"""Episodes a second of an environment server, and how long a call takes; prints one JSON line.

    python examples/benchmarks/env_server.py --concurrent 1 64 512

Server, its workers and the clients' threads share this machine. An episode opens a session, calls a tool four times and is scored: six
requests. Latencies are of single requests, as a client's thread sees them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

from agentrl import Environment
from agentrl.environment import Episode
from agentrl.envs.remote import remote
from agentrl.records import Task

CALLS = 4


class Quick(Environment):
    """Does next to nothing, so that the server is what is measured."""

    def tasks(self, split: Any) -> list[dict[str, Any]]:
        return [{"prompt": "hi"}]

    def look(self, count: int) -> str:
        return "x" * count

    def score(self, episode: Episode) -> float:
        return 1.0


class Bench:
    """Episodes of many threads, each request timed."""

    def __init__(self, url: str, pid: int) -> None:
        self._url, self._pid = url, pid
        self._lock = threading.Lock()
        self._left = 0
        self._latencies: list[float] = []
        self._faults: list[str] = []

    def run(self, concurrent: int, episodes: int) -> dict[str, Any]:
        """Play so many episodes, so many at a time."""
        self._left, self._latencies, self._faults = episodes, [], []
        threads = [threading.Thread(target=self._work) for _ in range(concurrent)]
        cpu, started = self._server_cpu_s(), time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - started
        latencies = sorted(self._latencies)
        return {
            "concurrent": concurrent,
            "episodes_per_s": round(episodes / took, 1),
            "requests_per_s": round(len(latencies) / took, 1),
            "median_ms": round(statistics.median(latencies) * 1e3, 2),
            "p99_ms": round(latencies[int(len(latencies) * 0.99)] * 1e3, 2),
            "server_cpu_ms_per_request": round((self._server_cpu_s() - cpu) / len(latencies) * 1e3, 3),
            "failed": len(self._faults),
        }

    def _work(self) -> None:
        while True:
            with self._lock:
                self._left -= 1
                if self._left < 0:
                    return
            try:
                self._episode()
            except Exception as error:
                self._faults.append(repr(error))

    def _episode(self) -> None:
        environment = remote(self._url)
        task = Task.from_row("bench", {"prompt": "hi"})
        try:
            self._timed(environment.start, task)
            (look,) = environment.toolbox()
            for count in range(CALLS):
                self._timed(look.call, count=count)
            messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x" * 200}]
            episode = Episode(task=task, prompt="hi", messages=messages, completion_ids=list(range(200)), ending="complete")
            assert self._timed(environment.score, episode).value == 1.0
        finally:
            environment.close()

    def _timed(self, call: Any, *arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        result = call(*arguments, **named)
        self._latencies.append(time.perf_counter() - started)
        return result

    def _server_cpu_s(self) -> float:
        with open(f"/proc/{self._pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrent", type=int, nargs="+", default=[1, 64, 512])
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    command = [sys.executable, "-m", "agentrl", "serve-env", f"{__file__}:Quick", "--port", "0", "--workers", str(options.workers)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        found = re.search(r"http://[\w.:]+", server.stdout.readline())
        try:
            assert found is not None, "the server did not start"
            bench = Bench(found[0], server.pid)
            bench.run(1, 20)
            results = [bench.run(concurrent, max(options.episodes, 2 * concurrent)) for concurrent in options.concurrent]
        finally:
            server.terminate()
    print(json.dumps({"benchmark": "env_server", "workers": options.workers, "calls": CALLS, "results": results}))


if __name__ == "__main__":
    main()
