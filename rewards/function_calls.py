"""Function calls against known answers: were exactly these functions called, with values that are allowed?

Answers come in two forms. `{"name": "f", "arguments": {"x": 1}}` is one call as it must be. `{"f": {"x": [1, 2], "y": [3, ""]}}` is the
form of the Berkeley Function-Calling Leaderboard: for each argument a list of allowed values, in which `""` says that the argument may be
left out; within an object, each value is again such a list.

Types are exact: `"5"`, `5` and `true` are three things. A whole number counts where a float is known, never the reverse. Text must be
the very same; with `spelling="loose"` case, blanks, the marks `,./-_*^` and the kind of quotes do not matter, as in that leaderboard's
own checker (`bfcl_eval.eval_checker.ast_eval`), at the price that `1.5` and `15` are then one text. Objects in lists must come in order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from agentrl.reward_call import required
from agentrl.rewards.grades import Grade
from agentrl.rewards.json_schema import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Spelling = Literal["exact", "loose"]

LEFT_OUT = ""
"""Among the allowed values of an argument: it need not be given."""
_LOOSE = str.maketrans({"'": '"', **dict.fromkeys(" ,./-_*^", None)})


class AnswersUnreadable(ValueError):
    """The known answers of a row are in neither form; the row cannot be graded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownCall:
    """A call that is right."""

    name: str
    arguments: Mapping[str, Sequence[Any]]
    """Allowed values by argument."""
    exact: bool
    """Whether objects among the values are themselves, and not lists of what each of their own values may be."""

    def fault(self, name: str, arguments: Mapping[str, Any], spelling: Spelling = "exact") -> str:
        """Why a call is not this one; empty where it is."""
        if name != self.name:
            return f"{name} was called, not {self.name}"
        if unknown := [key for key in arguments if key not in self.arguments]:
            return f"{name}: there should be no argument {unknown[0]}"
        for key, allowed in self.arguments.items():
            if key not in arguments and LEFT_OUT not in allowed:
                return f"{name}: the argument {key} is missing"
            if key in arguments and not _allowed(arguments[key], allowed, self.exact, spelling):
                return f"{name}: {key} is {_shown(arguments[key])}; allowed: {', '.join(map(_shown, allowed))}"
        return ""


def known_calls(answers: Any) -> tuple[KnownCall, ...]:
    """The known answers of a row, one a call; none at all where no function should be called. Raises `AnswersUnreadable`."""
    if not isinstance(answers, list | tuple):
        raise AnswersUnreadable(f"answers are a list with one entry a call, got {_shown(answers)}")
    return tuple(map(_known_call, answers))


def grade_calls(
    *, calls: Iterable[tuple[str, Mapping[str, Any]]], answers: Any, ordered: bool = False, spelling: Spelling = "exact"
) -> Grade:
    """Grade calls, each a name and its arguments, against the known answers of their row.

    Args:
        calls: as made, arguments moved to the declared types.
        answers: in one of the two forms above; unscorable where they are in neither.
        ordered: whether the calls must come in the order of the answers.
        spelling: of text.

    Example: `grade_calls(calls=[("f", {"x": 1})], answers=[{"f": {"x": [1, 2]}}]).verdict == "correct"`.
    """
    try:
        known = known_calls(answers)
    except AnswersUnreadable as error:
        return Grade(verdict="unscorable", reason=str(error))
    made = list(calls)
    said = ", ".join(name for name, _ in made) or None
    if len(made) != len(known):
        return Grade(verdict="wrong", reason=f"{len(known)} calls were expected, got {len(made)}", answer=said)
    faults = [[one.fault(name, arguments, spelling) for one in known] for name, arguments in made]
    pairs = list(range(len(made))) if ordered else _matching([[not fault for fault in row] for row in faults])
    wrong = [at for at, pair in enumerate(pairs) if pair is None or faults[at][pair]]
    if not wrong:
        return Grade(verdict="correct", answer=said)
    return Grade(verdict="wrong", reason=_reason(made[wrong[0]][0], known, faults[wrong[0]], wrong[0] if ordered else None), answer=said)


@required
def function_call_reward(
    *, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], answers: Sequence[Any], **_: Any
) -> list[float | None]:
    """1 for completions whose `tool_calls` are those of the column `answers`, 0 for others, None where that cannot be told."""
    return [grade_calls(calls=_calls_of(said), answers=known).score().value for said, known in zip(completions, answers, strict=True)]


