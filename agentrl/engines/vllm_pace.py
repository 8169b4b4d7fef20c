"""How many requests one vLLM server may have in flight, by what it says of its queue and its KV cache."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

FIRST = 32
"""Requests in flight on a server of which nothing is known yet."""
ROOMY = 0.9
"""Share of the KV cache in use below which more requests are let in."""

_GAUGE = re.compile(
    r"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc|num_preemptions_total)(?:\{[^}]*\})?[ ]+(\S+)", re.MULTILINE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a server said of itself, over all of its engines."""

    running: float
    waiting: float
    """Requests that the server holds and has not begun, or has thrown out of its KV cache."""
    cache: float
    """Share of the KV cache in use, of the fullest engine."""
    preemptions: float
    """Since the server started."""


def read_load(text: str) -> Load:
    """Read the four figures out of an answer of `/metrics`; raises `ValueError` where one is missing or no number."""
    found: dict[str, list[float]] = {}
    for name, value in _GAUGE.findall(text):
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(f"/metrics shows vllm:{name} as {value}")
        found.setdefault(name, []).append(number)
    missing = {"num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"} - set(found)
    if missing:
        raise ValueError(f"/metrics does not show vllm:{sorted(missing)[0]}; start the server without --disable-log-stats")
    return Load(
        running=sum(found["num_requests_running"]),
        waiting=sum(found["num_requests_waiting"]),
        cache=max(found["kv_cache_usage_perc"]),
        preemptions=sum(found.get("num_preemptions_total", [0.0])),
    )


class Pace:
    """The limit of one server. It doubles until the server first falls behind, and after that climbs in small steps."""

    def __init__(self, most: int | None) -> None:
        self.limit = min(FIRST, most or FIRST)
        """Requests that may be in flight now; at least 1."""
        self._most = most
        self._climbing = False
        self._crowded = False
        self._preemptions: float | None = None

    def follow(self, load: Load, *, in_flight: int, wanted: bool) -> None:
        """Take one look at the server.

        A queue seen once may be a burst that the server is about to begin; seen twice, or with a preemption, it is more than it can hold.

        Args:
            load: what the server said.
            in_flight: our own requests there.
            wanted: whether a request waits for a place.
        """
        preempted = self._preemptions is not None and load.preemptions > self._preemptions
        crowded_before, self._crowded, self._preemptions = self._crowded, load.waiting > 0, load.preemptions
        if preempted or (self._crowded and crowded_before):
            excess = max(int(load.waiting), self.limit // 8 if preempted else 1)
            fewer = max(self.limit * 3 // 4, in_flight - excess)
            self.limit = max(1, min(self.limit - 1, fewer))
            self._climbing = True
        elif wanted and in_flight >= self.limit and not self._crowded and load.cache < ROOMY:
            more = self.limit + max(1, self.limit // 8) if self._climbing else self.limit * 2
            self.limit = min(more, self._most or more)
