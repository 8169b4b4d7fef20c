from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import learner_fakes as fakes
import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentrl import objectives
from agentrl.errors import ConfigError, LearnerDiverged
from agentrl.learner import Learner
from agentrl.learner.lanes import LANE_PARAMETERS, lanes_where_they_help
from agentrl.objectives import Losses, TokenBatch
from agentrl.records import Group, SamplingContract
from agentrl.rows import rows_of

if TYPE_CHECKING:
    from collections.abc import Callable

UNCHANGED = {"lr": 0.0, "max_grad_norm": None}
"""A learner that can be asked for gradients again and again."""

WIDE = {"hidden_size": 64, "head_dim": 32, "intermediate_size": 96, "scale": 0.05}
"""Large enough that float32 sums of a head's 32 numbers do not cancel to noise."""

OBJECTIVES: list[dict[str, object]] = [{"name": "grpo"}, {"name": "grpo", "normalization": "token_mean", "beta": 0.1}]


def gradient(learner: Learner, groups: list[Group], **options: object) -> dict[str, torch.Tensor]:
    return fakes.gradient_at_rest(learner, groups, **options)[0]


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(seed=st.integers(0, 10_000), budget=st.integers(1, 120), shuffle=st.randoms(use_true_random=False))
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_the_gradient_does_not_depend_on_cuts_packings_or_orders(
    objective: dict[str, object], model_folder: Callable[..., str], seed: int, budget: int, shuffle: object
) -> None:
    groups = fakes.make_groups(seed)
    order = list(groups)
    shuffle.shuffle(order)  # type: ignore[attr-defined]
    order = [dataclasses.replace(group, rollouts=tuple(reversed(group.rollouts))) for group in order]
    config = fakes.run_config(learner=UNCHANGED)
    for folder, dtype, bound in (
        (model_folder(kind="starcoder2"), torch.float64, 1e-12),
        (model_folder(kind="qwen3", **WIDE), torch.float32, 1e-6),
    ):
        learner = fakes.make_learner(folder, config, objective, master_dtype=dtype)
        whole = gradient(learner, groups)
        assert fakes.distance(gradient(learner, groups, tokens_per_micro_batch=budget), whole) <= bound
        assert fakes.distance(gradient(learner, order, tokens_per_micro_batch=budget, head_chunk_mib=1), whole) <= bound


def test_one_two_and_five_micro_batches_give_one_gradient(model_folder: Callable[..., str]) -> None:
    groups = fakes.make_groups(1, groups=5, forks=False)
    config = fakes.run_config(learner=UNCHANGED)
    learner = fakes.make_learner(model_folder(kind="starcoder2"), config, master_dtype=torch.float64)
    whole, metrics = fakes.gradients(learner, groups)
    counts = []
    for share in np.linspace(1, 8, 40):
        learner.config = fakes.run_config(
            learner=UNCHANGED | {"tokens_per_micro_batch": int(metrics["learner/computed_tokens"] / share) + 1}
        )
        taken, cut = fakes.gradients(learner, groups)
        counts.append(int(cut["learner/micro_batches"]))
        assert fakes.distance(taken, whole) <= 1e-12
    assert {1, 2, 5} <= set(counts)


def test_a_step_moves_the_weights_and_counts(model_folder: Callable[..., str]) -> None:
    config = fakes.run_config(learner={"lr": 0.1, "schedule": "linear"})
    learner = fakes.make_learner(model_folder(), config)
    before, mark = {name: tensor.clone() for name, tensor in learner.named_weights()}, learner.fingerprint()
    metrics = [learner.update(fakes.make_groups(seed)) for seed in range(2)]
    assert learner.step == 2
    assert [one["learning_rate"] for one in metrics] == pytest.approx([0.1, 0.1 * 8 / 9])
    assert learner.fingerprint() != mark
    assert all(not torch.equal(tensor, before[name]) for name, tensor in learner.named_weights())
    assert all(np.isfinite(value) for one in metrics for value in one.values())


def test_the_step_goes_towards_the_better_answers(model_folder: Callable[..., str]) -> None:
    learner = fakes.make_learner(
        model_folder(), fakes.run_config(learner={"lr": 0.01}), {"name": "grpo", "clip_low": 1.0, "clip_high": 1e6}
    )
    groups = fakes.make_groups(3)
    losses = [learner.update(groups)["loss"] for _ in range(4)]
    assert losses == sorted(losses, reverse=True)


