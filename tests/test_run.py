"""The loop itself, with a scripted sampler in place of engine and rollout processes; everything else is real."""

from __future__ import annotations

import hashlib
import random
import re
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from agentrl import objectives
from agentrl.admission import Admission
from agentrl.buffer import Buffer
from agentrl.config import RunConfig
from agentrl.curriculum import Curriculum
from agentrl.errors import ConfigError, PublishError, RunCannotLearn
from agentrl.learner import Learner
from agentrl.objectives import Needs
from agentrl.records import Group, Rollout, SamplingContract, Score, Source, TokenSpan, Turn, Version, VersionRun
from agentrl.replay import Replay
from agentrl.restore import open_buffer, open_replay
from agentrl.rollout_log import RolloutLog, cut_dispositions, read_dispositions
from agentrl.run import IDLE_STEPS, Interrupt, Run, check_judge
from agentrl.run_folder import RunFolder, read_metrics
from agentrl.tasks import TaskSource

VOCABULARY = 64
ROWS = [{"prompt": str(number), "length": 3 + number % 5} for number in range(40)]


class Silent:
    """A progress that shows nothing, and keeps what it was told."""

    def __init__(self):
        self.messages = []

    def waiting(self, on):
        pass

    def step(self, metrics):
        pass

    def message(self, text):
        self.messages.append(text)


class ScriptedSession:
    """Stands where engine and rollout processes are; its publisher keeps what it was sent."""

    dtype = "float32"
    loop_lag_s = 0.0
    published = None
    joins_servers = False

    def __init__(self):
        self.publisher = self
        self.versions = []
        self.frozen_checksum = None

    def publish(self, weights, version):
        digest = hashlib.blake2b()
        for name, tensor in weights:
            digest.update(name.encode() + tensor.numpy().tobytes())
        self.versions.append(version)
        return self.frozen_checksum or digest.hexdigest()


def scripted_rollout(task, member, version, seed=0):
    """Tokens, log-probs and reward that are a pure function of seed, task, member and version."""
    text = f"{seed}/{task.id}/{member}/{version.step}"
    draw = np.random.default_rng(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))
    length = int(task.row["length"])
    ids = draw.integers(0, VOCABULARY, 4 + length)
    logprobs = np.concatenate([np.full(4, np.nan), -np.log(VOCABULARY) + 0.01 * draw.standard_normal(length)])
    span = TokenSpan(
        ids=ids,
        source=[Source.PROMPT] * 4 + [Source.SAMPLED] * length,
        logprobs=logprobs,
        versions=(VersionRun(version=version, start=4, end=4 + length),),
    )
    turn = Turn(parent=-1, span=span, contract=SamplingContract(), finish_reason="stop")
    return Rollout(task=task, member=member, turns=(turn,), messages=(), ending="complete", score=Score(value=float(draw.integers(0, 2))))


def scripted_group(dispatch, size):
    rollouts = tuple(scripted_rollout(dispatch.task, member, dispatch.version) for member in range(size))
    return Group(index=dispatch.index, task=dispatch.task, rollouts=rollouts, dispatched=dispatch.version)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return str(folder)


def make_config(model_folder, **changes):
    values = {
        "model": model_folder,
        "env": "fake",
        "group_size": 4,
        "groups_per_step": 3,
        "steps": 4,
        "max_staleness": 0,
        "learner": {"lr": 1e-3, "device": "cpu"},
    }
    return RunConfig.model_validate(values | changes)


def make_learner(config):
    objective = objectives.get("grpo")
    return Learner(config, objective, objectives.validate(config.objective), config.model)


def make_run(config, folder, session=None):
    learner = make_learner(config)
    admission = Admission(
        groups_per_step=config.groups_per_step,
        max_staleness=config.max_staleness,
        num_groups=config.epochs * len(ROWS) if config.epochs else None,
    )
    buffer = Buffer(
        admission,
        Curriculum(TaskSource("fake", ROWS, config.seed)),
        RolloutLog(folder.rollouts, 0),
        config.limits,
        lineage=0,
        needs=Needs(group_size=2),
    )
    run = Run(config, folder, 0, learner, None, session or ScriptedSession(), buffer, Silent(), Interrupt(), last={})
    run.replay = open_replay(config, folder, None, Needs(group_size=2))
    return run


