"""Each objective's gradient through the learner, in float64, beside that of plain rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import learner_fakes as fakes
import pytest
import torch
from plain_rows import plain_gradients

if TYPE_CHECKING:
    from collections.abc import Callable

OBJECTIVES: list[dict[str, Any]] = [
    {"name": "ppo", "critic": "head", "epochs": 1},
    {"name": "ppo", "critic": "model", "epochs": 1, "beta": 0.0, "value_coef": 1.0},
    {"name": "ppo", "critic": "model", "epochs": 2, "kl_in": "loss", "kl_estimator": "k3", "gae_lambda": 0.5, "clip_value": None},
    {"name": "grpo"},
    {"name": "grpo", "beta": 0.1},
    {"name": "grpo", "normalization": "token_mean", "scale_rewards": "none"},
    {"name": "grpo", "beta": 0.1, "kl_estimator": "k2", "kl_correction": False, "normalization": "sequence_sum"},
    {"name": "grpo", "beta": 0.1, "kl_estimator": "k1", "normalization": "constant"},
    {"name": "grpo", "beta": 0.1, "kl_in": "reward", "entropy_coef": 0.05},
    {"name": "dapo", "entropy_coef": 0.3, "dynamic_sampling": False},
    {"name": "dapo", "top_entropy": 0.3, "corrections": [{"name": "tis"}, {"name": "veto", "below": 0.5}]},
    {"name": "rloo", "beta": 0.1},
    {"name": "rloo", "beta": 0.1, "kl_in": "loss", "kl_estimator": "k3"},
    {"name": "gspo"},
    {"name": "gspo", "entropy_coef": 0.1},
    {"name": "gmpo"},
    {"name": "luspo"},
    {"name": "cispo", "turn_discount": 0.9},
    {"name": "vespo"},
    {"name": "reinforce", "baseline": "batch"},
    {"name": "m2po", "threshold": 0.01},
    {"name": "kl_cov", "share": 0.2},
    {"name": "clip_cov", "share": 0.2, "cov_min": 0.0, "cov_max": 100.0},
    {"name": "decoupled_ppo", "minibatches": 1},
    {"name": "online_dpo"},
    {"name": "online_dpo", "loss": "ipo", "pairing": "extremes"},
    {"name": "xpo", "alpha": 0.1},
    {"name": "nash_md"},
    {"name": "a2po", "filter_all_incorrect": False},
    {"name": "opd"},
    {"name": "opd", "reward_coef": 0.5, "beta": 0.1},
    {"name": "opd", "estimate": "sampled", "corrections": [{"name": "tis"}]},
    {"name": "minillm"},
    {"name": "minillm", "own": True, "gamma": 0.5, "length_normalization": False, "reward_coef": 1.0},
    {"name": "iw_opd"},
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_the_gradient_is_that_of_plain_rows(objective: dict[str, Any], model_folder: Callable[..., str]) -> None:
    folder = model_folder(kind="starcoder2")  # its norms stay in float64; RMS norms of transformers compute in float32
    config = fakes.run_config(learner={"tokens_per_micro_batch": 60})
    learner = fakes.shaken(fakes.make_learner(folder, config, objective, master_dtype=torch.float64))
    groups = fakes.with_turn_rewards(fakes.make_groups(7))  # forks among them
    if learner.models.needs.rival is not None:
        groups = fakes.rivals(groups, learner.models.needs.rival)
    expected = plain_gradients(folder, learner, groups, objective)
    for found in fakes.every_gradient(learner, groups):
        assert fakes.distance(found, expected) < 1e-12
