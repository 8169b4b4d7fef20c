"""Chat templates of the kinds that are met, five awkward ones among them, each beside a Python writer that says what is sampled.

A writer gives the pieces of a conversation as (text, sampled) and knows nothing of Jinja: tests hold the masks to it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Callable

    Message = dict[str, Any]
    Pieces = list[tuple[str, bool]]

SPECIAL = [
    "<bos>",
    "<|im_start|>",
    "<|im_end|>",
    "<|head|>",
    "<|body|>",
    "<|eot|>",
    "<turn>",
    "</turn>",
    "[INST]",
    "[/INST]",
    "</s>",
    "<pad>",
]
ADDED = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]

_CALLS = "{% for call in m.tool_calls or [] %}{{ '\\n<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}{% endfor %}"
_TOOLS = "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
CHATML = (
    _TOOLS
    + "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') }}"
    + _CALLS
    + "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
WITH_MARKS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content or '' }}"
    + _CALLS
    + "{{ '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
DROPS_THINKING = """
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}
    {%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {%- set answer = m.content or '' %}
        {%- set thought = m.reasoning_content or '' %}
        {%- if '</think>' in answer %}
            {%- set thought = answer.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set answer = answer.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- answer }}
        {%- for call in m.tool_calls or [] %}
            {{- '\\n<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif m.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
OPENS_THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + (m.content or '').split('</think>')[-1] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)
EMITS_BOS = "{{ bos_token }}" + CHATML
NO_MARKS = (
    "{% for m in messages %}{{ m.role + ': ' + (m.content or '') + '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|head|>' + m.role + '<|body|>\\n\\n' + (m.content or '') | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|body|>\\n\\n' }}{% endif %}"
)
TURNS = """{{ bos_token }}
{%- if messages[0].role == 'system' %}{% set first = messages[0].content + '\\n\\n' %}{% set left = messages[1:] %}
{%- else %}{% set first = '' %}{% set left = messages %}{% endif %}
{%- for m in left %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{{- '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + (first if loop.first else '') }}
{{- m.content | trim + '</turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<turn>model\\n' }}{% endif %}"""
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
    "{% else %}{{ raise_exception('role ' + m.role) }}{% endif %}{% endfor %}"
)
IN_A_MACRO = (
    "{% macro turn(m) %}{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') + '<|im_end|>\\n' }}{% endmacro %}"
    "{% macro all(messages) %}{% for m in messages %}{{ turn(m) }}{% endfor %}{% endmacro %}{{ all(messages) }}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A template, the tokenizer around it, and what it writes."""

    template: str
    write: Callable[[list[Message]], Pieces]
    eos: str = "<|im_end|>"
    pad: str = "<pad>"
    adds_bos: bool = False
    system: bool = True
    tools: bool = False


def tokenizer_of(kind: Kind) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with some merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    space = chr(288)  # what a space is in a byte-level vocabulary
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), (space, "a"), (space, "hello"), (":", space), ("a", "s")]
    words = [*alphabet, *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in ADDED])
    if kind.adds_bos:
        backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", backend.token_to_id("<bos>"))])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token=kind.eos, pad_token=kind.pad)
    tokenizer.chat_template = kind.template
    return tokenizer


def _calls(message: Message) -> str:
    calls = message.get("tool_calls") or []
    return "".join(f"\n<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>" for call in calls)


def _chatml(messages: list[Message]) -> Pieces:
    pieces: Pieces = []
    for m in messages:
        body = (m.get("content") or "") + _calls(m) + "<|im_end|>"
        pieces += [(f"<|im_start|>{m['role']}\n", False), (body, m["role"] == "assistant"), ("\n", False)]
    return pieces


