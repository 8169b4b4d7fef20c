"""The package `renderers`, which parses token ids, finds the same well-formed calls in the families that both know."""

from __future__ import annotations

import re

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from agentrl.rollout.tool_formats.known import FORMATS
from agentrl.rollout.toolcalls import ToolCall, read_turn

renderers = pytest.importorskip("renderers")

CONFIGS = {
    "hermes": "Qwen3RendererConfig",
    "qwen-coder": "Qwen35RendererConfig",
    "glm": "GLM45RendererConfig",
    "minimax": "MiniMaxM2RendererConfig",
    "deepseek-v3": "DeepSeekV3RendererConfig",
    "kimi": "KimiK2RendererConfig",
    "llama": "Llama3RendererConfig",
    "gemma": "Gemma4RendererConfig",
}
"""Not gpt-oss, whose parser there downloads a vocabulary."""
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "deep": {"type": "object"}},
            },
        },
    },
    {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "properties": {}}}},
]
CALLS = [
    ToolCall(name="look", arguments={"city": 'Rome "a" {b} [c]', "days": 3, "deep": {"x": [1, None, True, "z"]}}),
    ToolCall(name="stop", arguments={}),
    ToolCall(name="look", arguments={"city": "020"}),
]


def tokenizer_with(special):
    """Bytes and these tokens."""
    core = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<eos>", eos_token="<eos>")
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.chat_template = "x"
    return tokenizer


def parser_of(config):
    """A parser and a tokenizer with the tokens that it asks for, one after another."""
    special: list[str] = []
    while True:
        tokenizer = tokenizer_with(special)
        try:
            return renderers.create_renderer(tokenizer, getattr(renderers, config)()), tokenizer
        except AssertionError as error:
            special.append(re.search(r"token (?:for )?'([^']+)'", str(error))[1])
            assert len(special) < 50


@pytest.mark.parametrize("name", CONFIGS)
def test_well_formed_calls_are_the_same(name):
    calls = CALLS[:1] if name == "llama" else CALLS  # of Llama's it reads one call a turn
    text = FORMATS[name].write(calls)
    parser, tokenizer = parser_of(CONFIGS[name])
    theirs = parser.parse_response(tokenizer.encode(text, add_special_tokens=False), tools=TOOLS)
    assert [(call.status.name, call.name, call.arguments) for call in theirs.tool_calls] == [
        ("OK", call.name, call.arguments) for call in calls
    ]
    assert list(read_turn(text, TOOLS, tool_format=FORMATS[name]).calls) == calls
