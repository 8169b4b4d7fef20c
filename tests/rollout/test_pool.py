"""The pool: deadlines on a mock clock with scripted workers, deaths and kills with real ones."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import subprocess
import sys

import pytest
import trio
import trio.testing
from rollout_fakes import ENV, ThreadHost, has_ended, make_task, thread_pool, watch

from agentrl import wire
from agentrl.config import RolloutConfig
from agentrl.environment import Episode
from agentrl.errors import ConfigError, EnvironmentFailure, WorkerDied
from agentrl.records import Score
from agentrl.rollout.hostprocess import LocalHost
from agentrl.rollout.messages import CallTool, Close, Closed, Grade, Graded, Observation, Open, Opened, Ready, Request, Setup
from agentrl.rollout.pool import EnvironmentTimeout, EnvPool, Timeouts

TASK = make_task()
TIMEOUTS = Timeouts(setup_s=120, call_s=30, score_s=30, close_s=5, grace_s=20)


def episode(answer="fine"):
    return Episode(task=TASK, prompt="hi", messages=[{"role": "assistant", "content": answer}], completion_ids=[1, 2], ending="complete")


class ScriptedHost:
    """A worker that is a task of the same event loop; `waits` says how long each tool takes, in virtual seconds."""

    def __init__(self, nursery, *, waits=None, setup_s=0.0, close_s=0.0, dies_at_setup=False):
        self.stream, self._theirs = trio.testing.memory_stream_pair()
        self._waits = waits or {"quick": 0.0, "slow": 10.0, "slower": 20.0, "hang": math.inf}
        self._setup_s, self._close_s, self._dies_at_setup = setup_s, close_s, dies_at_setup
        self.ended_at = math.nan
        self._scope = trio.CancelScope()
        nursery.start_soon(self._serve)

    async def _serve(self):
        channel = wire.Channel(self._theirs, Request)
        with self._scope:
            async with trio.open_nursery() as nursery:
                while (request := await channel.receive()) is not None:
                    if isinstance(request, Setup) and self._dies_at_setup:
                        await self._theirs.aclose()
                        return
                    nursery.start_soon(self._try_answer, channel, request)

    async def _try_answer(self, channel, request):
        with contextlib.suppress(trio.BrokenResourceError):  # it was ended in the same instant
            await self._answer(channel, request)

    async def _answer(self, channel, request):
        match request:
            case Setup():
                await trio.sleep(self._setup_s)
                await channel.send(Ready())
            case Open():
                await channel.send(Opened(call=request.call, prompt="", tools=[], max_turns=None, max_tokens=None, replies=False))
            case CallTool():
                await trio.sleep(self._waits[request.name])
                await channel.send(Observation(call=request.call, text=request.name, done=False))
            case Grade():
                await channel.send(Graded(call=request.call, score=Score(value=1.0)))
                await channel.send(Closed(session=request.session))
            case Close():
                await trio.sleep(self._close_s)
                await channel.send(Closed(session=request.session))

    async def ended(self):
        await trio.sleep_forever()

    async def end(self):
        self.ended_at = trio.current_time()
        self._scope.cancel()
        await self.stream.aclose()
        return "was killed"

    def last_words(self):
        return "its last words"


def run_scripted(test, *, workers=1, timeouts=TIMEOUTS, **options):
    """Run `test(pool, hosts)` on a clock that jumps; how far it has moved, and all hosts that were ever started."""
    hosts = []

    async def main():
        async with trio.open_nursery() as nursery:

            def launch(slot):
                hosts.append(ScriptedHost(nursery, **options))
                return hosts[-1]

            async with EnvPool("fake", [], RolloutConfig(env_workers=workers), timeouts=timeouts, launch=launch) as pool:
                await test(pool, hosts)
            assert not any(math.isnan(host.ended_at) for host in hosts)
        return trio.current_time()

    clock = trio.testing.MockClock(autojump_threshold=0)
    started = clock.current_time()
    return trio.run(main, clock=clock) - started


def test_a_deadline_fails_its_call_and_replaces_the_worker_at_once():
    async def test(pool, hosts):
        hung, other = await pool.open(TASK), await pool.open(TASK)
        started = trio.current_time()
        with pytest.raises(EnvironmentTimeout, match=r"tool hang took longer than 30 s"):
            await hung.call_tool("hang", {})
        assert trio.current_time() == started + 30
        await pool.open(TASK)  # in the replacement
        assert trio.current_time() == started + 30
        assert len(hosts) == 2
        assert (await other.call_tool("slow", {})).text == "slow"  # within the grace period, in the old one
        assert math.isnan(hosts[0].ended_at)
        hung.close()
        other.close()
        await trio.testing.wait_all_tasks_blocked()
        assert hosts[0].ended_at == started + 40  # as soon as its last episode was over

    run_scripted(test)


def test_the_grace_period_ends():
    async def test(pool, hosts):
        hung, other = await pool.open(TASK), await pool.open(TASK)
        started = trio.current_time()

        async def go_on():
            for _ in range(4):
                await other.call_tool("slow", {})
            await fails_with(other.call_tool("slower", {}), "its worker was ended: in another episode, tool hang took longer")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(go_on)
            with pytest.raises(EnvironmentTimeout):
                await hung.call_tool("hang", {})
        assert trio.current_time() == hosts[0].ended_at == started + 50
        with pytest.raises(EnvironmentFailure, match="was ended"):
            await other.call_tool("quick", {})

    run_scripted(test)


def test_an_environment_that_does_not_close_retires_its_worker():
    async def test(pool, hosts):
        session = await pool.open(TASK)
        session.close()
        session.close()
        await trio.sleep(5.5)
        assert len(hosts) == 2
        assert hosts[0].ended_at <= 5.5 + 1e-9

    run_scripted(test, close_s=100)


def test_a_call_that_was_cancelled_may_finish_before_its_episode_is_closed():
    async def test(pool, hosts):
        session = await pool.open(TASK)
        with trio.move_on_after(1):
            await session.call_tool("slow", {})
        session.close()
        await trio.sleep(100)
        assert len(hosts) == 1

    run_scripted(test)


def test_a_scored_episode_needs_no_closing():
    async def test(pool, hosts):
        session = await pool.open(TASK)
        assert (await session.score(episode())).value == 1.0
        session.close()
        await trio.sleep(100)
        assert len(hosts) == 1

    run_scripted(test, close_s=100)


def test_episodes_go_to_the_least_loaded_worker():
    async def test(pool, hosts):
        while len(pool._ready) < 3:
            await trio.testing.wait_all_tasks_blocked()
        sessions = [await pool.open(TASK) for _ in range(9)]
        assert sorted(worker.load for worker in pool._ready) == [3, 3, 3]
        sessions[4].close()
        await trio.testing.wait_all_tasks_blocked()
        await pool.open(TASK)
        assert sorted(worker.load for worker in pool._ready) == [3, 3, 3]

    run_scripted(test, workers=3)


def test_a_setup_that_hangs_is_a_wrong_environment():
    async def test(pool, hosts):
        raise AssertionError("never entered")

    with pytest.raises(ExceptionGroup) as caught:
        run_scripted(test, setup_s=math.inf)
    assert caught.group_contains(ConfigError, match=r"its import took longer than 120 s; its last lines:\nits last words")


def test_workers_that_die_before_they_are_ready_end_the_pool():
    async def test(pool, hosts):
        raise AssertionError("never entered")

    with pytest.raises(ExceptionGroup) as caught:
        run_scripted(test, dies_at_setup=True)
    assert caught.group_contains(WorkerDied, match=r"died 3 times in a row.*it was killed; its last lines:\nits last words")


def test_leaving_waits_for_environments_to_close():
    async def test(pool, hosts):
        (await pool.open(TASK)).close()

    assert run_scripted(test, close_s=3) == 3
    assert run_scripted(test, close_s=100) == 5


def test_an_error_inside_comes_out_as_it_is():
    async def main():
        async with thread_pool(f"{ENV}:Guess"):
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        trio.run(main)


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        (f"{ENV}:Guess?nothing=1", ConfigError, "does not accept its arguments"),
        ("nowhere.py:Guess", ConfigError, "there is no file"),
        ("unknown", ConfigError, "no environment is registered as 'unknown'"),
    ],
)
def test_a_wrong_environment_is_refused_on_entering(spec, kind, message):
    async def main():
        async with thread_pool(spec, workers=2):
            raise AssertionError("never entered")

    with pytest.raises(kind, match=message):
        trio.run(main)


def real_pool(name, tmp_path, *, workers=1, started=None, **timeouts):
    def launch(slot):
        host = LocalHost(f"environment worker {slot}", tmp_path / f"{slot}.log")
        if started is not None:
            started.append(host.pid)
        return host

    options = Timeouts(**{"setup_s": 60, "call_s": 60, "score_s": 60, **timeouts})
    return EnvPool(f"{ENV}:{name}", [], RolloutConfig(env_workers=workers), timeouts=options, launch=launch)


@pytest.mark.parametrize(("tool", "how"), [("die", "it ended with status 7"), ("crash", "it was killed by SIGSEGV")])
def test_a_death_fails_its_episodes_and_no_others(tmp_path, tool, how):
    async def main():
        async with real_pool("Guess", tmp_path, workers=2) as pool:
            while len(pool._ready) < 2:
                await pool._changed.wait()
            sessions = [await pool.open(TASK) for _ in range(4)]  # one worker has the even ones
            async with trio.open_nursery() as nursery:
                for session, name in ((sessions[0], tool), (sessions[2], "hang")):
                    nursery.start_soon(fails_with, session.call_tool(name, {}), f"its worker died: {how}")
            assert (await sessions[1].call_tool("look", {})).text == "x"
            with pytest.raises(EnvironmentFailure, match="worker died"):
                await sessions[2].reply("")
            assert (await (await pool.open(TASK)).call_tool("look", {})).text == "x"
            while len(pool._ready) < 2:
                await pool._changed.wait()

    trio.run(main)


async def fails_with(asked, message):
    with pytest.raises(EnvironmentFailure, match=re.escape(message)):
        await asked


def test_a_kill_from_outside_is_noticed(tmp_path):
    async def main():
        started = []
        async with real_pool("Guess", tmp_path, started=started) as pool:
            session = await pool.open(TASK)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fails_with, session.call_tool("hang", {}), "its worker died: it was killed by SIGKILL")
                await trio.testing.wait_all_tasks_blocked()
                os.kill(started[0], signal.SIGKILL)
            assert (await pool.open(TASK)).opened.prompt == "hi"

    trio.run(main)


SPAWNS = {
    "in its group": ("spawn", {"apart": False}),
    "in a session of its own": ("spawn", {"apart": True}),
    "an orphan that cannot be told": ("escape", {}),
}


@pytest.mark.parametrize("spawn", SPAWNS)
@pytest.mark.parametrize("ends_by", ["deadline", "death", "leaving"])
def test_nothing_survives_a_worker(tmp_path, spawn, ends_by):
    started = []

    async def main():
        async with real_pool("Guess", tmp_path, started=started) as pool:
            session = await pool.open(TASK)
            watched.append(watch(int((await session.call_tool(*SPAWNS[spawn])).text)))
            if ends_by == "death":
                with pytest.raises(EnvironmentFailure):
                    await session.call_tool("die", {})
            elif ends_by == "deadline":
                pool._timeouts = session._timeouts = Timeouts(call_s=0.2)
                with pytest.raises(EnvironmentTimeout):
                    await session.call_tool("hang", {})
            session.close()

    watched: list[int] = []
    trio.run(main)
    assert has_ended(watched[0])
    for pid in started:
        with pytest.raises(ChildProcessError):  # reaped: no zombie is left
            os.waitpid(pid, os.WNOHANG)


def test_a_hanging_score_is_killed(tmp_path):
    async def main():
        async with real_pool("Guess", tmp_path, score_s=0.2) as pool:
            session = await pool.open(TASK)
            with pytest.raises(EnvironmentTimeout, match=r"score took longer than 0.2 s"):
                await session.score(episode("hang"))

    trio.run(main)


def test_what_a_dying_worker_wrote_is_shown(tmp_path):
    async def main():
        async with real_pool("dying", tmp_path):
            raise AssertionError("never entered")

    with pytest.raises(WorkerDied, match=r"ended with status 9; its last lines:\n(about to die\n?)+"):
        trio.run(main)


def test_a_cancelled_pool_leaves_nothing(tmp_path):
    started = []

    async def main():
        with trio.CancelScope() as scope:
            async with real_pool("Guess", tmp_path, workers=2, started=started) as pool:
                await pool.open(TASK)
                scope.cancel()
                await trio.sleep_forever()

    trio.run(main)
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


ABANDONED = """
import sys, trio
from agentrl.config import RolloutConfig
from agentrl.records import Task
from agentrl.rollout.pool import EnvPool

