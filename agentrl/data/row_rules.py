"""What each schema asks of a row's columns."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from agentrl.data.faults import RowFault, described
from agentrl.data.message_rules import check_messages, json_value, says_something

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Row = Mapping[str, Any]

_TRUTH = "true or false (or 1 or 0)"
_MOST = 3.4e38
"""Of a margin or weight, which are float32 on their way to the loss."""
_IDS = 2**31
"""Token ids are int32."""
LISTED = re.compile(r"""\s*\[\s*\{\s*['"](role|from|content|value)['"]\s*:""")
"""How the text of a list of messages begins, in JSON or as Python shows it."""
MASKED = -100
"""A label that says that its token is not trained."""


def _check_language_modeling(row: Row, conversational: bool, implicit: bool) -> None:
    if conversational:
        _said(check_messages(row["messages"], "messages"), "messages")
    else:
        _text(row, "text", empty=False)


def _check_prompt_only(row: Row, conversational: bool, implicit: bool) -> None:
    _check_prompt(row, conversational, empty=False)


def _check_prompt_completion(row: Row, conversational: bool, implicit: bool) -> None:
    _check_prompt(row, conversational, empty=True)
    _check_completion(row, "completion", conversational)


def _check_preference(row: Row, conversational: bool, implicit: bool) -> None:
    if implicit:
        for column in ("chosen", "rejected"):
            _check_whole(row, column, conversational)
        _check_common_start(row, conversational)
    else:
        _check_prompt(row, conversational, empty=True)
        if conversational:
            _check_prompt_not_repeated(row)
        for column in ("chosen", "rejected"):
            _check_completion(row, column, conversational)
    if row["chosen"] == row["rejected"]:
        raise RowFault(field="rejected", expected="another completion than `chosen`", got="the same one")


def _check_unpaired(row: Row, conversational: bool, implicit: bool) -> None:
    _check_prompt_completion(row, conversational, implicit)
    _check_truth(row["label"], "label")


def _check_stepwise(row: Row, conversational: bool, implicit: bool) -> None:
    _text(row, "prompt", empty=False)
    steps = _list(row["completions"], "completions", "a list of steps, each a text")
    for index, step in enumerate(steps):
        if not isinstance(step, str) or not step.strip():
            raise RowFault(field=f"completions[{index}]", expected="the text of a step", got=described(step))
    labels = _list(row["labels"], "labels", f"a list with one label a step, each {_TRUTH}")
    for index, label in enumerate(labels):
        _check_truth(label, f"labels[{index}]")
    if len({type(label) for label in labels}) > 1:
        raise RowFault(field="labels", expected="all true or false, or all 1 or 0", got=f"both: {described(labels)}")
    if len(labels) != len(steps):
        raise RowFault(field="labels", expected="as long as `completions`", got=f"{len(labels)} labels of {len(steps)} steps")


def _check_tokenized(row: Row, conversational: bool, implicit: bool) -> None:
    ids = _list(row["input_ids"], "input_ids", "a list of token ids")
    _check_integers(ids, "input_ids", "a token id, 0 or more and below 2^31", lambda one: 0 <= one < _IDS)
    masks = [name for name in ("completion_mask", "assistant_masks", "attention_mask") if row.get(name) is not None]
    for name in masks:
        mask = _same_length(row, name, ids)
        _check_integers(mask, name, "0 or 1", lambda one: one in (0, 1))
        if name == "attention_mask" and not all(mask):
            raise RowFault(field=name, expected="1 everywhere: rows are given without padding", got=f"{mask.count(0)} zeros")
    if row.get("labels") is not None:
        labels = _same_length(row, "labels", ids)
        _check_integers(labels, "labels", f"the token's id, or {MASKED} where it is not trained", lambda one: one >= 0 or one == MASKED)
        for index, (label, token) in enumerate(zip(labels, ids, strict=True)):
            if label not in (MASKED, token):
                raise RowFault(field=f"labels[{index}]", expected=f"the token's id, or {MASKED}", got=f"{label} of token {token}")
    trained = [all(row[name][at] for name in masks) and (row.get("labels") or ids)[at] != MASKED for at in range(1, len(ids))]
    if not any(trained):
        marks = ", ".join(f"`{name}`" for name in (*masks, "labels") if row.get(name) is not None)
        got = f"none trained by {marks}" if marks else f"{len(ids)} token"
        raise RowFault(field="input_ids", expected="at least one token after the first that is trained", got=got)


CHECKS: dict[str, Callable[[Row, bool, bool], None]] = {
    "language_modeling": _check_language_modeling,
    "prompt_only": _check_prompt_only,
    "prompt_completion": _check_prompt_completion,
    "preference": _check_preference,
    "unpaired_preference": _check_unpaired,
    "stepwise": _check_stepwise,
    "tokenized": _check_tokenized,
}
"""Schema -> its check of (row, conversational, implicit); the columns that it needs are there."""


def check_extras(row: Row, conversational: bool) -> None:
    """Raise `RowFault` for what is wrong in the columns that a row of any schema may have."""
    for name in ("margin", "weight"):
        value = row.get(name)
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MOST  # false of nan
        if value is not None and not number:
            cure = f"the largest is {_MOST}" if isinstance(value, int | float) and abs(value) > _MOST else None
            raise RowFault(field=name, expected="a finite number", got=described(value), cure=cure)
    if row.get("weight") is not None and row["weight"] < 0:
        raise RowFault(field="weight", expected="0 or more", got=described(row["weight"]))
    for name in ("image", "images", "videos", "audio"):
        if row.get(name):
            raise RowFault(field=name, expected="absent or empty", got=described(row[name]), cure="agentrl trains text only")
    tools_of(row)
    template_kwargs_of(row)
    if row.get("reference") is not None and "chosen" in row:
        _check_completion(row, "reference", conversational)
    context = row.get("privileged_context")
    if isinstance(context, list | tuple):
        check_messages(context, "privileged_context")
    elif context is not None and not isinstance(context, str):
        raise RowFault(field="privileged_context", expected="text, or a list of messages", got=described(context))


def tools_of(row: Row) -> list[dict[str, Any]] | None:
    """The tools that the template is to show, decoded where the column is text; None where there are none. Raises `RowFault`."""
    expected = "a list of tools as JSON schemas, or its text"
    tools = json_value(row["tools"], "tools", expected) if row.get("tools") else None
    if tools is None:
        return None
    if not isinstance(tools, list | tuple):
        raise RowFault(field="tools", expected=expected, got=described(tools))
    found = [json_value(tool, f"tools[{index}]", "a JSON schema, or its text") for index, tool in enumerate(tools)]
    for index, tool in enumerate(found):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowFault(field=f"tools[{index}]", expected='{"type": "function", "function": {"name": ..., ...}}', got=described(tool))
    return found or None


def template_kwargs_of(row: Row) -> dict[str, Any]:
    """The row's own variables of the chat template, decoded where the column is text. Raises `RowFault`."""
    given = row.get("chat_template_kwargs")
    value = json_value(given, "chat_template_kwargs", "a JSON object, or its text") if given else None
    if value is not None and not isinstance(value, dict):
        raise RowFault(field="chat_template_kwargs", expected="a JSON object, or its text", got=described(value))
    return dict(value or {})


def _text(row: Row, column: str, *, empty: bool) -> str:
    """The text of a column. Raises `RowFault` where it is none, or is blank and must not be."""
    value = row[column]
    if not isinstance(value, str) or not (empty or value.strip()):
        raise RowFault(field=column, expected="text" if empty else "text that is not empty", got=_as_got(value))
    if LISTED.match(value) and column != "text":
        cure = "give the list itself, or its JSON"
        raise RowFault(field=column, expected="text, or a list of messages", got=f"the text of such a list: {described(value)}", cure=cure)
    return value


def _as_got(value: Any) -> str:
    """`described`, and for messages among texts that they are such."""
    return (
        f"messages ({described(value)})" if isinstance(value, list | tuple) and value and isinstance(value[0], dict) else described(value)
    )


def _list(value: Any, column: str, expected: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise RowFault(field=column, expected=expected, got=described(value))
    if not value:
        raise RowFault(field=column, expected=f"{expected}, at least one", got="an empty list")
    return list(value)


def _same_length(row: Row, column: str, ids: Sequence[Any]) -> list[Any]:
    values = _list(row[column], column, "a list with a number a token")
    if len(values) != len(ids):
        raise RowFault(field=column, expected="as long as `input_ids`", got=f"{len(values)} of {len(ids)}")
    return values


def _check_integers(values: Sequence[Any], column: str, expected: str, allowed: Callable[[int], bool]) -> None:
    for index, one in enumerate(values):
        if not isinstance(one, int) or not allowed(one) or (isinstance(one, bool) and column in {"input_ids", "labels"}):
            raise RowFault(field=f"{column}[{index}]", expected=expected, got=described(one))


def _check_truth(value: Any, field: str) -> None:
    if not isinstance(value, int) or value not in (0, 1):
        raise RowFault(field=field, expected=_TRUTH, got=described(value))


def _check_prompt(row: Row, conversational: bool, *, empty: bool) -> None:
    if conversational:
        check_messages(row["prompt"], "prompt")
    else:
        _text(row, "prompt", empty=empty)


def _check_completion(row: Row, column: str, conversational: bool) -> None:
    """A completion is what the assistant says after the prompt, and says something."""
    if not conversational:
        _text(row, column, empty=False)
        return
    messages = check_messages(row[column], column)
    for index in (0, len(messages) - 1):
        if messages[index]["role"] != "assistant":
            where = "begins" if index == 0 else "ends"
            field = f"{column}[{index}].role"
            raise RowFault(field=field, expected=f"assistant: a completion {where} with one", got=described(messages[index]["role"]))
    _said(messages, column)


def _check_whole(row: Row, column: str, conversational: bool) -> None:
    """A completion with its prompt before it."""
    if not conversational:
        _text(row, column, empty=False)
        return
    messages = check_messages(row[column], column)
    if messages[-1]["role"] != "assistant":
        field = f"{column}[{len(messages) - 1}].role"
        raise RowFault(field=field, expected="assistant: the last message is what is compared", got=described(messages[-1]["role"]))
    _said(messages[-1:], column)


def _said(messages: Sequence[Mapping[str, Any]], column: str) -> None:
    spoken = [message for message in messages if message["role"] == "assistant"]
    if spoken and not any(map(says_something, spoken)):
        raise RowFault(field=column, expected="an assistant message with text, reasoning or a call", got="empty ones alone")


def _check_common_start(row: Row, conversational: bool) -> None:
    """Without a prompt the two must share one, and each must go on behind it."""
    chosen, rejected = row["chosen"], row["rejected"]
    if chosen == rejected:
        return  # has a message of its own
    shorter, longer = sorted(("chosen", "rejected"), key=lambda column: len(row[column]))
    if row[longer][: len(row[shorter])] == row[shorter]:
        raise RowFault(field=shorter, expected="a completion behind what the two share", got=f"nothing: `{longer}` begins with all of it")
    if not conversational:
        return
    shared = next(at for at, (one, other) in enumerate(zip(chosen, rejected, strict=False)) if one != other)
    if shared == 0:
        cure = "give the prompt in a column `prompt`"
        raise RowFault(field="rejected", expected="a conversation that begins as `chosen` does", got="another first message", cure=cure)
    for column in ("chosen", "rejected"):
        if row[column][shared]["role"] != "assistant":
            expected = "assistant: it is the first message in which the two differ"
            raise RowFault(field=f"{column}[{shared}].role", expected=expected, got=described(row[column][shared]["role"]))
    prompt = row.get("prompt")
    if isinstance(prompt, str) and not any(message.get("content") == prompt for message in chosen[:shared]):
        expected = "messages, or the text of a message that `chosen` and `rejected` share"
        raise RowFault(field="prompt", expected=expected, got=described(prompt), cure='leave it out with data.columns={"prompt": ""}')


def _check_prompt_not_repeated(row: Row) -> None:
    """Completions that hold the prompt again would be trained with it doubled."""
    size = len(row["prompt"])
    completions = [check_messages(row[column], column) for column in ("chosen", "rejected")]
    if all(list(messages[:size]) == list(row["prompt"]) for messages in completions):
        cure = 'leave the prompt out with data.columns={"prompt": ""}, and it is what the two share'
        raise RowFault(field="chosen", expected="the completion alone", got="the whole conversation, with `prompt` again", cure=cure)
