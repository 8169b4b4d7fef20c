"""Rewards from a reward model, in the environment's own process or on a server (`agentrl serve-reward`).

Run file: `agentrl.rewards.reward_model:reward_server?url=http://127.0.0.1:8200`, or `agentrl.rewards.reward_model:reward_model?model=DIR`,
which loads the model once in each environment worker (`rollout.env_workers` times `rollout.processes` copies).
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

from agentrl.rewards.remote import Patience, Remote, RemoteFailure
from agentrl.servers.reward_rows import RewardOptions, RewardRow, RowScore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentrl.servers.reward_scorer import RewardScorer

KEY_ENV = "AGENTRL_REWARD_API_KEY"

_scorers: dict[RewardOptions, RewardScorer] = {}
_loading = threading.Lock()


class RewardModel:
    """A reward function that asks a reward model; make it with `reward_model` or `reward_server`.

    Args:
        ask: gives a score a row.
        name: of the reward.
    """

    agentrl_required = True
    """No sum of rewards may do without it where it fails (`agentrl.reward_call.required`)."""

    def __init__(self, ask: Callable[[Sequence[RewardRow]], list[RowScore]], name: str) -> None:
        self.__name__ = name
        self.scores = ask
        """The scores of rows, with those of each step where the model gives them."""

    def __call__(
        self, *, prompts: Sequence[Any], completions: Sequence[Any], log_extra: Callable[..., None] | None = None, **_: Any
    ) -> list[float | None]:
        """The model's score a completion; None where there is none."""
        rows = [RewardRow(prompt=prompt, completion=completion) for prompt, completion in zip(prompts, completions, strict=True)]
        scores = self.scores(rows)
        if log_extra is not None:
            log_extra(f"{self.__name__}/failure", [score.reason for score in scores])
            log_extra(f"{self.__name__}/steps", [list(score.steps) for score in scores])
        return [score.value for score in scores]


def reward_model(model: str, *, device: str = "cpu", **options: Any) -> RewardModel:
    """Make a reward of a model that is loaded in this process, at the first call.

    Args:
        model: folder or Hub name of a sequence classifier, or of a token classifier that judges steps.
        device: by default the CPU, as every environment worker loads a copy, and the GPUs have work.
        options: further fields of `agentrl.servers.reward_rows.RewardOptions`: max_length, aggregate, ...
    Raises: `ValueError` for options that make no sense; the first call raises for a model that does not load.
    """
    try:
        chosen = RewardOptions(model=model, device=device, **options)
    except TypeError as error:
        raise ValueError(f"{error}; a reward model's options are {', '.join(RewardOptions.__dataclass_fields__)}") from None
    return RewardModel(lambda rows: _scorer(chosen).score(rows), "reward_model")


def _scorer(options: RewardOptions) -> RewardScorer:
    with _loading:
        if options not in _scorers:
            from agentrl.servers.reward_scorer import RewardScorer

            _scorers[options] = RewardScorer(options)
        return _scorers[options]


def reward_server(
    url: str, *, key_env: str = KEY_ENV, timeout_s: float = 25.0, attempts: int = 4, concurrency: int = 32, remote: Remote | None = None
) -> RewardModel:
    """Make a reward of a model on a server, which `agentrl serve-reward` started.

    Args:
        url: of the server, such as http://127.0.0.1:8200.
        key_env: environment variable with its API key.
        timeout_s: of all tries of one call; keep it below `rollout.score_timeout_s`.
        attempts: tries of one call, with growing waits between them; then its rows have no score.
        concurrency: requests in flight at once, in one process.
        remote: the server, in place of the one that `url` names.
    Raises: `ValueError` for options that make no sense.
    """
    patience = Patience(timeout_s=timeout_s, attempts=attempts, concurrency=concurrency)
    server = remote or Remote(url, key_env=key_env, patience=patience)

    def ask(rows: Sequence[RewardRow]) -> list[RowScore]:
        body: dict[str, Any] = {"prompts": [row.prompt for row in rows], "completions": [row.completion for row in rows]}
        if rows and all(row.steps is not None for row in rows):
            body = {"prompts": body["prompts"], "steps": [list(row.steps or ()) for row in rows]}
        try:
            return _read(server.post("/score", body), len(rows)) if rows else []
        except RemoteFailure as failure:
            return [RowScore.failed(str(failure))] * len(rows)

    return RewardModel(ask, "reward_server")


def _read(answer: Any, count: int) -> list[RowScore]:
    """The scores in a server's answer; raises `RemoteFailure` for one that does not fit the question."""
    scores = answer.get("scores") if isinstance(answer, dict) else None
    if not isinstance(scores, list) or len(scores) != count:
        raise RemoteFailure(f"the reward server did not answer with {count} scores: {answer!r:.200}")
    errors = answer.get("errors") or [None] * count
    steps = answer.get("steps") or [[]] * count
    if not all(isinstance(column, list) and len(column) == count for column in (errors, steps)):
        raise RemoteFailure(f"the reward server did not answer with {count} rows: {answer!r:.200}")
    return [_row(*row) for row in zip(scores, errors, steps, strict=True)]


def _row(score: Any, error: Any, steps: Any) -> RowScore:
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        return RowScore.failed(str(error or f"the reward server answered {score!r:.80}"))
    return RowScore(value=float(score), steps=tuple(steps) if isinstance(steps, list) else ())