async def main():
    async with EnvPool(sys.argv[1], [], RolloutConfig(env_workers=1)) as pool:
        session = await pool.open(Task.from_row("play", {}))
        for name, arguments in (("spawn", {"apart": False}), ("spawn", {"apart": True}), ("escape", {})):
            print((await session.call_tool(name, arguments)).text, flush=True)
        print(pool._ready[0]._host.pid, flush=True)
        await session.call_tool("hang", {})

trio.run(main)
"""


def test_nothing_survives_a_killed_rollout_process():
    command = [sys.executable, "-c", ABANDONED, f"{ENV}:Guess"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        watched = [watch(int(process.stdout.readline())) for _ in range(4)]
        assert not any(has_ended(descriptor, 0) for descriptor in watched)
        os.killpg(process.pid, signal.SIGKILL)
        assert all(has_ended(descriptor) for descriptor in watched)


def test_nothing_survives_a_killed_guardian(tmp_path):
    async def main():
        started = []
        async with real_pool("Guess", tmp_path, started=started) as pool:
            session = await pool.open(TASK)
            watched.extend([watch(int((await session.call_tool("spawn", {"apart": apart})).text)) for apart in (False, True)])
            os.kill(started[0], signal.SIGKILL)
            with pytest.raises(EnvironmentFailure, match="its worker died: it was killed by SIGKILL"):
                await session.call_tool("hang", {})

    watched: list[int] = []
    trio.run(main)
    assert all(has_ended(descriptor) for descriptor in watched)


def test_many_sleeping_episodes_overlap():
    async def main():
        async with thread_pool(f"{ENV}:Guess") as pool:
            sessions = [await pool.open(TASK) for _ in range(40)]
            started = trio.current_time()
            async with trio.open_nursery() as nursery:
                for session in sessions:
                    nursery.start_soon(session.call_tool, "wait", {"seconds": 0.5})
            assert trio.current_time() - started < 10  # one after the other: 20
            for session in sessions:
                session.close()

    trio.run(main)


def test_thread_hosts_close_what_they_opened():
    async def main():
        host = ThreadHost()
        assert await host.end() == "was closed"

    trio.run(main)


def test_an_episode_that_is_cancelled_before_it_starts_leaves_nothing_to_close():
    async def main():
        async with thread_pool(f"{ENV}:Guess") as pool:
            with trio.CancelScope() as scope:
                scope.cancel()
                await pool.open(make_task())
            assert scope.cancelled_caught
            assert [worker.load for worker in pool._ready] == [0]

    trio.run(main)
