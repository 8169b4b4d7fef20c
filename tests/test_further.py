"""The dataset's own texts beside sampled ones: how many, which, and what a run file says of them."""

from __future__ import annotations

import json

import pytest

from agentrl import objectives, runfile
from agentrl.errors import ConfigError
from agentrl.further import examples_of_a_step, further_examples, places
from agentrl.quickstart import model_path
from agentrl.rollout.tokenizer import load_tokenizer
from agentrl.session import environment_spec

BASE = {"model": "quickstart", "teacher": "quickstart", "dataset": "rows.jsonl", "group_size": 1, "groups_per_step": 4}


def mixed(lmbda, **values):
    return runfile.from_mapping(BASE | {"objective": {"name": "gkd", "lmbda": lmbda}} | values)


@pytest.mark.parametrize(("own", "share", "count"), [(4, 0.5, 4), (8, 0.25, 24), (9, 0.75, 3), (4, 0.99, 1)])
def test_the_share_is_that_of_all_texts(own, share, count):
    assert examples_of_a_step(own, share) == count


def test_each_row_comes_once_an_epoch_in_another_order():
    taken = [row for step in range(6) for row in places(step, 5, 10, seed=1)]

    epochs = [taken[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert places(4, 5, 10, seed=1) == taken[20:25]  # a resumed run takes the same
    assert places(0, 5, 10, seed=2) != taken[:5]
    assert sorted(places(0, 25, 10, seed=1)) == sorted([*range(10)] * 2 + places(4, 5, 10, seed=1))


def test_rows_that_the_environment_holds_out_are_not_trained(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{number}+1=", "completion": f" {number + 1}"}) + "\n" for number in range(41)))
    config = mixed(0.5, dataset=str(path))
    tokenizer = load_tokenizer(model_path())
    needs = objectives.get("gkd").needs(objectives.validate(config.objective))

    take = further_examples(config, "supervised", needs, tokenizer, model_path())

    assert take is not None
    places_taken = [example.where for step in range(10) for example in take(step)]
    assert len(set(places_taken)) == 38
    assert not {f"{path}, line {line}" for line in (1, 21, 41)} & set(places_taken)


@pytest.mark.parametrize("lmbda", [0.0, 1.0])
def test_where_all_is_of_one_kind_there_are_no_others(lmbda):
    config = mixed(lmbda) if lmbda else runfile.from_mapping({**BASE, "objective": "gkd"} | {"group_size": 8, "groups_per_step": 16})
    needs = objectives.get("gkd").needs(objectives.validate(config.objective))

    assert further_examples(config, "supervised", needs, load_tokenizer(model_path()), model_path()) is None


def test_a_run_that_mixes_is_an_online_run():
    gkd = objectives.get("gkd")
    for lmbda, offline in ((0.0, True), (0.5, False), (1.0, False)):
        assert gkd.is_offline(objectives.validate({"name": "gkd", "lmbda": lmbda})) == offline
    assert not objectives.get("opd").is_offline(objectives.validate({"name": "opd"}))
    assert objectives.get("sft").is_offline(objectives.validate({"name": "sft"}))

    assert environment_spec(mixed(0.5)) == "dataset?path=rows.jsonl&unscored=true"
    with pytest.raises(ConfigError, match="`batch_size` is for objectives that learn from a dataset"):
        mixed(0.5, batch_size=4)
    with pytest.raises(ConfigError, match="`group_size` is for rollouts"):
        mixed(0.0)
    with pytest.raises(ConfigError, match="the policy answers the prompts of a `dataset`"):
        runfile.from_mapping({"model": "m", "env": "e", "teacher": "t", "objective": {"name": "gkd", "lmbda": 0.5}})
