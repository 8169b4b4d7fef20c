from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from fakes import make_group
from safetensors.torch import load_file
from test_two_ranks import LAUNCHER

from agentrl import objectives, runfile
from agentrl.config import RunConfig
from agentrl.errors import ConfigError, LearnerDiverged
from agentrl.needs import check_needs
from agentrl.objectives import Needs
from agentrl.objectives.sft import IMITATION
from agentrl.rollout_log import RolloutLog, read_groups
from agentrl.run_folder import RunFolder, read_metrics
from agentrl.warm_start import check_vocabulary, read_warm_start, warm_steps

GROUPED = Needs(group_size=2)


def earlier_run(tmp_path, groups):
    log = RolloutLog(tmp_path / "earlier" / "rollouts", 0)
    for group in groups:
        log.write(group)
    log.close()
    return str(tmp_path / "earlier")


def make_config(run, *, groups_per_step=2, steps=2, learner=None, **section):
    warm = {"run": run, "steps": steps} | section
    values = {"model": "m", "env": "e", "groups_per_step": groups_per_step, "learner": learner or {}, "warm_start": warm}
    return RunConfig.model_validate(values)


def read(tmp_path, groups, needs=GROUPED, **options):
    return read_warm_start(make_config(earlier_run(tmp_path, groups), **options), needs)


def chosen(groups):
    """The members of each group that are left."""
    return {group.index: [rollout.member for rollout in group.rollouts] for group in groups}


def sampled(group, **contract):
    """The same group, sampled otherwise."""
    return replace(
        group,
        rollouts=tuple(
            replace(one, turns=tuple(replace(turn, contract=replace(turn.contract, **contract)) for turn in one.turns))
            for one in group.rollouts
        ),
    )


def test_the_best_of_each_group_are_imitated(tmp_path):
    groups = [make_group(0, [0.0, 2.0, 1.0, 2.0]), make_group(1, [1.0, 1.0]), make_group(2, [None, 0.5, 0.0]), make_group(3, [None, None])]
    assert chosen(read(tmp_path, groups)) == {0: [1, 3], 2: [1]}


def test_a_least_reward_chooses_by_itself(tmp_path):
    groups = [make_group(0, [0.0, 2.0, 1.0]), make_group(1, [1.0, 1.0]), make_group(2, [0.0, 0.5])]
    assert chosen(read(tmp_path, groups, min_reward=1.0)) == {0: [1, 2], 1: [0, 1]}


def test_truncated_rollouts_are_imitated_unless_the_learner_masks_them(tmp_path):
    group = make_group(0, [0.0, 1.0, 1.0])
    cut = replace(group, rollouts=(*group.rollouts[:2], replace(group.rollouts[2], ending="truncated")))
    assert chosen(read(tmp_path, [cut])) == {0: [1, 2]}
    assert chosen(read(tmp_path, [cut], learner={"mask_truncated": True})) == {0: [1]}


def test_a_rollout_without_a_token_is_not_imitated(tmp_path):
    group = make_group(0, [0.0, 1.0, 1.0])
    assert chosen(read(tmp_path, [replace(group, rollouts=(*group.rollouts[:2], replace(group.rollouts[2], turns=())))])) == {0: [1]}


def test_imitation_does_not_mind_how_the_earlier_run_sampled(tmp_path):
    (found,) = read(tmp_path, [sampled(make_group(0, [0.0, 1.0]), temperature=0.3, top_p=0.5, reference_share=0.5)])
    (contract,) = {turn.contract for rollout in found.rollouts for turn in rollout.turns}
    assert (contract.temperature, contract.truncated, contract.reference_share) == (1.0, False, 0.0)


def test_off_policy_takes_what_a_step_would_take(tmp_path):
    groups = [make_group(0, [0.0, 1.0]), make_group(1, [1.0, 1.0]), make_group(2, [None, 0.5]), make_group(3, [1.0, None, 0.0])]
    assert chosen(read(tmp_path, groups, mode="off_policy")) == {0: [0, 1], 1: [0, 1], 3: [0, 1, 2]}
    dynamic = replace(GROUPED, signal=True)
    assert chosen(read(tmp_path / "dynamic", groups, needs=dynamic, mode="off_policy")) == {0: [0, 1], 3: [0, 1, 2]}
    judged = [replace(groups[0], preferences=(None,)), replace(groups[1], preferences=(1.0,))]
    assert chosen(read(tmp_path / "judged", judged, needs=replace(GROUPED, judge=True), mode="off_policy")) == {1: [0, 1]}


def test_recorded_log_probs_stay_and_versions_count_from_the_newest(tmp_path):
    groups = [make_group(0, [0.0, 1.0], step=3), make_group(1, [0.0, 1.0], step=5)]
    found = read(tmp_path, groups, mode="off_policy")
    steps = [{run.version.step for one in group.rollouts for turn in one.turns for run in turn.span.versions} for group in found]
    assert steps == [{-2}, {0}], "staleness is never negative"
    for mine, theirs in zip(found, groups, strict=True):
        for one, other in zip(mine.rollouts, theirs.rollouts, strict=True):
            assert one.turns[0].span.logprobs.tobytes() == other.turns[0].span.logprobs.tobytes()


