"""Environments of a running OpenEnv server: `openenv:http://HOST:PORT` in a run file.

The model acts by the tools of a server of MCP tools; by one tool with the fields of the server's action model; or, with an
`action_template`, by the plain text of its turns. Rewards of steps are rewards of turns.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from agentrl.environment import Environment, Episode, FunctionTool, Split
from agentrl.envs.adapters.openenv_socket import ActionRefused, OpenEnvSession
from agentrl.envs.dataset import read_rows
from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.records import Score, Task
from agentrl.servers.http_guard import is_loopback

ANSWER = "{answer}"
"""What an action template has where the model's text goes."""
MARGIN_S = 10.0
"""By how much the runtime's own deadline of a tool lies behind that of a step, at which only this episode is lost and not its worker."""
GENERIC = ("Action", "CallToolAction", "ListToolsAction")
"""Titles of action models that stand for the tools of an MCP server."""
SCHEMA_S = 10.0
OWN_FAULTS = ("invalid_args", "tool_not_found", "execution_error")
"""Errors of a tool that the model reads; others are the server's."""


class OpenEnvEpisodes(Environment):
    """Episodes on a server.

    Args:
        url: of the server.
        rows: of a split; `reset` holds the arguments of the environment's reset, `prompt` a text that goes before the observation.
        prompt: of the rows without one.
        action: the action that a turn's text is put into, for `ANSWER`; None for tools.
        field: of the observation, which is shown alone.
        last: only the last reward counts, not the sum.
        timeout_s: of one reset or step.
        start_timeout_s: to get a slot.
        headers: of all requests.
    """

    def __init__(
        self,
        url: str,
        *,
        rows: Mapping[Split, Sequence[Mapping[str, Any]]],
        prompt: str = "",
        action: Any = None,
        field: str | None = None,
        last: bool = False,
        timeout_s: float = 60.0,
        start_timeout_s: float = 60.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._rows = rows
        self._prompt = prompt
        self._action = action
        self._field = field
        self._last = last
        self._timeout_s = timeout_s
        self._headers = dict(headers or {})
        self._session = OpenEnvSession(url, timeout_s=timeout_s, start_timeout_s=start_timeout_s, headers=self._headers)
        self._rewards: list[float] = []
        self._steps = 0

    @property
    def replies(self) -> bool:
        """Whether a turn's text is the action."""
        return self._action is not None

    def tasks(self, split: Split) -> Sequence[Mapping[str, Any]]:
        """The rows of a split."""
        return self._rows[split]

    def start(self, task: Task) -> list[dict[str, Any]]:
        """Reset the environment; the first observation is the prompt."""
        first = self._session.reset(task.row.get("reset") or {})
        if first.get("done"):
            raise EnvironmentFailure(f"OpenEnv server {self._session.url}: the episode was over at its reset")
        said = [str(task.row.get("prompt") or self._prompt), observed(first["observation"], self._field)]
        text = "\n\n".join(part for part in said if part)
        if not text:
            raise EnvironmentFailure(f"OpenEnv server {self._session.url}: the first observation is empty; give the rows a `prompt`")
        return [{"role": "user", "content": text}]

    def toolbox(self) -> list[FunctionTool]:
        """The environment's actions, where they are tools."""
        if self._action is not None:
            return []
        schema = action_schema(self._session.url, tuple(self._headers.items()))
        if schema.get("title") in GENERIC:
            return [self._mcp_tool(tool) for tool in self._mcp_tools()]
        fields = {name: field for name, field in (schema.get("properties") or {}).items() if name != "metadata"}
        parameters = {**schema, "type": "object", "properties": fields}
        description = str(schema.get("description") or "Act on the environment.")
        return [self._function("act", description, parameters, lambda arguments: arguments)]

    def reply(self, answer: str) -> str | None:
        """Take the turn's text as the action; what the environment shows then."""
        try:
            return self._step(filled(self._action, answer))
        except ActionRefused as refused:
            return f"error: {refused}"

    def score(self, episode: Episode) -> Score:
        """0 beside the rewards of the turns, or the last of them; unscorable where the environment gave none."""
        if self._steps and not self._rewards:
            return Score.unscorable(f"OpenEnv server {self._session.url} gave no reward in {self._steps} steps")
        return Score(value=self._rewards[-1] if self._last and self._rewards else 0.0)

    def close(self) -> None:
        """Give the server its slot back."""
        self._session.close()

    def _step(self, action: Mapping[str, Any]) -> str:
        answer = self._session.step(action)
        self._take(answer)
        return observed(answer["observation"], self._field)

    def _take(self, answer: Mapping[str, Any]) -> None:
        self._steps += 1
        self.done = bool(answer.get("done"))
        if answer.get("reward") is not None:
            self._rewards.append(float(answer["reward"]))
            if not self._last:
                self.turn_reward = self._rewards[-1]

    def _mcp_tools(self) -> list[Any]:
        tools = self._session.step({"type": "list_tools"})["observation"].get("tools")
        if not isinstance(tools, list):
            raise EnvironmentFailure(f"OpenEnv server {self._session.url} did not list its tools")
        return tools

    def _mcp_tool(self, tool: Mapping[str, Any]) -> FunctionTool:
        name = str(tool["name"])
        schema = tool.get("input_schema") or {"type": "object", "properties": {}, "additionalProperties": True}
        made = {"type": "call_tool", "tool_name": name}
        return self._function(name, str(tool.get("description") or ""), schema, lambda arguments: {**made, "arguments": arguments})

    def _function(self, name: str, description: str, parameters: Mapping[str, Any], action: Any) -> FunctionTool:
        def call(**arguments: Any) -> str:
            return self._step(action(arguments))

        return FunctionTool(name=name, description=description, parameters=parameters, call=call, timeout_s=self._timeout_s + MARGIN_S)


def observed(observation: Mapping[str, Any], field: str | None = None) -> str:
    """An observation as text: the wanted field, the only field, or all fields as JSON; `metadata` is not shown.

    Raises `EnvironmentFailure` where there is no such field or a tool's server is in trouble, `ActionRefused` for the error of a tool.
    """
    if {"tool_name", "result"} <= observation.keys():
        return _tool_result(observation)
    fields = {name: value for name, value in observation.items() if name != "metadata"}
    if field is not None:
        if field not in fields:
            raise EnvironmentFailure(f"the observation has no field {field!r}; it has: {', '.join(fields) or 'none'}")
        return _plain(fields[field])
    return _plain(next(iter(fields.values())) if len(fields) == 1 else fields) if fields else ""


def _tool_result(observation: Mapping[str, Any]) -> str:
    error = observation.get("error")
    if error:
        kind, said = error.get("error_type"), error.get("message")
        if kind not in OWN_FAULTS:
            raise EnvironmentFailure(f"tool {observation['tool_name']}: {said} ({kind})")
        raise ActionRefused(said)
    result = observation["result"]
    content = result.get("content") if isinstance(result, Mapping) else None
    if isinstance(content, list) and content and all(isinstance(one, Mapping) and one.get("type") == "text" for one in content):
        return "\n".join(str(one.get("text")) for one in content)
    return _plain(result)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def filled(template: Any, answer: str) -> Any:
    """An action template with the model's text in place of `ANSWER`."""
    if isinstance(template, str):
        return template.replace(ANSWER, answer)
    if isinstance(template, Mapping):
        return {name: filled(value, answer) for name, value in template.items()}
    return [filled(value, answer) for value in template] if isinstance(template, list) else template


@lru_cache
def action_schema(url: str, headers: tuple[tuple[str, str], ...] = ()) -> dict[str, Any]:
    """JSON schema of a server's actions, asked once a process. Raises `EnvironmentFailure` where it cannot be had."""
    import httpx

    try:
        trusted = not is_loopback(httpx.URL(url).host)  # proxies of the environment are not for this machine's own servers
        answer = httpx.get(f"{url}/schema", headers=dict(headers), timeout=SCHEMA_S, trust_env=trusted)
        schema = answer.raise_for_status().json()["action"]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise EnvironmentFailure(f"OpenEnv server {url} does not give its action schema: {type(error).__name__}: {error}") from error
    if not isinstance(schema, dict):
        raise EnvironmentFailure(f"OpenEnv server {url}: its action schema is {schema!r:.80}")
    return schema


def openenv_client(
    url: str,
    *,
    tasks: str | None = None,
    eval_tasks: str | None = None,
    train_seeds: int = 1000,
    eval_seeds: int = 100,
    prompt: str = "",
    action_template: Any = None,
    observation: str | None = None,
    reward: Literal["sum", "last"] = "sum",
    timeout_s: float = 60.0,
    start_timeout_s: float = 60.0,
    token_env: str | None = None,
) -> OpenEnvEpisodes:
    """Play episodes of an OpenEnv server.

    Args:
        url: of the server, `http://HOST:PORT`.
        tasks: JSON lines to train on, each with `reset`, the arguments of the environment's reset, and a `prompt` if there is one; by
            default resets differ by their `seed`.
        eval_tasks: rows to evaluate on.
        train_seeds: how many tasks there are without `tasks`.
        eval_seeds: how many others to evaluate on.
        prompt: what the model is told before the first observation.
        action_template: an action as YAML or JSON, such as `{message: "{answer}"}`: the model acts by what it says, without tools.
        observation: the field of an observation to show; by default the only one, or all as JSON.
        reward: `sum` of the steps' rewards, a reward for each turn; or the `last` one alone.
        timeout_s: of one reset or step.
        start_timeout_s: to get a slot of a server that is full.
        token_env: environment variable with a bearer token for the server.
    """
    if importlib.util.find_spec("websockets") is None:
        raise ConfigError('openenv: OpenEnv servers need the package websockets; pip install "agentrl[openenv]"')
    if url.partition("://")[0] not in ("http", "https"):
        raise ConfigError(f"openenv:{url}: write the URL of a running server, openenv:http://HOST:PORT")
    if reward not in ("sum", "last"):
        raise ConfigError(f"openenv: reward is {reward!r}; allowed: sum, last")
    if action_template is not None and ANSWER not in json.dumps(action_template):
        raise ConfigError(f"openenv: action_template {action_template!r} has no {ANSWER!r}, where the model's text goes")
    if token_env and token_env not in os.environ:
        raise ConfigError(f"openenv: there is no environment variable {token_env!r} with a token")
    rows: dict[Split, Sequence[Mapping[str, Any]]] = {
        "train": _rows(tasks) if tasks else _seeded(range(train_seeds)),
        "eval": _rows(eval_tasks) if eval_tasks else () if tasks else _seeded(range(train_seeds, train_seeds + eval_seeds)),
    }
    return OpenEnvEpisodes(
        url,
        rows=rows,
        prompt=prompt,
        action=action_template,
        field=observation,
        last=reward == "last",
        timeout_s=timeout_s,
        start_timeout_s=start_timeout_s,
        headers={"Authorization": f"Bearer {os.environ[token_env]}"} if token_env else {},
    )


@lru_cache
def _seeded(seeds: range) -> list[dict[str, Any]]:
    return [{"reset": {"seed": seed}} for seed in seeds]


@lru_cache
def _rows(path: str) -> list[dict[str, Any]]:
    """Rows of a file, read once a process. Raises `ConfigError` naming the line or row."""
    rows = read_rows(Path(path), needs=(), called="the tasks")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("reset", {}), dict):
            raise ConfigError(f"{path}, row {number}: the `reset` of a task is an object, got {row['reset']!r:.80}")
    return rows
