"""Environments of the gymnasium library that can be played in text: `gymnasium:FrozenLake-v1?is_slippery=false`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agentrl.environment import Environment, Episode, FunctionTool, Split, finite
from agentrl.envs.adapters.answers import found_answer
from agentrl.envs.adapters.gymnasium_describe import best_actions, observed
from agentrl.envs.adapters.gymnasium_make import Game, facts_of, guarded
from agentrl.envs.adapters.seeds import Seeds
from agentrl.envs.golden_calls import golden_call
from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.llm import Message
from agentrl.records import Score, Task

DEFAULT_STEPS = 100
"""Where the environment itself has no limit."""


def gymnasium_text(
    name: str,
    /,
    *,
    size: int = 10_000,
    eval_size: int = 200,
    seed: int = 0,
    max_turns: int | None = None,
    max_invalid: int = 3,
    invalid_reward: float = 0.0,
    forfeit: float | None = None,
    tools: bool = False,
    goal: str | None = None,
    actions: Sequence[str] = (),
    random_map: int | None = None,
    **options: Any,
) -> GymnasiumText:
    """An environment of gymnasium with Discrete or Text actions, one action a turn; each step's reward is its turn's.

    Args:
        name: as `gymnasium.make` takes it; `module:Name-v0` imports the module that registers it.
        size: training tasks, one a seed.
        eval_size: evaluation tasks, with seeds of their own.
        seed: shifts all seeds.
        max_turns: steps of an episode; by default the environment's own limit, or 100.
        max_invalid: so many answers that are no action end the episode.
        invalid_reward: of each of them.
        forfeit: for each turn that was left when an episode ended through invalid answers or a cut-off one, so that giving up never pays;
            by default what a step of random play loses on average, where it loses.
        tools: actions are calls of a tool `act` instead of answers.
        goal: first lines of the prompt, in place of what is known about some environments.
        actions: names of the actions, in order, in place of known names or numbers.
        random_map: for FrozenLake, draw a map of this width from the task's seed.
        options: for `gymnasium.make`.
    """
    if max_invalid < 1 or (max_turns is not None and max_turns < 1):
        raise ConfigError(f"gymnasium:{name}: max_invalid and max_turns must be at least 1, got {max_invalid} and {max_turns}")
    game = Game(name=name, options=json.dumps(options, default=str), random_map=random_map, names=tuple(map(str, actions)))
    facts = facts_of(game)
    return GymnasiumText(
        game,
        seeds=Seeds(size=size, eval_size=eval_size, shift=seed),
        max_turns=max_turns or facts.steps or DEFAULT_STEPS,
        max_invalid=max_invalid,
        invalid_reward=finite("invalid_reward is", invalid_reward, "a finite number"),
        forfeit=facts.random_loss if forfeit is None else finite("forfeit is", forfeit, "a finite number"),
        tools=tools,
        goal=facts.goal if goal is None else goal,
    )


class GymnasiumText(Environment):
    """One game, in text."""

    def __init__(
        self,
        game: Game,
        *,
        seeds: Seeds,
        max_turns: int,
        max_invalid: int,
        invalid_reward: float,
        forfeit: float,
        tools: bool,
        goal: str,
    ) -> None:
        self._game, self._seeds, self._tools, self._goal = game, seeds, tools, goal
        self._max_invalid, self._invalid_reward, self._forfeit = max_invalid, invalid_reward, forfeit
        self.max_turns = max_turns  # type: ignore[misc]
        self._facts = facts_of(game)
        self._environment: Any = None
        self._turns = self._steps = self._invalid = 0
        self._ended = ""

    def tasks(self, split: Split) -> Sequence[Mapping[str, Any]]:
        """A seed a row; no seed is in both splits."""
        return self._seeds.of(split)

    def start(self, task: Task) -> list[Message]:
        """What is to be done, the actions, and the first observation."""
        observation = self._reset(task)
        how = "Call the tool act with one action each turn" if self._tools else "Each turn, answer with one action and nothing else"
        content = f"{self._goal}\n{how}{self._offered()}.\n\n{observed(self._environment, observation)}"
        return [{"role": "user", "content": content}]

    def toolbox(self) -> Sequence[FunctionTool]:
        """The tool `act`, where actions are calls."""
        if not self._tools:
            return ()
        argument = {"type": "string", "description": f"The action{self._offered()}."}
        schema = {"type": "object", "properties": {"action": argument}, "required": ["action"]}
        return [FunctionTool(name="act", description="Take one step in the game.", parameters=schema, call=self._act)]

    def reply(self, answer: str) -> str:
        """What an answer leads to: the next observation, or what is wrong with it."""
        self._turns += 1
        if self._tools:
            return self._refused("call the tool act")
        return self._played(found_answer(answer, "auto" if self._facts.names else "text") or "")

    def _act(self, action: str) -> str:
        self._turns += 1
        return self._played(action)

    def score(self, episode: Episode) -> Score:
        """What giving up costs; all else was rewarded turn by turn."""
        assert isinstance(self.max_turns, int)
        gave_up = self._ended == "invalid" or (not self._ended and self._turns < self.max_turns)
        cost = self._forfeit * (self.max_turns - self._steps) if gave_up else 0.0
        parts = {
            "steps": float(self._steps),
            "invalid": float(self._invalid),
            "forfeit": cost,
            "terminated": float(self._ended == "terminated"),
        }
        return Score(value=cost, parts=parts)

    def golden(self, task: Task) -> Sequence[str] | None:
        """The shortest best play of a deterministic environment that shows its transition table."""
        if self._facts.names is None:
            return None
        observation = self._reset(task)
        assert isinstance(self.max_turns, int)
        if not hasattr(observation, "__index__"):
            return None
        actions = best_actions(self._environment, int(observation), self.max_turns)
        if actions is None:
            return None
        names = [self._facts.names[action - self._facts.start] for action in actions]
        return [golden_call("act", action=name) for name in names] if self._tools else names

    def close(self) -> None:
        """Close the environment."""
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    def _reset(self, task: Task) -> Any:
        self.close()
        seed = task.row["seed"]
        self._environment = self._game.make(seed)
        returned = guarded(self._game.name, "reset", lambda: self._environment.reset(seed=seed))
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise EnvironmentFailure(f"gymnasium:{self._game.name}: reset returned {returned!r:.80}; allowed: (observation, info)")
        return returned[0]

    def _offered(self) -> str:
        names = self._facts.names
        return f": {', '.join(names)}" if names else ""

    def _played(self, said: str) -> str:
        if self._ended:
            return "The game is over."
        action = self._action(said.strip())
        if action is None:
            way_out = f"no action; write one of{self._offered()}" if self._facts.names else "not allowed here"
            return self._refused(f"{said.strip()[:60]!r} is {way_out}")
        returned = guarded(self._game.name, "step", lambda: self._environment.step(action))
        if not isinstance(returned, tuple) or len(returned) != 5:
            raise EnvironmentFailure(
                f"gymnasium:{self._game.name}: step returned {returned!r:.80}; allowed: (observation, reward, terminated, truncated, info)"
            )
        observation, reward, terminated, truncated, _ = returned
        self._steps += 1
        self.turn_reward += finite(f"gymnasium:{self._game.name}: step rewarded", reward, "a finite number")
        text = guarded(self._game.name, "the observation", lambda: observed(self._environment, observation))
        if terminated or truncated:
            return self._end("terminated" if terminated else "truncated", f"{text}\nThe game is over.")
        return text

    def _action(self, said: str) -> Any:
        """The action that a text names, None where it names none."""
        names = self._facts.names
        if names is None:
            return said if self._environment.action_space.contains(said) else None
        for at, name in enumerate(names):
            if said.casefold() in (name.casefold(), str(self._facts.start + at)):
                return self._facts.start + at
        return None

    def _refused(self, why: str) -> str:
        self._invalid += 1
        self.turn_reward += self._invalid_reward
        if self._invalid >= self._max_invalid:
            return self._end("invalid", f"invalid: {why}\nToo many invalid answers: the game is over.")
        return f"invalid: {why}"

    def _end(self, how: str, text: str) -> str:
        self._ended, self.done = how, True
        return text
