"""What an offline run file must not hold, each with the key that would have to change and a cure."""

from __future__ import annotations

import re

import pytest

from agentrl import objectives, runfile
from agentrl.config import RunConfig
from agentrl.errors import ConfigError
from agentrl.offline_needs import mistakes_of_offline

HELD_OUT = {"data": {"eval_rows": 2}}
STREAMED = {"data": {"streaming": True}, "steps": 2}


def config_of(**options):
    return RunConfig.model_validate({"model": "m", "dataset": "d.jsonl", "objective": {"name": "sft"}} | options)


def mistakes(config):
    name = config.objective["name"]
    return list(mistakes_of_offline(config, objectives.get(name).needs(objectives.validate(config.objective)), name))


RIGHT = [
    {},
    HELD_OUT | {"evaluation": {"every": 2, "patience": 1, "keep_best": True, "samples": 1}},
    STREAMED | {"eval_dataset": "e.jsonl"},
    {"objective": {"name": "dpo"}, "learner": {"precompute_reference": True}},
    {"objective": {"name": "dpo"}, "learner": {"reference_sync": {}}},
    {"objective": {"name": "gkd", "temperature": 0.5}, "teacher": "t"},
    {"sampling": {"max_tokens": 4}},
]

WRONG = [
    ({"group_size": 4}, "group_size", r"`group_size` is for rollouts, and objective 'sft' learns from the rows of a `dataset`: remove it"),
    ({"dataset": None}, "dataset", r"set `dataset` to a file, a folder or a Hub name"),
    ({"datasets": [{"dataset": "e.jsonl"}]}, "datasets", r"both set: remove one of them"),
    ({"sampling": {"temperature": 0.7}}, "sampling.temperature", r"is 0.7, and .* at temperature 1: remove it$"),
    (
        {"objective": {"name": "gkd"}, "teacher": "t", "sampling": {"temperature": 2.0}},
        "sampling.temperature",
        r"remove it; the divergence has its own in objective.temperature$",
    ),
    (
        {"objective": {"name": "gold"}, "teacher": "t", "sampling": {"temperature": 2.0}},
        "sampling.temperature",
        r"in objective.student_temperature and objective.teacher_temperature$",
    ),
    ({"data": {"streaming": True}}, "steps", r"nobody knows how many there are: set `steps`"),
    (HELD_OUT | {"eval_dataset": "e.jsonl"}, "data.eval_rows", r"remove one of them"),
    (STREAMED | {"epochs": 2}, "epochs", r"`epochs` counts passes over all rows, which `data.streaming` does not know: remove it"),
    ({"data": {"streaming": True, "eval_rows": 2}, "steps": 2}, "data.eval_rows", r"name an `eval_dataset`"),
    ({"evaluation": {"every": 2}}, "evaluation", r"name an `eval_dataset`, or set `data.eval_rows`"),
    (HELD_OUT | {"evaluation": {"patience": 2}}, "evaluation.every", r"and there is one: set `evaluation.every`"),
    (
        HELD_OUT | {"objective": {"name": "reward_model"}, "evaluation": {"samples": 2}},
        "evaluation.samples",
        r"what objective 'reward_model' trains gives none",
    ),
    (
        HELD_OUT | {"evaluation": {"samples": 2}, "learner": {"ranks": 2, "sharding": "fsdp2"}},
        "evaluation.samples",
        r"set learner.sharding=ddp",
    ),
    ({"learner": {"precompute_reference": True}}, "learner.precompute_reference", r"objective 'sft' has none: remove it"),
    (
        STREAMED | {"objective": {"name": "dpo"}, "learner": {"precompute_reference": True}},
        "learner.precompute_reference",
        r"remove one of them",
    ),
    ({"learner": {"reference_sync": {}}}, "learner.reference_sync", r"objective 'sft' has none: remove it"),
    ({"objective": {"name": "kto"}, "batch_size": 1}, "batch_size", r"set 2 or more"),
]


@pytest.mark.parametrize("options", RIGHT, ids=str)
def test_what_fits_is_taken(options):
    assert mistakes(config_of(**options)) == []


@pytest.mark.parametrize(("options", "key", "said"), WRONG, ids=str)
def test_what_does_not_is_refused_with_its_key_and_a_cure(options, key, said):
    ((found, text),) = mistakes(config_of(**options))
    assert ".".join(found) == key
    assert re.search(said, text), text


def test_a_run_file_is_refused_with_its_line(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: m\ndataset: d.jsonl\nobjective: sft\nsampling:\n  temperature: 0.5\n")
    with pytest.raises(ConfigError, match=r"run.yaml, line 5: `sampling.temperature` is 0.5"):
        runfile.load(file)