def test_a_learning_rate_of_zero_is_valid_and_changes_nothing(model_folder: Callable[..., str]) -> None:
    learner = fakes.make_learner(model_folder(), fakes.run_config(learner={"lr": 0.0, "weight_decay": 0.1}))
    mark = learner.fingerprint()
    assert learner.update(fakes.make_groups(0))["grad_norm"] > 0
    assert learner.fingerprint() == mark
    assert learner.step == 1


def test_clipping_bounds_the_norm_of_the_gradient(model_folder: Callable[..., str]) -> None:
    groups = fakes.make_groups(0)
    free = fakes.make_learner(model_folder(), fakes.run_config(learner={"max_grad_norm": None}))
    clipped = fakes.make_learner(model_folder(), fakes.run_config(learner={"max_grad_norm": 1e-3}))
    whole, metrics = fakes.gradients(free, groups)
    small, same = fakes.gradients(clipped, groups)
    assert same["grad_norm"] == metrics["grad_norm"] > 1e-3
    norm = torch.stack([one.norm() for one in small.values()]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-2)
    scaled = {name: one * (norm / metrics["grad_norm"]) for name, one in whole.items()}
    assert fakes.distance(small, scaled) < 1e-5


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_anything_changes(poison: float, model_folder: Callable[..., str]) -> None:
    def poisoned(batch: TokenBatch, config: object) -> Losses:
        return Losses(per="token", loss=batch.logprobs * poison)

    objective = dataclasses.replace(objectives.get("grpo"), loss=poisoned)
    learner = Learner(fakes.run_config(), objective, objectives.validate({"name": "grpo"}), model_folder())
    mark = learner.fingerprint()
    with pytest.raises(LearnerDiverged, match="step 1: loss"):
        learner.update(fakes.make_groups(0))
    assert learner.fingerprint() == mark
    assert learner.step == 0
    assert all(parameter.grad is None for parameter in learner.policy.parameters())


@pytest.mark.parametrize("scores", [[None, None], [1.0, 1.0], [None, 1.0]])
def test_a_step_without_a_signal_counts_and_changes_nothing(scores: list[float | None], model_folder: Callable[..., str]) -> None:
    learner = fakes.make_learner(model_folder(), fakes.run_config(learner={"lr": 0.1}))
    learner.update(fakes.make_groups(0))  # so that the optimizer has a momentum that could move something
    mark = learner.fingerprint()
    draw = np.random.default_rng(0)
    rollouts = [fakes.rollout([fakes.turn(fakes.span(draw, 3, 4))], member=member, score=score) for member, score in enumerate(scores)]
    group = dataclasses.replace(fakes.make_groups(0)[0], rollouts=tuple(rollouts))
    metrics = learner.update([group])
    assert metrics["learner/skipped"] == 1
    assert learner.step == 2
    assert learner.fingerprint() == mark


def test_unscorable_rollouts_do_not_reach_the_gradient(model_folder: Callable[..., str]) -> None:
    learner = fakes.make_learner(model_folder(), fakes.run_config(learner=UNCHANGED))
    groups = fakes.make_groups(2)
    draw = np.random.default_rng(1)
    failed = fakes.rollout([fakes.turn(fakes.span(draw, 4, 9))], member=9, score=None, ending="environment_error")
    with_failures = [dataclasses.replace(group, rollouts=(failed, *group.rollouts)) for group in groups]
    expected, _ = fakes.gradients(learner, groups)
    found, metrics = fakes.gradients(learner, with_failures)
    assert fakes.distance(found, expected) == 0.0
    assert metrics["mask/unscorable"] == len(groups)


def test_metrics_compare_the_learner_with_the_sampler(model_folder: Callable[..., str]) -> None:
    learner = fakes.make_learner(model_folder(), fakes.run_config(learner=UNCHANGED), {"name": "grpo", "beta": 0.1})
    groups = fakes.make_groups(4)
    metrics = learner.update(groups)
    sampled = sum(rollout.num_sampled for group in groups for rollout in group.rollouts)
    assert metrics["learner/trained_tokens"] == sampled
    assert metrics["learner/tokens"] > metrics["learner/computed_tokens"]
    low, mean, high = (metrics[f"sampling/importance_sampling_ratio/{name}"] for name in ("min", "mean", "max"))
    assert low < mean < high
    assert low < metrics["sampling/ratio_p99"] <= high
    assert metrics["policy/ratio_mean"] == mean
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-6)
    assert 0 < metrics["entropy"] <= np.log(fakes.VOCABULARY)
    assert 0 <= metrics["clip_ratio/region_mean"] <= 1
    assert {"time/forward_s", "time/backward_s", "time/optimizer_s", "time/prepare_s"} <= metrics.keys()


