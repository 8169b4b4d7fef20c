"""Pythons of the environments in which other libraries live whose pins clash with ours, or with each other's."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def python_of(variable, folder):
    """The Python named in a variable, else that of a folder of the checkout; skips the test where there is none."""
    path = os.environ.get(variable) or str(ROOT / folder / "bin/python")
    if not Path(path).exists():
        pytest.skip(f"there is no {path}: make setup-adapters, or name another Python in {variable}")
    return path


def verifiers_python():
    """A Python with agentrl and verifiers."""
    return python_of("AGENTRL_ADAPTERS_PYTHON", ".venv-adapters")


def openenv_python():
    """A Python with openenv, for servers; agentrl is not needed there."""
    return python_of("AGENTRL_OPENENV_PYTHON", ".venv-openenv")
