import re

import pytest

from agentrl.environment import Episode
from agentrl.envs.arithmetic import Exercises, arithmetic
from agentrl.errors import ConfigError
from agentrl.records import Task
from agentrl.single_turn import SingleTurn


def numbers(row):
    a, b = map(int, re.findall(r"\d+", row["prompt"][0]["content"]))
    return a, b


def test_every_pair_occurs_once_and_evaluation_is_apart():
    environment = arithmetic()
    train, held_out = ([tuple(sorted(numbers(row))) for row in environment.tasks(split)] for split in ("train", "eval"))
    assert len(train) > 3000
    assert len(held_out) > 400
    assert len({*train, *held_out}) == len(train) + len(held_out) == 90 * 91 // 2
    assert all(10 <= a <= b <= 99 for a, b in train)


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_answers_are_right(digits):
    environment = arithmetic(digits=digits, ops="add,sub,mul", prompt="{task}=")
    value = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
    for row in environment.tasks("eval")[:300]:
        a, b = numbers(row)
        sign = row["prompt"][0]["content"][digits]
        assert int(row["answer"]) == value[sign](a, b) >= 0


def test_large_task_sets_are_lazy():
    rows = Exercises(digits=6, symbols="+", prompt="{task}", split="train")
    assert len(rows) > 10**11
    assert rows[len(rows) - 1] == rows[-1] != rows[0]
    with pytest.raises(IndexError):
        rows[len(rows)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"digits": 0}, "digits"),
        ({"digits": 7}, "digits"),
        ({"ops": "add,pow"}, "'pow'"),
        ({"ops": ""}, "ops"),
        ({"prompt": "2+2"}, "task"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        arithmetic(**arguments)


async def one_score(environment, row, content):
    task = Task.from_row("arithmetic", row)
    messages = [*row["prompt"], {"role": "assistant", "content": content}]
    episode = Episode(task=task, prompt=row["prompt"], messages=messages, completion_ids=[1], ending="complete")
    return (await environment.score(episode)).value


def test_scores():
    import trio

    environment = arithmetic()
    assert isinstance(environment, SingleTurn)
    row = environment.tasks("train")[0]
    right = f"\\boxed{{{row['answer']}}}"
    assert trio.run(one_score, environment, row, right) == 1.0
    assert trio.run(one_score, environment, row, "\\boxed{1}") == 0.0
    assert trio.run(one_score, environment, row, "") == 0.0
