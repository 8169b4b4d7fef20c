"""What four kinds of environments teach a small model: held-out reward before and after, with paired 95% intervals; one JSON line each.

    python examples/learning/gains.py
    python examples/learning/gains.py --only code --seed 1

`lookup`: several turns with tools. `code`: functions scored by unit tests in sandboxes. `reasoning`: a task of reasoning-gym through its
adapter. `nim`: self-play, rated in games against the model as it began. Evaluation tasks occur in no training; the same ones are played
before and after, as the policy samples in training. The control trains `code` with a learning rate of 0.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

from paired_gain import summary

HERE = Path(__file__).resolve().parent
NAMES = ("lookup", "code", "reasoning", "nim")
RATED_BY = {"nim": "nim_rating"}
"""Another run file for the evaluation."""
NUM_TASKS = 400


def agentrl(*arguments: str) -> str:
    """Run the command; what it printed. A run that fails shows its own words."""
    done = subprocess.run([sys.executable, "-m", "agentrl", *arguments], cwd=HERE, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def evaluate(name: str, model: str, small: str) -> dict[str, float]:
    """Mean reward of each held-out task."""
    file = f"{RATED_BY.get(name, name)}.yaml"
    begun = ["--set", f"policies.begun.model={small}"] if name == "nim" else []
    result: dict[str, Any] = json.loads(agentrl("eval", file, "--model", model, "--num-tasks", str(NUM_TASKS), *begun, "--json"))
    return dict(result["task_means"])


def measure(name: str, folder: Path, small: str, seed: int, *changes: str) -> dict[str, Any]:
    """Evaluate, train, evaluate."""
    model = "quickstart" if name == "lookup" else small
    before = evaluate(name, model, small)
    started = time.perf_counter()
    sets = [part for change in (f"seed={seed}", f"model={model}", *changes) for part in ("--set", change)]
    agentrl("train", f"{name}.yaml", "--output", str(folder), *sets)
    seconds = time.perf_counter() - started
    after = evaluate(name, str(folder / "model"), small)
    return {"environment": name, "seed": seed, **summary(before, after), "train_s": round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=(*NAMES, "control"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", type=Path, help="the model of small_model.py; made where there is none")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        small = (options.small or Path(scratch) / "small").resolve()
        if not (small / "config.json").exists():
            subprocess.run([sys.executable, str(HERE / "small_model.py"), str(small)], stdout=sys.stderr, check=True)
        for name in options.only or (*NAMES, "control"):
            folder = Path(scratch) / name
            if name == "control":
                line = measure("code", folder, str(small), options.seed, "learner.lr=0") | {"environment": "code, learning rate 0"}
            else:
                line = measure(name, folder, str(small), options.seed)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
