from __future__ import annotations

import threading
from pathlib import Path

import pytest

from agentrl.environment import Environment
from agentrl.errors import ConfigError, WorkerDied
from agentrl.rollout.rows import RemoteRows, load_rows, plain_row
from agentrl.single_turn import SingleTurn

BAD = Path(__file__).parents[1] / "bad_env.py"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("None", r"tasks\('train'\) returned None; it must return the rows"),
        ("number", "an object of type int; it must return the rows"),
        ("text", "an object of type str; it must return the rows"),
        ("mapping", "an object of type dict; it must return the rows"),
    ],
)
def test_tasks_of_another_type_are_refused(how, said):
    with pytest.raises(ConfigError, match=said):
        load_rows(f"{BAD}:Bad?where=tasks&how={how}", "train", ())


def test_an_iterable_is_read_and_an_endless_one_ends():
    assert len(load_rows(f"{BAD}:Bad?where=tasks&how=generator", "train", ())) == 3
    assert load_rows(f"{BAD}:Bad?where=tasks&how=no rows", "train", ()) == []


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (3, "row 0 is 3, of type int; it must be a mapping"),
        ({"when": object()}, "row 0 is not a JSON object .*an object of type object"),
        ({"text": "\ud800"}, "row 0 is not a JSON object"),
    ],
)
def test_a_row_that_is_no_json_object_is_named(row, said):
    with pytest.raises(ConfigError, match=said):
        plain_row("env", [row], 0)


def test_a_row_is_what_the_log_will_give_back():
    assert plain_row("env", [{"pair": (1, 2), "nothing": float("nan"), 3: "x"}], 0) == {"pair": [1, 2], "nothing": None, "3": "x"}


@pytest.mark.parametrize(
    ("where", "how", "said"),
    [
        ("tasks", "raise", r"tasks\('train'\): RuntimeError: boom in tasks \(bad_env.py:\d+\)"),
        ("tasks", "exit", r"SystemExit: 3"),
        ("tasks", "die", "its process ended with status 7"),
        ("tasks", "numbers", "row 0 is 1, of type int"),
        ("init", "raise", "RuntimeError: boom in init"),
    ],
)
def test_what_stops_the_process_is_told(tmp_path, where, how, said):
    with pytest.raises(ConfigError, match=said):
        RemoteRows(f"{BAD}:Bad?where={where}&how={how}", "train", imports=(), log=tmp_path / "log")


def test_tasks_that_hang_are_given_up():
    before = threading.active_count()
    with pytest.raises(ConfigError, match="did not answer within 2 s; tasks must load"):
        RemoteRows(f"{BAD}:Bad?where=tasks&how=spin", "train", imports=(), log=Path("/dev/null"), load_s=2)
    assert threading.active_count() <= before + 1, "the one thread that starts children stays"


def test_a_bad_row_is_the_tasks_fault_and_a_dead_process_is_nobodys(tmp_path):
    rows = RemoteRows(f"{BAD}:Bad?where=tasks&how=second row bad", "train", imports=(), log=tmp_path / "log")
    assert (len(rows), rows[0]["number"]) == (2, 0)
    with pytest.raises(ConfigError, match="row 1 is None, of type NoneType"):
        rows[1]
    assert rows[0]["number"] == 0, "it goes on"
    rows._child.process.kill()
    with pytest.raises(WorkerDied, match="was killed by SIGKILL"):
        rows[0]
    rows.close()


class Comparing(Environment):
    def compare(self, first, second):
        return 0.5


class ComparingRows(SingleTurn):
    async def compare(self, first, second):
        return 0.5


def test_who_compares():
    assert Comparing().compares
    assert not Environment().compares
    assert SingleTurn(train=[], judge=lambda **_: [0]).compares
    assert not SingleTurn(train=[], rewards=[lambda **_: [0.0]]).compares
    assert ComparingRows(train=[], rewards=[lambda **_: [0.0]]).compares


def test_the_process_says_whether_its_environment_compares(tmp_path):
    source = tmp_path / "judging.py"
    methods = "    def tasks(self, split):\n        return [{'prompt': 'x'}]\n    def compare(self, first, second):\n        return 1\n"
    source.write_text(f"from agentrl import Environment\nclass Judging(Environment):\n{methods}")
    for spec, compares in ((f"{source}:Judging", True), ("arithmetic", False)):
        rows = RemoteRows(spec, "train", imports=(), log=tmp_path / "log")
        assert (rows.compares, len(rows) > 0) == (compares, True)
        rows.close()
