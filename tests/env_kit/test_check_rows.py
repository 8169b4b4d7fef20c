"""The tasks, and closing without an episode."""

import pytest
from kit_fakes import facts_of, spec_of

from agentrl.env_kit.ask import ask_twice
from agentrl.env_kit.check_rows import check_close, check_tasks
from agentrl.env_kit.probe import Facts, SplitFacts, spread


def tasks_of(name, tmp_path):
    facts = facts_of(name, tmp_path)
    return check_tasks(facts, facts)


def test_good_tasks_pass_with_their_numbers(tmp_path):
    found = tasks_of("Good", tmp_path)
    assert found.status == "ok"
    assert "4 rows to train, 4 rows to evaluate" in found.got
    assert (found.facts["train_rows"], found.facts["eval_rows"]) == (4, 4)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("EvalInTrain", "evaluation rows that also occur in train: 4, the first as rows 0 and 0"),
        ("OneIdForTwo", "train rows 0 and 1 are different and have one id, 'same'"),
        ("NoRows", "tasks('train') is empty"),
        ("RowOfBytes", "row 4 is not a JSON object"),
        ("TasksRaise", "OSError: no such data"),
    ],
)
def test_wrong_tasks_fail(name, said, tmp_path):
    found = tasks_of(name, tmp_path)
    assert found.status == "failed"
    assert said in found.got
    assert found.advice


@pytest.mark.parametrize(("name", "said"), [("NoEval", "tasks('eval') is empty"), ("RowsTwice", "train rows that repeat another: 4 of 8")])
def test_what_may_be_meant_so_is_a_warning(name, said, tmp_path):
    found = tasks_of(name, tmp_path)
    assert (found.status, said in found.got) == ("warning", True)


@pytest.mark.parametrize(("name", "said"), [("SetOrder", "differs in a second process"), ("Growing", "rows in one process and")])
def test_tasks_that_differ_between_processes_fail(name, said, tmp_path):
    found = check_tasks(*ask_twice(spec_of(name), (), 2, tmp_path, timeout_s=5, within_s=60))
    assert found.status == "failed"
    assert said in found.got


def test_tasks_that_hang_are_ended_and_named(tmp_path):
    for within_s in (4, 60):
        first, second = ask_twice(spec_of("TasksHang"), (), 2, tmp_path, timeout_s=5, within_s=within_s)
        if first.wrong.startswith("tasks") and second.wrong.startswith("tasks"):
            break  # else a busy machine has not come so far in so short a time
    assert first.wrong == second.wrong == f"tasks('train'): did not end within {within_s} s"
    assert check_tasks(first, second).status == "failed"


def test_a_second_process_that_failed_alone_is_told():
    ours = Facts(stage="end", splits={"train": SplitFacts(count=1, digests={0: "a"}, ids={0: "1"})})
    theirs = Facts(stage="end", splits={"train": SplitFacts(fault="no data")})
    assert "in a second process, no data" in check_tasks(ours, theirs).got


def test_slow_loading_is_a_warning():
    facts = Facts(stage="end", splits={"train": SplitFacts(count=1, load_s=11.0, digests={0: "a"}, ids={0: "1"})})
    assert "train took 11.0 s to load" in check_tasks(facts, facts).got


def test_close_is_called_before_a_start_and_after_one(tmp_path):
    assert check_close(facts_of("Good", tmp_path)).status == "ok"
    facts = Facts(stage="end", close_faults=["environment x, close: AttributeError: row"])
    assert (check_close(facts).status, check_close(Facts(wrong="died")).status) == ("failed", "skipped")


def test_close_that_hangs_is_named(tmp_path):
    found = check_close(facts_of("CloseHangs", tmp_path))
    assert (found.status, found.got) == ("failed", "close after start: it took longer than 5 s")


def test_an_environment_that_cannot_be_closed_unstarted_cannot_be_made(tmp_path):
    facts = facts_of("CloseNeedsStart", tmp_path)
    assert (facts.stage, "has no attribute 'row'" in facts.wrong) == ("import", True)


@pytest.mark.parametrize(("count", "most", "numbers"), [(0, 3, []), (2, 3, [0, 1]), (10, 5, [0, 2, 4, 6, 8])])
def test_spread(count, most, numbers):
    assert spread(count, most) == numbers
