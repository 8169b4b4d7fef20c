"""Function calling with known answers: the golds of all of bfcl-eval's questions, each argument of each changed, and a file's rows."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import trio

from agentrl.envs.function_calling import FunctionCalling, solution
from agentrl.errors import ConfigError
from agentrl.llm import Call, Reply
from agentrl.records import Task
from agentrl.rollout.toolcalls import ToolCall, read_turn

bfcl = pytest.mark.skipif(find_spec("bfcl_eval") is None, reason="pip install --no-deps bfcl-eval")


class Says:
    """A model that always says the same."""

    def __init__(self, text):
        self.text = text

    async def chat(self, messages, *, tools=(), policy="policy", max_tokens=None, train=True):
        turn = read_turn(self.text, tools)
        calls = [call for call in turn.calls if isinstance(call, ToolCall)]
        return Reply(
            message={"role": "assistant", "content": turn.content},
            text=self.text,
            calls=tuple(Call(id=str(at), name=call.name, arguments=call.arguments) for at, call in enumerate(calls)),
            malformed=tuple(call.message for call in turn.calls if not isinstance(call, ToolCall)),
        )


def score(environment, row, text):
    async def play():
        return await environment.episode(Task.from_row("function-calling", row), Says(text))

    return trio.run(play)


def written(calls):
    return "\n".join(f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>" for name, arguments in calls)


def changed(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1000
    if isinstance(value, str):
        return value + " or so"
    if isinstance(value, list):
        return [*value[:-1], changed(value[-1])] if value else ["more"]
    key = next(iter(value))
    return {**value, key: changed(value[key])}


def one_change_each(row):
    """The known calls with one argument changed, for every argument; a boolean that may be either becomes a text."""
    calls = solution(row["tools"], row["answers"])
    for at, (name, arguments) in enumerate(calls):
        for key, value in arguments.items():
            other = changed(value)
            if other in row["answers"][at][name][key]:
                other = "neither"
            yield [*calls[:at], (name, {**arguments, key: other}), *calls[at + 1 :]]


@bfcl
@pytest.mark.parametrize(("category", "rows", "changes"), [("simple", 400, 1142), ("multiple", 200, 557), ("parallel", 200, 1481)])
def test_known_answers_score_1_and_each_change_scores_0(category, rows, changes):
    environment = FunctionCalling(dataset="bfcl", category=category)
    tasks = [*environment.tasks("train"), *environment.tasks("eval")]
    assert len(tasks) == rows
    wrong = [
        row["id"] for row in tasks if score(environment, row, environment.golden(Task.from_row("function-calling", row))[0]).value != 1.0
    ]
    assert wrong == []
    altered = [(row, calls) for row in tasks for calls in one_change_each(row)]
    assert len(altered) == changes
    assert [row["id"] for row, calls in altered if score(environment, row, written(calls)).value != 0.0] == []


@bfcl
def test_splits_are_apart_and_questions_without_a_possible_answer_are_left_out():
    environment = FunctionCalling(dataset="bfcl", category="parallel_multiple")
    train, held_out = (environment.tasks(split) for split in ("train", "eval"))
    assert len(train) + len(held_out) == 198
    assert 10 < len(held_out) < 40
    assert not {json.dumps(row["prompt"]) for row in train} & {json.dumps(row["prompt"]) for row in held_out}
    kinds = {kind for row in train for kind in _types([tool["function"]["parameters"] for tool in row["tools"]])}
    assert kinds <= {"string", "integer", "number", "boolean", "array", "object"}


def _types(node):
    if isinstance(node, list):
        return [kind for item in node for kind in _types(item)]
    if not isinstance(node, dict):
        return []
    own = [node["type"]] if isinstance(node.get("type"), str) else []
    return own + [kind for item in node.values() for kind in _types(item)]


LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]},
    },
}
ROWS = [
    {"prompt": "Weather in Rome for 3 days?", "tools": [LOOK], "answers": [{"name": "look", "arguments": {"city": "Rome", "days": 3}}]},
    {
        "prompt": [{"role": "user", "content": "Rome, then Oslo"}],
        "tools": [LOOK],
        "answers": [{"look": {"city": ["Rome"]}}, {"look": {"city": ["Oslo"]}}],
    },
    {"prompt": "Hello!", "tools": [LOOK], "answers": []},
]


@pytest.fixture
def rows(tmp_path):
    def write(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def test_rows_of_a_file(rows):
    path = rows(*ROWS)
    environment = FunctionCalling(path=path, eval_path=path)
    tasks = environment.tasks("train")
    assert len(tasks) == 3
    assert environment.plays
    for row in tasks:
        assert score(environment, row, environment.golden(Task.from_row("function-calling", row))[0]).value == 1.0
    first = tasks[0]
    assert score(environment, first, "I cannot").value == 0.0
    broken = score(environment, first, '<tool_call>{"name": "look", "arguments": {"city": "Rome", "days": "three"}}</tool_call>')
    assert (broken.value, broken.reason) == (0.0, 'error: invalid arguments: days must be an integer, got "three"')
    assert score(environment, tasks[2], written([("look", {"city": "Rome"})])).value == 0.0
    backwards = written([("look", {"city": "Oslo"}), ("look", {"city": "Rome"})])
    assert score(environment, tasks[1], backwards).value == 1.0
    assert score(FunctionCalling(path=path, ordered=True), tasks[1], backwards).value == 0.0


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"prompt": "", "tools": [LOOK]}, "row 1: a row has `prompt`, `tools` and `answers`"),
        ({"prompt": "", "tools": [LOOK], "answers": "look"}, "row 1: answers are a list"),
        ({"prompt": "", "tools": [LOOK], "answers": [{"fly": {}}]}, "call no function of `tools`"),
        ({"prompt": "", "tools": [LOOK], "answers": [{"look": {"city": [3]}}]}, "do not fit its schema"),
        ({"prompt": "", "tools": [{"name": "f", "parameters": {"type": "dict"}}], "answers": []}, "SchemaError"),
    ],
)
def test_rows_that_cannot_be_graded_against(rows, row, part):
    with pytest.raises(ConfigError, match=r"rows\.jsonl") as caught:
        FunctionCalling(path=rows(row)).tasks("train")
    assert part in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"path": "a", "dataset": "bfcl"},
        {"dataset": "gorilla"},
        {"dataset": "bfcl", "category": "java"},
        {"path": "a", "spelling": "odd"},
    ],
)
def test_arguments_that_mean_nothing(arguments):
    with pytest.raises(ConfigError, match="function-calling"):
        FunctionCalling(**arguments)


def test_an_answer_that_goes_bad_later_is_unscorable(rows):
    environment = FunctionCalling(path=rows(*ROWS))
    assert score(environment, {**ROWS[0], "answers": None}, "x").value is None
