"""Make the small model: `python -m agentrl.quickstart.build OUT` trains a tokenizer and a Qwen3-architecture model from scratch.

The weights that ship come from this script with its defaults: supervised imitation of `agentrl.quickstart.formats`, nothing else.
The same seed, torch build and thread count give the same weights bit for bit, others give the same within rounding.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from agentrl.quickstart.formats import FORMATS, Example, Formats
from agentrl.quickstart.tokenizer import CONTEXT, build_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Encoded = tuple[list[int], list[int]]
"""Token ids of a conversation, and for each whether it is learned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that the weights depend on; the defaults are those that ship."""

    seed: int = 0
    steps: int = 1500
    learning_rate: float = 1e-3
    """Peak: linear warm-up over the first 50 steps, linear decay over the last 40 %."""
    vocabulary: int = 512
    corpus: int = 400
    """Conversations of each format that the tokenizer is trained on."""
    hidden: int = 128
    layers: int = 2
    threads: int = 1


def render(tokenizer: PreTrainedTokenizerFast, example: Example) -> str:
    """The conversation as text."""
    if example.plain is not None:
        return "".join(example.plain)
    return str(_templated(tokenizer, example, tokenize=False))


def encode(tokenizer: PreTrainedTokenizerFast, example: Example) -> Encoded:
    """Ids by the chat template; what its `generation` marks enclose is learned."""
    if example.plain is not None:
        prompt, completion = (tokenizer.encode(text) for text in example.plain)
        return [*prompt, *completion, tokenizer.eos_token_id], [0] * len(prompt) + [1] * (len(completion) + 1)
    rendered = _templated(tokenizer, example, return_dict=True, return_assistant_tokens_mask=True)
    return rendered["input_ids"], rendered["assistant_masks"]


def _templated(tokenizer: PreTrainedTokenizerFast, example: Example, **options: Any) -> Any:
    tools: Any = list(example.tools) or None
    return tokenizer.apply_chat_template(list(example.messages), tools=tools, **options)


def make_tokenizer(recipe: Recipe, formats: Formats = FORMATS) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the same formats as the model."""
    stream = random.Random(f"tokenizer/{recipe.seed}")
    untrained = build_tokenizer([], vocabulary=300)
    texts = [render(untrained, draw(stream)) for draw, _ in formats.values() for _ in range(recipe.corpus)]
    return build_tokenizer(texts, vocabulary=recipe.vocabulary)


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """An untrained model. Heads of 32 are the smallest that vLLM's CPU attention runs."""
    torch.manual_seed(recipe.seed)
    heads = recipe.hidden // 32
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden,
            intermediate_size=3 * recipe.hidden,
            num_hidden_layers=recipe.layers,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 2),
            head_dim=32,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )


def padded(rows: Sequence[Encoded], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels, both [rows, longest]; labels are -100 where nothing is learned."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows])
    learned = torch.tensor([mask + [0] * (width - len(mask)) for _, mask in rows], dtype=torch.bool)
    return ids, ids.masked_fill(~learned, -100)


def batches(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, formats: Formats = FORMATS
) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """One step's batches, one a format, padded on the right (a causal model needs no mask then)."""
    stream = random.Random(f"warm-up/{recipe.seed}")
    while True:
        drawn = [[encode(tokenizer, draw(stream)) for _ in range(count)] for draw, count in formats.values()]
        yield [padded(rows, tokenizer.pad_token_id) for rows in drawn]


def train(
    recipe: Recipe,
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    report: Callable[[int, float], None],
    formats: Formats = FORMATS,
) -> None:
    """Imitate: cross-entropy summed over a step's learned tokens, divided by their number."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    source = batches(recipe, tokenizer, formats)
    model.train()
    for step in range(recipe.steps):
        scale = min(1.0, (step + 1) / 50, (recipe.steps - step) / (0.4 * recipe.steps))
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * scale
        parts = next(source)
        tokens = sum(int((labels[:, 1:] != -100).sum()) for _, labels in parts)
        total = 0.0
        for ids, labels in parts:
            logits = model(ids).logits[:, :-1]
            loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum") / tokens
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        report(step + 1, total)


def build(folder: Path, recipe: Recipe, report: Callable[[int, float], None], formats: Formats = FORMATS) -> None:
    """Train and write `config.json`, `model.safetensors`, the tokenizer's files and the chat template.

    Args:
        folder: made where it does not exist.
        recipe: sizes and seeds.
        report: told each step and its loss.
        formats: what is imitated; by default that of the model that ships.
    """
    torch.set_num_threads(recipe.threads)
    tokenizer = make_tokenizer(recipe, formats)
    model = make_model(recipe, tokenizer)
    train(recipe, model, tokenizer, report, formats)
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: where to write, and how long to train."""
    parser = argparse.ArgumentParser(prog="python -m agentrl.quickstart.build", description="Make agentrl's small model from scratch.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--layers", type=int, default=Recipe().layers)
    options = parser.parse_args(arguments)

    def report(step: int, loss: float) -> None:
        if step % 50 == 0:
            print(json.dumps({"step": step, "loss": round(loss, 4)}), flush=True)

    build(options.folder, Recipe(seed=options.seed, steps=options.steps, layers=options.layers), report)


if __name__ == "__main__":
    main()
