from __future__ import annotations

from pathlib import Path

import pytest

from agentrl import registry
from agentrl.errors import ConfigError

BAD = Path(__file__).parent / "bad_env.py"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (f"{BAD}:Nope", "has no 'Nope'; environments in it: Bad$"),
        (f"{BAD}:NUMBER", "is 5, of type int; it must be an environment class"),
        (f"{BAD}:", "write file.py:Name"),
        (":", "write file.py:Name"),
        ("", "no environment is registered as ''"),
        ("arithmetik", "did you mean 'arithmetic'"),
        ("mine.py", "For one of your own write mine.py:Name"),
        ("arithmetic?digits", "are written key=value"),
        ("arithmetic?digits=[", "are written key=value"),
        ("no_such_package.games:Guess", "cannot import 'no_such_package.games'"),
    ],
)
def test_a_wrong_spec_says_what_was_tried(spec, said):
    with pytest.raises(ConfigError, match=said):
        registry.load(spec)


def test_wrong_arguments_are_told_with_the_right_ones():
    with pytest.raises(ConfigError, match=r"does not accept its arguments \{'colour': 1\}.*it takes: digits: "):
        registry.load("arithmetic?colour=1")()


def test_a_mistake_inside_the_environment_is_not_taken_for_wrong_arguments():
    with pytest.raises(TypeError, match="unsupported operand"):
        registry.load(f"{BAD}:broken")()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("class X(", r"SyntaxError: .*was never closed \(mine.py, line 1\)"),
        ("import not_there_at_all", "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("\nraise RuntimeError('no licence')", r"RuntimeError: no licence \(.*mine.py:2\)"),
        ("import sys; sys.exit(4)", "SystemExit: 4"),
        ("import agentrl; agentrl.train({'model': 'm'}, env='e')", "put the call under `if __name__"),
    ],
)
def test_a_file_that_does_not_import_says_why(tmp_path, code, said):
    path = tmp_path / "mine.py"
    path.write_text(code)
    for _ in range(2):  # a failed import leaves nothing behind that a second one would take for the module
        with pytest.raises(ConfigError, match=said):
            registry.import_module(str(path))
