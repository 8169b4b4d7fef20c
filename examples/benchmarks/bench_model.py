"""The model, prompts, lengths and waits that the speed comparisons share; needs torch and transformers, nothing of agentrl.

    python examples/benchmarks/bench_model.py FOLDER

The model has Qwen3's architecture and 0.85 M random parameters. Its end token cannot be sampled (its probability is 0 in float32), so that
completions are as long as a benchmark wants them and no library pays for suppressing it. The others are close to equally likely.

Fixed work: 16 prompts x 8 completions x 64 tokens a step. Ragged work: completions of 32 tokens, of every tenth prompt 320 (each step of
16 holds one or two such prompts, in dataset order), and each episode waits for its environment.
"""

from __future__ import annotations

import argparse
import math
import random
from dataclasses import dataclass
from pathlib import Path

VOCABULARY = 512
PROMPT_TOKENS = 16
GROUPS_PER_STEP = 16
GROUP_SIZE = 8
FIXED_TOKENS = 64
SHORT_TOKENS = 32
LONG_TOKENS = 320
LONG_EVERY = 10
END = "<eos>"
"""Token 0: end and padding."""
LONG_MARK, SHORT_MARK = "w1", "w2"
"""First word of a ragged prompt: says how long its completions are. As token ids, 1 and 2."""
LONG_MARK_ID = 1

WAIT_MEDIAN_S = 0.05
WAIT_P99_S = 1.0
_WAIT_SIGMA = math.log(WAIT_P99_S / WAIT_MEDIAN_S) / 2.3263478740408408  # the 99th percentile of a standard normal


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One task of the comparison."""

    index: int
    text: str
    """`PROMPT_TOKENS` words, one token each."""
    max_tokens: int
    """Tokens that each completion of it has."""


def prompts(mode: str, count: int, seed: int = 0) -> list[Prompt]:
    """The first `count` tasks of mode `fixed` or `ragged`; the same in every process."""
    draw = random.Random(seed)
    result = []
    for index in range(count):
        long = mode == "ragged" and index % LONG_EVERY == 0
        words = [f"w{draw.randrange(3, VOCABULARY)}" for _ in range(PROMPT_TOKENS - 1)]
        budget = FIXED_TOKENS if mode == "fixed" else LONG_TOKENS if long else SHORT_TOKENS
        result.append(Prompt(index=index, text=" ".join([LONG_MARK if long else SHORT_MARK, *words]), max_tokens=budget))
    return result


def draw_wait_s(draw: random.Random) -> float:
    """How long one episode waits for its environment: log-normal, median 50 ms, 99th percentile 1 s."""
    return WAIT_MEDIAN_S * math.exp(draw.gauss(0, _WAIT_SIGMA))


def reward_of(first_token: int) -> float:
    """1 or 0, each for about half of the completions, so that nearly every group has something to learn from."""
    return float(first_token % 2)


def make_model(folder: str | Path, seed: int = 0) -> None:
    """Write the model and its tokenizer, unless the folder has one already."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    if (Path(folder) / "model.safetensors").exists():
        return
    words = {END: 0} | {f"w{index}": index for index in range(1, VOCABULARY)}
    core = Tokenizer(WordLevel(words, unk_token=END))
    core.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=END, padding_side="left")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=0,
        pad_token_id=0,
        bos_token_id=None,
    )
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        # The first hidden unit is about 1 for every token, so about 11 after the last norm: every logit but the end token's gains
        # the same from it, and that one's loses 30 times as much. exp(-340) is exactly 0; a smaller gap leaves denormal numbers,
        # on which a CPU computes many times slower.
        embedding = model.model.embed_tokens.weight
        embedding[:, 0] = 1.0
        embedding[0, 0] = -30.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    make_model(parser.parse_args().folder)
