"""A killed offline run goes on to the very same parameters as one that was not, whatever of its state there is to restore."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from learner_fakes import tiny_model
from safetensors.torch import load_file
from test_run import Silent

from agentrl import runfile
from agentrl.quickstart.tokenizer import build_tokenizer
from agentrl.run import train
from agentrl.run_folder import read_metrics

WORDS = ["red", "green", "blue", "one", "two", "three", "north", "south"]
ROWS = 18
BATCH_SIZE = 4

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


class Killed(Exception):
    """Ends a run as a kill does: nothing is written after it."""


class KilledAt(Silent):
    """A progress that ends the run when a step is done."""

    def __init__(self, step):
        super().__init__()
        self._step = step

    def step(self, metrics):
        if metrics["step"] == self._step:
            raise Killed


def text(draw, longest):
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, longest)))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Files with ragged rows, by schema."""
    draw, folder = random.Random(0), tmp_path_factory.mktemp("rows")
    supervised = [{"prompt": text(draw, 3), "completion": " " + text(draw, 5)} for _ in range(ROWS)]
    pairs = [{"prompt": text(draw, 3), "chosen": " " + text(draw, 5), "rejected": " " + text(draw, 5)} for _ in range(ROWS)]
    unpaired = [row | {"label": draw.random() < 0.5} for row in supervised]
    steps = [[text(draw, 4) for _ in range(draw.randint(1, 4))] for _ in range(ROWS)]
    stepwise = [{"prompt": text(draw, 3), "completions": one, "labels": [draw.random() < 0.5 for _ in one]} for one in steps]
    prompts = [{"prompt": row["prompt"]} for row in supervised]
    files = {"sft": supervised, "gold": supervised, "gkd": prompts, "dpo": pairs, "kto": unpaired, "process_reward_model": stepwise}
    for name, content in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return folder


@pytest.fixture(scope="module")
def foreign_teacher(tmp_path_factory):
    """A model whose tokenizer has other words than the quickstart model's."""
    folder = tmp_path_factory.mktemp("foreign")
    tokenizer = build_tokenizer([" ".join(WORDS)], vocabulary=300)
    tiny_model(folder, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def adapter(rows, tmp_path_factory):
    """An adapter on the quickstart model, to go on from."""
    folder = tmp_path_factory.mktemp("first")
    run(config_of("sft", rows, folder / "run", learner={"lora": {"rank": 4, "variant": "rslora"}}, epochs=1))
    return str(folder / "run" / "model" / "adapter")


def config_of(objective, rows, output, *, learner=None, data=None, epochs=3, **rest):
    name = objective if isinstance(objective, str) else objective["name"]
    return runfile.from_mapping(
        {
            "model": "quickstart",
            "objective": objective,
            "dataset": str(rows / f"{name}.jsonl"),
            "output": str(output),
            "epochs": epochs,
            "batch_size": BATCH_SIZE,
            "checkpoint": {"every": 3},
            "learner": {"device": "cpu", "lr": 1e-3, "threads": 1, "schedule": "cosine", "warmup_steps": 2} | (learner or {}),
            "data": data or {},
        }
        | rest
    )


def setting(name, foreign_teacher):
    """Objective and options, with a teacher where the objective has one."""
    objective, options = SETTINGS[name]
    return objective, options | ({"teacher": foreign_teacher} if name == "gold" else {})


def run(config, *, resume=False, killed_at=None):
    train(config, resume=Path(config.output) if resume else None, progress=KilledAt(killed_at))


def final(folder):
    """Every tensor that a run left, by file and name."""
    files = sorted((folder / "model").rglob("*.safetensors"))
    return {f"{path.relative_to(folder)}:{name}": tensor for path in files for name, tensor in load_file(path).items()}


def same_end(left, right):
    """Assert that two runs ended alike: parameters bit for bit, and what each step said."""
    expected, found = final(left), final(right)
    assert expected.keys() == found.keys()
    assert [name for name, tensor in expected.items() if not tensor.equal(found[name])] == []
    timed = ("time/", "tokens_per_s", "lineage", "learner/gib")
    first, second = (
        [{name: value for name, value in metrics.items() if not name.startswith(timed)} for metrics in read_metrics(folder)]
        for folder in (left, right)
    )
    assert first == second


DPO = {"name": "dpo", "beta": 0.3}
BEMA = {"kind": "bema", "every": 2}
PACKED = {"data": {"packing": "bfd", "max_length": 64}, "batch_size": 2}
SETTINGS = {
    "sft": ("sft", {}),
    "sft_packed": ("sft", PACKED),
    "sft_split": ("sft", {"data": {"packing": "bfd_split", "max_length": 32}}),
    "sft_streamed": ("sft", {"data": {"streaming": True}, "steps": 12, "epochs": None}),
    "sft_lora": ("sft", {"learner": {"lora": {"rank": 4}}}),
    "sft_dora_packed_bema": (
        "sft",
        PACKED | {"learner": {"lora": {"rank": 4, "variant": "dora"}, "ema": BEMA}},
    ),
    "sft_ema": ("sft", {"learner": {"ema": {"decay": 0.9, "after": 4}}}),
    "sft_int8": ("sft", {"learner": {"lora": {"rank": 4, "quantize": "8bit"}}}),
    "dpo": (DPO, {}),
    "dpo_lora": (DPO, {"learner": {"lora": {"rank": 4}}}),
    "dpo_dora_ema": (DPO, {"learner": {"lora": {"rank": 4, "variant": "dora"}, "ema": {"decay": 0.8, "every": 2}}}),
    "dpo_moving_reference": (DPO, {"learner": {"reference_sync": {"every": 2, "rate": 0.5}, "ema": BEMA}}),
    "kto": ("kto", {}),
    "process_reward_model": ("process_reward_model", {}),
    "gold": ({"name": "gold", "crossentropy_weight": 0.5}, {}),
    "gkd_written": ({"name": "gkd", "seq_kd": True}, {"teacher": "quickstart", "sampling": {"max_tokens": 6, "temperature": 1.3}}),
}
"""Objective and options by name."""
QUICK = ("sft", "sft_streamed", "sft_dora_packed_bema", "dpo_lora", "dpo_moving_reference")


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS])
def test_a_killed_run_goes_on_to_the_very_same_parameters(name, rows, foreign_teacher, tmp_path):
    """Over the ends of epochs; killed at a step drawn anew each time, twice."""
    objective, options = setting(name, foreign_teacher)
    whole, cut = (config_of(objective, rows, tmp_path / part, **options) for part in ("whole", "cut"))
    run(whole)
    steps = len(read_metrics(tmp_path / "whole"))
    draw = random.Random()
    assert steps >= 6
    first = draw.randint(4, steps - 1)
    second = draw.randint(first, steps)
    with pytest.raises(Killed):
        run(cut, killed_at=first)
    with pytest.raises(Killed):
        run(cut, resume=True, killed_at=second)
    run(cut, resume=True)
    same_end(tmp_path / "whole", tmp_path / "cut")