def resume_run(config, folder):
    """The run that goes on from the newest checkpoint, as `agentrl train --resume` assembles it."""
    restored = folder.latest_checkpoint()
    learner = make_learner(config)
    learner.load(restored)
    lineage, buffer = open_buffer(
        config, folder, Curriculum(TaskSource("fake", ROWS, config.seed)), restored, Needs(group_size=2), resuming=True
    )
    run = Run(config, folder, lineage, learner, None, ScriptedSession(), buffer, Silent(), Interrupt(), last={})
    run.replay = open_replay(config, folder, restored, Needs(group_size=2))
    return run


def start_generators(buffer, size, count=3, play_one=scripted_group):
    """Threads that play what may be dispatched and bring it back in a random order, as rollout processes do."""
    queue, wake, order = [], threading.Condition(), random.Random(7)

    def pump():
        with wake:
            while (dispatch := buffer.dispatch()) is not None:
                queue.append(dispatch)
            wake.notify_all()

    def play():
        while True:
            with wake:
                while not queue:
                    wake.wait()
                dispatch = queue.pop(order.randrange(len(queue)))
            buffer.finished(play_one(dispatch, size))

    buffer.on_open = pump
    for _ in range(count):
        threading.Thread(target=play, daemon=True).start()
    pump()


def test_eta_zero_is_bit_for_bit_the_synchronous_loop(model_folder, tmp_path):
    torch.set_num_threads(1)
    config = make_config(model_folder)
    folder = RunFolder(tmp_path / "run")
    folder.create("{}")
    run = make_run(config, folder)
    start_generators(run.buffer, config.group_size)
    run.learn()

    plain = make_learner(config)
    tasks = Curriculum(TaskSource("fake", ROWS, config.seed))
    losses = []
    for step in range(config.steps):
        indices = range(step * config.groups_per_step, (step + 1) * config.groups_per_step)
        version = Version(step=step)
        groups = []
        for index in indices:
            task = tasks.task(index)
            rollouts = tuple(scripted_rollout(task, member, version) for member in range(config.group_size))
            groups.append(Group(index=index, task=task, rollouts=rollouts, dispatched=version))
        losses.append(plain.update(groups)["loss"])

    assert [metrics["loss"] for metrics in read_metrics(folder.path)] == losses
    assert [metrics["staleness/max"] for metrics in read_metrics(folder.path)] == [0.0] * config.steps
    for (name, mine), (_, theirs) in zip(run.learner.named_weights(), plain.named_weights(), strict=True):
        assert torch.equal(mine, theirs), name
    assert [version.step for version in run.session.versions] == [1, 2, 3, 4]


def test_an_asynchronous_run_stays_within_its_bound_and_disposes_of_all(model_folder, tmp_path):
    config = make_config(model_folder, max_staleness=2, steps=6)
    folder = RunFolder(tmp_path / "run")
    folder.create("{}")
    run = make_run(config, folder)
    start_generators(run.buffer, config.group_size)
    run.learn()
    run.buffer.drop_rest()
    metrics = read_metrics(folder.path)
    assert [one["step"] for one in metrics] == list(range(1, 7))
    assert max(one["staleness/max"] for one in metrics) <= 2
    records = read_dispositions(folder.rollouts)
    trained = [record.index for record in records if record.step is not None]
    assert trained == list(range(18))
    assert sorted(record.index for record in records) == list(range(len(records)))


@pytest.mark.parametrize(("groups_per_step", "steps"), [(3, 14), (16, 3), (32, 2), (64, 1)])
def test_the_data_ends_the_run_with_a_smaller_last_step(model_folder, tmp_path, groups_per_step, steps):
    config = make_config(model_folder, groups_per_step=groups_per_step, steps=100, epochs=1, group_size=2)
    folder = RunFolder(tmp_path / "run")
    folder.create("{}")
    run = make_run(config, folder)
    start_generators(run.buffer, config.group_size)
    run.learn()
    assert run.learner.step == steps
    assert sum(len(record.members) for record in read_dispositions(folder.rollouts)) == 2 * len(ROWS)