def _calls_of(completion: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """The calls in the messages of a completion; text has none."""
    messages = [message for message in completion if isinstance(message, dict)] if isinstance(completion, list) else []
    functions = [call.get("function", call) for message in messages for call in message.get("tool_calls") or ()]
    return [(function["name"], _decoded(function.get("arguments") or {})) for function in functions]


def _decoded(arguments: Any) -> Mapping[str, Any]:
    document = parse_json(arguments) if isinstance(arguments, str) else (arguments,)
    return document[0] if document is not None and isinstance(document[0], dict) else {"": arguments}  # of no known call


def _known_call(answer: Any) -> KnownCall:
    if not isinstance(answer, dict) or not answer:
        raise AnswersUnreadable(f"an answer is an object, got {_shown(answer)}")
    if answer.keys() == {"name", "arguments"} and isinstance(answer["name"], str):
        arguments = answer["arguments"]
        if not isinstance(arguments, dict):
            raise AnswersUnreadable(f"the arguments of {answer['name']} are an object, got {_shown(arguments)}")
        return KnownCall(name=answer["name"], arguments={key: [value] for key, value in arguments.items()}, exact=True)
    (name, arguments), *more = answer.items()
    if more or not isinstance(arguments, dict) or not all(isinstance(allowed, list) and allowed for allowed in arguments.values()):
        form = '{"name": ..., "arguments": {...}} or {"NAME": {"KEY": [allowed, ...]}}'
        raise AnswersUnreadable(f"an answer is {form}, got {_shown(answer)}")
    return KnownCall(name=name, arguments=arguments, exact=False)


def _allowed(value: Any, allowed: Sequence[Any], exact: bool, spelling: Spelling) -> bool:
    return any(_same(value, one, exact, spelling) for one in allowed)


def _same(value: Any, known: Any, exact: bool, spelling: Spelling) -> bool:
    if isinstance(known, bool) or isinstance(value, bool) or known is None:
        return type(value) is type(known) and value == known
    if isinstance(known, int | float):
        return isinstance(value, (int, float) if isinstance(known, float) else int) and value == known
    if isinstance(known, str):
        return isinstance(value, str) and (value == known or (spelling == "loose" and _loose(value) == _loose(known)))
    if isinstance(known, list):
        return (
            isinstance(value, list)
            and len(value) == len(known)
            and all(_same(*pair, exact, spelling) for pair in zip(value, known, strict=True))
        )
    return isinstance(known, dict) and isinstance(value, dict) and _same_object(value, known, exact, spelling)


def _same_object(value: Mapping[str, Any], known: Mapping[str, Any], exact: bool, spelling: Spelling) -> bool:
    choices = {key: [inner] if exact or not isinstance(inner, list) else inner for key, inner in known.items()}
    if not value.keys() <= choices.keys():
        return False
    return all(
        _allowed(value[key], allowed, exact, spelling) if key in value else not exact and LEFT_OUT in allowed
        for key, allowed in choices.items()
    )


def _loose(text: str) -> str:
    return text.translate(_LOOSE).lower()


def _matching(fits: Sequence[Sequence[bool]]) -> list[int | None]:
    """An answer for each call so that no two have the same one, for as many calls as possible."""
    owner: dict[int, int] = {}

    def place(call: int, tried: set[int]) -> bool:
        for answer, fit in enumerate(fits[call]):
            if fit and answer not in tried:
                tried.add(answer)
                if answer not in owner or place(owner[answer], tried):
                    owner[answer] = call
                    return True
        return False

    for call in range(len(fits)):
        place(call, set())
    answers = {call: answer for answer, call in owner.items()}
    return [answers.get(call) for call in range(len(fits))]


def _reason(name: str, known: Sequence[KnownCall], faults: Sequence[str], place: int | None) -> str:
    if place is not None:
        return faults[place]
    same = [fault for one, fault in zip(known, faults, strict=True) if one.name == name and fault]
    if len(same) == 1:
        return same[0]
    return f"no answer is left for a call of {name}; known: {', '.join(one.name for one in known)}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 80 else f"{text[:77]}..."
