"""Which vLLM server gets which request, and which request goes first. No I/O: each call takes a place here and gives it back.

A request takes the least loaded server that has room; a turn of a running episode the one that holds its prefix, unless that is clearly
fuller. Turns of running episodes go before new ones, so that episodes end; within each kind it is first come, first served.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from contextlib import contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING

import trio

from agentrl.engines.vllm_api import base_of
from agentrl.engines.vllm_pace import Pace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentrl.dispatch import Served

SLACK = 0.25
"""A server that holds the prefix is used although it is fuller than another, by up to this share of its limit."""
WINDOW = 16
"""How many requests in a queue are searched for one whose prefix the free server holds, and how often one may be passed over for it."""
MOST_SESSIONS = 1 << 15
"""Episodes whose server is remembered, the last ones used."""
FIRST_COOLING_S = 0.25
MOST_COOLING_S = 10.0


class Place:
    """A server in use: its limit, its calls, and how it has behaved."""

    def __init__(self, served: Served, most: int | None) -> None:
        self.served = served
        self.pace = Pace(most)
        self.calls: set[trio.CancelScope] = set()
        """Requests in flight; cancelling one makes its request look for another server."""
        self.retired = False
        """No longer in use."""
        self._failures = 0
        self._cool_at = 0.0

    @property
    def url(self) -> str:
        """The server's."""
        return self.served.url

    @property
    def fullness(self) -> float:
        """Requests in flight over the limit."""
        return len(self.calls) / self.pace.limit

    @property
    def has_room(self) -> bool:
        """Whether one more request may be sent."""
        return len(self.calls) < self.pace.limit

    @property
    def cooling(self) -> bool:
        """Whether it failed just now; then others are asked first."""
        return trio.current_time() < self._cool_at

    def failed(self) -> None:
        """Take note of a call that failed by the server's fault: it cools for longer after each one in a row."""
        self._cool_at = trio.current_time() + min(FIRST_COOLING_S * 2**self._failures, MOST_COOLING_S)
        self._failures = min(self._failures + 1, 30)

    def answered(self) -> None:
        """Take note of a good answer."""
        self._failures = 0

    def cancel_calls(self) -> None:
        """Send the requests in flight here to look for another server."""
        for scope in self.calls:
            scope.cancel()


