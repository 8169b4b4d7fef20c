import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from agentrl import cli_grade
from agentrl.cli import make_app
from agentrl.errors import ConfigError

CASES = Path(__file__).parent / "cases"


def run(*arguments):
    app = make_app(train=lambda *_, **__: None, evaluate=lambda *_, **__: None)
    return CliRunner().invoke(app, ["grade", *map(str, arguments)])


@pytest.fixture
def file(tmp_path):
    """Writes lines to a file."""

    def write(*lines):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return path

    return write


def calls_of(rows):
    for row in rows:
        yield {"calls": row["found"], "reason": ""}


def graded(path, grade_rows, *, as_json=False):
    lines = []
    counts = cli_grade.graded(path, grade_rows, show=lines.append, as_json=as_json)
    return lines, cli_grade.summary(counts)


def test_a_line_a_row_and_a_summary(file):
    result = run("math", file({"gold": "4", "answer": "\\boxed{4}"}, "", {"gold": "4", "answer": "\\boxed{"}, {"gold": "", "answer": "4"}))
    assert result.exit_code == 0
    assert [line.split(maxsplit=2) for line in result.stdout.splitlines()] == [
        ["1", "correct", "read 4"],
        ["3", "wrong", "no answer in the text"],
        ["4", "unscorable", "the gold is empty"],
    ]
    assert result.stderr == "3 rows: 1 correct, 1 unscorable, 1 wrong\n"


def test_json_lines(file):
    result = run("math", file({"gold": "4", "answer": "5"}), "--json")
    assert json.loads(result.stdout) == {"line": 1, "verdict": "wrong", "reason": "", "answer": "5"}


def test_the_cases_are_as_they_should_be():
    for name in ("math_grading.jsonl", "math_deadline.jsonl"):
        result = run("math", CASES / name, "--check")
        assert result.exit_code == 0, result.stdout
        assert "0 of" in result.stderr


def test_rows_that_differ_are_marked_and_fail_a_check(file):
    path = file({"gold": "4", "answer": "5", "verdict": "correct"}, {"gold": "4", "answer": "5", "verdict_in": ["wrong", "unscorable"]})
    result = run("math", path)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].endswith("(expected correct)")
    assert result.stderr == "2 rows: 2 wrong; 1 of 2 differ from what they expect\n"
    assert run("math", path, "--check").exit_code == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"gold": "4", "answer": "4"}', "{"], "line 2: not JSON"),
        (["[4]"], "line 1: a row is a JSON object, got '[4]'"),
        (["", '{"gold": "4"}'], "line 2: a row to grade has the texts `gold` and `answer`; got None for answer"),
    ],
)
def test_a_file_that_is_not_what_it_should_be(file, lines, message):
    result = run("math", file(*lines))
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"gold": "1"}\n\xff\n')
    for name in ("rows.jsonl", "missing.jsonl"):
        result = run("math", tmp_path / name)
        assert result.exit_code == 2
        assert f"{name}, " in result.stderr


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        ([{"name": "f", "arguments": {"x": 1}}], [{"name": "f", "arguments": {"x": 1}, "id": "1"}], True),
        ([{"name": "f", "arguments": {"x": 1}}], [{"name": "f", "arguments": {"x": 2}}], False),
        ([{"name": "f", "arguments": {}}], [], False),
        ([{"malformed": "invalid JSON"}], [{"malformed": "Expecting ',' delimiter"}], True),
        ([{"malformed": "invalid JSON"}], [{"name": "f", "arguments": {}}], False),
        ([], [], True),
    ],
)
def test_tool_calls_are_compared(file, expected, found, same):
    lines, said = graded(file({"calls": expected, "found": found}), calls_of)
    assert said == f"1 row: 1 read; {int(not same)} of 1 differ from what they expect"
    assert lines[0].split(maxsplit=1)[1].startswith(json.dumps(found))
    assert ("(expected " in lines[0]) != same


def test_what_a_grader_refuses_is_told_with_its_line(file):
    def refuse(rows):
        for row in rows:
            raise ConfigError(f"no tests in {row}")
            yield {}

    with pytest.raises(ConfigError, match=r"rows.jsonl, line 2: no tests in \{\}"):
        graded(file("", {}), refuse)


def test_every_kind_is_a_command():
    app = typer.Typer()
    cli_grade.add_to(app)
    shown = CliRunner().invoke(app, ["grade", "--help"]).stdout
    assert all(kind in shown for kind in cli_grade.KINDS)
