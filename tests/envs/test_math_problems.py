import json

import pytest

from agentrl.environment import Episode
from agentrl.envs.math_problems import MathProblems
from agentrl.errors import ConfigError
from agentrl.records import Task
from agentrl.registry import load

ROWS = [{"problem": f"Halve {n}.", "answer": f"\\frac{{{n}}}{{2}}"} for n in range(60)]


@pytest.fixture
def file(tmp_path):
    """Writes rows to a file and gives its name."""

    def write(rows=ROWS, name="rows.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write


def played(environment, row, answer):
    task = Task.from_row("math", dict(row))
    prompt = environment.start(task)
    messages = [*prompt, {"role": "assistant", "content": answer}]
    return environment.score(Episode(task=task, prompt=prompt, messages=messages, completion_ids=[1], ending="complete"))


def problems(rows):
    return [row["problem"] for row in rows]


def test_a_spec_names_a_file(file):
    environment = load(f"agentrl.envs.math_problems:MathProblems?path={file()}")()
    row = environment.tasks("train")[0]
    assert row == {"problem": row["problem"], "gold": row["gold"]}
    assert played(environment, row, f"so \\boxed{{{row['gold']}}}").value == 1.0
    assert played(environment, row, "\\boxed{1000}").value == 0.0
    assert played(environment, row | {"gold": "(("}, "\\boxed{1}").value is None


def test_the_golden_answer_scores_one(file):
    for environment in (MathProblems(path=file()), MathProblems(path=file(), grader="gsm8k")):
        row = environment.tasks("train")[3]
        (answer,) = environment.golden(Task.from_row("math", dict(row)))
        assert played(environment, row, answer).value == 1.0


def test_splits_are_disjoint_and_leave_nothing_out(file):
    environment = MathProblems(path=file([*ROWS, *ROWS[:20]]))
    train, held_out = (environment.tasks(split) for split in ("train", "eval"))
    assert not set(problems(train)) & set(problems(held_out))
    assert len(train) + len(held_out) == 80
    assert held_out


def test_what_is_evaluated_is_not_trained_on(file):
    environment = MathProblems(path=file(), eval_path=file(ROWS[:10], "eval.jsonl"))
    assert problems(environment.tasks("eval")) == problems(ROWS[:10])
    assert problems(environment.tasks("train")) == problems(ROWS[10:])


def test_a_saved_data_set_with_splits(tmp_path):
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:5])}).save_to_disk(tmp_path / "saved")
    environment = MathProblems(dataset=str(tmp_path / "saved"), eval_split="test")
    assert problems(environment.tasks("eval")) == problems(ROWS[:5])
    assert len(environment.tasks("train")) == 55


def test_bad_golds_are_left_out_and_told(file):
    rows = [*ROWS, {"problem": "no gold"}, {"problem": "bad gold", "answer": "(("}]
    environment = MathProblems(path=file(rows), eval_path=file(ROWS[:1], "eval.jsonl"))
    assert "no gold" not in problems(environment.tasks("train"))
    (said,) = environment.notices
    assert "2 of 61 golds cannot be graded against" in said
    assert "'the gold is empty' (row 59)" in said
    with pytest.raises(ConfigError, match="2 of 61 golds"):
        MathProblems(path=file(rows), eval_path=file(ROWS[:1], "eval.jsonl"), on_bad_gold="refuse").tasks("train")
    with pytest.raises(ConfigError, match="more than 10%"):
        MathProblems(path=file([{"problem": f"{n}", "answer": "(("} for n in range(40)])).tasks("train")


def test_a_split_without_rows_is_refused(file):
    with pytest.raises(ConfigError, match="no row is left for 'train'"):
        MathProblems(path=file(ROWS[:1]), eval_path=file(ROWS[:1])).tasks("train")


def test_the_system_message_says_what_is_asked(file):
    task = Task.from_row("math", {"problem": "1+1?", "gold": "2"})
    assert "\\boxed" in MathProblems(path=file()).start(task)[0]["content"]
    assert MathProblems(path=file(), system="Be brief.").start(task)[0] == {"role": "system", "content": "Be brief."}
    assert MathProblems(path=file(), system="").start(task) == [{"role": "user", "content": "1+1?"}]


def test_options_are_shown_and_graded(file):
    rows = [{"question": f"Capital of {n}?", "choices": ["Rome", "Paris"], "answer": 1} for n in range(30)]
    environment = MathProblems(path=file(rows), grader="multiple_choice")
    row = environment.tasks("train")[0]
    assert environment.start(Task.from_row("math", dict(row)))[1]["content"] == f"{row['problem']}\nA. Rome\nB. Paris"
    assert played(environment, row, "\\boxed{B}").value == 1.0
    assert played(environment, row, "\\boxed{Rome}").value == 0.0


def test_policies_and_columns(file):
    rows = [{"task": f"Pi and {n}?", "truth": {"value": f"{n}.14"}} for n in range(30)]
    environment = MathProblems(path=file(rows), problem_column="task", gold_column="truth.value", policy="round_to_gold")
    row = environment.tasks("train")[0]
    assert played(environment, row, f"\\boxed{{{row['gold']}159}}").value == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either path=FILE.jsonl or dataset=NAME"),
        ({"path": "a", "dataset": "b"}, "and not both"),
        ({"path": "a", "eval_split": "test"}, "eval_split belongs to dataset"),
        ({"path": "a", "grader": "sums"}, "grader may be math, gsm8k"),
        ({"path": "a", "policy": "lenient"}, "policy may hold interval_for_inequality"),
        ({"path": "a", "grader": "exact", "policy": "round_to_gold"}, "policy is for the graders math and gsm8k"),
        ({"path": "a", "on_bad_gold": "ignore"}, "on_bad_gold may be skip or refuse"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        MathProblems(**arguments)