def test_on_policy_the_ratio_is_one(model_folder: Callable[..., str]) -> None:
    """Log-probs that the model gave are found again, whatever the packing and the temperature."""
    for temperature in (0.6, 1.0, 1.3):
        config = fakes.run_config(learner=UNCHANGED, sampling={"temperature": temperature})
        learner = fakes.make_learner(model_folder(), config)
        groups = [as_sampled(model_folder(), group, temperature) for group in fakes.make_groups(5)]
        metrics = learner.update(groups)
        assert metrics["sampling/sampling_logp_difference/mean"] < 1e-5
        assert metrics["sampling/sampling_logp_difference/max"] < 1e-4
        assert metrics["policy/ratio_mean"] == pytest.approx(1, abs=1e-5)


def as_sampled(folder: str, group: Group, temperature: float) -> Group:
    """The group with the log-probs that transformers' own forward pass gives."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    rollouts = []
    for rollout in group.rollouts:
        turns = list(rollout.turns)
        for row in rows_of(rollout):
            logits = model(input_ids=torch.from_numpy(row.ids.astype(np.int64))[None], use_cache=False).logits[0].detach()
            logprobs = torch.log_softmax(logits / temperature, -1)[:-1].gather(1, torch.from_numpy(row.ids[1:].astype(np.int64))[:, None])
            column = np.concatenate([[np.nan], logprobs[:, 0].numpy()])
            for index in set(row.turn.tolist()):
                span = turns[index].span
                values = np.where(span.sampled, column[row.turn == index], np.nan)
                contract = SamplingContract(temperature=temperature)
                turns[index] = dataclasses.replace(turns[index], span=dataclasses.replace(span, logprobs=values), contract=contract)
        rollouts.append(dataclasses.replace(rollout, turns=tuple(turns)))
    return dataclasses.replace(group, rollouts=tuple(rollouts))


def test_the_reference_stays_while_the_policy_moves(model_folder: Callable[..., str]) -> None:
    for options in ({}, {"lora": {"rank": 4}}):
        learner = fakes.make_learner(model_folder(), fakes.run_config(learner={"lr": 0.05} | options), {"name": "grpo", "beta": 0.1})
        kls = [learner.update(fakes.make_groups(seed))["kl"] for seed in range(3)]
        assert kls[0] < 1e-6 < kls[1] < kls[2]


def test_a_launcher_with_other_ranks_is_refused(model_folder: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match=r"learner\.ranks=2, but 1 learner processes were started"):
        fakes.make_learner(model_folder(), fakes.run_config(learner={"ranks": 2}))


@pytest.mark.parametrize(("threads", "spare"), [(2, 0), (1, 1), (3, 2)])
def test_lanes_change_no_bit_of_the_gradient(threads: int, spare: int, model_folder: Callable[..., str]) -> None:
    folder = model_folder()
    config = fakes.run_config(learner=UNCHANGED | {"tokens_per_micro_batch": 40})
    groups = fakes.make_groups(3, groups=4, members=6)
    first = fakes.make_learner(folder, config, threads=threads, spare_threads=spare)
    taken, metrics = fakes.gradients(first, groups)
    assert metrics["learner/micro_batches"] > 4
    for _ in range(2):  # whoever takes what
        other = fakes.make_learner(folder, config, threads=1, spare_threads=1)
        found, others = fakes.gradients(other, groups)
        assert found.keys() == taken.keys()
        assert all(torch.equal(found[name], taken[name]) for name in taken)
        assert {name: value for name, value in others.items() if not name.startswith("time/")} == {
            name: value for name, value in metrics.items() if not name.startswith("time/")
        }
    plain = fakes.make_learner(folder, config)
    assert fakes.distance(fakes.gradients(plain, groups)[0], taken) < 1e-6


def test_large_models_and_one_thread_have_no_lanes(model_folder: Callable[..., str]) -> None:
    config = fakes.run_config()
    assert fakes.make_learner(model_folder(), config, threads=1)._lanes is None
    assert fakes.make_learner(model_folder(), config, threads=1, spare_threads=1)._lanes is not None
    assert lanes_where_they_help(LANE_PARAMETERS + 1, 2, 1) is None
    assert torch.get_num_threads() == 2
