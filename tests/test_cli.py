import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agentrl import objectives, runfile
from agentrl.cli import make_app
from agentrl.errors import ConfigError, RunCannotLearn
from agentrl.evaluation import EvalResult
from agentrl.run_folder import RunResult

ENVIRONMENT = '''
import agentrl

class Echo(agentrl.Environment):
    """Say it back.

    Args:
        times: how often.
    """

    system = "Be brief."

    def __init__(self, times: int = 1):
        self.times = times

    def tasks(self, split):
        return [{"prompt": f"{split} {index}", "times": self.times} for index in range(3)]

    def shout(self, word: str) -> str:
        """Say it louder.

        Args:
            word: What to say.
        """
        return word.upper()

    def score(self, episode):
        return 1.0
'''


class Backend:
    """Stands where `agentrl.run.train` and `agentrl.evaluation.evaluate` do; keeps what it was called with."""

    def __init__(self, raises=None, interrupted=False):
        self.raises = raises
        self.interrupted = interrupted
        self.calls = []

    def train(self, config, *, resume, progress):
        self.calls.append((config, resume))
        if self.raises:
            raise self.raises
        progress.step({"step": config.steps, "reward/mean": 0.25})
        return RunResult(folder=Path("somewhere"), steps=config.steps, interrupted=self.interrupted, last={})

    def evaluate(self, config, *, progress, **options):
        self.calls.append((config, options))
        if self.raises:
            raise self.raises
        return EvalResult(
            num_tasks=2,
            samples=4,
            mean=0.5,
            interval=(0.25, 0.75),
            pass_at={1: 0.5, 4: 1.0},
            unscorable=1,
            mean_length=12.0,
            task_means={"a": 1.0, "b": 0.0},
        )


def run(*arguments, backend=None):
    backend = backend or Backend()
    return CliRunner().invoke(make_app(backend.train, backend.evaluate), [str(argument) for argument in arguments])


@pytest.fixture
def run_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: m\nenv: e\nsteps: 3\n")
    return path


def test_train_takes_a_run_file_flags_and_overrides(run_file):
    backend = Backend()
    result = run("train", run_file, "--env", "f", "--set", "learner.lr=0.5", "--set", "seed=4", "--output", "out", backend=backend)
    assert result.exit_code == 0, result.output
    config, resume = backend.calls[0]
    assert config == runfile.load(run_file, ["learner.lr=0.5", "seed=4"], {"env": "f", "output": "out"})
    assert resume is None
    assert result.stdout == "step 3/3  reward 0.250\n"


def test_train_needs_no_run_file():
    backend = Backend()
    assert run("train", "--env", "e", "--model", "m", "--objective", "rloo", backend=backend).exit_code == 0
    config, _ = backend.calls[0]
    assert (config.env, config.model, config.objective["name"]) == ("e", "m", "rloo")


def test_print_config_runs_nothing_and_its_output_is_a_run_file(run_file, tmp_path):
    backend = Backend()
    result = run("train", run_file, "--print-config", backend=backend)
    assert (result.exit_code, backend.calls) == (0, [])
    printed = tmp_path / "printed.yaml"
    printed.write_text(result.stdout)
    assert runfile.load(printed) == runfile.load(run_file)


def test_resume_reads_the_run_folder_wherever_it_lies_now(tmp_path):
    folder = tmp_path / "moved"
    folder.mkdir()
    config = runfile.from_mapping({"model": "m", "env": "e", "output": "old/place"})
    (folder / "config.yaml").write_text(runfile.dump(config))
    backend = Backend()
    assert run("train", "--resume", folder, "--set", "steps=7", backend=backend).exit_code == 0
    assert backend.calls == [(config.model_copy(update={"output": str(folder), "steps": 7}), folder)]


