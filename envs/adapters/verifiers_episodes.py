"""Episodes that `verifiers` 0.4 plays itself: its Env, harnesses, runtimes and users run unchanged, and its model is an endpoint of ours.

One Env serves a worker process, on a thread and an event loop of its own, so that what tasks share is started once. Commands of a
harness in the `subprocess` runtime run on this machine with the rights of the worker: for code that a model writes, choose a container
in `env`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import json
import os
import sys
import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentrl.environment import Environment, Episode, Split
from agentrl.envs.adapters.verifiers_load import Loaded
from agentrl.envs.adapters.verifiers_turns import score_of
from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.llm import LLM, POLICY, BudgetSpent
from agentrl.records import Score, Task
from agentrl.servers.openai_endpoint import openai_endpoint

SERVE_S = 120.0
"""Longest start of what an Env shares among its episodes."""
DEFAULT_SEAT: Mapping[str, Any] = {"harness": {"id": "null"}, "runtime": {"type": "subprocess"}}
"""Of every seat that `env` says nothing else about: a chat loop with the task's tools, on this machine."""

_served: dict[str, Served] = {}
_serving = threading.Lock()


class Served:
    """An Env that serves, until the process ends.

    Args:
        loaded: the taskset.
        env: config of the Env.
        env_id: which Env; by default the taskset's own.
    Raises: `ConfigError` where the config does not fit, `EnvironmentFailure` where the Env does not start.
    """

    def __init__(self, loaded: Loaded, *, env: Mapping[str, Any], env_id: str) -> None:
        self.env = _made(loaded, env, env_id)
        self._loop = asyncio.new_event_loop()
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        threading.Thread(target=self._run, name="verifiers", daemon=True).start()
        try:
            self._started.result(SERVE_S)
        except Exception as error:  # the boundary to the Env's code
            raise EnvironmentFailure(f"verifiers {self.env.config.env_id} does not start: {type(error).__name__}: {error}") from error

    async def play(self, task: Any, context: Any) -> Any:
        """The verifiers episode of a task; from another event loop. Cancelling this cancels the episode."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.env.run_episode(task, context), self._loop))

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        try:
            async with self.env.serving():
                self._started.set_result(None)
                await asyncio.Event().wait()  # until the process ends
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)


class VerifiersEpisodes(Environment):
    """Episodes of a taskset that verifiers plays.

    Args:
        loaded: the taskset.
        env: config of the Env.
        env_id: an Env to pair the taskset with; by default its own.
        seat: whose reward counts.
    """

    def __init__(self, loaded: Loaded, *, env: Mapping[str, Any], env_id: str, seat: str | None) -> None:
        self._loaded = loaded
        self._env = env
        self._env_id = env_id
        self._seat = seat
        self._reward = Score.unscorable("the budget was spent, and verifiers could not end the episode in good order")

    def tasks(self, split: Split) -> Sequence[Mapping[str, Any]]:
        """The rows of a split."""
        return self._loaded.rows[split]

    async def episode(self, task: Task, llm: LLM) -> Score:
        """Let verifiers play, with this episode's own endpoint as its model; its reward."""
        import verifiers.v1 as vf

        served = await asyncio.to_thread(self._serving)
        variable = f"AGENTRL_API_KEY_{uuid.uuid4().hex}"  # programs do not inherit what is called so
        async with openai_endpoint(llm, models=self._models(served.env)) as endpoint:
            os.environ[variable] = endpoint.api_key
            try:
                client = vf.EvalClientConfig(base_url=endpoint.base_url, api_key_var=variable)
                played = await served.play(self._loaded.task_of(task), vf.ModelContext(model=POLICY, client=client))
            finally:
                del os.environ[variable]
        if played.ok or not endpoint.spent:
            self._reward = self._scored(played)
        if endpoint.spent:  # the program was told so; here it makes the episode a truncated one
            raise BudgetSpent(endpoint.spent)
        return self._reward

    def score(self, episode: Episode) -> Score:
        """The reward of an episode whose budget was spent."""
        return self._reward

    def _serving(self) -> Served:
        key = json.dumps([self._loaded.name, self._loaded.config, self._env, self._env_id], sort_keys=True, default=str)
        with _serving:
            if key not in _served:
                _served[key] = Served(self._loaded, env=self._env, env_id=self._env_id)
            return _served[key]

    def _models(self, env: Any) -> dict[str, str]:
        """Seats name the policy that plays them in `model`; one without is the policy that is trained."""
        return {spec.model: spec.model for spec in env._agent_specs.values() if spec.model is not None}

    def _scored(self, played: Any) -> Score:
        name = self._loaded.name
        if not played.ok:
            faults = [*(error for trace in played.traces for error in trace.errors), *played.errors]
            raise EnvironmentFailure(f"verifiers {name}: {'; '.join(f'{one.type}: {one.message}' for one in faults) or 'it failed'}")
        ours = [trace for trace in played.traces if trace.agent.config.model in (None, POLICY)]
        chosen = [trace for trace in ours if self._seat in (None, trace.agent.name)]
        if len(chosen) != 1:
            seats = ", ".join(trace.agent.name for trace in ours) or "none"
            raise ConfigError(f"verifiers {name}: the policy played {seats}; say with `seat` whose reward counts, or give others a `model`")
        return score_of(chosen[0])


def _made(loaded: Loaded, env: Mapping[str, Any], env_id: str) -> Any:
    import verifiers.v1 as vf

    _lend_interpreter()
    try:
        kind = vf.env_config_type(loaded.name, env_id)
        seats = {name: DEFAULT_SEAT for name, field in kind.model_fields.items() if isinstance(field.default, vf.AgentConfig)}
        wanted = {name: {**seats[name], **dict(env.get(name) or {})} for name in seats}
        config = {**env, **wanted, "id": env_id, "taskset": {**loaded.config, "id": loaded.name}}
        return vf.load_environment(vf.resolve_env_config(config))
    except Exception as error:  # the boundary to the taskset's code
        raise ConfigError(f"verifiers {loaded.name}, env {dict(env)}: {type(error).__name__}: {error}") from error


def _lend_interpreter() -> None:
    """Let the bundled chat programs run in this very Python, which has all that they need, instead of one that `uv` downloads."""
    from verifiers.v1.harnesses.utils.launch import CHAT_PROGRAM_SOURCE
    from verifiers.v1.runtimes.subprocess import SubprocessRuntime

    known = getattr(SubprocessRuntime, "_interpreters", None)
    if known is None:
        return  # this release does it another way, and uv is needed
    source = CHAT_PROGRAM_SOURCE.encode()
    path = Path(SubprocessRuntime.scripts_dir) / f"{hashlib.sha256(source).hexdigest()}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    partial.write_bytes(source)
    partial.replace(path)
    known[str(path)] = sys.executable
