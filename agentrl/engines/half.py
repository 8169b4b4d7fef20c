"""One of the engine's two models, the policy or the frozen reference, with the KV caches of the requests that need its logits.

Both halves read the same columns of tokens; each has pools, shared prompts and kept prefixes of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentrl.engines.kv import KVCache
from agentrl.engines.mixture import Rows
from agentrl.engines.prefixes import PrefixStore
from agentrl.engines.step import Segment, plan_step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.engines.decoder import Loaded
    from agentrl.engines.slots import Running, Slots

JOINING_TOKENS = 4096
"""Most prompt tokens that are computed in one step, so that they do not hold up the others for long; a longer prompt joins alone."""
HEADROOM = 32
"""Tokens beyond its prompt for which a joining request gets room at once."""


class Half:
    """A model and its caches.

    Args:
        loaded: the model.
        table: the running requests.
        context_length: most tokens of one request.
        prefix_bytes: for caches of earlier turns.
    """

    def __init__(self, loaded: Loaded, table: Slots, *, context_length: int, prefix_bytes: int) -> None:
        self._decoder = loaded.decoder
        self._table = table
        self._cache = KVCache(
            loaded.decoder.shapes, num_slots=len(table.running), context_length=context_length, dtype=loaded.dtype, device=loaded.device
        )
        self._prefixes = PrefixStore(prefix_bytes)
        self._prompts: dict[bytes, list[int]] = {}
        """Slots whose prompt is cached under the weights as they are, by the prompt."""
        self._outdated: set[int] = set()
        """Slots whose cache is, at least in part, of older weights."""
        self._decoding: list[int] = []
        """For each pool, how many of its first rows decode in this step."""
        self._joining: dict[bytes, int] = {}
        self._twins: dict[int, list[int]] = {}
        """Which slots share the prompt of one that joins in this step."""
        self._segments: list[Segment] = []

    def holds(self, slot: int) -> bool:
        """Whether a slot has a cache here."""
        return bool(self._cache.pool[slot] >= 0)

    def bytes_for(self, tokens: int) -> int:
        """Of the cache of a request that may grow to so many tokens."""
        return self._cache.capacity_for(tokens) * self._cache.token_bytes

    def begin(self) -> None:
        """Make room for the next token of each request; those that join from here on are computed in the same step."""
        self._cache.make_room(self._table.cached)
        self._decoding = [len(pool.slots) for pool in self._cache.pools]
        self._joining, self._twins, self._segments = {}, {}, []

    def join(self, slot: int, limit: int) -> int:
        """Give a slot a cache, and put there what is known of its prompt; returns how many tokens of it need not be computed.

        Args:
            slot: it has its request.
            limit: most tokens that the request may come to hold.
        """
        running = self._table.at(slot)
        length = len(running.request.ids)
        self._cache.open(slot, min(limit, length + HEADROOM))
        if running.prompt in self._joining:
            self._twins.setdefault(self._joining[running.prompt], []).append(slot)
            return length
        self._joining[running.prompt] = slot
        start = self._reuse(slot, running)
        self._segments.append(Segment(slot=slot, start=start, stop=length))
        return start

    def _reuse(self, slot: int, running: Running) -> int:
        """As `join`, for a prompt that nobody else joins with. The last token is always computed."""
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

    def forward(self) -> Rows | None:
        """One forward pass for all that decode or join; None where no request needs this model."""
        if not self._segments and not any(self._decoding):
            return None
        table = self._table
        step, slots = plan_step(self._cache, table.tokens, table.cached, self._decoding, self._segments, self._twins)
        logits = self._decoder.forward(step)
        for slot, sharing in self._twins.items():
            self._cache.copy(slot, sharing, int(table.total[slot]))
        for prompt, slot in self._joining.items():
            self._prompts.setdefault(prompt, []).extend([slot, *self._twins.get(slot, ())])
        return Rows(logits=logits, slots=slots)

    def weights_changed(self, slots: Sequence[int], *, recompute: bool) -> None:
        """Never use for a new request what older weights computed.

        Args:
            slots: all that have a cache here.
            recompute: compute these caches again; otherwise the requests go on with them.
        """
        self._prefixes.clear()
        self._prompts.clear()
        self._outdated.update(slots)
        if recompute and slots:
            self._recompute(slots)

    def _recompute(self, slots: Sequence[int]) -> None:
        batch: list[Segment] = []
        for index, slot in enumerate(slots):
            batch.append(Segment(slot=slot, start=0, stop=int(self._table.cached[slot])))
            if sum(segment.stop for segment in batch) >= JOINING_TOKENS or index == len(slots) - 1:
                nobody = [0] * len(self._cache.pools)
                step, _ = plan_step(self._cache, self._table.tokens, self._table.cached, nobody, batch, {}, sample=False)
                self._decoder.forward(step)
                batch = []
        self._outdated.difference_update(slots)

    def keep_prefix(self, slot: int) -> None:
        """Keep a slot's cache for the next turn of its session, if it has one."""
        session = self._table.at(slot).request.session
        if session and slot not in self._outdated:
            length = int(self._table.cached[slot])
            ids = self._table.tokens[slot, :length]
            self._prefixes.put(session, ids, self._cache.token_bytes, lambda: self._cache.read(slot, length))

    def wipe(self, slot: int) -> None:
        """Overwrite a slot's cache: a NaN left behind would reach whoever gets its place next."""
        self._cache.wipe(slot)

    def leave(self, slots: Sequence[int]) -> None:
        """Take the caches of slots back; their requests are still in the table."""
        if not slots:
            return
        self._cache.close(slots, self._table.cached)
        self._outdated.difference_update(slots)
        for slot in slots:
            prompt = self._table.at(slot).prompt
            sharing = self._prompts.get(prompt, [])
            if slot in sharing:
                sharing.remove(slot)
                if not sharing:
                    del self._prompts[prompt]

    def allocated_bytes(self) -> int:
        """Of all caches of running requests, used or not."""
        return self._cache.allocated_bytes()

    def release_empty(self) -> None:
        """Give unused memory back."""
        self._cache.release_empty()
