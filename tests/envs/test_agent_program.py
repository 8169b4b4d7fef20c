"""Programs that speak to an OpenAI endpoint, played by the real worker with a scripted engine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
import trio.testing
from rollout_fakes import FakeEngine, has_ended, in_turn, make_task, make_tokenizer, watch

from agentrl.config import RolloutConfig
from agentrl.config_engine import SamplingConfig
from agentrl.envs.agent_program import MOST_OUTPUT_BYTES
from agentrl.records import SamplingContract
from agentrl.rollout.episode import play_episode
from agentrl.rollout.pool import EnvPool
from agentrl.rollout.render import Renderer
from agentrl.rollout.tree import Sampler
from agentrl.rows import rows_of

SPEC = str(Path(__file__).parent / "program_env.py")
TOKENIZER = make_tokenizer()


def play(name, *said, rollout=None, row=None, beside=None, **sampling):
    """Play an episode, with the async function `beside(clock)` meanwhile."""
    engine = FakeEngine(in_turn(*said), TOKENIZER)
    sampler = Sampler(engine=engine, renderer=Renderer(TOKENIZER), contract=SamplingContract())
    config = rollout or RolloutConfig(env_workers=1)
    clock = trio.testing.MockClock(rate=1.0)

    async def main():
        async with EnvPool(f"{SPEC}:{name}", [], config) as pool, trio.open_nursery() as nursery:
            if beside is not None:
                nursery.start_soon(beside, clock)
            rollout = await play_episode(
                make_task(**(row or {})),
                0,
                sampler=sampler,
                others={},
                pool=pool,
                sampling=SamplingConfig(**sampling),
                rollout=config,
                seed=0,
            )
            nursery.cancel_scope.cancel()
        return rollout

    return trio.run(main, clock=clock), engine


def play_until_told(name, fifo, hear):
    """Play an episode whose deadline passes once `hear` was given what the program wrote to the fifo, however slow the machine is."""
    os.mkfifo(fifo)

    async def overdue(clock):
        hear(await trio.to_thread.run_sync(fifo.read_text, abandon_on_cancel=True))
        clock.jump(RolloutConfig().episode_timeout_s)

    return play(name, "hello", row={"told": str(fifo)}, beside=overdue)[0]


def test_a_program_plays_its_episode_with_the_sampled_tokens(monkeypatch):
    monkeypatch.setitem(os.environ, "MY_SECRET", "never to be seen")
    rollout, engine = play("Program", "hello", "bye")
    assert (rollout.ending, rollout.score.parts, rollout.reason) == ("complete", {"said": 1.0, "printed": 1.0}, "")
    (row,) = rows_of(rollout)
    first, second = engine.completions
    assert row.ids[row.trained].tolist() == [*first.ids.tolist(), *second.ids.tolist()]
    assert engine.requests[1].ids.tolist()[: len(engine.requests[0].ids)] == engine.requests[0].ids.tolist()


def test_a_program_whose_budget_is_spent_is_scored_as_truncated():
    rollout, _ = play("Program", "hello", "bye", row={"turns": 5}, max_turns=2)
    assert (rollout.ending, rollout.score.parts) == ("truncated", {"said": 0.0, "printed": 0.0})
    assert len(rollout.turns) == 2


def test_a_program_that_fails_is_unscorable_and_quoted():
    rollout, _ = play("Broken", "hello")
    assert (rollout.ending, rollout.score.value) == ("environment_error", None)
    assert "ended with status 3" in rollout.reason
    assert "oh no" in rollout.reason


@pytest.mark.slow
def test_a_program_that_hangs_is_ended_with_what_it_left_behind(tmp_path):
    watched = []
    rollout = play_until_told("Hanging", tmp_path / "told", lambda pids: watched.extend(watch(int(pid)) for pid in pids.split()))
    assert (rollout.ending, rollout.score.value) == ("timeout", None)
    assert len(watched) == 2
    assert all(has_ended(descriptor) for descriptor in watched)


def test_a_program_that_leaves_processes_with_its_output_behind_has_ended():
    rollout, _ = play("Leaving", "hello", rollout=RolloutConfig(env_workers=1, episode_timeout_s=60))
    assert (rollout.ending, rollout.reason) == ("complete", "")
    assert rollout.score.value == MOST_OUTPUT_BYTES
    assert rollout.counters["time/episode_s"] < 30


@pytest.mark.slow
def test_the_folder_of_a_program_is_gone_even_where_its_worker_was_killed(tmp_path):
    folders = []
    play_until_told("Blocking", tmp_path / "told", folders.append)
    assert Path(folders[0]).parent.name.startswith("agentrl-env-")
    assert not Path(folders[0]).parent.exists()
