from __future__ import annotations

import itertools

import pytest
from fakes import make_group

from agentrl.buffer import Dispatch
from agentrl.config import RunConfig
from agentrl.config_engine import EngineConfig
from agentrl.config_learner import LearnerConfig, LoraConfig
from agentrl.engines.vllm_setup import transport_of
from agentrl.errors import CheckpointError, ConfigError, RunCannotLearn
from agentrl.evaluation import _Collector, _open_kept, as_evaluated, evaluate, pass_at_k, summarize
from agentrl.records import Task, Version


@pytest.mark.parametrize(("total", "right", "k"), [(4, 0, 2), (4, 1, 2), (5, 3, 2), (6, 2, 4), (3, 3, 3)])
def test_pass_at_k_equals_enumeration(total, right, k):
    outcomes = [True] * right + [False] * (total - right)
    draws = list(itertools.combinations(outcomes, k))
    assert pass_at_k(total, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_unscorable_rollouts_are_outside_the_mean():
    groups = [make_group(0, [1.0, None]), make_group(1, [0.0, 1.0])]
    result = summarize(groups, samples=2)
    assert result.mean == pytest.approx(0.75)
    assert result.unscorable == 1
    assert result.pass_at == {1: pytest.approx(0.75), 2: pytest.approx(1.0)}
    assert result.interval[0] < 0.75 < result.interval[1]


class Silent:
    """A progress that shows nothing."""

    def step(self, metrics):
        pass


def collect(rewards, *, keep=lambda group: None, patience=64, num_tasks=4):
    """Play so many tasks with these rewards each."""
    task = Task.from_row("fake", {"prompt": "x"})
    dispatches = [Dispatch(index=index, task=task, version=Version()) for index in range(num_tasks)]
    collector = _Collector(dispatches, Silent(), most=num_tasks, keep=keep, patience=patience)
    while (dispatch := collector.next_group()) is not None:
        collector.played(make_group(dispatch.index, rewards))
        if patience <= len(collector._groups):
            break
    return collector.wait(1)


def test_no_more_tasks_are_out_than_the_engine_has_room_for():
    task = Task.from_row("fake", {"prompt": "x"})
    dispatches = [Dispatch(index=index, task=task, version=Version()) for index in range(10)]
    collector = _Collector(dispatches, Silent(), most=3, keep=lambda group: None, patience=64)
    out: list[int] = []

    def pump():
        while (dispatch := collector.next_group()) is not None:
            out.append(dispatch.index)

    collector.on_room = pump
    pump()
    assert out == [0, 1, 2]
    collector.lost(1)  # its process died: it goes out again, first
    pump()
    assert out == [0, 1, 2, 1]
    for played in range(10):
        collector.played(make_group(played, [1.0]))
        assert len(out) - 1 == min(10, 4 + played)
    assert sorted(set(out)) == list(range(10))
    assert len(collector.wait(1)) == 10


def test_every_group_is_kept_as_it_comes():
    kept = []
    groups = collect([1.0], keep=kept.append)
    assert [group.index for group in groups] == [0, 1, 2, 3]
    assert sorted(group.index for group in kept) == [0, 1, 2, 3]


def test_a_full_disk_ends_an_evaluation():
    def refuse(group):
        raise CheckpointError("no space left")

    with pytest.raises(CheckpointError, match="no space left"):
        collect([1.0], keep=refuse)


def test_an_environment_that_scores_nothing_is_not_waited_for():
    with pytest.raises(RunCannotLearn, match="not one of 2 tasks could be scored: fake failure"):
        collect([None], patience=2)
    assert len(collect([1.0], patience=100)) == 4


def test_a_folder_that_cannot_be_written_is_told_before_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="give another --output"), _open_kept(tmp_path / "file"):
        pass


def test_nothing_scorable_is_an_error():
    with pytest.raises(RunCannotLearn, match="fake failure"):
        summarize([make_group(0, [None])], samples=1)


def test_running_servers_are_not_evaluated_for_another_model() -> None:
    config = RunConfig(model="quickstart", env="arithmetic", engine=EngineConfig(kind="vllm", servers=["http://127.0.0.1:9"]))
    with pytest.raises(ConfigError, match=r"use engine\.launch in place of engine\.servers"):
        evaluate(config, model="quickstart", progress=lambda done, total, mean: None)


def test_an_evaluation_asks_a_server_for_no_adapter() -> None:
    """Nothing is published, so that the run file's adapter and transport are nothing to the server."""
    learner = LearnerConfig(device="cpu", lora=LoraConfig())
    config = RunConfig(model="m", env="arithmetic", engine=EngineConfig(kind="vllm", transport="lora"), learner=learner)
    evaluated = as_evaluated(config, "other")
    assert (evaluated.model, evaluated.learner.lora, transport_of(evaluated)) == ("other", None, "filesystem")
