"""Games of the textarena library: `textarena:Mastermind-v0` alone, `textarena:KuhnPoker-v0?opponent=rival` against another policy."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from agentrl.environment import Environment, Episode, Split, finite
from agentrl.envs.adapters.answers import Extraction, found_answer
from agentrl.envs.adapters.seeds import Seeds
from agentrl.envs.adapters.textarena_match import GameFacts, GameSpec, Match, Memory, facts_of, listed_moves
from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.llm import LLM, POLICY, BudgetSpent, Message
from agentrl.records import Score, Task

SELF, RANDOM = "self", "random"


def textarena_games(
    name: str,
    /,
    *,
    size: int = 10_000,
    eval_size: int = 200,
    seed: int = 0,
    opponent: str = SELF,
    moves: Sequence[str] = (),
    players: int | None = None,
    memory: Memory = "chat",
    extract: Extraction = "text",
    unfinished: float = -1.0,
    system: str = "",
    network: bool = False,
    **options: Any,
) -> Environment:
    """A game of textarena. The score is the game's own reward of the trained seat, which changes from task to task.

    Args:
        name: as `textarena.make` takes it.
        size: training tasks, one a seed.
        eval_size: evaluation tasks, with seeds of their own.
        seed: shifts all seeds.
        opponent: who plays the other seats: `self` (the policy that is trained, its turns left out of training), the name of one of the
            run file's `policies`, or `random`, in games that list their moves.
        moves: for a random opponent, the moves of a game that does not list them.
        players: how many; by default two, or what the game insists on.
        memory: what a player sees: `chat`, the conversation so far and what is new; `wrapper`, one message a turn by the wrapper that the
            game's name stands for (`-train` names show the board alone).
        extract: how the move is read off an answer: `text` takes all of it after the thinking, `auto` the last box or line, `tags` the
            last `<answer>...</answer>`.
        unfinished: score of a game that a budget of the run cut off. Not less than a loss, or giving up would pay.
        system: the system message.
        network: allow games that ask models on the internet.
        options: the game's own, in place of those that its name stands for.
    """
    for value, kind, what in ((memory, Memory, "memory"), (extract, Extraction, "extract")):
        if value not in get_args(kind):
            raise ConfigError(f"textarena:{name}: {what} must be one of {', '.join(get_args(kind))}, got {value!r}")
    spec = GameSpec(name=name, options=json.dumps(options, default=str), memory=memory, network=network)
    facts = facts_of(spec, players)
    rules = _Rules(spec, facts, extract=extract, unfinished=finite("unfinished is", unfinished, "a finite number"), system=system)
    seeds = Seeds(size=size, eval_size=eval_size, shift=seed, seats=facts.players)
    if facts.players == 1:
        if memory != "chat":
            raise ConfigError(f"textarena:{name}: a game for one is a chat; memory=wrapper is for games of several")
        return SoloGame(rules, seeds)
    if opponent == RANDOM and not moves and not facts.lists_moves:
        raise ConfigError(f"textarena:{name} does not list its moves; give them as moves=[...], or another opponent")
    return MatchGame(rules, seeds, opponent=opponent, moves=tuple(map(str, moves)))


class _Rules:
    """What both kinds of game share."""

    def __init__(self, spec: GameSpec, facts: GameFacts, *, extract: Extraction, unfinished: float, system: str) -> None:
        self.spec, self.extract, self.unfinished = spec, extract, unfinished
        self._facts = facts
        self.head: list[Message] = [{"role": "system", "content": system}] if system else []

    def match(self, task: Task) -> Match:
        return Match(self.spec, seed=task.row["seed"], players=self._facts.players)

    def move(self, answer: str) -> str:
        return found_answer(answer, self.extract) or ""

    def score(self, match: Match, seat: int) -> Score:
        notes = match.told(seat)
        parts = {"unfinished": float(not match.over), "invalid_move": float(bool(notes.get("invalid_move")))}
        return Score(value=match.reward(seat) if match.over else self.unfinished, parts=parts, reason=str(notes.get("reason") or ""))


class SoloGame(Environment):
    """A game for one, played in a chat."""

    def __init__(self, rules: _Rules, seeds: Seeds) -> None:
        self._rules, self._seeds = rules, seeds
        self._match: Match | None = None

    def tasks(self, split: Split) -> Sequence[Mapping[str, Any]]:
        """A seed a row; no seed is in both splits."""
        return self._seeds.of(split)

    def start(self, task: Task) -> list[Message]:
        """The rules and the first position, as textarena words them."""
        self._match = self._rules.match(task)
        return [*self._rules.head, {"role": "user", "content": self._match.observe()[1]}]

    def reply(self, answer: str) -> str:
        """What a move leads to."""
        assert self._match is not None
        self._match.act(self._rules.move(answer))
        if self._match.over:
            self.done = True
            return f"The game is over. {self._match.told(0).get('reason') or ''}".strip()
        return self._match.observe()[1]

    def score(self, episode: Episode) -> Score:
        """The game's reward."""
        assert self._match is not None
        return self._rules.score(self._match, 0)


class MatchGame(Environment):
    """A game for several, of whom one is trained."""

    def __init__(self, rules: _Rules, seeds: Seeds, *, opponent: str, moves: tuple[str, ...]) -> None:
        self._rules, self._seeds, self._opponent, self._moves = rules, seeds, opponent, moves

    def tasks(self, split: Split) -> Sequence[Mapping[str, Any]]:
        """A seed and a seat a row; no seed is in both splits."""
        return self._seeds.of(split)

    async def episode(self, task: Task, llm: LLM) -> Score:
        """Play the match to its end, or to the end of the budget."""
        seat: int = task.row["seat"]
        match = self._rules.match(task)
        stream = random.Random(f"{task.row['seed']}/opponent")
        talks: dict[int, list[Message]] = {player: list(self._rules.head) for player in range(match.players)}
        try:
            while not match.over:
                player, text = match.observe()
                talk = talks[player] if self._rules.spec.memory == "chat" else list(self._rules.head)
                talk.append({"role": "user", "content": text})
                if player != seat and self._opponent == RANDOM:
                    said = self._random_move(stream, text)
                    talk.append({"role": "assistant", "content": said})
                else:
                    said = self._rules.move(await self._asked(llm, talk, trained=player == seat))
                match.act(said)
        except BudgetSpent:
            pass  # scored as unfinished
        return self._rules.score(match, seat)

    async def _asked(self, llm: LLM, talk: list[Message], *, trained: bool) -> str:
        policy = POLICY if trained or self._opponent == SELF else self._opponent
        reply = await llm.chat(talk, policy=policy, train=trained)
        talk.append(reply.message)
        return str(reply.message.get("content") or "")

    def _random_move(self, stream: random.Random, text: str) -> str:
        moves = listed_moves(text) or self._moves
        if not moves:
            raise EnvironmentFailure(f"textarena:{self._rules.spec.name} lists no moves for a random opponent in: {text[-200:]!r}")
        return stream.choice(moves)
