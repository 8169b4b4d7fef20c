"""Fixed inputs for TRL's trainers and what stands in for generation and the network; used by the `trl_*.py` scripts."""

from __future__ import annotations

import json
import math
import random
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VOCABULARY = 7
LENGTHS = [3, 1, 4, 2, 4, 4, 2, 1]
WIDTH = max(LENGTHS)
PROMPT = [2, 3]
MAX_TOKENS = 5
GROUP = 4
PAIR_REWARDS = [1.0, 0.0, 0.25, 0.5, 0.5, -0.5, -1.0, 0.75]
"""Of rollouts 2k and 2k + 1, a pair each: the policy's and its rival's."""
TIED_REWARDS = [1.0, 1.0, 0.25, 0.5, 0.5, 0.5, -1.0, 0.75]
KINDS = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}
NOT_OPTIONS = {"trainer", "rewards", "end_ids", "calls", "use_vllm"}
"""Keys of a case that describe the inputs, not the trainer's configuration (a real `use_vllm` would start an engine)."""


def make_inputs() -> dict[str, list[list[float]]]:
    """Ids, the table of logits, and log-probs of a sampler and a reference that lie off the policy's by up to a nat."""
    draw = random.Random(7)
    ids = [[draw.randrange(2, VOCABULARY) for _ in range(length)] for length in LENGTHS]
    logits = [[[draw.gauss(0, 1) for _ in range(VOCABULARY)] for _ in range(length)] for length in LENGTHS]
    now = [torch.tensor(row, dtype=torch.float64).log_softmax(-1)[range(len(row)), tokens] for row, tokens in zip(logits, ids, strict=True)]
    sampler = [[value - draw.gauss(0, 0.4) for value in row.tolist()] for row in now]
    reference = [[value + draw.gauss(0, 0.5) for value in row.tolist()] for row in now]
    return {"ids": ids, "logits": logits, "sampler": sampler, "reference": reference, "advantages": [draw.gauss(0, 1) for _ in ids]}


def make_more_inputs(inputs: dict[str, list]) -> dict[str, list]:
    """What only some objectives read.

    `recomputed` are the trainer's own log-probs before the update (TRL's `old_per_token_logps` where vLLM sampled), between the
    sampler's and the policy's. `values` and `value_predictions` are the critic's before and in the update, one a token.
    """
    draw = random.Random(11)
    recomputed = []
    for ids, table, sampler in zip(inputs["ids"], inputs["logits"], inputs["sampler"], strict=True):
        now = torch.tensor(table, dtype=torch.float64).log_softmax(-1)[range(len(ids)), ids].tolist()
        recomputed.append([(a + b) / 2 + draw.gauss(0, 0.15) for a, b in zip(now, sampler, strict=True)])
    values = [[draw.gauss(0, 0.7) for _ in range(length)] for length in LENGTHS]
    predictions = [[value + draw.gauss(0, 0.3) for value in row] for row in values]
    return {"recomputed": recomputed, "values": values, "value_predictions": predictions}


def padded(rows: list[list[float]], value: float = 0.0) -> torch.Tensor:
    width = max(map(len, rows))
    kind = torch.int64 if isinstance(rows[0][0], int) else torch.float64
    return torch.tensor([row + [type(row[0])(value)] * (width - len(row)) for row in rows], dtype=kind)


def mask() -> torch.Tensor:
    return (torch.arange(WIDTH)[None] < torch.tensor(LENGTHS)[:, None]).long()


def with_prompt(completions: torch.Tensor, fill: torch.Tensor | None = None) -> torch.Tensor:
    start = torch.tensor(PROMPT) if fill is None else fill
    return torch.cat([start.expand(len(completions), len(PROMPT)), completions], 1)


