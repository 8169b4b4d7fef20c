"""The turns of one episode while it is played: a line, or a forest where its history is rewritten or several policies are asked."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import trio

from agentrl.engines.protocol import Engine, Request
from agentrl.records import SamplingContract, Source, Turn
from agentrl.rollout.turns import rewarded, sampled_turn
from agentrl.rollout.turnstile import one_by_one

if TYPE_CHECKING:
    from collections import defaultdict

    from agentrl.config_engine import SamplingConfig
    from agentrl.engines.protocol import Completion
    from agentrl.rollout.render import Rendered, Renderer

ROOT = -1
"""Parent of a turn that goes on from no other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """A policy that an episode may ask: where it samples, how its prompts are written, and how its tokens are drawn."""

    engine: Engine
    renderer: Renderer
    contract: SamplingContract
    trained: bool = True
    """Whether it is the policy that the run trains."""


class Tree:
    """Samples turns and records them.

    Args:
        sampling: budgets.
        stream: names the random streams of the episode; with the number of a call, that of the call.
        counters: of the rollout; turns, tokens and the engine's time are added.
    """

    def __init__(self, sampling: SamplingConfig, stream: str, counters: defaultdict[str, float]) -> None:
        self.turns: list[Turn] = []
        self._sampling = sampling
        self._stream = stream
        self._counters = counters
        self._lengths: list[int] = []
        self._sessions: list[str] = []
        self._continued: set[int] = set()

    def limit(self, sampler: Sampler) -> int:
        """Tokens that a context may hold."""
        context = sampler.engine.context_length
        return min(context, self._sampling.max_episode_tokens or context)

    def room(self, sampler: Sampler, parent: int, added: Rendered) -> int:
        """Tokens that can still be sampled once `added` is in the context; may be negative."""
        return self.limit(sampler) - (self._lengths[parent] if parent >= 0 else 0) - len(added.ids)

    def length(self, turn: int) -> int:
        """Tokens of the context at the end of a turn."""
        return self._lengths[turn]

    def last_id(self, turn: int) -> int:
        """The last token that a turn sampled; -1 where it sampled none."""
        sampled = self.turns[turn].span.ids[self.turns[turn].span.sampled]
        return int(sampled[-1]) if len(sampled) else -1

    def root(self, turn: int) -> int:
        """The turn with which a turn's context begins."""
        return self._path(turn)[0]

    def is_continued(self, turn: int) -> bool:
        """Whether another one goes on from a turn, or is to."""
        return turn in self._continued

    async def sample(self, sampler: Sampler, parent: int, added: Rendered, max_tokens: int, number: int, *, trained: bool = True) -> int:
        """Have a turn sampled behind another one, or at a root; returns its index once it is recorded.

        Args:
            sampler: whom to ask.
            parent: the turn to go on from; `ROOT` for none.
            added: what is new to the context.
            max_tokens: most tokens, within the room that there is.
            number: of the call within the episode; it chooses the random stream.
            trained: False keeps the turn out of training.
        """
        path = self._path(parent)
        context = np.concatenate([*(self.turns[turn].span.ids for turn in path), added.ids])
        session = self._session(parent)
        request = Request(
            ids=context,
            max_tokens=min(max_tokens, self.room(sampler, parent, added)),
            contract=sampler.contract,
            seed=request_seed(self._stream, number),
            stop_ids=sampler.renderer.stop_ids,
            session=session,
        )
        started = trio.current_time()
        completion = await sampler.engine.generate(request)
        self._counters["time/engine_s"] += trio.current_time() - started
        await one_by_one()  # what follows, up to the environment's next answer
        return self._record(sampler, parent, added, completion, session, trained=trained and sampler.trained)

    def _record(self, sampler: Sampler, parent: int, added: Rendered, completion: Completion, session: str, *, trained: bool) -> int:
        kind = "" if trained else "other_"
        self._counters[f"{kind}turns"] += 1
        self._counters[f"tokens/{kind}sampled"] += len(completion.ids)
        self._counters[f"tokens/{kind}given"] += len(added.ids)
        source = Source.PROMPT if parent == ROOT else Source.ENVIRONMENT
        self.turns.append(sampled_turn(parent, added.ids, source, completion, sampler.contract, trained=trained))
        self._lengths.append((self._lengths[parent] if parent >= 0 else 0) + len(self.turns[-1].span))
        self._sessions.append(session)
        return len(self.turns) - 1

    def reward(self, turn: int, reward: float) -> None:
        """Add a reward to a turn. Raises `EnvironmentFailure` where the sum is too large."""
        self.turns[turn] = rewarded(self.turns[turn], reward)

    def sampled_ids(self) -> list[int]:
        """Sampled ids of all turns that may be trained, in the order in which they ended."""
        return [token for turn in self.turns if turn.trained for token in turn.span.ids[turn.span.sampled].tolist()]

    def _path(self, turn: int) -> list[int]:
        path = []
        while turn >= 0:
            path.append(turn)
            turn = self.turns[turn].parent
        return path[::-1]

    def _session(self, parent: int) -> str:
        """The engine keeps one KV cache a session: the first continuation of a turn goes on with it, any other begins one."""
        if parent == ROOT or parent in self._continued:
            return uuid.uuid4().hex
        self._continued.add(parent)
        return self._sessions[parent]


def request_seed(stream: str, call: int) -> int:
    """The random stream of one call, a number of 63 bits: the same for the same seed, task, member and place among the calls."""
    digest = hashlib.blake2b(f"{stream}\n{call}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
