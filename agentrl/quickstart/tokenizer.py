"""The tokenizer and chat template of the small model: bytes, digits one by one, and markers that are single tokens."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Iterable

PAD, END = "<|pad|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
MARKERS = ("<tool_call>", "</tool_call>", "<tools>", "</tools>", "<think>", "</think>")
"""Single tokens, but part of the text: they stay when special tokens are skipped in decoding."""

CONTEXT = 2048
"""Tokens that a conversation may hold."""

WORDS = r"\\[A-Za-z]+\{?|\d| ?[A-Za-z]+| ?[^\sA-Za-z\d]+|\s+"
"""Pieces that no merge crosses: a LaTeX command, one digit, a word, a run of signs, white space."""

CHAT_TEMPLATE = """\
{%- if tools or (messages and messages[0].role == 'system') -%}
{{- '<|system|>' -}}
{%- if messages and messages[0].role == 'system' -%}{{- messages[0].content -}}{%- endif -%}
{%- if tools -%}
{{- '<tools>' -}}
{%- for tool in tools -%}
{%- set function = tool.function if tool.function is defined else tool -%}
{{- function.name + '(' -}}
{%- for name, parameter in function.parameters.properties.items() -%}
{{- name + ': ' + (parameter.type if parameter.type is string else 'any') -}}{%- if not loop.last -%}{{- ', ' -}}{%- endif -%}
{%- endfor -%}
{{- ')' -}}{%- if function.description -%}{{- ' ' + function.description -}}{%- endif -%}
{%- if not loop.last -%}{{- '\\n' -}}{%- endif -%}
{%- endfor -%}
{{- '</tools>' -}}
{%- endif -%}
{{- '<|end|>' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{- '<|assistant|>' -}}
{%- generation -%}
{{- message.content or '' -}}
{%- for call in message.tool_calls or [] -%}
{%- set function = call.function if call.function is defined else call -%}
{{- '<tool_call>{"name": ' + function.name | tojson + ', "arguments": ' -}}
{{- (function.arguments if function.arguments is string else function.arguments | tojson) + '}</tool_call>' -}}
{%- endfor -%}
{{- '<|end|>' -}}
{%- endgeneration -%}
{%- elif message.role in ('user', 'tool') -%}
{{- '<|' + message.role + '|>' + (message.content or '') + '<|end|>' -}}
{%- elif message.role != 'system' or not loop.first -%}
{{- raise_exception('roles are system (first), user, assistant and tool; got ' + message.role) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""
"""Each message is a role token, its text and `<|end|>`, so a longer conversation always begins with the shorter one's tokens."""


def build_tokenizer(corpus: Iterable[str], *, vocabulary: int) -> PreTrainedTokenizerFast:
    """Train the merges on `corpus`; any other text still encodes, byte by byte.

    Source: byte-level BPE as in GPT-2 (Radford et al. 2019, sec. 2.2), with digits apart as in LLaMA (arXiv:2302.13971, sec. 2.1).
    """
    backend = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(WORDS), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    special = [PAD, END, *ROLES]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(MARKERS),
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    markers = re.compile("|".join(map(re.escape, (*special, *MARKERS))))  # the trainer does not set them apart by itself
    backend.train_from_iterator((piece for text in corpus for piece in markers.split(text)), trainer)
    backend.add_tokens([AddedToken(marker, special=False, normalized=False) for marker in MARKERS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=list(ROLES),
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
