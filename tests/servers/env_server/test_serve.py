"""Whole servers: with real workers, and as processes of their own that are ended in every way."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
import trio
from rollout_fakes import has_ended, make_task, watch
from server_fakes import SERVED, served, server
from typer.testing import CliRunner

from agentrl.cli import make_app
from agentrl.environment import Episode
from agentrl.envs.remote import remote
from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.servers.env_server.client import EnvClient, headers
from agentrl.servers.env_server.connections import Connections
from agentrl.servers.env_server.serve import Options, ready_line, run
from agentrl.servers.env_server.sessions import Limits
from agentrl.servers.http_server import listening_socket


def descendants(pid):
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    threads = [Path(entry, "children") for entry in Path(f"/proc/{pid}/task").iterdir()]
    found = sorted({int(child) for file in threads for child in file.read_text().split()})
    return [*found, *(deeper for child in found for deeper in descendants(child))]


def started(url):
    environment = remote(url, patience_s=1.0)
    environment.start(make_task())
    return environment, {tool.name: tool.call for tool in environment.toolbox()}


def score(environment):
    messages = [{"role": "assistant", "content": "four"}]
    return environment.score(Episode(task=make_task(), prompt="hi", messages=messages, completion_ids=[1], ending="complete")).value


def test_what_hangs_or_dies_is_unscorable_and_the_next_episode_is_not_harmed():
    options = Options(spec=SERVED, workers=1, tool_timeout_s=4, limits=Limits(poll_s=0.1))  # a death must be seen within it

    def play(url):
        for name, said in (("hang", "tool hang took longer than 4 s"), ("die", "its worker died: it ended with status 7")):
            environment, tools = started(url)
            with pytest.raises(EnvironmentFailure, match=said):
                tools[name]()
            with pytest.raises(EnvironmentFailure, match=r"status 410: session .* is over: its environment failed"):
                score(environment)
            environment.close()
        environment, tools = started(url)
        assert tools["much"](count=3) == "mmm"
        assert score(environment) == 4.25

    async def main():
        ready = trio.Event()
        with listening_socket("127.0.0.1", 0) as sock, trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, options, "", sock, lambda splits: ready.set())
                await ready.wait()
                await trio.to_thread.run_sync(play, f"http://127.0.0.1:{sock.getsockname()[1]}")
                nursery.cancel_scope.cancel()

    trio.run(main)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_however_a_server_ends(number):
    with server() as (process, url):
        environment, _ = started(url)
        hanging = started(url)[1]["hang"]
        faults = []

        def hang():
            with pytest.raises(EnvironmentFailure) as fault:
                hanging()
            faults.append(fault)

        thread = threading.Thread(target=hang)
        thread.start()
        watched = [watch(pid) for pid in descendants(process.pid)]
        assert len(watched) >= 4  # a guardian and a worker, two splits
        process.send_signal(number)
        assert process.wait(30) == (-9 if number == signal.SIGKILL else 130)
        assert all(has_ended(one) for one in watched)
        thread.join(30)
        assert len(faults) == 1
        with pytest.raises(EnvironmentFailure, match=r"does not answer: .*refused"):
            score(environment)
        environment.close()


def test_a_server_that_was_restarted_knows_no_session_of_before():
    with server() as (_, url):
        environment, tools = started(url)
        port = url.rpartition(":")[2]
    with server("--port", port) as (_, again):
        assert again == url
        with pytest.raises(
            EnvironmentFailure, match=r"status 404: there is no session .* here: the server was restarted since it was opened"
        ):
            tools["much"](count=3)
        environment.close()
        assert score(started(url)[0]) == 4.25


def test_killed_clients_give_their_places_back():
    script = (
        "import sys; from agentrl.envs.remote import remote; from agentrl.records import Task\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "remote(sys.argv[1]).start(Task.from_row('e', {'prompt': 'hi'})); print('started', flush=True); sys.stdin.read()"
    )

    def play(url):
        clients = [
            subprocess.Popen([sys.executable, "-c", script, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(4)
        ]
        for client in clients:
            assert client.stdout.readline() == "ready\n"
        for client in clients:  # at once: the first one's place is not to be given up before the last one has its own
            client.stdin.write("\n")
            client.stdin.flush()
        for client in clients:
            assert client.stdout.readline() == "started\n"
        for client in clients:
            client.kill()
            with client:
                pass
        fresh = [started(url)[0] for _ in range(4)]  # they wait in line until the others are given up
        assert [score(environment) for environment in fresh] == [4.25] * 4
        return httpx.get(f"{url}/info", headers={"agentrl-protocol": "1"}).json()

    async def main():
        async with served(SERVED, limits=Limits(max_sessions=4, idle_s=3.0)) as url:
            return await trio.to_thread.run_sync(play, url)

    info = trio.run(main)
    assert info["idled"] == 4
    assert info["max_sessions"] == 4


def test_a_key_is_asked_for_and_brought():
    with server("--host", "0.0.0.0", env={"AGENTRL_ENV_API_KEY": "secret"}) as (_, url):
        url = f"http://127.0.0.1:{url.rpartition(':')[2]}"
        assert httpx.get(f"{url}/tasks/train/0", headers={"agentrl-protocol": "1"}).status_code == 401
        with pytest.raises(ConfigError, match="status 401: this server asks for an API key and got no key; set AGENTRL_ENV_API_KEY"):
            remote(url).tasks("train")
        connections = Connections(url, headers("secret"))
        assert EnvClient(connections).length("train") == 6
        connections.close()


def test_a_request_that_is_too_large_is_refused():
    async def main():
        async with served(SERVED, most_body_mib=1) as url:
            return await trio.to_thread.run_sync(play, url)

    def play(url):
        connections = Connections(url, {"agentrl-protocol": "1"})
        answer = connections.request("PUT", "/sessions/session-of-too-much", b"x" * ((1 << 20) + 1), 10.0)
        connections.close()
        return answer

    answer = trio.run(main)
    assert (answer.status, answer.body) == (413, b'{"error":"a request may hold 1048576 bytes, and this one is longer"}')


def test_many_sessions_at_once_share_few_connections():
    barrier = threading.Barrier(64)

    def play(url):
        environment, tools = started(url)
        barrier.wait(60)
        for count in range(1, 4):
            assert tools["much"](count=count) == "m" * count
        barrier.wait(60)
        assert score(environment) == 4.25

    async def main():
        async with served(SERVED) as url, trio.open_nursery() as nursery:
            for _ in range(64):
                nursery.start_soon(trio.to_thread.run_sync, play, url)

    async def with_threads():
        trio.to_thread.current_default_thread_limiter().total_tokens = 100
        await main()

    trio.run(with_threads)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing-of-this-name"], "no environment is registered as 'nothing-of-this-name'"),
        ([SERVED, "--host", "0.0.0.0"], "set AGENTRL_ENV_API_KEY to a secret"),
    ],
)
def test_what_cannot_be_served_is_told(arguments, said):
    result = CliRunner().invoke(make_app(lambda: None, lambda: None), ["serve-env", *arguments, "--port", "0", "--workers", "1"])
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_port_that_is_taken_is_told():
    with listening_socket("127.0.0.1", 0) as sock:
        port = str(sock.getsockname()[1])
        result = CliRunner().invoke(make_app(lambda: None, lambda: None), ["serve-env", SERVED, "--port", port])
    assert result.exit_code == 2
    assert f"cannot listen on 127.0.0.1, port {port}" in result.stderr


def test_the_line_that_is_printed_says_what_a_run_needs():
    line = ready_line(Options(spec="lookup"), "http://h:8100", "train 5 rows, no eval", with_key=True)
    assert line == (
        "lookup (train 5 rows, no eval) is served at http://h:8100; in a run: agentrl train --env http://h:8100, "
        "with AGENTRL_ENV_API_KEY set to the key"
    )
