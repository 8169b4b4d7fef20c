"""Rewards from a language model that judges, over any OpenAI-compatible URL: by a rubric, or which of two answers is better.

In a module of your own, for a run file's `rewards: [mine.py:helpful]` or `judge: mine.py:better`:

    helpful = rubric({"correct": ("no false statement", 3), "clear": ("easy to follow", 1)}, url="http://127.0.0.1:8000/v1", model="judge")
    better = pairwise(url="http://127.0.0.1:8000/v1", model="judge")

or in the run file itself: `agentrl.rewards.judge:rubric?criteria=rubric.json&url=http://127.0.0.1:8000/v1&model=judge`. A judge that fails
gives no number: None, or -1 of a pair.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.records import Score
from agentrl.rewards.judge_client import JudgeClient, JudgeFailure, JudgeOptions
from agentrl.rewards.judge_prompt import enclosed, transcript

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agentrl.rewards.remote import Remote

log = logging.getLogger(__name__)

_GRADER = (
    "You grade the answer of a language model. {warning}\n\nReply with one JSON object and nothing else: first `reasoning`, a few "
    "sentences that weigh the answer against each criterion, then `grades`, with a whole number from 0 (not met at all) to {best} (met in "
    "full) for each criterion by its name."
)
_COMPARER = (
    "You compare two answers of language models to the same task. {warning}\n\nReply with one JSON object and nothing else: first "
    "`reasoning`, a few sentences that compare the answers, then `better`: `first`, `second`, or `neither` where they are equally good. "
    "The order in which they stand says nothing about them, nor does their length."
)


class Rubric:
    """A reward function by named criteria; make it with `rubric`.

    Args:
        criteria: what is asked, and its weight, by name.
        client: asks the judge.
        best: the highest grade.
        reference: column with a reference answer that the judge is shown.
        instructions: what else it should know.
        only: the criterion whose grade alone is the reward.
    """

    __name__ = "rubric"
    agentrl_required = True
    """No sum of rewards may do without it where it fails (`agentrl.reward_call.required`)."""

    def __init__(
        self,
        criteria: Mapping[str, tuple[str, float]],
        client: JudgeClient,
        *,
        best: int,
        reference: str | None,
        instructions: str,
        only: str | None,
    ) -> None:
        self._criteria = dict(criteria)
        self._client = client
        self._best = best
        self._reference = reference
        self._instructions = instructions
        self._only = only
        if only is not None:
            self.__name__ = f"rubric_{only}"

    def __call__(
        self, *, prompts: Sequence[Any], completions: Sequence[Any], log_extra: Callable[..., None] | None = None, **columns: Any
    ) -> list[float | None]:
        """From 0 to 1 a completion; None where the judge failed. Rows are judged side by side."""
        references = columns.get(self._reference, [None] * len(prompts)) if self._reference else [None] * len(prompts)
        rows = zip(prompts, completions, references, strict=True)
        scores = self._client.together(lambda row: self.assess(*row), rows)
        if log_extra is not None:
            log_extra(f"{self.__name__}/failure", [score.reason for score in scores])
            for name in self._criteria:
                log_extra(f"{self.__name__}/{name}", [score.parts.get(name) for score in scores])
        return [score.value for score in scores]

    def assess(self, prompt: Any, completion: Any, reference: Any = None) -> Score:
        """Judge one completion: the weighted mean of its grades, from 0 to 1, with each as a part; unscorable where the judge failed."""
        if self._reference and reference is None:
            return Score.unscorable(f"the row has no column {self._reference!r}, which the rubric takes its reference answer from")
        texts = {"task": transcript(prompt), "answer": transcript(completion)}
        if reference is not None:
            texts["reference"] = str(reference)
        material, warning = enclosed(texts)
        asked = "\n".join(f"- {name}: {text}" for name, (text, _) in self._criteria.items())
        user = f"{material}\n\nGrade what stands between the marks of `answer` by these criteria:\n{asked}"
        user += f"\n\n{self._instructions}" if self._instructions else ""
        try:
            parts = self._client.verdict(_GRADER.format(warning=warning, best=self._best), user, self._schema(), self._read)
        except JudgeFailure as failure:
            log.warning("a judge gave no verdict: %s", failure)
            return Score.unscorable(f"the judge gave no verdict: {failure}")
        if self._only is not None:
            return Score(value=parts[self._only], parts=parts)
        weights = sum(weight for _, weight in self._criteria.values())
        return Score(value=sum(self._criteria[name][1] * part for name, part in parts.items()) / weights, parts=parts)

    async def assess_async(self, prompt: Any, completion: Any, reference: Any = None) -> Score:
        """`assess` without blocking an asyncio loop."""
        return await asyncio.to_thread(self.assess, prompt, completion, reference)

    def close(self) -> None:
        """Close connections."""
        self._client.close()

    def _schema(self) -> dict[str, Any]:
        grade = {"type": "integer", "minimum": 0, "maximum": self._best}
        return _object({"reasoning": {"type": "string"}, "grades": _object(dict.fromkeys(self._criteria, grade))})

    def _read(self, verdict: Mapping[str, Any]) -> dict[str, float]:
        """The grades from 0 to 1; raises `ValueError` for a verdict that lacks one, has others or leaves the scale."""
        grades = verdict.get("grades")
        if not isinstance(grades, dict) or set(grades) != set(self._criteria) or not set(verdict) <= {"reasoning", "grades"}:
            raise ValueError(f"it must have grades for {', '.join(self._criteria)}, got {_shown(verdict)}")
        for name, grade in grades.items():
            if isinstance(grade, bool) or not isinstance(grade, int | float) or not 0 <= grade <= self._best:
                raise ValueError(f"the grade of {name} is {grade!r}; allowed: 0 to {self._best}")
        return {name: grades[name] / self._best for name in self._criteria}


def rubric(
    criteria: Mapping[str, Any] | str,
    *,
    best: int = 10,
    reference: str | None = None,
    instructions: str = "",
    only: str | None = None,
    remote: Remote | None = None,
    **options: Any,
) -> Rubric:
    """Make a reward by named criteria: the weighted mean of a judge's grades, from 0 to 1.

    Args:
        criteria: what the judge is to look at, by name: a text, or a text and its weight. Or the path of a JSON file with such an object.
        best: the highest grade; the judge gives whole numbers from 0.
        reference: a column of the dataset with a reference answer that the judge is shown.
        instructions: what else the judge should know.
        only: make the grade of this one criterion the reward; several such rewards share the cached reply, and an objective can weigh them.
        remote: the server, in place of the one that `url` names.
        options: fields of `JudgeOptions`: url, model, and how to ask.
    Raises: `ValueError` for criteria or options that make no sense.
    """
    read = _read_criteria(criteria)
    if only is not None and only not in read:
        raise ValueError(f"got only={only!r}; the criteria are {', '.join(read)}")
    if type(best) is not int or best < 1:
        raise ValueError(f"got best {best!r}; it is a whole number, at least 1")
    client = JudgeClient(_options(options), remote)
    return Rubric(read, client, best=best, reference=reference, instructions=instructions, only=only)


class Pairwise:
    """A judge of pairs, with TRL's signature; make it with `pairwise`.

    Args:
        client: asks the judge.
        instructions: what it should look at.
    """

    __name__ = "pairwise"

    def __init__(self, client: JudgeClient, *, instructions: str) -> None:
        self._client = client
        self._instructions = instructions

    def __call__(self, *, prompts: Sequence[Any], completions: Sequence[Sequence[Any]], **_: Any) -> list[int]:
        """0 where the first is better, 1 the second, -1 where the judge fails, is undecided or changes its mind with the order."""
        if any(len(pair) != 2 for pair in completions):
            raise ValueError("a pairwise judge compares two completions a prompt; give it pairs")
        orders = [(prompt, *pair[::step]) for prompt, pair in zip(prompts, completions, strict=True) for step in (1, -1)]
        verdicts = self._client.together(lambda order: self._ask(*order), orders)
        swapped = {"first": "second", "second": "first"}
        return [
            {"first": 0, "second": 1}[one] if one in swapped and other == swapped[one] else -1
            for one, other in zip(verdicts[::2], verdicts[1::2], strict=True)
        ]

    async def compare_async(self, prompts: Sequence[Any], completions: Sequence[Sequence[Any]]) -> list[int]:
        """The same without blocking an asyncio loop."""
        return await asyncio.to_thread(self, prompts=prompts, completions=completions)

    def close(self) -> None:
        """Close connections."""
        self._client.close()

    def _ask(self, prompt: Any, first: Any, second: Any) -> str:
        material, warning = enclosed({"task": transcript(prompt), "first": transcript(first), "second": transcript(second)})
        user = f"{material}\n\nWhich answer is better, the one between the marks of `first` or of `second`?"
        user += f"\n\n{self._instructions}" if self._instructions else ""
        schema = _object({"reasoning": {"type": "string"}, "better": {"type": "string", "enum": list(_SIDES)}})
        try:
            return self._client.verdict(_COMPARER.format(warning=warning), user, schema, _side)
        except JudgeFailure as failure:
            log.warning("a judge gave no verdict: %s", failure)
            return "failed"


def pairwise(*, instructions: str = "", remote: Remote | None = None, **options: Any) -> Pairwise:
    """Make a judge of pairs, which asks for both orders, so that a taste for one place decides nothing.

    Args:
        instructions: what the judge should look at.
        remote: the server, in place of the one that `url` names.
        options: fields of `JudgeOptions`: url, model, and how to ask.
    Raises: `ValueError` for options that make no sense.
    """
    return Pairwise(JudgeClient(_options(options), remote), instructions=instructions)


_SIDES = ("first", "second", "neither")


def _side(verdict: Mapping[str, Any]) -> str:
    side = verdict.get("better")
    if side not in _SIDES or not set(verdict) <= {"reasoning", "better"}:
        raise ValueError(f"`better` must be {', '.join(_SIDES)}, got {_shown(verdict)}")
    return str(side)


def _options(options: Mapping[str, Any]) -> JudgeOptions:
    try:
        return JudgeOptions(**options)
    except TypeError as error:
        known = ", ".join(JudgeOptions.__dataclass_fields__)
        raise ValueError(f"{str(error).removeprefix('JudgeOptions.__init__() ')}; a judge's options are {known}") from None


def _read_criteria(criteria: Mapping[str, Any] | str) -> dict[str, tuple[str, float]]:
    if isinstance(criteria, str):
        try:
            criteria = json.loads(Path(criteria).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read criteria from {criteria!r}: {error}") from None
    read = {str(name): _criterion(str(name), entry) for name, entry in (criteria.items() if hasattr(criteria, "items") else ())}
    if not read:
        raise ValueError(f"got criteria {criteria!r}; give at least one, such as {{'correct': 'no false statement'}}")
    return read


def _criterion(name: str, entry: Any) -> tuple[str, float]:
    text, weight = (entry, 1.0) if isinstance(entry, str) else entry if isinstance(entry, tuple | list) and len(entry) == 2 else ("", 0)
    numeric = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not isinstance(text, str) or not text or not numeric or not 0 < weight < math.inf:
        raise ValueError(f"criterion {name!r} is {entry!r}; give a text, or a text and a weight above 0")
    return text, float(weight)


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "required": list(properties), "additionalProperties": False}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else text[:157] + "..."