def test_weights_that_do_not_arrive_stop_the_run(model_folder, tmp_path):
    session = ScriptedSession()
    session.frozen_checksum = "the same for ever"
    folder = RunFolder(tmp_path / "run")
    folder.create("{}")
    run = make_run(make_config(model_folder), folder, session)
    start_generators(run.buffer, 4)
    with pytest.raises(PublishError, match="not what is trained"):
        run.learn()
    assert [one["step"] for one in read_metrics(folder.path)] == [1, 2], "the second step is done, though nobody samples from it"
    run.checkpoint()
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-000002"]
    assert sorted(cut_dispositions(folder.rollouts, 2)) == list(range(6)), "a resume trains none of its groups again"
    assert run.buffer.dispatch() is None


@pytest.mark.parametrize(
    ("rewards", "ending", "said"),
    [
        ((0.5, 0.5), "complete", r"in every group all rewards were equal \(reward/mean 0.5 in the last step\).*raise group_size$"),
        ((0.5, 0.5), "truncated", r"all rewards were equal .*; 100% of the episodes were truncated, so maybe raise sampling\.max_tokens$"),
        ((0.0, 1.0), "truncated", r"learner\.mask_truncated is set; raise sampling\.max_tokens$"),
    ],
)
def test_a_run_without_one_update_fails_and_says_why(model_folder, tmp_path, rewards, ending, said):
    learner = {"lr": 1e-3, "device": "cpu", "mask_truncated": True}
    config = make_config(model_folder, learner=learner, group_size=2, groups_per_step=1, steps=IDLE_STEPS)

    def play_one(dispatch, size):
        group = scripted_group(dispatch, size)
        scores = [Score(value=reward) for reward in rewards]
        rollouts = tuple(replace(one, score=score, ending=ending) for one, score in zip(group.rollouts, scores, strict=True))
        return replace(group, rollouts=rollouts)

    folder = RunFolder(tmp_path / "run")
    folder.create("{}")
    run = make_run(config, folder)
    start_generators(run.buffer, 2, play_one=play_one)
    with pytest.raises(RunCannotLearn, match="not one of 10 steps changed a weight: ") as caught:
        run.learn()
    assert re.search(said, str(caught.value))


def test_a_few_steps_without_an_update_may_be_chance(model_folder, tmp_path):
    config = make_config(model_folder, steps=2, group_size=2)

    def play_one(dispatch, size):
        group = scripted_group(dispatch, size)
        return replace(group, rollouts=tuple(replace(one, score=Score(value=0.5)) for one in group.rollouts))

    folder = RunFolder(tmp_path / "run")
    folder.create("{}")
    run = make_run(config, folder)
    start_generators(run.buffer, 2, play_one=play_one)
    run.learn()
    assert run.learner.step == 2
    assert run.progress.messages[-1].startswith("not one of 2 steps changed a weight: in every group all rewards were equal")


def test_an_unchanged_checksum_is_right_where_nothing_was_learned(model_folder, tmp_path):
    config = make_config(model_folder, learner={"lr": 0.0, "device": "cpu"})
    folder = RunFolder(tmp_path / "run")
    folder.create("{}")
    run = make_run(config, folder)
    start_generators(run.buffer, 4)
    run.learn()
    assert run.learner.step == 4


def replaying_config(model_folder, **changes):
    """Groups of two rewards from {0, 1}: in half of them both are equal."""
    values = {"group_size": 2, "groups_per_step": 4, "steps": 8, "replay": {"size": 5}, "checkpoint": {"every": 3}}
    return make_config(model_folder, **(values | changes))