class TableNetwork:
    """Stands for a causal LM: its logits are looked up in a table, by the completion's ids, whatever the prompt."""

    def __init__(self, tables: list[list[list[float]]], ids: list[list[int]]) -> None:
        full = [table + [[0.0] * VOCABULARY] * (WIDTH - len(table)) for table in tables]
        self.leaf = torch.tensor(full, dtype=torch.float64, requires_grad=True)
        self.rows = {tuple(row): index for index, row in enumerate(padded(ids).tolist())}
        assert len(self.rows) == len(ids)

    def __call__(self, input_ids: torch.Tensor, **options: object) -> SimpleNamespace:
        completions = input_ids[:, len(PROMPT) :]
        table = self.leaf[[self.rows[tuple(row)] for row in completions.tolist()]]
        scores = table.log_softmax(-1)
        chosen = scores.gather(-1, completions[..., None]).squeeze(-1)
        blank = chosen.new_zeros(len(completions), len(PROMPT))
        entropy = -(scores.exp() * scores).sum(-1)
        before, after = blank[:, 1:, None].expand(-1, -1, VOCABULARY), blank[:, :1, None].expand(-1, -1, VOCABULARY)
        return SimpleNamespace(
            logits=torch.cat([before, table, after], 1),
            log_probs=torch.cat([blank, chosen], 1),
            entropy=torch.cat([blank, entropy], 1),
        )

    def train(self) -> None:
        """TRL's training steps call this first."""

    def gradient(self) -> list[list[list[float]]]:
        return ragged(self.leaf.grad)


def ragged(columns: torch.Tensor) -> list[list]:
    return [row[:length].tolist() for row, length in zip(columns, LENGTHS, strict=True)]


def policy_of(inputs: dict[str, list]) -> TableNetwork:
    return TableNetwork(inputs["logits"], inputs["ids"])


def reference_of(inputs: dict[str, list]) -> TableNetwork:
    """A network that gives the chosen tokens the reference's log-probs, and the other tokens equal shares of the rest."""
    tables = []
    for ids, row in zip(inputs["ids"], inputs["reference"], strict=True):
        rest = [math.log((1 - math.exp(value)) / (VOCABULARY - 1)) for value in row]
        tables.append(
            [
                [value if word == chosen else other for word in range(VOCABULARY)]
                for chosen, value, other in zip(ids, row, rest, strict=True)
            ]
        )
    return TableNetwork(tables, inputs["ids"])


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<eos>": 1, "a": 2, "b": 3, "c": 4, "d": 5, "e": 6}
    core = Tokenizer(WordLevel(words, unk_token="a"))
    core.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def make_model() -> Qwen3ForCausalLM:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=VOCABULARY, head_dim=16, **sizes))


def plain_options(folder: str) -> dict[str, object]:
    """What every configuration needs to run here."""
    return {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": len(LENGTHS),
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
    }


def make_trainer(case: dict[str, object], folder: str, reward: object, kinds: dict[str, tuple[type, type]] = KINDS) -> GRPOTrainer:
    make_model().save_pretrained(folder)
    options = {key: value for key, value in case.items() if key not in NOT_OPTIONS}
    config, trainer = kinds[case["trainer"]]
    args = config(
        num_generations=GROUP,
        max_completion_length=MAX_TOKENS,
        **plain_options(folder),
        **{"beta": 0.0, **options},
    )
    return trainer(
        model=folder,
        args=args,
        reward_funcs=reward,
        train_dataset=Dataset.from_dict({"prompt": ["a b"] * 4}),
        processing_class=make_tokenizer(),
    )


FLOAT32_METRICS = {"tolerance": {"metrics": 1e-6}}
"""TRL counts clipped tokens in float32; losses and gradients are float64."""


@contextmanager
def float64() -> Iterator[None]:
    """TRL makes several tensors in the default dtype; in float64 its lines give float64 values."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def write(path: Path, result: dict[str, object]) -> None:
    path.write_text("{\n" + ",\n".join(f"{json.dumps(key)}: {_lines(value)}" for key, value in result.items()) + "\n}\n")


def _lines(value: object) -> str:
    """JSON with one line an entry, so that a change shows in a diff."""
    if isinstance(value, dict):
        return "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(inner)}" for key, inner in value.items()) + "}"
    return "[\n" + ",\n".join(map(json.dumps, value)) + "]" if isinstance(value, list) else json.dumps(value)
