"""Compute what TRL's own GRPO and RLOO code gives for small fixed batches; run by a Python that has TRL 1.16.

    python tests/objectives/trl_parity.py tests/objectives/trl_reference.json

The file that it writes holds the inputs too, so that the comparison needs no TRL. Trainers are built as a user would build them.
What is replaced is only what feeds them: generation (fixed token ids) and the network (a table of logits, a leaf tensor in float64,
so that gradients can be read off it). Rewards, advantages, ratios, clips, KL and reductions run TRL's lines, unchanged.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl import __version__ as trl_version

VOCABULARY = 7
LENGTHS = [3, 1, 4, 2, 4, 4, 2, 1]
MAX_TOKENS = 5
GROUP = 4
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


def make_inputs() -> dict[str, list[list[float]]]:
    """Ids, the table of logits, and log-probs of a sampler and a reference that lie off the policy's by up to a nat."""
    draw = random.Random(7)
    ids = [[draw.randrange(2, VOCABULARY) for _ in range(length)] for length in LENGTHS]
    logits = [[[draw.gauss(0, 1) for _ in range(VOCABULARY)] for _ in range(length)] for length in LENGTHS]
    now = [torch.tensor(row, dtype=torch.float64).log_softmax(-1)[range(len(row)), tokens] for row, tokens in zip(logits, ids, strict=True)]
    sampler = [[value - draw.gauss(0, 0.4) for value in row.tolist()] for row in now]
    reference = [[value + draw.gauss(0, 0.5) for value in row.tolist()] for row in now]
    return {"ids": ids, "logits": logits, "sampler": sampler, "reference": reference, "advantages": [draw.gauss(0, 1) for _ in ids]}


def make_trainer(case: dict[str, object], folder: str, reward: object) -> GRPOTrainer | RLOOTrainer:
    words = {"<pad>": 0, "<eos>": 1, "a": 2, "b": 3, "c": 4, "d": 5, "e": 6}
    core = Tokenizer(WordLevel(words, unk_token="a"))
    core.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", padding_side="left")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    Qwen3ForCausalLM(Qwen3Config(vocab_size=VOCABULARY, head_dim=16, **sizes)).save_pretrained(folder)
    options = {key: value for key, value in case.items() if key not in ("trainer", "rewards")}
    config, trainer = (GRPOConfig, GRPOTrainer) if case["trainer"] == "grpo" else (RLOOConfig, RLOOTrainer)
    args = config(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=len(LENGTHS),
        num_generations=GROUP,
        max_completion_length=MAX_TOKENS,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        **{"beta": 0.0, **options},
    )
    return trainer(
        model=folder, args=args, reward_funcs=reward, train_dataset=Dataset.from_dict({"prompt": ["a b"] * 4}), processing_class=tokenizer
    )


def padded(rows: list[list[float]], value: float = 0.0) -> torch.Tensor:
    width = max(map(len, rows))
    kind = torch.int64 if isinstance(rows[0][0], int) else torch.float64
    return torch.tensor([row + [type(row[0])(value)] * (width - len(row)) for row in rows], dtype=kind)


def advantages_of(case: dict[str, object], inputs: dict[str, list], folder: str) -> list[float]:
    """TRL's rewards-to-advantages, on fixed completions."""

    def reward(prompts: list[str], completions: list[str], **columns: object) -> list[float | None]:
        return case["rewards"]

    trainer = make_trainer(case, folder, reward)
    prompts, ids = [[2, 3]] * len(LENGTHS), inputs["ids"]
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
    width = max(LENGTHS)
    tables = [row + [[0.0] * VOCABULARY] * (width - len(row)) for row in inputs["logits"]]
    leaf = torch.tensor(tables, dtype=torch.float64, requires_grad=True)
    ids = padded(inputs["ids"])
    mask = (torch.arange(width)[None] < torch.tensor(LENGTHS)[:, None]).long()

    def network(**options: object) -> SimpleNamespace:
        scores = leaf.log_softmax(-1)
        chosen = scores.gather(-1, ids[..., None]).squeeze(-1)
        prompt = chosen.new_zeros(len(ids), 2)
        return SimpleNamespace(log_probs=torch.cat([prompt, chosen], 1), entropy=torch.cat([prompt, -(scores.exp() * scores).sum(-1)], 1))

    batch = {
        "prompt_ids": torch.full((len(ids), 2), 2),
        "prompt_mask": torch.ones(len(ids), 2, dtype=torch.long),
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": torch.tensor(inputs["advantages"], dtype=torch.float64),
        "old_per_token_logps": padded(inputs["sampler"]),
        "old_logps": (padded(inputs["sampler"]) * mask).sum(1),
        "ref_per_token_logps": padded(inputs["reference"]),
        "num_items_in_batch": mask.sum(),
    }
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer._compute_loss(network, batch)
    (gradient,) = torch.autograd.grad(loss, leaf)
    metrics = {name: values[0] for name, values in trainer._metrics["train"].items() if name == "kl" or name.startswith("clip_ratio/")}
    return {
        "loss": loss.item(),
        "gradient": [row[:length].tolist() for row, length in zip(gradient, LENGTHS, strict=True)],
        "metrics": metrics,
    }


def main(path: Path) -> None:
    inputs = make_inputs()
    with tempfile.TemporaryDirectory() as folder:
        advantages = [{"case": case, "advantages": advantages_of(case, inputs, folder)} for case in ADVANTAGE_CASES]
        losses = [{"case": case, **loss_of(case, inputs, folder)} for case in LOSS_CASES]
    result = {
        "trl": trl_version,
        "group_size": GROUP,
        "max_tokens": MAX_TOKENS,
        "inputs": inputs,
        "advantages": advantages,
        "losses": losses,
    }
    path.write_text("{\n" + ",\n".join(f"{json.dumps(key)}: {_lines(value)}" for key, value in result.items()) + "\n}\n")


def _lines(value: object) -> str:
    """JSON with one line an entry, so that a change shows in a diff."""
    if isinstance(value, dict):
        return "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(inner)}" for key, inner in value.items()) + "}"
    return "[\n" + ",\n".join(map(json.dumps, value)) + "]" if isinstance(value, list) else json.dumps(value)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
