"""TRL, for tests that compare with it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest


def trl_module(name: str) -> Any:
    """A module of TRL; skips the test where it is not installed.

    TRL asks whether there is a package `vllm`. A test that imported an example has put the folder examples on the path, and examples/vllm,
    which has run files alone, would be taken for one.
    """
    path = list(sys.path)
    sys.path[:] = [entry for entry in path if not is_no_package(Path(entry) / "vllm")]
    try:
        return pytest.importorskip(name)
    finally:
        sys.path[:] = path


def is_no_package(folder: Path) -> bool:
    """Whether Python would take a folder without code for a package."""
    return folder.is_dir() and not (folder / "__init__.py").exists()
