"""Nim, a game for two: heaps of sticks, each move takes some from one heap, and who takes the last stick wins.

The trained policy has one seat. The other one is the policy itself as it is now (`opponent=policy`, not trained on those turns), a frozen
policy of the run file (an earlier self with `update_every`, or any model), or a program: `random`, or `perfect`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from functools import partial, reduce
from operator import xor
from typing import Any

from agentrl.environment import Environment, Episode, Split
from agentrl.envs.procedural import Procedural
from agentrl.errors import ConfigError
from agentrl.llm import LLM, POLICY, Message
from agentrl.records import Task
from agentrl.registry import register
from agentrl.rewards.extract import last_box, spoken_text

SIZES: Mapping[Split, int] = {"train": 20_000, "eval": 400}
RULES = "Nim: heaps of sticks. Take some from one heap; who takes the last stick wins. Answer with the number of the heap and how many."

Heaps = tuple[int, ...]
Move = tuple[int, int]
"""Index of a heap, from 0, and how many sticks."""

_MOVE = re.compile(r"\s*(\d{1,3})[ ,:]+(\d{1,3})\s*")


def draw(stream: random.Random, *, heaps: int, most: int) -> tuple[str, Mapping[str, Any]]:
    """One game: its heaps, who begins, and a seed for an opponent that plays by chance. Every start is in one split only."""
    start = [stream.randint(1, most) for _ in range(heaps)]
    first = bool(stream.getrandbits(1))
    return f"{sorted(start)}", {"heaps": start, "first": first, "seed": stream.getrandbits(32)}


def read_move(answer: str, heaps: Heaps) -> Move | None:
    """The move of an answer such as `2 3` (three sticks of the second heap); None where it is none, or breaks the rules."""
    spoken = spoken_text(answer)
    found = None if spoken is None else _MOVE.fullmatch(last_box(spoken) or spoken)
    if found is None:
        return None
    heap, count = int(found.group(1)) - 1, int(found.group(2))
    return (heap, count) if 0 <= heap < len(heaps) and 1 <= count <= heaps[heap] else None


def after(heaps: Heaps, move: Move) -> Heaps:
    """The heaps once a move is made."""
    heap, count = move
    return (*heaps[:heap], heaps[heap] - count, *heaps[heap + 1 :])


def moves(heaps: Heaps) -> list[Move]:
    """Every move that the rules allow."""
    return [(heap, count) for heap, size in enumerate(heaps) for count in range(1, size + 1)]


def perfect_move(heaps: Heaps) -> Move:
    """A winning move where there is one (Bouton 1901: leave a nim-sum of 0), else one stick of the largest heap."""
    total = reduce(xor, heaps)
    for heap, size in enumerate(heaps):
        if total and size ^ total < size:
            return heap, size - (size ^ total)
    return heaps.index(max(heaps)), 1


@register("nim")
class Nim(Environment):
    """Play Nim against another policy, or a program. The score is 1 for a win and 0 for a loss; a move against the rules loses.

    Args of the spec: `heaps` and `most` (sticks in one heap), `opponent` (`policy`, the name of a frozen policy, `random`, `perfect`).
    """

    def __init__(self, heaps: int = 3, most: int = 9, opponent: str = POLICY) -> None:
        if not (1 <= heaps <= 9 and 1 <= most <= 99):
            raise ConfigError(f"nim: heaps must lie in 1 to 9 and most in 1 to 99, got heaps={heaps}, most={most}")
        self._heaps, self._most, self._opponent = heaps, most, opponent

    def tasks(self, split: Split) -> Procedural:
        """Starts of games; the heaps of an evaluation game, in any order, are never trained on."""
        return Procedural(
            partial(draw, heaps=self._heaps, most=self._most), split=split, size=SIZES[split], name=f"nim/{self._heaps}/{self._most}"
        )

    async def episode(self, task: Task, llm: LLM) -> Mapping[str, float]:
        """Take turns until the sticks are gone, or somebody breaks the rules."""
        heaps: Heaps = tuple(task.row["heaps"])
        mine = _Seat(llm, POLICY, train=True)
        theirs = self._other(task, llm)
        seats: Sequence[Any] = (mine, theirs) if task.row["first"] else (theirs, mine)
        turn = 0
        while any(heaps):
            mover, waiting = seats[turn % 2], seats[(turn + 1) % 2]
            move = await mover.move(heaps)
            if move is None:
                return {"win": float(waiting is mine)}
            heaps = after(heaps, move)
            turn += 1
        return {"win": float(seats[(turn - 1) % 2] is mine)}

    def score(self, episode: Episode) -> Mapping[str, float]:
        """Of a game that a spent budget cut off: it is not won."""
        return {"win": 0.0}

    def _other(self, task: Task, llm: LLM) -> Any:
        if self._opponent == "random":
            stream = random.Random(task.row["seed"])
            return _Program(lambda heaps: stream.choice(moves(heaps)))
        if self._opponent == "perfect":
            return _Program(perfect_move)
        return _Seat(llm, self._opponent, train=False)


class _Seat:
    """A player that is a policy; it sees its own conversation."""

    def __init__(self, llm: LLM, policy: str, *, train: bool) -> None:
        self._llm, self._policy, self._train = llm, policy, train
        self._messages: list[Message] = []

    async def move(self, heaps: Heaps) -> Move | None:
        shown = "Heaps: " + " ".join(map(str, heaps))
        self._messages.append({"role": "user", "content": shown if self._messages else f"{RULES}\n{shown}"})
        reply = await self._llm.chat(self._messages, policy=self._policy, train=self._train)
        self._messages.append(reply.message)
        return read_move(reply.message["content"], heaps) if reply.finish_reason == "stop" else None


class _Program:
    """A player that is a function of the heaps."""

    def __init__(self, choose: Any) -> None:
        self._choose = choose

    async def move(self, heaps: Heaps) -> Move:
        chosen: Move = self._choose(heaps)
        return chosen
