"""Whatever a step brings, every objective takes it: failed, silent, cut and forked rollouts, ties, groups of any size, or nothing."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import learner_fakes as fakes
import numpy as np
import pytest

from agentrl.objectives.registry import registered
from agentrl.records import Group, SamplingContract, Score, Task, Version

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentrl.records import Rollout

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "grpo": [
        {"baseline": "batch", "scale_rewards": "none", "turn_discount": 0.5, "beta": 0.1, "kl_in": "reward", "minibatches": 20},
        {"reward_aggregation": "normalize_then_sum", "overlong_length": 5, "overlong_cache": 3, "entropy_target": 3.0},
        {"top_entropy": 0.3, "corrections": [{"name": "icepop"}, {"name": "veto", "below": 0.5}], "epochs": 2},
    ],
    "bnpo": [{"reward_min": -20.0, "reward_max": 20.0}],
    "online_dpo": [{"preferences": "judge"}, {"pairing": "extremes", "truncated_penalty": 1.0}],
    "nash_md": [{"preferences": "judge"}],
    "ppo": [{"critic": "head", "critic_warmup_steps": 1, "minibatches": 3}, {"kl_target": 0.1, "discount": 0.9}],
    "decoupled_ppo": [{"proximal": "loglinear", "weight_max": 1.5}],
    "ssd": [{"filter_empty": False}],  # the rollouts here have tokens and say nothing
}


def rollout(draw: np.random.Generator, prompt: np.ndarray, member: int, share: float) -> Rollout:
    """Up to three turns, forks and turns without tokens among them, or none."""
    turns = []
    if draw.random() > 0.1:
        turns.append(fakes.turn(fakes.with_prompt(prompt, fakes.span(draw, len(prompt), int(draw.integers(0, 8))))))
        for _ in range(int(draw.integers(0, 3))):
            turns.append(fakes.turn(fakes.span(draw, int(draw.integers(1, 3)), int(draw.integers(0, 6))), int(draw.integers(len(turns)))))
    contract = SamplingContract(reference_share=share)
    turns = [dataclasses.replace(one, contract=contract, reward=float(draw.choice([0.0, 0.0, 1.0, -1.0]))) for one in turns]
    ending = str(draw.choice(["complete", "complete", "truncated"]))
    made = fakes.rollout(turns, member=member, score=None, ending=ending)
    if draw.random() < 0.2:
        return made
    parts = {"a": float(draw.integers(3)), "b": float(draw.normal())} if draw.random() < 0.5 else {}
    value = float(draw.choice([0.0, 0.0, 1.0, -3.0])) + sum(one.reward for one in turns)
    return dataclasses.replace(made, score=Score(value=value, parts=parts))


def messy(draw: np.random.Generator, rival: float | None) -> list[Group]:
    groups = []
    for index in range(int(draw.integers(0, 4))):
        size, prompt = int(draw.choice([2, 4, 6])), draw.integers(3, fakes.VOCABULARY, 4 + index)
        rollouts = tuple(rollout(draw, prompt, member, rival if rival and member >= size // 2 else 0.0) for member in range(size))
        said = tuple([None, 0.0, 0.5, 0.7][int(draw.integers(4))] for _ in range(size // 2))
        task = Task(id=f"t{index}", environment="e", row={})
        groups.append(Group(index=index, task=task, rollouts=rollouts, dispatched=Version(), preferences=said))
    return groups


@pytest.mark.parametrize("name", sorted(name for name, objective in registered().items() if objective.data is None))
def test_an_objective_takes_any_step(name: str, model_folder: Callable[..., str]) -> None:
    for number, options in enumerate(OPTIONS.get(name, [{}])):
        config = fakes.run_config(learner={"mask_truncated": bool(number % 2), "tokens_per_micro_batch": 40, "lr": 1e-3})
        learner = fakes.make_learner(model_folder(), config, {"name": name} | options)
        skipped = 0
        for seed in range(5):
            before = learner.fingerprint()
            metrics = learner.update(messy(np.random.default_rng((number, seed)), learner.models.needs.rival))
            assert {key: value for key, value in metrics.items() if not np.isfinite(value)} == {}
            skipped += bool(metrics["learner/skipped"])
            assert not metrics["learner/skipped"] or learner.fingerprint() == before
        assert skipped < 5
        assert learner.step == 5
        assert all(bool(np.isfinite(tensor.numpy()).all()) for _, tensor in learner.named_weights())