def test_groups_without_a_signal_are_replaced_in_what_is_trained_alone(model_folder, tmp_path):
    torch.set_num_threads(1)
    config = replaying_config(model_folder)
    folder = RunFolder(tmp_path / "run")
    folder.create("{}")
    run = make_run(config, folder)
    start_generators(run.buffer, config.group_size)
    run.learn()
    metrics = read_metrics(folder.path)

    plain, replay, tasks = (
        make_learner(config),
        Replay(config.replay, Needs(group_size=2), seed=config.seed),
        Curriculum(TaskSource("fake", ROWS, config.seed)),
    )
    empty = 0
    for step in range(config.steps):
        version = Version(step=step)
        groups = []
        for index in range(step * config.groups_per_step, (step + 1) * config.groups_per_step):
            rollouts = tuple(scripted_rollout(tasks.task(index), member, version) for member in range(2))
            groups.append(Group(index=index, task=tasks.task(index), rollouts=rollouts, dispatched=version))
        trained, figures = replay.fill(groups, step)
        assert metrics[step] | figures == metrics[step]
        assert metrics[step]["loss"] == plain.update(trained)["loss"]
        assert metrics[step]["staleness/max"] == 0.0, "of the fresh groups"
        assert metrics[step]["reward/frac_zero_std"] == sum(len(set(group.scores)) == 1 for group in groups) / len(groups)
        empty += sum(len(set(group.scores)) == 1 for group in groups)
        replay.take_in(groups, step + 1)
    for (name, mine), (_, theirs) in zip(run.learner.named_weights(), plain.named_weights(), strict=True):
        assert torch.equal(mine, theirs), name
    assert sum(one["replay/replaced"] for one in metrics) >= 8
    assert max(one["replay/age_max"] for one in metrics) >= 2
    records = read_dispositions(folder.rollouts)
    assert [record.index for record in records] == list(range(config.steps * config.groups_per_step)), "a replayed group has no second one"
    assert sum(record.members == ("no_signal",) * 2 for record in records) == empty, "dispositions are those of the dispatched groups"


def test_a_run_without_replay_has_no_figures_of_it(model_folder, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create("{}")
    run = make_run(replaying_config(model_folder, replay=None, steps=1), folder)
    start_generators(run.buffer, 2)
    run.learn()
    assert not [name for name in read_metrics(folder.path)[0] if name.startswith("replay/")]


@pytest.mark.parametrize("dies_after", [3, 5])
def test_a_run_that_dies_and_goes_on_replays_what_it_would_have_replayed(model_folder, tmp_path, dies_after):
    torch.set_num_threads(1)
    config = replaying_config(model_folder, replay={"size": 5, "max_age": 4})
    whole = RunFolder(tmp_path / "whole")
    whole.create("{}")
    run = make_run(config, whole)
    start_generators(run.buffer, 2)
    run.learn()

    folder = RunFolder(tmp_path / "cut")
    folder.create("{}")
    first = make_run(config.model_copy(update={"steps": dies_after}), folder)
    start_generators(first.buffer, 2)
    first.learn()  # and what it did after step 3 was written nowhere but in the logs
    again = resume_run(config, folder)
    assert again.learner.step == 3
    start_generators(again.buffer, 2)
    again.learn()

    names = ("step", "loss", "grad_norm", "replay/replaced", "replay/size", "replay/age_mean", "replay/age_max")
    uninterrupted = [[one[name] for name in names] for one in read_metrics(whole.path)]
    assert [[one[name] for name in names] for one in read_metrics(folder.path)] == uninterrupted
    assert again.replay.entries == run.replay.entries
    assert sum(row[3] for row in uninterrupted[3:]) > 0, "something was replayed after the checkpoint"
    for (name, mine), (_, theirs) in zip(again.learner.named_weights(), run.learner.named_weights(), strict=True):
        assert torch.equal(mine, theirs), name


def test_an_objective_that_needs_a_judge_is_refused_where_there_is_none():
    class Rows:
        compares = False

    check_judge(Rows(), Needs(), "grpo", "arithmetic")
    with pytest.raises(
        ConfigError, match=r"'online_dpo' asks which of two episodes is better, and environment 'arithmetic' defines no compare"
    ):
        check_judge(Rows(), Needs(judge=True), "online_dpo", "arithmetic")
    Rows.compares = True
    check_judge(Rows(), Needs(judge=True), "online_dpo", "arithmetic")
