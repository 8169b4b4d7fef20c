"""Compute what TRL's own trainers give for small fixed batches; run by a Python that has TRL 1.16.

    python tests/objectives/trl_parity.py tests/objectives/trl_reference.json

The file that it writes holds the inputs too, so that the comparison needs no TRL. Trainers are built as a user would build them.
What is replaced is only what feeds them: generation (fixed token ids) and the network (a table of logits, a leaf tensor in float64,
so that gradients can be read off it). Rewards, advantages, ratios, clips, KL and reductions run TRL's lines, unchanged.

`advantages` and `losses` are GRPO and RLOO; `more_advantages` and `more_losses` the other objectives of TRL 1.16 (`trl_grpo.py`,
`trl_pairs.py`). `removed` holds what TRL 1.12 had and 1.16 has not: `trl_removed.py` makes it, and it is kept here as it is.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from trl import __version__ as trl_version
from trl_grpo import more_advantages, surrogates
from trl_pairs import pair_losses, regressions
from trl_stubs import (
    GROUP,
    LENGTHS,
    MAX_TOKENS,
    PROMPT,
    make_inputs,
    make_more_inputs,
    make_trainer,
    mask,
    padded,
    policy_of,
    ragged,
    write,
)

REWARDS = [1.0, 0.0, 0.25, 0.0, 0.5, -1.0, 2.0, 0.75]

ADVANTAGE_CASES = [
    {"trainer": "grpo", "rewards": REWARDS, "scale_rewards": "group"},
    {"trainer": "grpo", "rewards": REWARDS, "scale_rewards": "batch"},
    {"trainer": "grpo", "rewards": REWARDS, "scale_rewards": "none"},
    {"trainer": "grpo", "rewards": [1.0, 0.0, None, None, 0.0, 0.95, 0.95, 0.95], "scale_rewards": "group"},
    {"trainer": "grpo", "rewards": [0.5, 0.5, 0.5, 0.5, 0.3, None, None, None], "scale_rewards": "group"},
    {"trainer": "grpo", "rewards": [1.0, 0.0, None, None, 0.0, 0.95, 0.95, 0.95], "scale_rewards": "batch"},
    {"trainer": "rloo", "rewards": REWARDS, "beta": 0.0},
    {"trainer": "rloo", "rewards": REWARDS, "beta": 0.05},
    {"trainer": "rloo", "rewards": [1.0, 0.0, None, None, 0.3, None, None, None], "beta": 0.05},
    {"trainer": "rloo", "rewards": REWARDS, "beta": 0.5, "normalize_advantages": True},
]
LOSS_CASES = [
    {"trainer": "grpo", "loss_type": "grpo"},
    {"trainer": "grpo", "loss_type": "dapo", "epsilon_high": 0.28},
    {"trainer": "grpo", "loss_type": "bnpo"},
    {"trainer": "grpo", "loss_type": "dr_grpo"},
    {"trainer": "grpo", "loss_type": "grpo", "delta": 1.5},
    {"trainer": "grpo", "loss_type": "grpo", "beta": 0.04},
    {"trainer": "grpo", "loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False},
    {"trainer": "grpo", "loss_type": "dapo", "epsilon": 0.1, "epsilon_high": 0.5, "delta": 2.0, "beta": 0.3},
    {"trainer": "rloo"},
    {"trainer": "rloo", "epsilon": 0.1, "epsilon_high": 0.5},
]


def advantages_of(case: dict[str, object], inputs: dict[str, list], folder: str) -> list[float]:
    """TRL's rewards-to-advantages, on fixed completions."""

    def reward(prompts: list[str], completions: list[str], **columns: object) -> list[float | None]:
        return case["rewards"]

    trainer = make_trainer(case, folder, reward)
    prompts, ids = [PROMPT] * len(LENGTHS), inputs["ids"]
    texts = ["x"] * len(ids)
    generated = (prompts, ids, None, texts, None, {}, None, []) if case["trainer"] == "grpo" else (prompts, ids, texts)
    trainer._generate = lambda _: generated

    def scored(model: object, *args: object, **options: object) -> tuple[torch.Tensor, None, None]:
        return padded(inputs["reference"] if model is trainer.ref_model else inputs["sampler"]), None, None

    trainer._get_per_token_logps_and_entropies = scored
    trainer.model.train()
    return trainer._generate_and_score_completions([{"prompt": "a b"}] * len(ids))["advantages"].tolist()


def loss_of(case: dict[str, object], inputs: dict[str, list], folder: str) -> dict[str, object]:
    """TRL's `_compute_loss` in float64, its gradient with respect to the table of logits, and its clip metrics."""
    trainer = make_trainer(case, folder, lambda prompts, **columns: [0.0] * len(prompts))
    ids, network = padded(inputs["ids"]), policy_of(inputs)
    batch = {
        "prompt_ids": torch.full((len(ids), 2), 2),
        "prompt_mask": torch.ones(len(ids), 2, dtype=torch.long),
        "completion_ids": ids,
        "completion_mask": mask(),
        "advantages": torch.tensor(inputs["advantages"], dtype=torch.float64),
        "old_per_token_logps": padded(inputs["sampler"]),
        "old_logps": (padded(inputs["sampler"]) * mask()).sum(1),
        "ref_per_token_logps": padded(inputs["reference"]),
        "num_items_in_batch": mask().sum(),
    }
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer._compute_loss(network, batch)
    (gradient,) = torch.autograd.grad(loss, network.leaf)
    metrics = {name: values[0] for name, values in trainer._metrics["train"].items() if name == "kl" or name.startswith("clip_ratio/")}
    return {"loss": loss.item(), "gradient": ragged(gradient), "metrics": metrics}


def main(path: Path) -> None:
    inputs = make_inputs()
    more = make_more_inputs(inputs)
    stored = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        result = {
            "trl": trl_version,
            "group_size": GROUP,
            "max_tokens": MAX_TOKENS,
            "inputs": inputs,
            "advantages": [{"case": case, "advantages": advantages_of(case, inputs, folder)} for case in ADVANTAGE_CASES],
            "losses": [{"case": case, **loss_of(case, inputs, folder)} for case in LOSS_CASES],
            "more_inputs": more,
            "more_advantages": more_advantages(inputs, folder),
            "more_losses": surrogates(inputs | more, folder) + regressions(inputs, folder) + pair_losses(inputs, folder),
        }
    write(path, result | {key: stored[key] for key in ("removed",) if key in stored})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
