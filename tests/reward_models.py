"""Small reward models of random weights, that several tests make."""

from __future__ import annotations

import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, Qwen3Config

from agentrl.quickstart.tokenizer import build_tokenizer

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 96,
}


def save_reward_model(folder, *, family=Qwen3Config, process=False, labels=1, pads=True, padding_side="left"):
    """A sequence classifier, or a token classifier, with its tokenizer; returns the folder as text."""
    torch.manual_seed(7)
    tokenizer = build_tokenizer(["what is two and two? four, and so on"], vocabulary=300)
    tokenizer.padding_side = padding_side
    config = family(
        vocab_size=len(tokenizer), num_labels=labels, pad_token_id=tokenizer.pad_token_id if pads else None, eos_token_id=0, **SIZES
    )
    kind = AutoModelForTokenClassification if process else AutoModelForSequenceClassification
    model = kind.from_config(config)
    with torch.no_grad():
        for parameter in model.score.parameters():
            parameter.normal_(std=1.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