def test_resume_refuses_what_would_make_it_another_run(tmp_path, run_file):
    result = run("train", run_file, "--resume", tmp_path, "--model", "other")
    assert result.exit_code == 2
    assert f"leave out {run_file}, --model" in result.stderr
    result = run("train", "--resume", tmp_path)
    assert result.exit_code == 2
    assert "that is no run folder, it has no config.yaml" in result.stderr


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ConfigError("no such environment"), 2, "agentrl: no such environment\n"),
        (RunCannotLearn("every rollout failed"), 1, "agentrl: every rollout failed\n"),
        (KeyboardInterrupt(), 130, ""),
        (BaseExceptionGroup("tasks", [KeyboardInterrupt()]), 130, ""),
    ],
)
@pytest.mark.parametrize("command", ["train", "eval"])
def test_the_exit_status_says_whose_fault_it_was(run_file, command, error, status, said):
    result = run(command, run_file, backend=Backend(raises=error))
    assert (result.exit_code, result.stderr) == (status, said)


def test_an_interrupted_run_has_the_status_of_an_interrupt(run_file):
    assert run("train", run_file, backend=Backend(interrupted=True)).exit_code == 130


def test_a_bug_keeps_its_traceback(run_file):
    assert isinstance(run("train", run_file, backend=Backend(raises=KeyError("x"))).exception, KeyError)


def test_a_wrong_run_file_is_told_in_full(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: m\nenv: e\nlearning_rate: 1\nsteps: x\n")
    result = run("train", path)
    assert result.exit_code == 2
    assert result.stderr == (
        f"agentrl: {path}, line 3: unknown key `learning_rate`; here it is called learner.lr\n"
        f"{path}, line 4: `steps` got 'x' (text); it must be a whole number or null\n"
    )


def test_eval_passes_its_options_on(run_file, tmp_path):
    backend = Backend()
    options = ["--num-tasks", 5, "--samples", 4, "--seed", 9, "--temperature", 0, "--output", tmp_path]
    result = run("eval", run_file, "--model", "other", *options, backend=backend)
    assert result.exit_code == 0, result.output
    config, given = backend.calls[0]
    assert (config.model, config.env) == ("other", "e")
    assert given == {"model": "other", "num_tasks": 5, "samples": 4, "seed": 9, "temperature": 0.0, "output": tmp_path}
    assert result.stdout.splitlines() == [
        "mean reward  0.5000  (95% interval 0.2500 to 0.7500)",
        "pass@1       0.5000",
        "pass@4       1.0000",
        "2 tasks x 4 rollouts of 12.0 sampled tokens, 1 unscorable",
    ]


def test_one_task_has_no_interval(run_file):
    class One(Backend):
        def evaluate(self, config, **options):
            return replace(super().evaluate(config, **options), num_tasks=1, interval=(math.nan, math.nan))

    assert json.loads(run("eval", run_file, "--json", backend=One()).stdout)["interval"] is None
    assert "(one task has no interval)" in run("eval", run_file, backend=One()).stdout


def test_eval_prints_json_alone_on_standard_output(run_file):
    found = json.loads(run("eval", run_file, "--json").stdout)
    assert found["mean"] == 0.5
    assert found["pass_at"] == {"1": 0.5, "4": 1.0}


@pytest.mark.parametrize("arguments", [["eval", "--samples", "0"], ["eval", "--temperature", "-1"], ["train", "--nope"], ["nope"]])
def test_a_wrong_command_line_is_a_wrong_configuration(arguments):
    assert run(*arguments).exit_code == 2


def test_env_show_has_tasks_prompts_and_tool_schemas(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(ENVIRONMENT)
    result = run("env", "show", f"{path}:Echo?times=2")
    assert result.exit_code == 0, result.output
    lines = [line.strip() for line in result.stdout.splitlines()]
    for line in ("Say it back.", "Be brief.", "train: 3 tasks", "eval: 3 tasks", "user    train 0", "tools: shout", '"name": "shout",'):
        assert line in lines
    assert 'row     {"prompt": "train 1", "times": 2}' in lines
    assert "train 2" not in result.stdout


def test_env_show_of_a_name_that_needs_arguments_says_which_there_are():
    result = run("env", "show", "math")
    assert result.exit_code == 2
    assert "give either path=FILE.jsonl or dataset=NAME" in result.stderr
    assert "grader: `math`, `gsm8k`" in result.stderr


def test_env_show_of_what_is_not_there_names_what_was_tried(tmp_path):
    result = run("env", "show", f"{tmp_path}/no.py:Echo")
    assert result.exit_code == 2
    assert f"there is no file {tmp_path}/no.py" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("where=tasks&how=raise", "tasks('train'): RuntimeError: boom in tasks (bad_env.py:"),
        ("where=tasks&how=exit", "SystemExit: 3"),
        ("where=tasks&how=None", "returned None; it must return the rows"),
        ("where=tasks&how=numbers", "row 0 is 1, of type int"),
        ("where=init&how=raise", "making it: RuntimeError: boom in init"),
        ("where=start&how=raise", "start: RuntimeError: boom in start"),
        ("where=start&how=None", "start: it returned a NoneType: None; allowed: a string, or a list of messages"),
        ("colour=1", "does not accept its arguments {'colour': 1}"),
    ],
)
def test_env_show_of_a_broken_environment_says_where_it_breaks(arguments, said):
    result = run("env", "show", f"{Path(__file__).parent}/bad_env.py:Bad?{arguments}")
    assert result.exit_code == 2
    assert said in result.stderr


