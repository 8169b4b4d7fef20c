from __future__ import annotations

import sys
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
        ("gymnasum:FrozenLake-v1", "did you mean gymnasium:FrozenLake-v1"),
        ("textarena:", "environment 'textarena:': write textarena:NAME"),
        ("textarena", "environment 'textarena': write textarena:NAME"),
    ],
)
def test_a_wrong_spec_says_what_was_tried(spec, said):
    with pytest.raises(ConfigError, match=said):
        registry.load(spec)


@pytest.mark.parametrize(
    ("text", "target", "arguments"),
    [
        ("arithmetic", "arithmetic", {}),
        ("a.py:B?x=1&y=[a, 2]&z=", "a.py:B", {"x": 1, "y": ["a", 2], "z": None}),
        ("reasoning-gym:gcd?system=What?&exact=true", "reasoning-gym:gcd", {"system": "What?", "exact": True}),
        ("a?b=1+2&c=1%2B2", "a", {"b": "1 2", "c": "1+2"}),
        ("openenv:http://host:8000", "openenv:http://host:8000", {}),
        ("openenv:http://host:8000/env?max_turns=4", "openenv:http://host:8000/env", {"max_turns": 4}),
        ("mcp:https://host/mcp?token=a&x=b?max_turns=4", "mcp:https://host/mcp?token=a&x=b", {"max_turns": 4}),
        ("mcp:https://host/mcp?token=a?", "mcp:https://host/mcp?token=a", {}),
        ("gymnasium:A-v0?url=http://host/%3Fq", "gymnasium:A-v0", {"url": "http://host/?q"}),
    ],
)
def test_a_spec_is_split_at_its_arguments(text, target, arguments):
    spec = registry.Spec.parse(text)
    assert (spec.target, spec.arguments) == (target, arguments)


def test_an_installed_package_brings_an_adapter_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "shelf_of_games.py").write_text(
        "from agentrl import SingleTurn\n"
        "def shelf(name, /, *, times=1):\n"
        '    """From the shelf."""\n'
        "    return SingleTurn(train=[{'prompt': name * times}], rewards=[len])\n"
    )
    about = tmp_path / "shelf_of_games-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: shelf-of-games\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[agentrl.adapters]\nshelf = shelf_of_games:shelf\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    factory = registry.load("shelf:chess?times=2")
    assert factory.__doc__ == "From the shelf."
    assert factory().tasks("train")[0] == {"prompt": "chesschess"}
    with pytest.raises(ConfigError, match=r"'shelf:chess\?speed=2' does not accept its arguments .*it takes: times=1"):
        registry.load("shelf:chess?speed=2")()


def test_a_library_that_is_missing_comes_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "textarena", None)
    with pytest.raises(
        ConfigError, match=r'textarena is not installed in this Python; install it with: pip install "agentrl\[textarena\]"'
    ):
        registry.load("textarena:NotLookedAt-v0")()


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
