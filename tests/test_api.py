from __future__ import annotations

import functools
import json
import subprocess
import sys
import types

import pytest
from api_names import Reward, longer, odd

import agentrl
from agentrl.api import import_path, specs
from agentrl.errors import ConfigError
from agentrl.rollout_log import read_groups
from agentrl.run_folder import RunFolder, read_metrics

CONFIG = {"model": "quickstart", "steps": 2}


def inner():
    class Local(agentrl.Environment):
        pass

    return Local


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (lambda **_: [1.0], "<lambda> cannot be imported by the run's other processes under that name; define it at the top level"),
        (inner(), "inner.<locals>.Local cannot be imported"),
        (functools.partial(odd, 1), "is an object of type partial, .* give the function or class that makes it"),
        (Reward(), "is an object of type Reward"),
        (Reward().score, "Reward.score cannot be imported"),
        (agentrl.SingleTurn(train=[], rewards=[odd]), "is an environment of type SingleTurn"),
        (5, "5 is an object of type int"),
    ],
)
def test_what_other_processes_cannot_import_is_refused_with_the_cure(target, said):
    with pytest.raises(ConfigError, match=said):
        import_path(target)


def test_a_name_that_means_something_else_by_now_is_refused():
    old = types.FunctionType(odd.__code__, {}, "odd")
    old.__qualname__, old.__module__ = "odd", odd.__module__
    with pytest.raises(ConfigError, match="under that name"):
        import_path(old)


def test_functions_and_classes_of_modules_have_a_spec():
    assert import_path(odd) == "api_names:odd"
    assert import_path(Reward) == "api_names:Reward"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dataset": [{"prompt": "x"}], "rewards": 5}, "rewards=5 is no reward function"),
        ({"dataset": [{"prompt": "x"}]}, "`dataset` needs `rewards`"),
        ({"dataset": 5, "rewards": odd}, "dataset=5 is no path and no iterable of rows"),
        ({"dataset": [1], "rewards": odd}, "dataset row 0 is not a JSON object: got 1"),
        ({"dataset": [{"prompt": "x"}, {"prompt": object()}], "rewards": odd}, "dataset row 1 is not a JSON object"),
        ({"dataset": [{"prompt": "\ud800"}], "rewards": odd}, "dataset row 0 is not a JSON object"),
        ({"rewards": odd}, "nothing to train on"),
        ({"env": "e", "dataset": [{"prompt": "x"}], "rewards": odd}, "both set"),
        ({"env": 5}, "5 is an object of type int"),
        ({"dataset": [{"prompt": "x"}], "judge": 5}, "5 is an object of type int"),
        ({"dataset": [{"prompt": "x"}], "judge": lambda **_: [0]}, "<lambda> cannot be imported"),
        ({"dataset": [{"prompt": "x"}], "judge": longer}, "objective 'grpo' asks for no comparison; set objective.preferences=judge"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_written(tmp_path, options, said):
    with pytest.raises(ConfigError, match=said):
        agentrl.train({**CONFIG, "output": str(tmp_path / "run")}, **options)
    assert list(tmp_path.iterdir()) == []


def test_objects_become_the_keys_of_a_run_file():
    assert specs(env=Reward, rewards=odd, judge=longer) == {
        "env": "api_names:Reward",
        "rewards": ["api_names:odd"],
        "judge": "api_names:longer",
    }
    assert specs(rewards=[odd, "r.py:f"], judge="j.py:f") == {"rewards": ["api_names:odd", "r.py:f"], "judge": "j.py:f"}
    assert specs() == {}


@pytest.mark.parametrize("config", [None, 5, [("model", "quickstart")]])
def test_a_config_of_another_type_is_refused(config):
    with pytest.raises(ConfigError, match="is no RunConfig, no mapping and no path"):
        agentrl.train(config, env="e")


def test_the_rows_of_an_earlier_run_are_not_written_over(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create("{}")
    folder.rollouts.mkdir()
    (folder.rollouts / "groups-000.jsonl").write_text("{}\n")
    kept = folder.path / "data" / "dataset.jsonl"
    kept.parent.mkdir()
    kept.write_text(json.dumps({"prompt": "old"}))
    folder.close()
    with pytest.raises(ConfigError, match="already holds a run"):
        agentrl.train({**CONFIG, "output": str(folder.path)}, dataset=[{"prompt": "new"}], rewards=odd)
    assert json.loads(kept.read_text()) == {"prompt": "old"}


def test_an_interactive_interpreter_is_told_apart():
    code = (
        "import agentrl, sys\n"
        "def reward(**_): return [1.0]\n"
        "try: agentrl.train({'model': 'quickstart'}, dataset=[{'prompt': 'x'}], rewards=reward)\n"
        "except agentrl.ConfigError as error: sys.exit(f'{error}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert "reward lives in an interactive interpreter" in done.stderr


@pytest.mark.slow
def test_a_run_learns_from_a_judge_alone(tmp_path):
    """The judge is a function of the script, which every process imports again."""
    (tmp_path / "script.py").write_text(
        "import agentrl\n"
        "def longer(prompts, completions):\n"
        "    return [int(len(second) > len(first)) for first, second in completions]\n"
        "if __name__ == '__main__':\n"
        "    config = {'model': 'quickstart', 'steps': 1, 'group_size': 2, 'groups_per_step': 4, 'output': 'run',\n"
        "              'sampling': {'max_tokens': 4}, 'objective': {'name': 'online_dpo', 'preferences': 'judge'}}\n"
        "    agentrl.train(config, dataset=[{'prompt': f'{n}+1='} for n in range(20)], judge=longer)\n"
    )
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    groups = list(read_groups(tmp_path / "run" / "rollouts"))
    assert len(groups) >= 4
    assert all(set(group.preferences) <= {0.0, 1.0} and len(group.preferences) == 1 for group in groups)
    assert read_metrics(tmp_path / "run")[0]["learner/pairs"] == 4.0
