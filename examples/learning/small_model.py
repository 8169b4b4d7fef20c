"""A small model that knows the forms of three further environments: `python examples/learning/small_model.py models/small`.

As the quickstart's model, of whose size it is (0.45 M parameters), it imitates a careless demonstrator from scratch: legal moves of Nim at
random, one-line functions of which most have a slip, and sums with forgotten carries. Only training tasks are shown. It takes some ten
minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.envs.nim import RULES, after, moves
from agentrl.quickstart.build import Recipe, build
from agentrl.quickstart.formats import Example, careless_sum
from agentrl.records import Task
from agentrl.registry import load

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping, Sequence

NIM = "agentrl.envs.nim:Nim"
CODE = "agentrl.envs.code:Code?tasks=tiny"
SUMS = "reasoning-gym:chain_sum?min_terms=2&max_terms=2&min_digits=2&max_digits=2&short=true&exact=true"
"""The environments, as the run files beside this one name them."""
SLIPS = 0.65
"""Share of functions that the demonstrator writes wrongly."""


@cache
def tasks(spec: str) -> Sequence[Mapping[str, Any]]:
    """The training rows of an environment."""
    rows: Any = load(spec)().tasks("train")
    return rows


def nim(stream: random.Random) -> Example:
    """A game between two that know the rules and nothing else, as the one who moves sees it."""
    row = stream.choice(tasks(NIM))
    heaps, messages, shown = tuple(row["heaps"]), [], False
    if not row["first"]:
        heaps = after(heaps, stream.choice(moves(heaps)))
    while any(heaps):
        text = "Heaps: " + " ".join(map(str, heaps))
        messages.append({"role": "user", "content": text if shown else f"{RULES}\n{text}"})
        shown = True
        heap, count = stream.choice(moves(heaps))
        messages.append({"role": "assistant", "content": f"{heap + 1} {count}"})
        heaps = after(heaps, (heap, count))
        if any(heaps):
            heaps = after(heaps, stream.choice(moves(heaps)))
    return Example(messages=messages)


def code(stream: random.Random) -> Example:
    """The expression that a description asks for, mostly with a slip."""
    row = stream.choice(tasks(CODE))
    solution = row["solution"]
    return Example(
        messages=[*row["prompt"], {"role": "assistant", "content": slipped(solution, stream) if stream.random() < SLIPS else solution}]
    )


def slipped(solution: str, stream: random.Random) -> str:
    """A solution with one thing wrong: brackets left out, another operator, another number."""
    kinds = [
        lambda text: text.replace("(", "").replace(")", "") if "*" in text else text,
        lambda text: text.translate(str.maketrans("+-*", stream.choice(("-+*", "*-+", "+*-")))),
        lambda text: re.sub(r"\d+", lambda found: str(int(found[0]) + stream.choice((-1, 1))), text, count=1),
        lambda text: text.replace("max", "min") if "max" in text else text.replace("min", "max"),
    ]
    stream.shuffle(kinds)
    return next((wrong for kind in kinds if (wrong := kind(solution)) != solution), solution)


def sums(stream: random.Random) -> Example:
    """A sum or a difference with the carries mostly forgotten."""
    row = stream.choice(tasks(SUMS))
    first, sign, second = re.fullmatch(r"(\d+) ([+-]) (\d+)", row["metadata"]["expression"]).groups()
    a, b = int(first), int(second)
    answer = careless_sum(a, b, stream) if sign == "+" else a - b + stream.choice((-10, 0, 0, 10, 1))
    prompt = load(SUMS)().start(Task.from_row(SUMS, row))
    return Example(messages=[*prompt, {"role": "assistant", "content": f"{answer}"}])


FORMATS = {"nim": (nim, 12), "code": (code, 32), "sums": (sums, 96)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a small model for the environments of examples/learning.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()

    def report(step: int, loss: float) -> None:
        if step % 100 == 0:
            print(json.dumps({"step": step, "loss": round(loss, 4)}), flush=True)

    build(options.folder, Recipe(steps=options.steps), report, FORMATS)


if __name__ == "__main__":
    main()
