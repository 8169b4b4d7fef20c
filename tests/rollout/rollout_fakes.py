"""Tokenizers with awkward templates, a scripted engine, and workers without processes."""

from __future__ import annotations

import os
import select
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import trio
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from agentrl.config import RolloutConfig
from agentrl.engines.protocol import Completion, Request
from agentrl.records import Task, Version, VersionRun
from agentrl.rollout.host import Host
from agentrl.rollout.pool import EnvPool

if TYPE_CHECKING:
    from collections.abc import Callable

ENV = str(Path(__file__).parent / "play_env.py")

_TOOLS = "{% if tools %}<|start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|end|>\n{% endif %}"
CHATML = (
    _TOOLS + "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
THINK_DROPPING = (
    _TOOLS + "{% for m in messages %}<|start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content.split('</think>')[-1] }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
THINK_PREFILLING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
BOS_EMITTING = "{{ bos_token }}" + CHATML.replace("<|end|>\n", "<|end|>")
NO_TOKENS = (
    "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
_EITHER_END = "{% if m.role == 'assistant' and loop.last %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
TWO_ENDS = CHATML.replace("<|end|>\n{% endfor %}", _EITHER_END)
CALL_IN_PLACE = (  # Llama 3.1's way: a call replaces the content, and a tool's result needs a call before it
    _TOOLS + "{% for m in messages %}{% if m.role == 'tool' and messages[loop.index0 - 1].role != 'tool' "
    "and not messages[loop.index0 - 1].tool_calls %}{{ raise_exception('no call') }}{% endif %}"
    "<|start|>{{ m.role }}\n{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% else %}{{ m.content }}{% endif %}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
NO_TOOL_ROLE = CHATML.replace(
    "<|start|>{{ m.role }}", "{% if m.role == 'tool' %}{{ raise_exception('roles') }}{% endif %}<|start|>{{ m.role }}"
)
ONE_TURN = "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}<|start|>{{ messages[0].content }}<|end|>"
TEMPLATES = {
    "chatml": CHATML,
    "think_dropping": THINK_DROPPING,
    "think_prefilling": THINK_PREFILLING,
    "bos_emitting": BOS_EMITTING,
    "no_tokens": NO_TOKENS,
    "two_ends": TWO_ENDS,
    "call_in_place": CALL_IN_PLACE,
}
"""Each can be played over several turns with tools."""


def make_tokenizer(
    template: str | None = CHATML, *, eos: str = "<|end|>", pad: str = "<|pad|>", adds_bos: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of some merges, whose text does not always encode back to the ids it came from."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("a", "s")]
    words = [*alphabet, *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|bos|>", "<|start|>", "<|end|>", "<|return|>", "<|pad|>", "<|stop|>"]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    backend.add_tokens(
        [AddedToken(text, special=False, normalized=False) for text in ("<tool_call>", "</tool_call>", "<think>", "</think>")]
    )
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", backend.token_to_id("<|bos|>"))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|bos|>", eos_token=eos, pad_token=pad)
    tokenizer.chat_template = template
    return tokenizer


class FakeEngine:
    """Samples what a script says: `script(request)` gives ids, or text which is encoded and ended with the stop token."""

    def __init__(
        self, script: Callable[[Request], Any], tokenizer: PreTrainedTokenizerFast | None = None, *, context_length: int = 4096
    ) -> None:
        self.context_length = context_length
        self.requests: list[Request] = []
        self.completions: list[Completion] = []
        self._script = script
        self._tokenizer = tokenizer

    async def generate(self, request: Request) -> Completion:
        await trio.lowlevel.checkpoint()
        given = self._script(request)
        if isinstance(given, Exception):
            raise given
        if isinstance(given, str):
            assert self._tokenizer is not None
            given = [*self._tokenizer.encode(given, add_special_tokens=False), request.stop_ids[0]]
        cut = list(given)[: request.max_tokens]
        stopped = bool(cut) and cut[-1] in request.stop_ids
        half = len(cut) // 2
        runs = [VersionRun(version=Version(step=4), start=0, end=half), VersionRun(version=Version(step=5), start=half, end=len(cut))]
        completion = Completion(
            ids=np.array(cut, dtype=np.int32),
            logprobs=-np.arange(1, len(cut) + 1, dtype=np.float32),
            versions=tuple(run for run in runs if run.end > run.start),
            finish_reason="stop" if stopped or not cut else "length",
        )
        self.requests.append(request)
        self.completions.append(completion)
        return completion

    async def aclose(self) -> None: ...


def in_turn(*texts: Any) -> Callable[[Request], Any]:
    """A script that gives one text after the other, then the last again."""
    left = list(texts)
    return lambda request: left.pop(0) if len(left) > 1 else left[0]


class ThreadHost:
    """A worker in a thread of this process: all of the protocol, and quick to start."""

    def __init__(self) -> None:
        ours, self._theirs = socket.socketpair()
        self.stream: trio.abc.Stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        self._thread = threading.Thread(target=Host(self._theirs).run, daemon=True)
        self._thread.start()

    async def ended(self) -> None:
        await trio.sleep_forever()

    async def end(self) -> str:
        await self.stream.aclose()
        await trio.to_thread.run_sync(self._thread.join)
        self._theirs.close()
        return "was closed"

    def last_words(self) -> str:
        return ""


def thread_pool(spec: str, *, workers: int = 1, **options: Any) -> EnvPool:
    """A pool of workers in threads, for environments that behave."""
    return EnvPool(spec, [], RolloutConfig(env_workers=workers, **options), launch=lambda slot: ThreadHost())


def make_task(**row: Any) -> Task:
    return Task.from_row("play", {"prompt": "hi", **row})


def watch(pid: int) -> int:
    """A descriptor that tells when a process ends, whoever reaps it."""
    return os.pidfd_open(pid)


def has_ended(descriptor: int, wait_s: float = 30.0) -> bool:
    """Whether the watched process ends within a time; closes the descriptor if so."""
    ended = bool(select.select([descriptor], [], [], wait_s)[0])
    if ended:
        os.close(descriptor)
    return ended
