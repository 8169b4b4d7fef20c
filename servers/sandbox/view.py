"""What a program in a sandbox sees of the machine: the system's programs, one Python, and a few files of /etc, all read-only.

Of the packages of that Python only those that are asked for: a package that brings a benchmark brings its answers too.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import agentrl
from agentrl.errors import ConfigError
from agentrl.servers.sandbox.limits import INSIDE

if TYPE_CHECKING:
    from collections.abc import Iterator

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
ETC = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime", "mime.types", "nsswitch.conf", "magic")
PROGRAMS = "/opt/agentrl/bin"
"""First in PATH: `python` and `python3`, whatever they are called outside."""
USER = 1000
"""Of every program in a sandbox, as it sees itself."""
FILES = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\n"
    f"sandbox:x:{USER}:{USER}:sandbox:{INSIDE}:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/:/bin/false\n",
    "group": f"root:x:0:\nsandbox:x:{USER}:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
}
"""Of /etc, instead of the machine's own."""

Packages = tuple[str, ...] | Literal["all"]


@dataclass(frozen=True, slots=True)
class View:
    """What is bound from the machine, path on path."""

    links: dict[str, str]
    """Paths that are symbolic links, on a system with one /usr."""
    binds: dict[str, Path]
    """Read-only: path inside, path outside; one that lies below another comes after it."""
    hidden: tuple[str, ...]
    """Folders below a bind that are shown empty, but for binds below them."""
    interpreter: str

    @property
    def sources(self) -> tuple[Path, ...]:
        """What is bound, outside."""
        return tuple(dict.fromkeys(self.binds.values()))


@functools.cache
def view_of(packages: Packages = ()) -> View:
    """The view with this process's Python. Raises `ConfigError` for a package that it does not have.

    Args:
        packages: distributions that programs can import, each with those that it needs; or all of them.
    """
    system = [Path(path) for path in SYSTEM if Path(path).exists()]
    links = {str(path): str(path.readlink()) for path in system if path.is_symlink()}
    binds = {str(path): path for path in system if not path.is_symlink()}
    binds |= {f"/etc/{name}": Path("/etc", name).resolve() for name in ETC if Path("/etc", name).exists()}
    prefix = Path(sys.base_prefix).resolve()
    if not prefix.is_relative_to("/usr"):
        binds[str(prefix)] = prefix
    sites = site_folders(prefix)
    bound = [Path(path) for path in binds]
    hidden = [path for path in (*sites, *_private(prefix)) if path.is_dir() and any(path.is_relative_to(one) for one in bound)]
    binds |= dict(_package_binds(packages, sites[0])) if sites else {}
    own: str = getattr(sys, "_base_executable", sys.executable)  # of a copied interpreter, the original
    return View(links, binds, tuple(dict.fromkeys(map(str, hidden))), str(Path(own).resolve()))


def _private(prefix: Path) -> Iterator[Path]:
    """Folders that may hold the user's own project or other environments, where they lie within what is bound."""
    yield from (prefix / "envs", prefix / "pkgs", Path("/usr/src"), Path("/usr/local/src"))
    yield Path(agentrl.__file__).resolve().parent
    for path in (Path(sys.prefix).resolve(), Path.cwd().resolve()):
        if not prefix.is_relative_to(path):
            yield path


def site_folders(prefix: Path) -> list[Path]:
    """Where the Python below `prefix` looks for packages, and what exists there."""
    variables = {"base": str(prefix), "platbase": str(prefix), "installed_base": str(prefix), "installed_platbase": str(prefix)}
    paths = [sysconfig.get_path(name, vars=variables) for name in ("purelib", "platlib")]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    usual = [
        prefix / "lib" / version / "site-packages",
        prefix / "lib/python3/dist-packages",
        prefix / "local/lib" / version / "dist-packages",
    ]
    found = dict.fromkeys([*map(Path, paths), *usual])
    return [path for path in found if path.is_dir() and path.is_relative_to(prefix)]


def _package_binds(packages: Packages, site: Path) -> Iterator[tuple[str, Path]]:
    if packages == "all":
        yield str(site), Path(sysconfig.get_path("purelib")).resolve()
        return
    for name in _with_needs(packages):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            yield str(site / top), Path(str(distribution.locate_file(top))).resolve()


def _with_needs(packages: tuple[str, ...]) -> list[str]:
    """Distributions, and what they need where it is installed."""
    found: list[str] = []
    waiting = list(packages)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            needs = importlib.metadata.requires(name) or ()
        except importlib.metadata.PackageNotFoundError:
            if any(re.sub(r"[-_.]+", "-", one).lower() == name for one in packages):
                raise ConfigError(f"sandbox package {name} is not installed beside agentrl; install it, or leave it out") from None
            continue
        found.append(name)
        waiting += [re.split(r"[^\w.-]", need)[0] for need in needs if "extra ==" not in need]
    return found
