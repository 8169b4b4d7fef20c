"""The command `agentrl env test`."""

import json

import pytest
from kit_fakes import spec_of
from rich.console import Console
from typer.testing import CliRunner

from agentrl.cli import make_app
from agentrl.env_kit.finding import Finding, Report
from agentrl.env_kit.report import in_json, laid_out

REPORT = Report(
    spec="lookup",
    seconds=1.25,
    findings=(
        Finding(check="start", status="ok", tried="8 tasks", got="fine", facts={"tasks": 8}),
        Finding(check="scores", status="failed", tried="9 episodes", got="score returned nan", advice="return a number"),
        Finding(check="leaks", status="skipped", tried="", got="Linux only"),
    ),
)


def run(*arguments):
    return CliRunner().invoke(make_app(None, None), ["env", "test", *map(str, arguments)])


def shown(width, **options):
    console = Console(width=width, record=True, force_terminal=bool(options), **options)
    with console.capture() as capture:
        for part in laid_out(REPORT, width):
            console.print(part)
    return capture.get()


@pytest.mark.parametrize("width", [60, 140])
def test_the_table_says_everything_at_any_width(width):
    text = shown(width)
    assert max(map(len, text.splitlines())) <= width
    for said in (
        "start",
        "fine",
        "failed",
        "score returned nan",
        "return a number",
        "Linux only",
        "lookup failed: 1 ok, 1 failed, 1 skipped; 1.2 s",
    ):
        assert said in " ".join(text.split())
    assert ("9 episodes" in text) == (width == 140)
    assert "\x1b[" not in text


def test_a_terminal_gets_colours():
    assert "\x1b[32mok" in shown(100, color_system="standard")


def test_json_holds_every_finding():
    found = json.loads(in_json(REPORT))
    assert (found["ok"], found["spec"], found["seconds"]) == (False, "lookup", 1.25)
    assert found["checks"][1]["got"] == "score returned nan"
    assert found["checks"][0]["facts"] == {"tasks": 8}


def test_exit_status_and_output():
    good = run(spec_of("Good"), "--num-tasks", 2, "--json")
    assert (good.exit_code, json.loads(good.stdout)["ok"]) == (0, True), good.output
    bad = run(spec_of("NoRows"))
    assert (bad.exit_code, "tasks('train') is empty" in bad.stdout) == (1, True)
    wrong = run("no_such_environment")
    assert (wrong.exit_code, "no environment is registered" in wrong.stderr) == (2, True)
