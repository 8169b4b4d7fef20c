import pytest

from agentrl.environment import Episode, tool_methods
from agentrl.envs.lookup import Lookup
from agentrl.errors import ConfigError
from agentrl.records import Task


def episode_of(row, content):
    messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": content}]
    return Episode(task=Task.from_row("lookup", row), prompt=messages[:1], messages=messages, completion_ids=[1], ending="complete")


def test_the_tools_lead_to_the_answer():
    environment = Lookup(items=2)
    row = environment.tasks("train")[3]
    prompt = environment.start(Task.from_row("lookup", row))
    assert prompt == [{"role": "user", "content": row["prompt"]}]
    assert not any(str(count) in row["prompt"] for count in row["stock"].values())
    counts = [environment.lookup(item) for item in row["asked"]]
    total = environment.add(*counts)
    assert environment.score(episode_of(row, f"\\boxed{{{total}}}")).value == 1.0
    assert environment.score(episode_of(row, f"\\boxed{{{total + 1}}}")).value == 0.0


def test_an_unknown_item_is_an_observation():
    environment = Lookup()
    environment.start(Task.from_row("lookup", environment.tasks("train")[0]))
    assert environment.lookup("unicorn") == "no unicorn"


def test_episodes_share_nothing():
    rows = Lookup().tasks("train")
    first, second = Lookup(), Lookup()
    first.start(Task.from_row("lookup", rows[0]))
    second.start(Task.from_row("lookup", rows[1]))
    assert [first.lookup(item) for item in rows[0]["asked"]] == [rows[0]["stock"][item] for item in rows[0]["asked"]]


def test_only_the_tools_are_tools():
    assert sorted(tool_methods(Lookup())) == ["add", "lookup"]


@pytest.mark.parametrize("items", [1, 2])
def test_evaluation_tasks_are_apart(items):
    environment = Lookup(items=items)
    keys = [{(row["prompt"], row["answer"]) for row in environment.tasks(split)[:300]} for split in ("train", "eval")]
    assert len(keys[1]) > 100
    stocks = [
        {tuple((item, row["stock"][item]) for item in sorted(row["asked"])) for row in environment.tasks(split)[:300]}
        for split in ("train", "eval")
    ]
    assert not stocks[0] & stocks[1]


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="items"):
        Lookup(items=3)
