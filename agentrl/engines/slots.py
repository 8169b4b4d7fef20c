"""The state of running requests as columns, one row a slot, so that a step costs a few array operations and no Python per request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from agentrl.engines.protocol import Completion
from agentrl.records import VersionRun

if TYPE_CHECKING:
    from agentrl.engines.protocol import Request
    from agentrl.records import FinishReason, Version

UNIFORMS = 64
"""Random numbers drawn at once for a request."""
MOST_STOPS = 16
"""Different ids that may end one completion."""

Key = tuple[int, int]
"""Who asked: client, and the client's number of the request."""


@dataclass(slots=True, kw_only=True)
class Running:
    """One request that has a slot."""

    key: Key
    request: Request
    stream: np.random.Generator
    marks: list[tuple[Version, int]]
    """(version, how many tokens had been sampled when it began to sample here)."""
    prompt: bytes
    """The prompt's ids, to find others with the same."""
    reserved: int
    """Bytes of KV cache set aside for it, in both models where it needs both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """The columns."""

    tokens: np.ndarray
    """[slots, context] int32: prompt, then what was sampled."""
    logprobs: np.ndarray
    """[slots, context] float32, beside `tokens`."""
    prompt: np.ndarray
    """[slots] prompt tokens."""
    total: np.ndarray
    """[slots] prompt and sampled tokens."""
    cached: np.ndarray
    """[slots] tokens in the KV cache: one fewer than `total`, whose last token was sampled and not yet fed."""
    limit: np.ndarray
    """[slots] most tokens, prompt included."""
    temperature: np.ndarray
    """[slots] float32; 1 where greedy."""
    greedy: np.ndarray
    """[slots] bool."""
    truncated: np.ndarray
    """[slots] bool."""
    reference_share: np.ndarray
    """[slots] float64, as in the contract."""
    stops: np.ndarray
    """[slots, MOST_STOPS] int32: ids that end a completion, then -1."""
    uniforms: np.ndarray
    """[slots, UNIFORMS] float64; column i is for the sampled token whose number is i modulo UNIFORMS."""
    running: list[Running | None]
    free: list[int] = field(default_factory=list)
    """Slots without a request; the last is used next."""

    @staticmethod
    def make(count: int, context_length: int) -> Slots:
        """All slots free."""
        return Slots(
            tokens=np.zeros((count, context_length + 1), dtype=np.int32),
            logprobs=np.zeros((count, context_length + 1), dtype=np.float32),
            prompt=np.zeros(count, dtype=np.int64),
            total=np.zeros(count, dtype=np.int64),
            cached=np.zeros(count, dtype=np.int64),
            limit=np.zeros(count, dtype=np.int64),
            temperature=np.ones(count, dtype=np.float32),
            greedy=np.zeros(count, dtype=bool),
            truncated=np.zeros(count, dtype=bool),
            reference_share=np.zeros(count),
            stops=np.full((count, MOST_STOPS), -1, dtype=np.int32),
            uniforms=np.zeros((count, UNIFORMS)),
            running=[None] * count,
            free=list(range(count - 1, -1, -1)),
        )

    def join(self, running: Running, limit: int) -> int:
        """Give a request a slot; returns it."""
        slot = self.free.pop()
        request, contract = running.request, running.request.contract
        length = len(request.ids)
        self.tokens[slot, :length] = request.ids
        self.prompt[slot] = self.total[slot] = length
        self.cached[slot] = 0
        self.limit[slot] = limit
        self.temperature[slot] = contract.temperature or 1.0
        self.greedy[slot] = contract.temperature == 0
        self.truncated[slot] = contract.truncated
        self.reference_share[slot] = contract.reference_share
        self.stops[slot] = -1
        self.stops[slot, : len(request.stop_ids)] = request.stop_ids
        self.running[slot] = running
        self.uniforms[slot] = running.stream.random(UNIFORMS)
        return slot

    def leave(self, slot: int) -> Running:
        """Free a slot; returns the request that had it."""
        running = self.at(slot)
        self.running[slot] = None
        self.free.append(slot)
        return running

    def at(self, slot: int) -> Running:
        """The request in a slot that has one."""
        running = self.running[slot]
        assert running is not None, f"slot {slot} is free"
        return running

    def next_uniforms(self, slots: np.ndarray) -> np.ndarray:
        """[slots] the random number of each one's next token."""
        result: np.ndarray = self.uniforms[slots, (self.total[slots] - self.prompt[slots]) % UNIFORMS]
        return result

    def record(self, slots: np.ndarray, ids: np.ndarray, logprobs: np.ndarray) -> list[tuple[int, FinishReason]]:
        """Append a sampled token to each slot; returns those that ended by it, and why."""
        at = self.total[slots]
        self.tokens[slots, at] = ids
        self.logprobs[slots, at] = logprobs
        self.total[slots] = at + 1
        self.cached[slots] = at
        for slot in slots[(at + 1 - self.prompt[slots]) % UNIFORMS == 0].tolist():
            self.uniforms[slot] = self.at(slot).stream.random(UNIFORMS)
        stopped = (ids[:, None] == self.stops[slots]).any(1)
        ended = np.flatnonzero(stopped | (at + 1 >= self.limit[slots]))
        return [(int(slots[row]), "stop" if stopped[row] else "length") for row in ended]

    def mark(self, slot: int, version: Version) -> None:
        """From the next token on, a slot samples with the weights of `version`."""
        running = self.at(slot)
        sampled = int(self.total[slot] - self.prompt[slot])
        if running.marks[-1][1] == sampled:
            running.marks.pop()
        running.marks.append((version, sampled))

    def completion(self, slot: int, reason: FinishReason) -> Completion:
        """What a slot has sampled."""
        begin, end = int(self.prompt[slot]), int(self.total[slot])
        marks = self.at(slot).marks
        stops = [start for _, start in marks[1:]] + [end - begin]
        runs = tuple(
            VersionRun(version=version, start=start, end=stop) for (version, start), stop in zip(marks, stops, strict=True) if start < stop
        )
        return Completion(
            ids=self.tokens[slot, begin:end].copy(), logprobs=self.logprobs[slot, begin:end].copy(), versions=runs, finish_reason=reason
        )
