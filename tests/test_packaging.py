import importlib
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import agentrl

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The files of a wheel built from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_installs_one_name_only(wheel):
    assert {name.split("/")[0] for name in wheel if ".dist-info/" not in name} == {"agentrl"}


def test_an_installed_agentrl_leaves_other_peoples_names_alone(wheel, tmp_path):
    site = tmp_path / "site"
    for name, content in wheel.items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for name in ("envs", "rewards", "servers"):
        (site / f"{name}.py").write_text("theirs = True")
    code = (
        "import envs, rewards, servers, agentrl.envs, agentrl.rewards, agentrl.servers, agentrl.registry\n"
        "assert envs.theirs and rewards.theirs and servers.theirs and agentrl.__file__.startswith(sys.argv[1])\n"
        "assert {'arithmetic', 'countdown', 'dataset', 'lookup'} <= set(agentrl.registry.registered())"
    )
    arguments = [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, sys.argv[1])\n{code}", str(site)]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folder", ["envs", "rewards", "servers"])
def test_every_module_of_a_linked_folder_is_in_the_wheel(wheel, folder):
    modules = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in (ROOT / folder).rglob("*.py")}
    assert f"{folder}/__init__.py" in modules
    assert {name: wheel.get(f"agentrl/{name}") for name in modules} == modules


def test_everything_in_the_package_is_in_the_wheel(wheel):
    files = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "agentrl").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    assert files <= set(wheel)


def test_the_quickstart_model_is_in_the_wheel(wheel):
    names = {name.rpartition("/")[2] for name in wheel if name.startswith("agentrl/quickstart/")}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names


def test_the_wheel_carries_the_licence_and_the_command(wheel):
    info = next(name.split("/")[0] for name in wheel if ".dist-info/" in name)
    assert wheel[f"{info}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert b"agentrl = agentrl.cli:main" in wheel[f"{info}/entry_points.txt"]


def test_entry_points_name_registered_environments():
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["agentrl.envs"]
    for name, target in points.items():
        module, _, attribute = target.partition(":")
        factory = getattr(importlib.import_module(module), attribute)
        assert agentrl.register(name)(factory) is factory, "another name in the registry would be refused"
    texts = [path.read_text() for path in (ROOT / "envs").glob("*.py")]
    registered = {name for text in texts for name in re.findall(r'^@register\("(.+)"\)', text, re.MULTILINE)}
    assert registered == set(points)


def test_public_names_are_all_there():
    assert {name: getattr(agentrl, name) for name in agentrl.__all__}.keys() == set(agentrl.__all__)
    assert set(agentrl.__all__) <= set(dir(agentrl))
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        agentrl.nope  # noqa: B018


def test_importing_agentrl_loads_nothing_heavy():
    code = "import sys, agentrl; sys.exit(bool({'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False).returncode == 0
