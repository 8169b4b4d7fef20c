"""Datasets and reward functions in TRL's schema, played by the worker process of a run."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from agentrl import registry, wire
from agentrl.config import RunConfig
from agentrl.environment import Episode
from agentrl.records import Task
from agentrl.rollout.messages import Closed, Grade, Graded, Open, Opened, Ready, Response, Setup
from agentrl.rollout.rows import load_rows
from agentrl.session import environment_spec

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "trl_reward.py"
FUNCTIONS = """
import asyncio

def reward_len(completions, **kwargs):
    return [float(len(completion)) for completion in completions]

def exact(prompts, completions, ground_truth, log_extra=None, log_metric=None, **kwargs):
    given = [completion if isinstance(completion, str) else completion[0]["content"] for completion in completions]
    if log_extra:
        log_extra("given", given)
    if log_metric:
        log_metric("seen", len(given))
    return [1.0 if one == truth else 0.0 for one, truth in zip(given, ground_truth)]

def only_math(prompts, completions, task, **kwargs):
    return [1.0 if kind == "math" else None for kind in task]

async def only_code(prompts, completions, task, **kwargs):
    await asyncio.sleep(0.01)
    return [2.0 if kind == "code" else None for kind in task]

async def tokens(completion_ids, trainer_state=None, **kwargs):
    return [len(ids) for ids in completion_ids]
"""
ROWS = [
    {"prompt": "The sky is", "ground_truth": " blue", "task": "math"},
    {"prompt": [{"role": "user", "content": "Say blue."}], "ground_truth": "blue", "task": "code"},
    {"prompt": "Say nothing.", "ground_truth": "", "task": "other", "solution": None, "level": 3},
]


@contextmanager
def worker(spec, log):
    """The process that environments run in, spoken to as a run does."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "agentrl.rollout.host", str(theirs.fileno()), str(os.getpid())]
    with theirs, log.open("wb") as output:
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=output, stderr=output, start_new_session=True)
    with process:
        with ours:
            ours.settimeout(60)
            receiver = wire.Receiver(ours, Response)

            def ask(request):
                wire.send(ours, request)
                while isinstance(answer := receiver.receive(), Closed):
                    pass
                return answer

            assert ask(Setup(imports=[], spec=spec, max_output_chars=100)) == Ready()
            yield ask
        process.wait(60)


def score(ask, session, row, answer, ids=(1, 2)):
    opened = ask(Open(call=1, session=session, task=Task.from_row("dataset", row)))
    assert isinstance(opened, Opened)
    assert opened.prompt == row["prompt"]
    before = opened.prompt if isinstance(opened.prompt, list) else [{"role": "user", "content": opened.prompt}]
    messages = [*before, {"role": "assistant", "content": answer}]
    graded = ask(Grade(call=2, session=session, messages=messages, completion_ids=list(ids), ending="complete"))
    assert isinstance(graded, Graded), graded
    return graded.score


@pytest.fixture
def config(tmp_path):
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    names = ["exact", "only_math", "only_code", "tokens"]
    return RunConfig(
        model="m",
        dataset=str(tmp_path / "rows.jsonl"),
        rewards=[f"{tmp_path / 'functions.py'}:{name}" for name in names],
        reward_weights=[1.0, 0.5, 0.25, 0.125],
    )


def test_a_dataset_in_trls_schema_is_played_as_it_is(config, tmp_path):
    spec = environment_spec(config)
    assert list(load_rows(spec, "train", ())) == ROWS
    with worker(spec, tmp_path / "log") as ask:
        text, messages, other = (score(ask, number, row, row["ground_truth"]) for number, row in enumerate(ROWS, start=1))
        wrong = score(ask, 4, ROWS[0], "blue")
    assert (text.value, text.parts) == (1 + 0.5 + 0.25, {"exact": 1.0, "only_math": 1.0, "tokens": 2.0})
    assert (messages.value, messages.parts) == (1 + 2 * 0.25 + 0.25, {"exact": 1.0, "only_code": 2.0, "tokens": 2.0})
    assert (other.value, other.parts) == (1.25, {"exact": 1.0, "tokens": 2.0})
    assert wrong.value == 0.75


def test_a_row_that_no_function_knows_is_unscorable(config, tmp_path):
    partial = config.model_copy(update={"rewards": config.rewards[1:3], "reward_weights": []})
    with worker(environment_spec(partial), tmp_path / "log") as ask:
        scores = [score(ask, number, row, "x").value for number, row in enumerate(ROWS, start=1)]
    assert scores == [1.0, 2.0, None]


@pytest.mark.slow
@pytest.mark.trl
def test_sums_are_those_of_trls_trainer(config):
    """The trainer's own method over the whole batch, against ours over each row."""
    torch = pytest.importorskip("torch")
    trainer = pytest.importorskip("trl").GRPOTrainer
    environment = registry.load(environment_spec(config))()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    fake = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", is_main_process=True),
        args=SimpleNamespace(report_to=[]),
        state=SimpleNamespace(global_step=3),
        environments=None,
        reward_funcs=environment.rewards,
        reward_processing_classes=[None] * 4,
        reward_func_names=["exact", "only_math", "only_code", "tokens"],
        _log_completion_extra=lambda column, values: None,
        _log_metric=lambda name, value: None,
        async_loop=loop,
    )
    answers = [" blue", [{"role": "assistant", "content": "green"}], ""]
    ids = [[1], [1, 2], []]
    try:
        prompts = [row["prompt"] for row in ROWS]
        inputs = [{"solution": None, "level": None, **row} for row in ROWS]
        rewards = trainer._calculate_rewards.__wrapped__(fake, inputs, prompts, answers, ids)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()
    theirs = (rewards * torch.tensor(config.reward_weights)).nansum(dim=1).tolist()
    ours = []
    for row, answer, sampled in zip(ROWS, answers, ids, strict=True):
        plain = isinstance(row["prompt"], str)
        before = [{"role": "user", "content": row["prompt"]}] if plain else row["prompt"]
        episode = Episode(
            task=Task.from_row("dataset", row),
            prompt=row["prompt"],
            messages=[*before, *([{"role": "assistant", "content": answer}] if plain else answer)],
            completion_ids=sampled,
            ending="complete",
        )
        ours.append(asyncio.run(environment.score(episode)).value)
    assert ours == theirs == [1.625, 0.75, 1.0]


def test_the_example_runs_in_a_worker(tmp_path):
    example = registry.import_module(str(EXAMPLE))
    rows = example.rows()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RunConfig(
        model="m",
        dataset=str(tmp_path / "rows.jsonl"),
        rewards=[f"{EXAMPLE}:{name}" for name in ("correct", "brief", "boxed")],
        reward_weights=[1.0, 0.1, 0.5],
    )
    boxed = next(row for row in rows if row["task"] == "boxed")
    with worker(environment_spec(config), tmp_path / "log") as ask:
        assert score(ask, 1, rows[0], f"It is {rows[0]['ground_truth']}.").value == pytest.approx(1 - 0.002)
        assert score(ask, 2, boxed, "\\boxed{5}").value == pytest.approx(0.5 - 0.002)
        assert score(ask, 3, boxed, "no").parts == {"correct": 0.0, "brief": -0.02, "boxed": 0.0}