class Ticket:
    """What one request has been through: its place, if it has one, and the time that it has left."""

    def __init__(self, session: str, left_s: float) -> None:
        self.session = session
        """Of the episode; empty for a request of its own."""
        self.left_s = left_s
        """Seconds that it may still spend in calls and in waiting for any server at all; its time in the queue of those in use is free."""
        self.avoid = ""
        """URL of the server that failed it last, which is asked again only where there is no other."""
        self.passed = 0
        """How often others took a place before it although they came later."""
        self.queue()

    def queue(self) -> None:
        """Begin to wait for a place."""
        self.place: Place | None = None
        self.found = trio.Event()
        self.patience = trio.CancelScope()
        """Its wait for a place."""
        self.scope = trio.CancelScope()
        """To make the call in; it is cancelled when the server leaves."""

    def count_down(self, running: bool) -> None:
        """Let its time run while it waits, or stop the clock."""
        left_s = self.patience.deadline - trio.current_time()
        if running and left_s == math.inf:
            self.patience.deadline = trio.current_time() + self.left_s
        elif not running and left_s < math.inf:
            self.left_s, self.patience.deadline = left_s, math.inf

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Spend its time on what is done here, which is cancelled when none is left."""
        started = trio.current_time()
        try:
            with trio.move_on_after(self.left_s):
                yield
        finally:
            self.left_s -= trio.current_time() - started


class Router:
    """The servers in use and the requests that wait for them."""

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._places: dict[str, Place] = {}
        self._homes: OrderedDict[str, str] = OrderedDict()
        self._running: dict[Ticket, None] = {}
        self._new: dict[Ticket, None] = {}

    @property
    def places(self) -> list[Place]:
        """The servers in use."""
        return list(self._places.values())

    @property
    def waiting(self) -> int:
        """Requests without a place."""
        return len(self._running) + len(self._new)

    def update(self, servers: tuple[Served, ...]) -> tuple[list[Place], list[Place]]:
        """Use these servers from now on; returns those that joined and those that left.

        Calls on a server that left, or that serves another base model than before, are cancelled; those that run on an older version or
        adapter of the same model go on.
        """
        joined = []
        before, self._places = self._places, {}
        for served in servers:
            place = before.pop(served.url, None)
            if place is None:
                joined.append(place := Place(served, self._most))
            elif base_of(served.model) != base_of(place.served.model):
                place.cancel_calls()
            place.served = served
            self._places[served.url] = place
        for place in before.values():
            place.retired = True
            place.cancel_calls()
        for ticket in self._in_order():
            ticket.count_down(not self._places)
        self.admit()
        return joined, list(before.values())

    async def take(self, ticket: Ticket) -> Place | None:
        """Wait for a place, to be called in the ticket's scope. None where no server was in use until the ticket's time was spent."""
        ticket.queue()
        (self._running if ticket.session in self._homes else self._new)[ticket] = None
        ticket.count_down(not self._places)
        self.admit()
        if ticket.place is not None:
            return ticket.place
        return await self._wait(ticket)

    async def _wait(self, ticket: Ticket) -> Place | None:
        try:
            with ticket.patience:
                await ticket.found.wait()
        except trio.Cancelled:
            if ticket.place is not None:  # it was given after the cancellation, before this ran
                self.give_back(ticket.place, ticket.scope)
            raise
        finally:
            self._running.pop(ticket, None)
            self._new.pop(ticket, None)
            ticket.count_down(False)
        return ticket.place

    def give_back(self, place: Place, scope: trio.CancelScope) -> None:
        """Free a place."""
        place.calls.discard(scope)
        self.admit()

    def admit(self) -> None:
        """Give free places to those who wait; for whoever changes what decides it: places, limits, time."""
        while self.waiting and (found := self._next()) is not None:
            ticket, place = found
            self._running.pop(ticket, None)
            self._new.pop(ticket, None)
            ticket.place = place
            place.calls.add(ticket.scope)
            if ticket.session:
                self._homes[ticket.session] = place.url
                self._homes.move_to_end(ticket.session)
                while len(self._homes) > MOST_SESSIONS:
                    self._homes.popitem(last=False)
            ticket.found.set()

    def _next(self) -> tuple[Ticket, Place] | None:
        """The first who can have a place; one whose prefix is there may overtake a few whose prefix is not."""
        sound = [place for place in self._places.values() if not place.cooling] or self.places
        open_places = sorted((place for place in sound if place.has_room), key=lambda place: place.fullness)
        if not open_places:
            return None
        first: tuple[Ticket, Place] | None = None
        for number, ticket in enumerate(self._in_order()):
            place = self._fit(ticket, open_places, alone=len(sound) == 1)
            if place is None:
                continue
            if first is None:
                first = (ticket, place)
            if ticket.passed >= WINDOW or self._homes.get(ticket.session) == place.url:
                for passed in islice(self._in_order(), number):
                    passed.passed += 1
                return ticket, place
            if number >= WINDOW:
                break
        return first

    def _in_order(self) -> Iterator[Ticket]:
        return chain(self._running, self._new)

    def _fit(self, ticket: Ticket, open_places: list[Place], *, alone: bool) -> Place | None:
        """The best of the open places, which are in ascending order of fullness, for one request."""
        allowed = [place for place in open_places if place.url != ticket.avoid or alone]
        home = self._homes.get(ticket.session)
        for place in allowed:
            if place.url == home and place.fullness <= allowed[0].fullness + SLACK:
                return place
        return allowed[0] if allowed else None
