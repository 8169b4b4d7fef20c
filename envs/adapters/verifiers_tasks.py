"""Environments of the `verifiers` library, release 0.4: `verifiers:NAME` in a run file.

Two ways to play them. Turn by turn, the model sees a task's prompt and tools as with an environment of our own, and the task's rewards
score the conversation. Or verifiers plays the episode itself (`mode=harness`), whatever that takes, and its model is an endpoint of ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from agentrl.environment import Environment
from agentrl.envs.adapters.verifiers_load import Loaded, check_turns, found
from agentrl.envs.adapters.verifiers_turns import VerifiersTurns
from agentrl.errors import ConfigError

_loaded: dict[str, Loaded] = {}


def verifiers_tasks(
    name: str,
    *,
    mode: Literal["turns", "harness"] = "turns",
    config: Mapping[str, Any] | None = None,
    eval_config: Mapping[str, Any] | None = None,
    num_tasks: int | None = None,
    env: Mapping[str, Any] | None = None,
    env_id: str = "",
    seat: str | None = None,
) -> Environment:
    """Play the tasks of a taskset.

    Args:
        name: of an installed taskset, as verifiers' own commands take it, or a `file.py` that exports one in its `__all__`.
        mode: `turns`, or `harness` for tasksets with an Env, a harness, a container or a user of their own.
        config: of the taskset, as `{split: train}`.
        eval_config: of the taskset to evaluate on; by default every 20th task is held out.
        num_tasks: most tasks; needed where there is no end of them.
        env: for `harness`: config of the Env, such as `{agent: {max_turns: 8}}`.
        env_id: for `harness`: an Env to pair the taskset with, such as `user-sim`.
        seat: for `harness`: whose reward counts, where several seats are the policy.
    """
    if mode not in ("turns", "harness"):
        raise ConfigError(f"verifiers:{name}: mode is {mode!r}; allowed: turns, harness")
    if mode == "turns" and (env or env_id or seat):
        raise ConfigError(f"verifiers:{name}: env, env_id and seat are for mode=harness")
    key = json.dumps([name, config, eval_config, num_tasks], sort_keys=True, default=str)
    if key not in _loaded:  # once a process, not once an episode
        _loaded[key] = Loaded(name=found(name), config=config or {}, eval_config=eval_config, num_tasks=num_tasks)
    loaded = _loaded[key]
    if mode == "turns":
        check_turns(loaded)
        return VerifiersTurns(loaded)
    from agentrl.envs.adapters.verifiers_episodes import VerifiersEpisodes

    return VerifiersEpisodes(loaded, env=env or {}, env_id=env_id, seat=seat)
