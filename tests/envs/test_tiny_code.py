import ast

from agentrl.environment import Episode
from agentrl.envs.code import Code
from agentrl.envs.tiny_code import tiny_tasks
from agentrl.records import Task


def score(environment, row, answer):
    messages = [*row["prompt"], {"role": "assistant", "content": answer}]
    task = Task.from_row("code", row)
    environment.start(task)
    return environment.score(Episode(task=task, prompt=row["prompt"], messages=messages, completion_ids=[], ending="complete")).value


def test_right_expressions_score_one_in_every_form():
    environment = Code(tasks="tiny")
    for row in tiny_tasks("train")[:15]:
        whole = f"{row['starter_code']}{row['solution']}\n"
        assert [score(environment, row, answer) for answer in (row["solution"], whole, f"```python\n{whole}```")] == [1, 1, 1]
        assert environment.golden(Task.from_row("code", row)) == [row["solution"]]


def test_trivial_answers_score_zero():
    environment = Code(tasks="tiny")
    for row in tiny_tasks("eval")[:10]:
        first = row["starter_code"].split("(")[1][0]
        answers = ("", "0", "None", first, f"print({first})", row["prompt"][0]["content"], "return", "(")
        assert [score(environment, row, answer) for answer in answers] == [0] * len(answers)


def test_tests_hold_for_the_reference_and_differ():
    for row in tiny_tasks("train")[:300]:
        space = {}
        exec(row["starter_code"] + row["solution"], space)
        assert all(eval(test, space) for test in row["tests"])
        assert len({test.partition("==")[2] for test in row["tests"]}) > 2
        ast.parse(row["solution"], mode="eval")
        assert len(row["prompt"][0]["content"]) < 60


def test_no_task_is_in_both_splits():
    shown, held_out = ({row["prompt"][0]["content"] for row in tiny_tasks(split)[:1000]} for split in ("train", "eval"))
    assert not shown & held_out
    assert len(held_out) > 500


def test_precedence_follows_the_order_of_the_steps():
    rows = {row["prompt"][0]["content"]: row["solution"] for row in tiny_tasks("train")[:3000]}
    both = [(text.split(": ")[1].split(), rows[text]) for text in rows if text.count(",") == 2]
    sums = [(words, answer) for words, answer in both if words[1] == "plus" and words[3] == "times"]
    assert sums
    assert all(answer == f"({words[0]}+{words[2].rstrip(',')})*{words[4]}" for words, answer in sums)
