"""Check of how episodes start: prompts, tools and limits."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from agentrl.env_kit.finding import Finding, judged, plural
from agentrl.env_kit.kit import each
from agentrl.env_kit.schema_values import function_of, parameters_of
from agentrl.errors import EnvironmentFailure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentrl.env_kit.kit import Case, Kit
    from agentrl.env_kit.stage import Stage
    from agentrl.rollout.messages import Opened

ROLES = ("system", "user", "assistant", "tool")
LONG_PROMPT_CHARS = 100_000
LONG_TOOL_S = 600.0

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


async def check_start(kit: Kit) -> Finding:
    """Every task starts, with the same valid prompt in two processes; those that do not are left out of the other checks."""
    faults: list[str] = []
    warnings: list[str] = []
    opened: list[Opened] = []
    started: list[Case] = []
    for case, ours, theirs in await each(kit.cases, lambda case: _both(kit, case)):
        if isinstance(ours, str) or isinstance(theirs, str):
            faults.append(f"{case.name}: {ours if isinstance(ours, str) else theirs}")
            continue
        started.append(case)
        opened.append(ours)
        faults += [f"{case.name}: {fault}" for fault in _prompt_faults(ours, theirs)]
        faults += list(_tool_faults(ours))
        warnings += list(_warnings(ours))
    kit.cases = started
    return judged(
        "start",
        f"{plural(len(opened) or len(faults), 'task')} started in two processes",
        _said(kit, opened),
        faults=faults,
        warnings=warnings,
        advice="start(task) must give a string or a list of messages that depends on the task alone; what it draws at random, seed with "
        "the row. A row that lacks what start needs belongs out of tasks()",
    )


async def _both(kit: Kit, case: Case) -> tuple[Case, Opened | str, Opened | str]:
    return case, await _opened(kit.here, case), await _opened(kit.there, case)


async def _opened(stage: Stage, case: Case) -> Opened | str:
    try:
        session = await stage.pool.open(case.task)
    except EnvironmentFailure as error:
        return str(error)
    session.close()
    return session.opened


def _said(kit: Kit, opened: list[Opened]) -> str:
    if kit.plays:
        return "they start; the environment plays its episodes itself, so it has no prompt and no tools of its own"
    longest = max((len(_text(one)) for one in opened), default=0)
    names = list(dict.fromkeys(function_of(tool)["name"] for one in opened for tool in one.tools))
    tools = f"tools {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}" if names else "no tools"
    turns = {one.max_turns for one in opened} - {None}
    limit = f"at most {plural(max(turn for turn in turns if turn), 'turn')}" if turns else "turns as the run file says"
    return f"prompts are valid and the same twice, up to {longest:,} characters; {tools}; {limit}"


def _text(opened: Opened) -> str:
    return opened.prompt if isinstance(opened.prompt, str) else json.dumps(opened.prompt, ensure_ascii=False)


def _prompt_faults(ours: Opened, theirs: Opened) -> Iterator[str]:
    if ours.plays:
        return
    if ours.prompt != theirs.prompt:
        yield "its prompt differs in a second process"
    if ours.tools != theirs.tools:
        yield "its tools differ in a second process"
    if isinstance(ours.prompt, str):
        if not ours.prompt:
            yield "its prompt is empty"
        return
    roles = [message["role"] for message in ours.prompt]
    if unknown := [role for role in roles if role not in ROLES]:
        yield f"its prompt has a message of role {unknown[0]!r}; chat templates know {', '.join(ROLES)}"
    if roles[-1] == "assistant":
        yield "its prompt ends with a message of the assistant: there is nothing to answer"


def _tool_faults(opened: Opened) -> Iterator[str]:
    for tool in opened.tools:
        function = function_of(tool)
        try:
            Draft202012Validator.check_schema(parameters_of(function))
        except SchemaError as error:
            yield f"tool {function['name']!r}: its parameters are no JSON schema: {error.message}"
        if not _NAME.fullmatch(function["name"]):
            yield f"tool {function['name']!r}: a name has letters, digits, _ and - only, at most 64, or servers refuse it"


def _warnings(opened: Opened) -> Iterator[str]:
    for tool in opened.tools:
        function = function_of(tool)
        if not function.get("description"):
            yield f"tool {function['name']!r} has no description: its docstring is what the model reads"
        yield from (
            f"tool {function['name']!r}: parameter {name!r} has no type"
            for name, inner in (parameters_of(function).get("properties") or {}).items()
            if not _typed(inner)
        )
    if len(_text(opened)) > LONG_PROMPT_CHARS:
        yield f"a prompt of {len(_text(opened)):,} characters"
    yield from (f"tool {name!r} may take {limit:g} s" for name, limit in opened.timeouts.items() if limit > LONG_TOOL_S)


def _typed(schema: Any) -> bool:
    return isinstance(schema, dict) and any(key in schema for key in ("type", "anyOf", "oneOf", "allOf", "enum", "const", "$ref"))
