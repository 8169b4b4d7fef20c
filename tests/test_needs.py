from __future__ import annotations

import re

import pytest

from agentrl import objectives
from agentrl.config import RunConfig
from agentrl.errors import ConfigError
from agentrl.needs import check_needs, mistakes_of_needs


def config_of(**options):
    return RunConfig.model_validate({"model": "m", "env": "e"} | options)


def mistakes(config):
    row, own = objectives.get(config.objective["name"]), objectives.validate(config.objective)
    return list(mistakes_of_needs(config, row.needs(own), row.name))


RIGHT = [
    {"objective": "grpo"},
    {"objective": "grpo", "group_size": 2, "groups_per_step": 1},
    {"objective": "ppo", "group_size": 1},
    {"objective": "reinforce", "group_size": 1},
    {"objective": {"name": "grpo", "dynamic_sampling": True}, "group_size": 2},
    {"objective": "online_dpo", "group_size": 3},
    {"objective": {"name": "online_dpo", "preferences": "judge"}, "group_size": 4},
    {"objective": "nash_md", "group_size": 2},
    {"objective": "xpo", "engine": {"kind": "vllm", "servers": ["http://h:1"]}, "learner": {"lora": {}}},
    {"objective": {"name": "decoupled_ppo", "minibatches": 8}, "group_size": 2, "groups_per_step": 4},
    {"objective": "rloo", "learner": {"reference_sync": {}}},
    {"objective": "nash_md", "learner": {"reference_sync": {}}},
    {"objective": {"name": "xpo", "preferences": "judge"}, "env": None, "dataset": "d", "judge": "j.py:f"},
]

WRONG = [
    ({"objective": "grpo", "group_size": 1}, "group_size", r"objective 'grpo' compares rollouts .* set group_size >= 2, got 1"),
    ({"objective": "online_dpo", "group_size": 1}, "group_size", r"group_size >= 2, got 1"),
    ({"objective": {"name": "reinforce", "dynamic_sampling": True}, "group_size": 1}, "group_size", r"group_size >= 2, got 1"),
    ({"objective": "xpo", "group_size": 5}, "group_size", r"half of each group is sampled by a rival: set an even group_size, got 5"),
    ({"objective": "a2po", "group_size": 3}, "group_size", r"even group_size, got 3"),
    (
        {"objective": {"name": "online_dpo", "preferences": "judge"}, "group_size": 3},
        "group_size",
        r"a judge compares rollouts two by two: set an even group_size, got 3",
    ),
    (
        {"objective": "nash_md", "engine": {"kind": "vllm", "servers": ["http://h:1"]}},
        "objective",
        r"objective 'nash_md': engine.kind is vllm .* cannot mix two models' logits; set engine.kind=embedded",
    ),
    (
        {"objective": "xpo", "engine": {"kind": "vllm", "servers": ["http://h:1"]}},
        "objective",
        r"objective 'xpo': .*set learner\.lora",
    ),
    (
        {"objective": {"name": "decoupled_ppo", "minibatches": 9}, "group_size": 2, "groups_per_step": 4},
        "objective.minibatches",
        r"minibatches.*9.* step .*8 rollouts",
    ),
    ({"objective": "grpo", "learner": {"reference_sync": {}}}, "learner.reference_sync", r"objective 'grpo' has none with these options"),
    (
        {"objective": "rloo", "learner": {"reference_sync": {}, "lora": {}}},
        "learner.reference_sync",
        r"the model without its adapter, which never moves: remove one of the two",
    ),
    (
        {"objective": {"name": "online_dpo", "preferences": "judge"}, "env": None, "dataset": "d", "rewards": ["r.py:f"]},
        "objective.preferences",
        r"`dataset` has none: set `judge: file.py:function`",
    ),
    (
        {"objective": "online_dpo", "env": None, "dataset": "d", "rewards": ["r.py:f"], "judge": "j.py:f"},
        "judge",
        r"objective 'online_dpo' asks for no comparison; set objective.preferences=judge, or remove it",
    ),
]


@pytest.mark.parametrize("options", RIGHT, ids=str)
def test_what_fits_is_taken(options):
    assert mistakes(config_of(**options)) == []


@pytest.mark.parametrize(("options", "key", "said"), WRONG, ids=str)
def test_what_does_not_is_refused_with_its_key_and_a_cure(options, key, said):
    ((found, text),) = mistakes(config_of(**options))
    assert ".".join(found) == key
    assert re.search(said, text), text


def test_all_mistakes_are_said_at_once():
    config = config_of(objective="grpo", group_size=1, learner={"reference_sync": {}})
    row = objectives.get("grpo")
    with pytest.raises(ConfigError) as caught:
        check_needs(config, row.needs(objectives.validate(config.objective)), "grpo")
    assert len(str(caught.value).splitlines()) == 2