def test_no_more_is_read_than_the_steps_take(tmp_path):
    groups = [make_group(index, [0.0, 1.0]) for index in range(9)]
    assert [group.index for group in read(tmp_path, groups, steps=2, groups_per_step=3)] == list(range(6))


class Counting:
    """Stands where the learner is, and keeps what it was given."""

    class accelerator:
        num_processes = 1

    def __init__(self):
        self.calls = []
        self.forgot = 0

    def warm(self, groups, objective, *, rate, number):
        self.calls.append(([group.index for group in groups], objective, rate, number))
        return {"loss": 0.5, "learner/counted_tokens": 8.0}

    def forget_moments(self):
        self.forgot += 1


def test_steps_go_through_the_groups_in_order_and_begin_again(tmp_path):
    config = make_config("r", steps=3, groups_per_step=2, learner={"lr": 0.25})
    learner = Counting()
    metrics = list(warm_steps(learner, config, [make_group(index, [0.0, 1.0]) for index in range(5)]))
    assert learner.calls == [([0, 1], IMITATION, 0.25, 0), ([2, 3], IMITATION, 0.25, 1), ([4, 0], IMITATION, 0.25, 2)]
    assert metrics[1] == {"step": 2, "loss": 0.5, "tokens": 8.0, "grad_norm": 0.0}
    assert learner.forgot == 1


def test_no_group_is_in_a_step_twice_and_off_policy_is_the_learners_own_objective():
    learner = Counting()
    config = make_config("r", mode="off_policy", steps=2, groups_per_step=4, lr=0.5)
    list(warm_steps(learner, config, [make_group(index, [0.0, 1.0]) for index in range(3)]))
    assert learner.calls == [([0, 1, 2], None, 0.5, 0), ([0, 1, 2], None, 0.5, 1)]


def test_a_warm_start_that_diverges_says_that_it_was_one():
    class Diverging(Counting):
        def warm(self, groups, objective, *, rate, number):
            raise LearnerDiverged("step 0: loss nan")

    with pytest.raises(LearnerDiverged, match=r"^warm start: step 0: loss nan"):
        list(warm_steps(Diverging(), make_config("r"), [make_group(0, [0.0, 1.0])]))


@pytest.mark.parametrize(
    ("groups", "options", "said"),
    [
        ([], {}, "holds 0 finished groups: give a run that has played some"),
        ([make_group(0, [1.0, 1.0])], {}, "1 finished group with a highest score of 1, and in none of them do scores differ"),
        ([make_group(0, [1.0, 3.0])], {"min_reward": 4.0}, "highest score of 3, and no rollout reaches warm_start.min_reward=4"),
        ([make_group(0, [None, None])], {"min_reward": 0.0}, "with no rollout that could be scored, and no rollout reaches"),
        ([make_group(0, [1.0, None])], {"mode": "off_policy"}, "it takes groups of at least 2 scorable rollouts$"),
        (
            [sampled(make_group(0, [0.0, 1.0]), temperature=0.5)],
            {"mode": "off_policy"},
            "sampled at temperature 0.5, and this run samples at 1:",
        ),
        ([sampled(make_group(0, [0.0, 1.0]), top_p=0.5)], {"mode": "off_policy"}, "sampled from a part of the vocabulary"),
        ([sampled(make_group(0, [0.0, 1.0]), reference_share=0.5)], {"mode": "off_policy"}, "by a policy mixed with a reference"),
    ],
)
def test_what_cannot_be_trained_is_said_with_what_was_found(tmp_path, groups, options, said):
    with pytest.raises(ConfigError, match=said):
        read(tmp_path, groups, **options)


def test_good_rollouts_that_are_all_masked_are_told_apart(tmp_path):
    group = make_group(0, [0.0, 1.0])
    cut = replace(group, rollouts=(group.rollouts[0], replace(group.rollouts[1], ending="truncated")))
    with pytest.raises(ConfigError, match=r"sampled no token or was truncated, which learner\.mask_truncated leaves out"):
        read(tmp_path, [cut], learner={"mask_truncated": True})


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"warm_start.run is .*nowhere, and there is no such folder: give the folder of an earlier run"):
        read_warm_start(make_config(str(tmp_path / "nowhere")), GROUPED)
    with pytest.raises(ConfigError, match="which has no rollouts/"):
        read_warm_start(make_config(str(tmp_path)), GROUPED)


def test_tokens_that_the_model_does_not_have_are_refused():
    import torch

    class Learner:
        class policy:
            class base:
                @staticmethod
                def get_output_embeddings():
                    return torch.nn.Linear(4, 30)

    group = make_group(0, [0.0, 1.0])
    highest = max(int(rollout.turns[0].span.ids.max()) for rollout in group.rollouts)
    assert highest >= 30
    with pytest.raises(ConfigError, match=rf"the rollouts of runs/a hold token {highest}, and this run's model has 30 tokens"):
        check_vocabulary([group], Learner(), "runs/a")


