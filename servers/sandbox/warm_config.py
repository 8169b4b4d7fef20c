"""What the zygote is told when it starts: which packages its own modules lie in, and what it sees of the file system."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.servers.sandbox.limits import SandboxUnavailable
from agentrl.servers.sandbox.view import FILES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.servers.sandbox.view import View


def lean_packages(modules: Sequence[str]) -> dict[str, str]:
    """Every package that the modules lie in, with its folder, outermost first."""
    folders: dict[str, str] = {}
    for module in modules:
        parts = module.split(".")
        for count in range(1, len(parts)):
            name = ".".join(parts[:count])
            folders.setdefault(name, _package_folder(name))
    return folders


@cache
def _package_folder(name: str) -> str:
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise SandboxUnavailable(f"there is no package {name!r} to run in a warm worker")
    return str(Path(next(iter(found.submodule_search_locations))).resolve())


def described(view: View) -> dict[str, Any]:
    """What `warm_root.build_root` makes of a view."""
    if Path(view.interpreter).is_relative_to("/tmp"):
        raise SandboxUnavailable(f"Python is installed below /tmp ({view.interpreter}), and warm workers have a /tmp of their own")
    files = {f"/etc/{name}": text for name, text in FILES.items()}
    binds = {path: str(source) for path, source in view.binds.items()}
    return {"links": view.links, "binds": binds, "hidden": list(view.hidden), "files": files}