def test_a_continued_adapter_and_the_reference_that_it_began_as_come_back(rows, adapter, tmp_path):
    learner = {"lora": {"adapter": adapter, "reference": "start"}}
    whole, cut = (config_of(DPO, rows, tmp_path / part, learner=learner) for part in ("whole", "cut"))
    run(whole)
    assert read_metrics(tmp_path / "whole")[0]["loss"] == pytest.approx(0.6931, abs=1e-4)  # policy and reference are one at the start
    with pytest.raises(Killed):
        run(cut, killed_at=7)
    run(cut, resume=True)
    same_end(tmp_path / "whole", tmp_path / "cut")


def test_a_streamed_run_goes_on_at_the_place_that_its_checkpoint_holds(rows, tmp_path):
    """Not at the start of the data, reading up to it: with another place in its checkpoint it trains other rows."""
    config = config_of("sft", rows, tmp_path / "run", data={"streaming": True, "shuffle": False}, steps=9, epochs=None)
    with pytest.raises(Killed):
        run(config, killed_at=4)
    state = tmp_path / "run" / "checkpoints" / "step-000003" / "run.json"
    kept = json.loads(state.read_bytes())
    assert kept["stream"]["used"] == 3 * BATCH_SIZE
    state.write_text(json.dumps(kept | {"stream": kept["stream"] | {"used": 0}}))
    run(config, resume=True)
    tokens = [metrics["num_tokens"] for metrics in read_metrics(tmp_path / "run")]
    assert tokens[3:6] == tokens[:3]
    assert len(set(tokens[:3])) > 1


def test_a_moving_reference_moves_in_an_offline_run(rows, tmp_path):
    """Replaced by the policy after each second step, it is the policy again: the loss of the next is log 2."""
    run(config_of(DPO, rows, tmp_path / "moved", learner={"reference_sync": {"every": 2, "rate": 1.0}}, epochs=1))
    losses = [metrics["loss"] for metrics in read_metrics(tmp_path / "moved")]
    assert losses[0] == pytest.approx(0.693147, abs=1e-5)
    assert losses[2] == pytest.approx(0.693147, abs=1e-5)
    assert losses[4] == pytest.approx(0.693147, abs=1e-5)
    assert losses[1] != pytest.approx(0.693147, abs=1e-4)
    assert losses[3] != pytest.approx(0.693147, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft_dora_packed_bema", "dpo_moving_reference", "kto", "process_reward_model", "gold", "gkd_written"])
def test_a_process_that_was_killed_at_a_random_moment_is_resumed(name, rows, foreign_teacher, tmp_path):
    """SIGKILL, a random while after a random step: in a step, between two, or in the writing of a checkpoint."""
    objective, options = setting(name, foreign_teacher)
    whole, cut = (config_of(objective, rows, tmp_path / part, **options) for part in ("whole", "cut"))
    run(whole)
    metrics = read_metrics(tmp_path / "whole")
    draw = random.Random()
    step = draw.randint(4, len(metrics) - 3)
    delay_s = draw.uniform(0.0, 2 * metrics[step]["time/step_s"])
    (tmp_path / "cut.yaml").write_text(runfile.dump(cut))
    command = [sys.executable, str(Path(__file__).parent / "killed_run.py"), str(tmp_path / "cut.yaml"), str(step), str(delay_s)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "cut" / "model").exists()
    run(cut, resume=True)
    same_end(tmp_path / "whole", tmp_path / "cut")
