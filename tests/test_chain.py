"""The chain of `examples/chain` from end to end, a few steps a stage, and what lies between its stages."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from agentrl.envs.arithmetic import arithmetic

CHAIN = Path(__file__).parents[1] / "examples" / "chain"
sys.path.insert(0, str(CHAIN))  # as for `python examples/chain/chain.py`

import pairs  # noqa: E402


def asked(rows):
    return {row["prompt"][0]["content"] for row in rows}


def test_no_stage_sees_a_held_out_sum_and_the_halves_share_none():
    held_out = asked(arithmetic().tasks("eval"))
    every, judged, ranked = (asked(pairs.training_sums(of)) for of in (None, "judged", "ranked"))
    assert len(every) == 3686
    assert not every & held_out
    assert not judged & ranked
    assert judged | ranked == every
    assert asked(pairs.demonstrations(0)) < every


def test_the_verifier_pairs_right_with_wrong_answers_only(tmp_path):
    def rollout(text, score, ending="complete"):
        messages = [{"role": "user", "content": "What is 1+2?"}, {"role": "assistant", "content": text}]
        return {"ending": ending, "score": {"value": score}, "messages": messages}

    groups = [
        [rollout("3", 1.0), rollout("4", 0.0), rollout("4", 0.0), rollout("33", 0.0, "truncated"), rollout("?", None)],
        [rollout("3", 1.0), rollout("3", 1.0)],
    ]
    pairs.write(tmp_path / "rollouts.jsonl", [{"rollouts": group} for group in groups])
    made = pairs.judged(pairs.answered(tmp_path / "rollouts.jsonl"), seed=0)
    assert [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in made] == [("3", "4")]


@pytest.mark.slow
@pytest.mark.timeout(900)  # eighteen commands one after the other
def test_the_chain_runs_from_its_run_files(tmp_path):
    small = ("--steps", "2", "--sums", "48", "--samples", "4", "--num-tasks", "6")
    command = [sys.executable, str(CHAIN / "chain.py"), "--folder", str(tmp_path / "chain"), *small]
    done = subprocess.run(command, capture_output=True, text=True, timeout=880, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line.startswith("| 0 |")]
    assert [row[2] for row in rows] == ["", "sft", "reward_model", "dpo", "dpo", "grpo", "", "gkd", "sft"]
    assert [row[3] for row in rows] == ["0", *["2"] * 5, "0", "2", "2"]
    shares = [float(row[5].split()[0]) for row in rows if row[5]]
    assert len(shares) == 8
    assert all(0 <= share <= 1 and math.isfinite(share) for share in shares)
    folder = tmp_path / "chain" / "seed-0"
    answers = json.loads((folder / "data" / "ranked.jsonl").read_text().splitlines()[0])
    assert answers["chosen"] != answers["rejected"]