def test_what_a_run_file_can_get_wrong():
    with pytest.raises(ConfigError, match="`warm_start`: min_reward chooses rollouts to imitate"):
        runfile.load(None, ["warm_start.run=r", "warm_start.mode=off_policy", "warm_start.min_reward=1"], {"model": "m", "env": "e"})
    with pytest.raises(ConfigError, match=r"`warm_start\.run` is missing: Folder of the earlier run"):
        runfile.load(None, ["warm_start.steps=5"], {"model": "m", "env": "e"})
    needs = objectives.get("xpo").needs(objectives.validate({"name": "xpo"}))
    check_needs(make_config("r"), needs, "xpo")
    with pytest.raises(ConfigError, match=r"plays against rivals .*: set warm_start\.mode=supervised"):
        check_needs(make_config("r", mode="off_policy"), needs, "xpo")


SMALL = (
    *("group_size=4", "groups_per_step=4", "sampling.max_tokens=8", "max_staleness=0", "learner.threads=1", "learner.lr=1e-3"),
    *("rollout.env_workers=1", "sampling.temperature=1.5", "checkpoint.every=1"),
)


def train(folder, *changes, resume=False, launcher=()):
    what = ["--resume", str(folder)] if resume else ["--env", "arithmetic", "--model", "quickstart", "--output", str(folder)]
    sets = [part for change in (*(() if resume else SMALL), *changes) for part in ("--set", change)]
    command = [sys.executable, *launcher, "-m", "agentrl", "train", *what, *sets]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("earlier") / "run"
    train(folder, "steps=3")
    return folder


def warm_log(folder):
    return [json.loads(line) for line in RunFolder(folder).warm_start_file.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["supervised", "off_policy"])
def test_the_engine_samples_from_the_warmed_model_and_a_resume_does_not_warm_it_again(tmp_path, earlier, mode):
    folder = tmp_path / "run"
    changes = (f"warm_start.run={earlier}", f"warm_start.mode={mode}", "warm_start.steps=4", "warm_start.lr=1e-3")
    said = train(folder, *changes, "steps=1").stdout
    assert "warm start: 4 steps on " in said
    steps = warm_log(folder)
    assert [one["step"] for one in steps] == [1, 2, 3, 4]
    assert all(one["tokens"] > 0 for one in steps)
    # a group that comes again may be one of which PPO's clip leaves nothing
    assert all(one["grad_norm"] > 0 for one in (steps if mode == "supervised" else steps[:1]))
    if mode == "supervised":
        assert steps[-1]["loss"] < steps[0]["loss"], "what was imitated is likelier"
    (metrics,) = read_metrics(folder)
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-3, "the first groups come from the warmed weights"
    first = next(read_groups(folder / "rollouts"))
    assert {run.version.step for one in first.rollouts for turn in one.turns for run in turn.span.versions} == {0}
    warmed = load_file(folder / "checkpoints" / "step-000000" / "weights.safetensors")
    learned = load_file(folder / "checkpoints" / "step-000001" / "weights.safetensors")
    assert any((warmed[name] != learned[name]).any() for name in warmed)

    (folder / "checkpoints" / "step-000001" / "run.json").unlink()  # as if it had died in the first step
    (folder / "warm_start.jsonl").unlink()
    train(folder, "steps=1", resume=True)
    assert not (folder / "warm_start.jsonl").exists()
    again = load_file(folder / "checkpoints" / "step-000001" / "weights.safetensors")
    assert all((again[name] == learned[name]).all() for name in learned), "the same groups on the same weights"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sharding", "changes"),
    [
        ("ddp", ("objective={name: ppo, critic: head, epochs: 1, minibatches: 1}",)),  # a critic, which imitation does not train
        ("fsdp2", ("replay={size: 8}",)),
    ],
)
def test_two_ranks_warm_one_model(tmp_path, earlier, sharding, changes):
    changes = [f"warm_start.run={earlier}", "warm_start.steps=3", "steps=2", *changes]
    train(tmp_path / "alone", *changes)
    train(tmp_path / "together", *changes, "learner.ranks=2", f"learner.sharding={sharding}", launcher=LAUNCHER)
    alone, together = warm_log(tmp_path / "alone"), warm_log(tmp_path / "together")
    assert [one["tokens"] for one in alone] == [one["tokens"] for one in together]
    for mine, theirs in zip(together, alone, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
    mine, theirs = read_metrics(tmp_path / "together"), read_metrics(tmp_path / "alone")
    assert mine[0]["sampling/sampling_logp_difference/max"] < 1e-3, "the first groups come from the warmed weights"
    for name in ("step", "reward/mean", "replay/replaced"):
        assert [one.get(name) for one in mine] == [one.get(name) for one in theirs], name
    assert [one["loss"] for one in mine] == pytest.approx([one["loss"] for one in theirs], rel=1e-3, abs=1e-5)