def test_env_list_has_the_environments_of_agentrl():
    result = run("env", "list")
    assert result.exit_code == 0
    assert "lookup            Find out how many there are" in result.stdout
    lines = [line.split("  ")[0] for line in result.stdout.partition("From other libraries:\n")[2].splitlines()]
    assert set(lines) >= {f"{name}:NAME" for name in ("gymnasium", "mcp", "openenv", "reasoning-gym", "textarena", "verifiers")}


OBJECTIVE = """
from dataclasses import replace
from typing import Literal

from agentrl import objectives
from agentrl.objectives.grpo import GRPO, GRPOConfig


class MineConfig(GRPOConfig):
    name: Literal["mine_for_the_cli"] = "mine_for_the_cli"


objectives.register(replace(GRPO, name="mine_for_the_cli", config=MineConfig, summary="All mine."))
"""


@pytest.fixture
def own_objective(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OBJECTIVE)
    known = dict(objectives.registry._objectives)
    yield path
    objectives.registry._objectives.clear()
    objectives.registry._objectives.update(known)


def test_objectives_list_has_them_all(own_objective):
    lines = [line.rstrip() for line in run("objectives", "list", "--import", own_objective).stdout.splitlines()]
    assert "  grpo                  Rewards relative to the group's mean, a clipped ratio a" in lines
    assert "  mine_for_the_cli      All mine." in lines
    rows = json.loads(run("objectives", "list", "--import", own_objective, "--json").stdout)
    assert {row["name"] for row in rows} == set(objectives.registered())
    assert next(row for row in rows if row["name"] == "ppo")["requires"]["passes"] == 4


@pytest.mark.parametrize("name", ["grpo", "nash_md", "corrections", "kl"])
def test_objectives_show_in_words_and_as_json(name):
    result = run("objectives", "show", name)
    assert result.exit_code == 0, result.output
    found = json.loads(run("objectives", "show", name, "--json").stdout)
    assert found.get("name", found.get("topic")) == name
    words = found.get("formula", found.get("about"))[0].split()
    assert " ".join(words[:3]) in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["grpoo"], "agentrl: no objective is called 'grpoo'; did you mean 'grpo'? Known: a2po, "),
        (["kll"], "agentrl: no objective is called 'kll'; did you mean the topic 'kl'?"),
        (["grpo", "--import", "no_such_file.py"], "agentrl: cannot import 'no_such_file.py': "),
    ],
)
def test_objectives_show_of_what_is_not_there_says_so(arguments, said):
    result = run("objectives", "show", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(said)


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["train"],
        ["eval"],
        ["env"],
        ["env", "list"],
        ["env", "show"],
        ["env", "test"],
        ["objectives", "list"],
        ["objectives", "show"],
        ["version"],
    ],
)
def test_help_fits_a_terminal(command):
    text = run(*command, "--help").stdout
    assert "Usage: " in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("command", ["train RUN --print-config", "objectives list", "objectives show ppo", "objectives show corrections"])
def test_the_command_answers_without_torch(run_file, command):
    code = (
        "import sys; from agentrl.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: status = end.code\n"
        "assert not status, status\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    arguments = command.replace("RUN", str(run_file)).split()
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_the_module_runs_as_a_command_and_prints_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "agentrl", "train", tmp_path / "no.yaml"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert done.stderr == f"agentrl: cannot read the run file {tmp_path}/no.yaml: No such file or directory\n"
