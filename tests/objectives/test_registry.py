from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Literal

import pytest

from agentrl import objectives
from agentrl.errors import ConfigError
from agentrl.objectives import Losses, Objective, ObjectiveConfig
from agentrl.objectives.grpo import GRPO, GRPOConfig
from agentrl.objectives.rloo import RLOOConfig


class MineConfig(ObjectiveConfig):
    name: Literal["mine"] = "mine"
    strength: float = 1.0


class OtherConfig(ObjectiveConfig):
    name: Literal["mine"] = "mine"


def row(config: type[ObjectiveConfig]) -> Objective:
    return Objective(
        name="mine",
        config=config,
        advantages=lambda groups, options: [group.rewards for group in groups],
        loss=lambda batch, options: Losses(per="token", loss=-batch.logprobs * batch.advantages),
        normalization=lambda options: "token_mean",
    )


@pytest.fixture
def registry():
    before = dict(objectives.registry._objectives)
    yield
    objectives.registry._objectives.clear()
    objectives.registry._objectives.update(before)


def test_names_of_objectives_and_defaults():
    assert list(objectives.registered()) == sorted(objective.name for objective in objectives.registry.BUILT_IN)
    assert objectives.get("grpo") is GRPO
    config = objectives.validate({"name": "grpo"})
    assert isinstance(config, GRPOConfig)
    assert (config.clip_low, config.clip.high, config.delta, config.scale_rewards, config.normalization, config.beta) == (
        0.2,
        0.2,
        None,
        "group",
        "sequence_mean",
        0,
    )
    assert isinstance(objectives.validate({"name": "rloo", "beta": 0}), RLOOConfig)


def test_a_users_objective_is_found_and_validated(registry):
    mine = objectives.register(row(MineConfig))
    assert objectives.get("mine") is mine
    assert objectives.validate({"name": "mine", "strength": 2}) == MineConfig(strength=2.0)
    assert not mine.zero_advantage_is_zero_loss(MineConfig())  # never assumed
    again = objectives.register(dataclasses.replace(mine))  # a second import of the same module
    assert objectives.get("mine") is again
    with pytest.raises(ConfigError, match=r"'mine' is already registered by .*test_registry"):
        objectives.register(row(OtherConfig))
    with pytest.raises(ConfigError, match=r"objective\.strenght.*did you mean .objective\.strength"):
        objectives.validate({"name": "mine", "strenght": 2})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "grpoo"}, r"no objective is called 'grpoo'; did you mean 'grpo'\? Known: a2po, aipo, .*, grpo, "),
        ({"name": "zzz"}, r"no objective is called 'zzz'\. Known: a2po, aipo, "),
        ({}, r"objective\.name must be a text, got None"),
        ({"name": "grpo", "clip_lo": 0.1}, r"objective\.clip_lo.*did you mean .objective\.clip_low"),
        ({"name": "grpo", "clip_low": 0}, r"objective\.clip_low.* got 0; it must be more than 0"),
        ({"name": "grpo", "clip_low": 1.5}, r"objective\.clip_low.* got 1\.5; it must be at most 1"),
        ({"name": "grpo", "clip_low": "0.2"}, r"objective\.clip_low.* got '0\.2' \(text\)"),
        ({"name": "grpo", "scale_rewards": True}, r"scale_rewards.* group, batch, none"),
        ({"name": "grpo", "normalization": "mean"}, r"normalization.* sequence_mean, token_mean, sequence_sum, constant"),
        ({"name": "grpo", "beta": -0.1}, r"objective\.beta"),
        ({"name": "grpo", "beta": float("nan")}, r"objective\.beta"),
        ({"name": "grpo", "delta": 1.25, "clip_high": 0.28}, r"delta=1\.25 must exceed 1 \+ clip_high = 1\.28"),
        ({"name": "rloo", "normalization": "token_mean"}, r"objective\.normalization.* sequence_mean"),
    ],
)
def test_wrong_options_name_key_value_and_cure(options, message):
    with pytest.raises(ConfigError, match=message):
        objectives.validate(options)


def test_validating_options_loads_no_torch():
    code = "import sys; from agentrl import objectives; objectives.validate({'name': 'grpo'}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
