"""The environments whose tools run in a sandbox: whole episodes, and what the model cannot do to its score."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import trio
from rollout_fakes import FakeEngine, in_turn, make_tokenizer, thread_pool

from agentrl.config import RolloutConfig
from agentrl.config_engine import SamplingConfig
from agentrl.envs.python_math import PythonMath
from agentrl.envs.shell_tasks import KINDS, ShellTasks
from agentrl.errors import ConfigError
from agentrl.records import SamplingContract, Task
from agentrl.registry import load
from agentrl.rollout.episode import play_episode
from agentrl.rollout.render import Renderer
from agentrl.rollout.tree import Sampler

TOKENIZER = make_tokenizer()
SHELL, PYTHON = "agentrl.envs.shell_tasks:ShellTasks", "agentrl.envs.python_math:PythonMath"


def play_all(spec, rows, scripts):
    """Play an episode a row, side by side in one worker."""
    rollouts = {}

    async def play(pool, index, row, said):
        sampler = Sampler(engine=FakeEngine(in_turn(*said), TOKENIZER), renderer=Renderer(TOKENIZER), contract=SamplingContract())
        task = Task.from_row(spec, row)
        rollouts[index] = await play_episode(
            task, 0, sampler=sampler, others={}, pool=pool, sampling=SamplingConfig(max_tokens=900), rollout=RolloutConfig(), seed=0
        )

    async def main():
        async with thread_pool(spec) as pool, trio.open_nursery() as nursery:
            for index, (row, said) in enumerate(zip(rows, scripts, strict=True)):
                nursery.start_soon(play, pool, index, row, said)

    trio.run(main)
    return [rollouts[index] for index in range(len(rows))]


def play(spec, row, *said):
    return play_all(spec, [row], [said])[0]


def call(name, **arguments):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def results(rollout):
    return [message["content"] for message in rollout.messages if message["role"] == "tool"]


def test_every_kind_of_shell_task_is_done_by_its_golden_command():
    environment = ShellTasks()
    by_kind = {}
    for row in environment.tasks("train")[:60]:
        by_kind.setdefault(next(iter(row["expected"])) + row["prompt"].split()[0], row)
    rows = [dict(row) for row in by_kind.values()]
    assert len(rows) >= len(KINDS)
    rollouts = play_all(SHELL, rows, [environment.golden(Task.from_row("shell", row)) for row in rows])
    assert [(one.score.value, one.reason) for one in rollouts] == [(1.0, "")] * len(rows)


def test_doing_nothing_and_saying_so_scores_nothing():
    rows = [dict(row) for row in ShellTasks().tasks("eval")[:4]]
    rollouts = play_all(SHELL, rows, [["Done."]] * 4)
    assert [one.score.value for one in rollouts] == [0.0] * 4
    assert rollouts[0].score.reason


def test_the_shell_keeps_its_state_within_an_episode_and_shares_none():
    row = {"prompt": "x", "files": {"a.txt": "1"}, "expected": {"b.txt": "2"}}
    first = [call("run_shell", command="mkdir -p d; cd d; X=2"), call("run_shell", command="echo $X > ../b.txt; pwd"), "Done."]
    second = [call("run_shell", command="ls; echo [$X]"), "Done."]
    one, other = play_all(SHELL, [row, row], [first, second])
    assert one.score.value == 1.0
    assert results(one)[1].endswith("/d")
    assert (other.score.value, results(other)) == (0.0, ["a.txt\n[]"])


@pytest.mark.parametrize("command", ["ln -s /etc/passwd b.txt", "mkfifo b.txt", "ln -s a.txt b.txt; echo 1 > a.txt"])
def test_what_is_no_plain_file_is_no_result(command):
    row = {"prompt": "x", "files": {"a.txt": "1"}, "expected": {"b.txt": "1"}}
    rollout = play(SHELL, row, call("run_shell", command=command), "Done.")
    assert rollout.score.value == 0.0


def test_a_task_that_expects_nothing_is_unscorable():
    rollout = play(SHELL, {"prompt": "x", "files": {}, "expected": {}}, "Done.")
    assert (rollout.score.value, rollout.ending) == (None, "environment_error")


def test_python_helps_with_a_sum():
    environment = PythonMath()
    rows = [dict(row) for row in environment.tasks("eval")[:3]]
    calls = [call("run_python", code="x = 6 * 7\nx"), call("run_python", code="print(x + 1)")]
    scripts = [[*calls, environment.golden(Task.from_row("m", row))[0]] for row in rows]
    rollouts = play_all(PYTHON, rows, scripts)
    assert [one.score.value for one in rollouts] == [1.0] * 3
    assert results(rollouts[0]) == ["42", "43"]
    assert play(PYTHON, rows[0], "\\boxed{-1}").score.value == 0.0


def test_python_has_no_network_and_sees_nothing_of_the_host(tmp_path):
    (tmp_path / "private").write_text("private")
    looking = f"import os, socket\nprint(os.path.exists('{tmp_path}/private'), sorted(k for k in os.environ if 'KEY' in k))\n"
    code = looking + "socket.create_connection(('1.1.1.1', 80), 2)"
    rollout = play(PYTHON, dict(PythonMath().tasks("eval")[0]), call("run_python", code=code), "\\boxed{0}")
    assert results(rollout)[0].startswith("False []")
    assert "OSError" in results(rollout)[0]


def test_the_made_problems_have_right_golds_and_split_apart():
    rows = {split: [dict(row) for row in PythonMath().tasks(split)[:300]] for split in ("train", "eval")}
    assert not {row["problem"] for row in rows["train"]} & {row["problem"] for row in rows["eval"]}
    kinds = Counter(row["problem"].split()[2] for row in rows["train"])
    assert len(kinds) > 3


def test_bad_arguments_are_refused():
    with pytest.raises(ConfigError, match=r"python-math: .*colour"):
        load("agentrl.envs.python_math:PythonMath?colour=red")()
