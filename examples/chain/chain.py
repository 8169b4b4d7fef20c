"""The stages of a real project in one go, on a model of 0.45 M parameters: SFT, reward model, DPO, GRPO, distillation; prints a table.

    python examples/chain/chain.py
    python examples/chain/chain.py --seeds 3 --folder runs/three

Every stage is a run file beside this script; only what lies between the stages is made here and in `pairs.py`. Held-out accuracy is the
math verifier's, on the sums that no stage trains on, as the policy samples at temperature 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pairs
from parts import HALVES

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent

HEADER = "| seed | stage | objective | steps | seconds | held-out accuracy (95%) | |\n|---|---|---|---|---|---|---|"

WARM = 1.3
"""Temperature of the samples that pairs are made of. At 1 nearly all wrong answers are forgotten carries, from which a reward model
learns that larger is better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is done; the command line's defaults are those of the README's table."""

    samples: int
    """Of each sum, for pairs."""
    sums: int | None
    """Sums of each half of the training sums that are sampled; None: all."""
    steps: int | None
    """Most optimizer steps of a stage; None: as its run file says."""
    num_tasks: int | None
    """Held-out sums; None: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A line of the table."""

    seed: int
    stage: str
    objective: str = ""
    steps: int = 0
    seconds: float = 0.0
    """Of the stage, with the sampling that makes its data and without the evaluation."""
    accuracy: str = ""
    """Share of right answers to held-out sums, in words; empty for a reward model."""
    note: str = ""

    def line(self) -> str:
        """As Markdown."""
        cells = (self.seed, self.stage, self.objective, self.steps, f"{self.seconds:.0f}", self.accuracy, self.note)
        return "| " + " | ".join(map(str, cells)) + " |"


class Chain:
    """One seed's chain, in a folder of its own.

    Args:
        folder: of the data and of the run folders; must not be there yet.
        seed: of weights, data, order and samples.
        size: how much is done.
    """

    def __init__(self, folder: Path, seed: int, size: Size) -> None:
        self._folder, self._seed, self._size = folder, seed, size
        self._data = folder / "data"
        self._data.mkdir(parents=True)

    def stages(self) -> Iterator[Stage]:
        """The stages and the controls in turn, each once it is done."""
        yield Stage(seed=self._seed, stage="the quickstart's model", accuracy=self._accuracy("quickstart"))
        pairs.write(self._data / "demonstrations.jsonl", pairs.demonstrations(self._seed))
        pairs.write(self._data / "prompts.jsonl", pairs.training_sums())
        yield self._stage("SFT", "sft", dataset=self._file("demonstrations"), note=f"{pairs.DEMONSTRATIONS} right answers")
        yield self._reward_model()
        yield from self._dpo()
        reward = f"agentrl.rewards.reward_model:reward_model?model={self._model('reward_model')}"
        yield self._stage("GRPO", "grpo", model=self._model("dpo"), dataset=self._file("prompts"), rewards=json.dumps([reward]))
        yield from self._distillation()

    def _reward_model(self) -> Stage:
        started = time.perf_counter()
        made = pairs.judged(self._sampled("judged", "sft", self._size.samples), self._seed)
        pairs.write(self._data / "judged.jsonl", made)
        spent = time.perf_counter() - started
        note = f"{len(made)} pairs"
        return self._stage("reward model", "reward_model", spent, note, model=self._model("sft"), dataset=self._file("judged"))

    def _dpo(self) -> Iterator[Stage]:
        started = time.perf_counter()
        made, best = pairs.ranked(self._sampled("ranked", "sft", self._size.samples), self._model("reward_model"))
        pairs.write(self._data / "ranked.jsonl", made)
        spent = time.perf_counter() - started
        note = f"{len(made)} pairs; of sums with right and wrong answers it likes a right one best in {best:.3f}"
        given = {"model": self._model("sft"), "dataset": self._file("ranked")}
        yield self._stage("DPO", "dpo", spent, note, **given)
        yield self._stage("control: DPO, learning rate 0", "dpo", name="dpo-lr-0", **given, **{"learner.lr": "0"})

    def _distillation(self) -> Iterator[Stage]:
        started = time.perf_counter()
        made = pairs.texts([one for of in HALVES for one in self._sampled(of, "grpo", samples=1)])
        pairs.write(self._data / "texts.jsonl", made)
        spent = time.perf_counter() - started
        student = {"model": pairs.student(self._folder / "student-start")}
        yield Stage(seed=self._seed, stage="student: one layer of two", accuracy=self._accuracy(student["model"]))
        taught = {"dataset": self._file("texts"), "teacher": self._model("grpo")}
        yield self._stage("student with a teacher", "distil", spent, f"{len(made)} texts of the teacher's", **student, **taught)
        alone = {"dataset": self._file("demonstrations"), "objective": "sft", "teacher": "[]", "epochs": "null"}
        steps = str(last_line(self._folder / "distil" / "metrics.jsonl")["step"])
        note = "SFT on the demonstrations, as many steps"
        yield self._stage("control: student without a teacher", "distil", 0.0, note, name="student-alone", **student, **alone, steps=steps)

    def _stage(self, stage: str, file: str, spent_s: float = 0.0, note: str = "", *, name: str | None = None, **changes: str) -> Stage:
        """Train by a run file, and play the held-out sums."""
        folder = self._folder / (name or file)
        limit = {} if self._size.steps is None else {"steps": str(self._size.steps)}
        if self._size.sums is not None and file != "grpo":
            limit["data.eval_rows"] = "8"
        sets = [part for key, value in ({**changes, **limit, "seed": str(self._seed)}).items() for part in ("--set", f"{key}={value}")]
        started = time.perf_counter()
        self._agentrl("train", str(HERE / f"{file}.yaml"), "--output", str(folder), *sets)
        seconds = time.perf_counter() - started + spent_s
        objective = changes.get("objective", "gkd" if file == "distil" else file)
        steps = last_line(folder / "metrics.jsonl")["step"]
        if file == "reward_model":
            accuracy, note = "", f"{note}; {last_line(folder / 'evaluations.jsonl')['eval_accuracy']:.3f} of held-out pairs in order"
        else:
            accuracy = self._accuracy(str(folder / "model"))
        return Stage(seed=self._seed, stage=stage, objective=objective, steps=steps, seconds=seconds, accuracy=accuracy, note=note)

    def _sampled(self, of: str, stage: str, samples: int) -> list[pairs.Answered]:
        """What the model of a stage answers to a half of the training sums."""
        output = self._folder / f"samples-{stage}-{of}"
        spec = f"{HERE / 'parts.py'}:part?of={of}" + ("" if self._size.sums is None else f"&most={self._size.sums}")
        self._play(spec, self._model(stage), samples, "--output", str(output), "--temperature", "1" if samples == 1 else str(WARM))
        return pairs.answered(output / "rollouts.jsonl")

    def _accuracy(self, model: str) -> str:
        count = () if self._size.num_tasks is None else ("--num-tasks", str(self._size.num_tasks))
        found = self._play("arithmetic", model, 4, "--json", *count)
        result: dict[str, Any] = json.loads(found.strip().splitlines()[-1])
        low, high = result["interval"]
        return f"{result['mean']:.3f} ({low:.3f} to {high:.3f})"

    def _play(self, env: str, model: str, samples: int, *options: str) -> str:
        asked = ("--env", env, "--model", model, "--samples", str(samples), "--set", "sampling.max_tokens=8", "--seed", str(self._seed))
        return self._agentrl("eval", *asked, *options)

    def _agentrl(self, *arguments: str) -> str:
        """Run the command; what it printed, which goes to log.txt too."""
        done = subprocess.run([sys.executable, "-m", "agentrl", *arguments], stdout=subprocess.PIPE, text=True, check=True)
        with (self._folder / "log.txt").open("a") as log:
            print("agentrl", *arguments, done.stdout, sep="\n", file=log)
        return done.stdout

    def _model(self, name: str) -> str:
        return str(self._folder / name / "model")

    def _file(self, name: str) -> str:
        return str(self._data / f"{name}.jsonl")


def last_line(path: Path) -> dict[str, Any]:
    """The newest object of a file of JSON lines."""
    found: dict[str, Any] = json.loads(path.read_text().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/chain"), help="for everything that is made; a folder a seed in it")
    parser.add_argument("--seeds", type=int, default=1, help="so many, from 0")
    parser.add_argument("--samples", type=int, default=8, help="of each sum, for pairs")
    parser.add_argument("--sums", type=int, help="of each half of the training sums, to sample; all by default")
    parser.add_argument("--steps", type=int, help="most steps of a stage; by default as its run file says")
    parser.add_argument("--num-tasks", type=int, help="held-out sums; all by default")
    options = parser.parse_args()
    size = Size(samples=options.samples, sums=options.sums, steps=options.steps, num_tasks=options.num_tasks)
    started = time.perf_counter()
    print(HEADER, flush=True)
    for seed in range(options.seeds):
        folder = options.folder / f"seed-{seed}"
        if folder.exists():
            parser.error(f"{folder} is there already; remove it, or give another --folder")
        for stage in Chain(folder, seed, size).stages():
            print(stage.line(), flush=True)
    print(f"\n{(time.perf_counter() - started) / 60:.1f} minutes, evaluations included")


if __name__ == "__main__":
    main()
