"""Continuous batching: requests join and leave the running batch between two tokens, and weights change between two tokens.

One `step` is one forward pass over a token of each running request and the prompts of those that join, followed by one draw for all.
It needs no process around it: the tests drive it directly.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from agentrl.engines.kv import KVCache
from agentrl.engines.prefixes import PrefixStore
from agentrl.engines.requests import Refused, check_request
from agentrl.engines.sampling import Truncation, draw
from agentrl.engines.slots import Key, Running, Slots
from agentrl.engines.step import Segment, plan_step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentrl.engines.decoder import Loaded
    from agentrl.engines.protocol import Completion, Request
    from agentrl.records import FinishReason, Version

JOINING_TOKENS = 4096
"""Most prompt tokens that join in one step, so that they do not hold up the others for long; a longer prompt joins alone."""
HEADROOM = 32
"""Tokens beyond its prompt for which a joining request gets room at once."""
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
        loaded: the model.
        num_slots: most requests decoded at once.
        recompute: compute the KV cache of requests in flight again when weights change.
        version: of the weights as they are.
        memory_bytes: for KV caches; a request waits where it might not fit.
    """

    def __init__(self, loaded: Loaded, *, num_slots: int, recompute: bool, version: Version, memory_bytes: int) -> None:
        self.version = version
        self.counters = Counters()
        self._decoder = loaded.decoder
        self._dtype = str(loaded.dtype).removeprefix("torch.")
        self._context_length = loaded.context_length
        self._recompute = recompute
        self._memory_bytes = memory_bytes
        self._reserved = 0
        self._epoch = 0
        """Counts publishes: KV caches of different epochs never mix, except in a request that was in flight."""
        self._cache = KVCache(
            loaded.decoder.shapes, num_slots=num_slots, context_length=loaded.context_length, dtype=loaded.dtype, device=loaded.device
        )
        self._slots = Slots.make(num_slots, loaded.context_length)
        self._waiting: dict[Key, Request] = {}
        self._slot_of: dict[Key, int] = {}
        self._prompts: dict[bytes, list[int]] = {}
        """Slots whose prompt is cached for this epoch, by the prompt."""
        self._prefixes = PrefixStore(int(PREFIX_SHARE * memory_bytes))

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
        check_request(request, self._context_length, self._decoder.vocab_size, self._dtype)
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
        """Change the weights; requests in flight go on with the next token.

        `load` changes the decoder's weights and returns a checksum, or raises before anything changed.
        """
        checksum = load()
        self.version = version
        self._epoch += 1
        self.counters.publishes += 1
        self._prefixes.clear()
        self._prompts.clear()
        slots = list(self._slot_of.values())
        for slot in slots:
            self._slots.mark(slot, version)
        if self._recompute and slots:
            self._recompute_cache(slots)
        return checksum

    def _recompute_cache(self, slots: Sequence[int]) -> None:
        batch: list[Segment] = []
        for index, slot in enumerate(slots):
            batch.append(Segment(slot=slot, start=0, stop=int(self._slots.cached[slot])))
            if sum(segment.stop for segment in batch) >= JOINING_TOKENS or index == len(slots) - 1:
                step, _ = plan_step(
                    self._cache, self._slots.tokens, self._slots.cached, [0] * len(self._cache.pools), batch, {}, sample=False
                )
                self._decoder.forward(step)
                batch = []
        for slot in slots:
            self._slots.at(slot).epoch = self._epoch

    @torch.inference_mode()
    def step(self) -> list[Finished]:
        """One token for each running request, those that join included. Returns the requests that ended."""
        if not self._slot_of and not self._waiting:
            return []
        begun = time.perf_counter()
        self._cache.make_room(self._slots.cached)
        decoding = [len(pool.slots) for pool in self._cache.pools]
        segments, twins = self._join()
        step, slots = plan_step(self._cache, self._slots.tokens, self._slots.cached, decoding, segments, twins)
        logits = self._decoder.forward(step)
        for slot, sharing in twins.items():
            self._cache.copy(slot, sharing, int(self._slots.total[slot]))
        ids, logprobs = self._draw(logits, slots)
        ended = self._slots.record(slots, ids, logprobs)
        finished = self._finish(ended, slots[~np.isfinite(logprobs)].tolist())
        self.counters.tokens_sampled += len(slots)
        self.counters.tokens_prefilled += sum(segment.stop - segment.start for segment in segments)
        self.counters.steps += 1
        self.counters.busy_s += time.perf_counter() - begun
        return finished

    def _join(self) -> tuple[list[Segment], dict[int, list[int]]]:
        """Give slots to waiting requests, oldest first; returns what has to be computed, and which slots share which one's prompt."""
        segments: list[Segment] = []
        twins: dict[int, list[int]] = {}
        joining: dict[bytes, int] = {}
        budget = JOINING_TOKENS
        while self._waiting and self._slots.free:
            key, request = next(iter(self._waiting.items()))
            limit = min(len(request.ids) + request.max_tokens, self._context_length)
            reserved = self._cache.capacity_for(limit) * self._cache.token_bytes
            if (self._slot_of and self._reserved + reserved > self._memory_bytes) or (segments and budget < len(request.ids)):
                break
            del self._waiting[key]
            prompt = request.ids.astype(np.int32).tobytes()
            stream = np.random.Generator(np.random.Philox(request.seed))
            running = Running(
                key=key, request=request, stream=stream, marks=[(self.version, 0)], epoch=self._epoch, prompt=prompt, reserved=reserved
            )
            slot = self._slots.join(running, limit)
            self._slot_of[key] = slot
            self._reserved += reserved
            self._cache.open(slot, min(limit, len(request.ids) + HEADROOM))
            if prompt in joining:
                twins.setdefault(joining[prompt], []).append(slot)
                self.counters.tokens_reused += len(request.ids)
                continue
            joining[prompt] = slot
            start = self._reuse(slot, running)
            self.counters.tokens_reused += start
            segments.append(Segment(slot=slot, start=start, stop=len(request.ids)))
            budget -= len(request.ids) - start
        for prompt, slot in joining.items():
            self._prompts.setdefault(prompt, []).extend([slot, *twins.get(slot, ())])
        return segments, twins

    def _reuse(self, slot: int, running: Running) -> int:
        """Put what is known of a prompt's KV cache into a slot; returns how many tokens that is. The last token is always computed."""
        most = len(running.request.ids) - 1
        sources = self._prompts.get(running.prompt)
        if sources and most:
            self._cache.copy(sources[0], [slot], most)
            return most
        known = self._prefixes.take(running.request.session, running.request.ids) if running.request.session else None
        if known is None:
            return 0
        prefix, length = known
        length = min(length, most)
        if length:
            self._cache.write(slot, prefix.layers, length)
        return length

    def _draw(self, logits: torch.Tensor, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        table = self._slots
        temperatures, greedy = table.temperature[slots], table.greedy[slots]
        truncations = []
        for row in np.flatnonzero(table.truncated[slots]).tolist():
            contract = table.at(int(slots[row])).request.contract
            truncations.append(Truncation(row=row, top_p=contract.top_p, top_k=contract.top_k, min_p=contract.min_p))
        return draw(
            logits,
            None if (temperatures == 1).all() else temperatures,
            greedy if greedy.any() else None,
            table.next_uniforms(slots),
            truncations,
        )

    def _finish(self, ended: Sequence[tuple[int, FinishReason]], broken: Sequence[int]) -> list[Finished]:
        finished = []
        for slot in broken:
            self._cache.wipe(slot)  # a NaN left behind would reach whoever gets the row next
            message = f"the logits of version {self.version.step} are not finite: the policy has diverged"
            finished.append(Finished(key=self._slots.at(slot).key, result=message))
        left = set(broken)
        for slot, reason in ended:
            if slot not in left:
                finished.append(Finished(key=self._slots.at(slot).key, result=self._slots.completion(slot, reason)))
                self._keep_prefix(slot)
                left.add(slot)
        self._leave(sorted(left))
        return finished

    def _keep_prefix(self, slot: int) -> None:
        running = self._slots.at(slot)
        length = int(self._slots.cached[slot])
        if running.request.session and running.epoch == self._epoch:
            ids = self._slots.tokens[slot, :length]
            self._prefixes.put(running.request.session, ids, self._cache.token_bytes, lambda: self._cache.read(slot, length))

    @torch.inference_mode()
    def _leave(self, slots: Sequence[int]) -> None:
        if not slots:
            return
        self._cache.close(slots, self._slots.cached)
        for slot in slots:
            running = self._slots.leave(slot)
            del self._slot_of[running.key]
            self._reserved -= running.reserved
            sharing = self._prompts.get(running.prompt, [])
            if slot in sharing:
                sharing.remove(slot)
                if not sharing:
                    del self._prompts[running.prompt]
        if self._cache.allocated_bytes() > self._memory_bytes:
            self._cache.release_empty()