def _drops_thinking(messages: list[Message]) -> Pieces:
    pieces: Pieces = []
    last = max((at for at, m in enumerate(messages) if m["role"] == "user"), default=-1)
    for at, m in enumerate(messages):
        if m["role"] == "tool":
            first = at == 0 or messages[at - 1]["role"] != "tool"
            ends = at == len(messages) - 1 or messages[at + 1]["role"] != "tool"
            pieces.append(
                ("<|im_start|>user" * first + f"\n<tool_response>\n{m['content']}\n</tool_response>" + "<|im_end|>\n" * ends, False)
            )
            continue
        if m["role"] != "assistant":
            pieces.append((f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n", False))
            continue
        answer, thought = m.get("content") or "", m.get("reasoning_content") or ""
        if "</think>" in answer:
            thought = answer.split("</think>")[0].split("<think>")[-1].strip("\n")
            answer = answer.split("</think>")[-1].lstrip("\n")
        shown = f"<think>\n{thought}\n</think>\n\n" if at > last and (at == len(messages) - 1 or thought) else ""
        pieces += [("<|im_start|>assistant\n", False), (shown + answer + _calls(m) + "<|im_end|>", True), ("\n", False)]
    return pieces


def _opens_thinking(messages: list[Message]) -> Pieces:
    pieces: Pieces = []
    for m in messages:
        body = (m.get("content") or "").split("</think>")[-1] + "<|im_end|>"
        pieces += [(f"<|im_start|>{m['role']}\n", False), (body, m["role"] == "assistant"), ("\n", False)]
    return pieces


def _no_marks(messages: list[Message]) -> Pieces:
    return [piece for m in messages for piece in ((f"{m['role']}: ", False), ((m.get("content") or "") + "\n\n", m["role"] == "assistant"))]


def _headers(messages: list[Message]) -> Pieces:
    pieces: Pieces = [("<bos>", False)]
    for m in messages:
        body = (m.get("content") or "").strip() + "<|eot|>"
        pieces += [(f"<|head|>{m['role']}<|body|>\n\n", False), (body, m["role"] == "assistant")]
    return pieces


def _turns(messages: list[Message]) -> Pieces:
    system = messages[0]["content"] + "\n\n" if messages[0]["role"] == "system" else ""
    pieces: Pieces = [("<bos>", False)]
    for at, m in enumerate(messages[1:] if system else messages):
        role = "model" if m["role"] == "assistant" else m["role"]
        pieces.append((f"<turn>{role}\n" + (system if at == 0 else ""), False))
        pieces += [(m["content"].strip() + "</turn>", role == "model"), ("\n", False)]
    return pieces


def _brackets(messages: list[Message]) -> Pieces:
    pieces: Pieces = [("<bos>", False)]
    for m in messages:
        pieces.append((f"[INST] {m['content']} [/INST]", False) if m["role"] == "user" else (f" {m['content']}</s>", True))
    return pieces


KINDS: dict[str, Kind] = {
    "drops_thinking": Kind(template=DROPS_THINKING, write=_drops_thinking, tools=True),
    "opens_thinking": Kind(template=OPENS_THINKING, write=_opens_thinking),
    "emits_bos": Kind(template=EMITS_BOS, write=lambda messages: [("<bos>", False), *_chatml(messages)], adds_bos=True, tools=True),
    "no_marks": Kind(template=NO_MARKS, write=_no_marks),
    "pad_is_eos": Kind(template=CHATML, write=_chatml, pad="<|im_end|>", tools=True),
    "chatml": Kind(template=CHATML, write=_chatml, tools=True),
    "with_marks": Kind(template=WITH_MARKS, write=_chatml, tools=True),
    "headers": Kind(template=HEADERS, write=_headers, eos="<|eot|>"),
    "turns": Kind(template=TURNS, write=_turns, eos="</turn>"),
    "brackets": Kind(template=BRACKETS, write=_brackets, eos="</s>", system=False),
    "in_a_macro": Kind(template=IN_A_MACRO, write=_chatml),
}
AWKWARD = ("drops_thinking", "opens_thinking", "emits_bos", "no_marks", "pad_is_eos")
