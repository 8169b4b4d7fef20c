import sys
from pathlib import Path

import pytest

from agentrl.errors import ConfigError
from agentrl.servers.sandbox import open_sandbox
from agentrl.servers.sandbox.view import view_of

IMPORTS = "import importlib.util, sys; print([name for name in sys.argv[1:] if importlib.util.find_spec(name)])"
NAMES = ("json", "agentrl", "torch", "numpy", "docstring_parser", "httpx", "anyio", "idna")


def found(packages):
    with open_sandbox(packages=packages) as sandbox:
        return sandbox.run(["python", "-c", IMPORTS, *NAMES]).stdout.decode().strip()


def test_programs_have_the_standard_library_alone():
    assert found(()) == "['json']"


def test_packages_come_with_what_they_need():
    assert found(("docstring-parser", "HTTPX")) == "['json', 'docstring_parser', 'httpx', 'anyio', 'idna']"


def test_all_packages_can_be_shown_but_not_this_one_where_it_is_a_checkout():
    assert "'numpy'" in found("all")


def test_a_package_that_works_is_more_than_found():
    with open_sandbox(packages=("numpy",)) as sandbox:
        assert sandbox.run(["python", "-c", "import numpy; print(numpy.arange(4).sum())"]).stdout == b"6\n"


def test_an_unknown_package_is_refused():
    with pytest.raises(ConfigError, match="package no-such-thing is not installed"):
        view_of(("no-such-thing",))


def test_the_interpreter_is_the_one_below_an_environment():
    view = view_of()
    assert Path(view.interpreter).is_relative_to(Path(sys.base_prefix).resolve())
    assert view.binds["/usr"] == Path("/usr")
    assert all(path.exists() for path in view.sources)
    for folder in view.hidden:
        assert any(folder.startswith(inside) for inside in view.binds)
