"""Continuous batching: requests join and leave the running batch between two tokens, and weights change between two tokens.

One `step` is one forward pass over a token of each running request and the prompts of those that join, followed by one draw for all.
Requests that sample with the frozen reference have a second pass, by the reference. The scheduler needs no process around it: the tests
drive it directly.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from agentrl.engines.half import JOINING_TOKENS, Half
from agentrl.engines.kv import bytes_per_token
from agentrl.engines.mixture import Rows, mixed
from agentrl.engines.requests import Refused, check_request
from agentrl.engines.sampling import Truncation, draw
from agentrl.engines.slots import Key, Running, Slots

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentrl.engines.decoder import Loaded
    from agentrl.engines.protocol import Completion, Request
    from agentrl.records import FinishReason, Version

PREFIX_SHARE = 0.25
"""Share of the KV memory that may hold caches of earlier turns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A request that has left the batch: its completion, or what went wrong."""

    key: Key
    result: Completion | str


@dataclass(slots=True, kw_only=True)
class Counters:
    """Since the start; meanings as in `messages.Stats`."""

    tokens_sampled: int = 0
    tokens_prefilled: int = 0
    tokens_reused: int = 0
    steps: int = 0
    publishes: int = 0
    busy_s: float = 0.0


class Scheduler:
    """The running batch.

    Args:
        loaded: the policy.
        num_slots: most requests decoded at once.
        recompute: compute the KV cache of requests in flight again when weights change.
        version: of the weights as they are.
        memory_bytes: for KV caches; a request waits where it might not fit.
        reference: a frozen model of the same vocabulary, for requests whose contract gives it a share.
    """

    def __init__(
        self, loaded: Loaded, *, num_slots: int, recompute: bool, version: Version, memory_bytes: int, reference: Loaded | None = None
    ) -> None:
        self.version = version
        self.counters = Counters()
        self._vocab_size = loaded.decoder.vocab_size
        self._dtype = str(loaded.dtype).removeprefix("torch.")
        self._context_length = loaded.context_length
        self._recompute = recompute
        self._memory_bytes = memory_bytes
        self._reserved = 0
        self._slots = Slots.make(num_slots, loaded.context_length)
        models = [loaded] if reference is None else [loaded, reference]
        sizes = [bytes_per_token(model.decoder.shapes, model.dtype) for model in models]
        shares = [PREFIX_SHARE * size / sum(sizes) for size in sizes]
        self._halves = [
            Half(model, self._slots, context_length=loaded.context_length, prefix_bytes=int(share * memory_bytes))
            for model, share in zip(models, shares, strict=True)
        ]
        self._policy = self._halves[0]
        self._reference = self._halves[1] if reference is not None else None
        self._waiting: dict[Key, Request] = {}
        self._slot_of: dict[Key, int] = {}

    @property
    def num_running(self) -> int:
        """Requests that have a slot."""
        return len(self._slot_of)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for one."""
        return len(self._waiting)

    def submit(self, key: Key, request: Request) -> None:
        """Queue a request. Raises `Refused`."""
        if key in self._slot_of or key in self._waiting:
            raise Refused(f"request {key[1]} is already in flight")
        check_request(request, self._context_length, self._vocab_size, self._dtype, has_reference=self._reference is not None)
        self._waiting[key] = request

    def abort(self, key: Key) -> None:
        """Forget a request, wherever it is; unknown ones are ignored."""
        slot = self._slot_of.get(key)
        if slot is not None:
            self._leave([slot])
        else:
            self._waiting.pop(key, None)

    def abort_client(self, client: int) -> None:
        """Forget all requests of a client."""
        self._leave([slot for key, slot in self._slot_of.items() if key[0] == client])
        self._waiting = {key: request for key, request in self._waiting.items() if key[0] != client}

    @torch.inference_mode()
    def replace_weights(self, version: Version, load: Callable[[], str]) -> str:
        """Change the policy's weights; requests in flight go on with the next token. Those of the reference alone do not notice.

        `load` changes the decoder's weights and returns a checksum, or raises before anything changed.
        """
        checksum = load()
        self.version = version
        self.counters.publishes += 1
        slots = [slot for slot in self._slot_of.values() if self._policy.holds(slot)]
        for slot in slots:
            self._slots.mark(slot, version)
        self._policy.weights_changed(slots, recompute=self._recompute)
        return checksum

    @torch.inference_mode()
    def step(self) -> list[Finished]:
        """One token for each running request, those that join included. Returns the requests that ended."""
        if not self._slot_of and not self._waiting:
            return []
        begun = time.perf_counter()
        for half in self._halves:
            half.begin()
        computed = self._join()
        reference = self._reference.forward() if self._reference is not None else None
        rows = mixed(self._policy.forward(), reference, self._slots.reference_share)
        ids, logprobs = self._draw(rows)
        ended = self._slots.record(rows.slots, ids, logprobs)
        finished = self._finish(ended, rows.slots[~np.isfinite(logprobs)].tolist())
        self.counters.tokens_sampled += len(rows.slots)
        self.counters.tokens_prefilled += computed
        self.counters.steps += 1
        self.counters.busy_s += time.perf_counter() - begun
        return finished

    def _join(self) -> int:
        """Give slots to waiting requests, oldest first; returns how many prompt tokens this step has to compute for them."""
        computed = 0
        while self._waiting and self._slots.free:
            key, request = next(iter(self._waiting.items()))
            halves = self._halves_for(request)
            limit = min(len(request.ids) + request.max_tokens, self._context_length)
            reserved = sum(half.bytes_for(limit) for half in halves)
            if self._slot_of and self._reserved + reserved > self._memory_bytes:
                break
            if computed and computed + len(request.ids) * len(halves) > JOINING_TOKENS:
                break
            del self._waiting[key]
            running = Running(
                key=key,
                request=request,
                stream=np.random.Generator(np.random.Philox(request.seed)),
                marks=[(self.version, 0)],
                prompt=request.ids.astype(np.int32).tobytes(),
                reserved=reserved,
            )
            slot = self._slots.join(running, limit)
            self._slot_of[key] = slot
            self._reserved += reserved
            for half in halves:
                reused = half.join(slot, limit)
                self.counters.tokens_reused += reused
                computed += len(request.ids) - reused
        return computed

    def _halves_for(self, request: Request) -> list[Half]:
        """The models whose logits a request needs. Neither a share of 0 nor one of 1 computes what would not count."""
        share = request.contract.reference_share
        if self._reference is None or share == 0:
            return [self._policy]
        return [self._reference] if share == 1 else [self._policy, self._reference]

    def _draw(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        table, slots = self._slots, rows.slots
        temperatures, greedy = table.temperature[slots], table.greedy[slots]
        truncations = []
        for row in np.flatnonzero(table.truncated[slots]).tolist():
            contract = table.at(int(slots[row])).request.contract
            truncations.append(Truncation(row=row, top_p=contract.top_p, top_k=contract.top_k, min_p=contract.min_p))
        return draw(
            rows.logits,
            None if (temperatures == 1).all() else temperatures,
            greedy if greedy.any() else None,
            table.next_uniforms(slots),
            truncations,
        )

    def _finish(self, ended: Sequence[tuple[int, FinishReason]], broken: Sequence[int]) -> list[Finished]:
        finished = []
        for slot in broken:
            for half in self._halves:
                if half.holds(slot):
                    half.wipe(slot)
            finished.append(Finished(key=self._slots.at(slot).key, result=self._why_broken(slot)))
        left = set(broken)
        for slot, reason in ended:
            if slot not in left:
                finished.append(Finished(key=self._slots.at(slot).key, result=self._slots.completion(slot, reason)))
                for half in self._halves:
                    if half.holds(slot):
                        half.keep_prefix(slot)
                left.add(slot)
        self._leave(sorted(left))
        return finished

    def _why_broken(self, slot: int) -> str:
        if not self._policy.holds(slot):
            return "the logits of the reference model are not finite: its weights are no sound model's"
        return f"the logits of version {self.version.step} are not finite: the policy has diverged"

    @torch.inference_mode()
    def _leave(self, slots: Sequence[int]) -> None:
        if not slots:
            return
        for half in self._halves:
            half.leave([slot for slot in slots if half.holds(slot)])
        for slot in slots:
            running = self._slots.leave(slot)
            del self._slot_of[running.key]
            self._reserved -= running.reserved
        if sum(half.allocated_bytes() for half in self._halves) > self._memory_bytes:
            for half in self._halves:
                half.release_empty()
