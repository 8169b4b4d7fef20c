"""From checked rows to tokenized `Example`s: what is rendered, where it is tokenized, and which of its tokens are trained."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from agentrl.data.chat import Chat
from agentrl.data.faults import RowFault, described
from agentrl.data.lengths import fit
from agentrl.data.row_rules import MASKED, template_kwargs_of, tools_of
from agentrl.data.tokens import Draft, Tokens, TokenWriter
from agentrl.errors import ConfigError
from agentrl.examples import Example, Text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from agentrl.config_data import DataConfig
    from agentrl.data.schemas import Found

    Row = Mapping[str, Any]

NUMBERS = ("margin", "weight")
"""Columns of a row that an objective sees as `parts`."""
NOTES = {
    "apart": "whose prompt and completion are tokenized apart: a token would have lain across the border",
    "other_prompt": "whose prompt the chat template writes otherwise before an answer than when it asks for one",
    "defused": "in which somebody says a special token of the tokenizer: it is tokenized as the text that it is, and ends or opens no turn",
    "no_end": "whose last turn the chat template does not end: a model trained on them does not learn to stop",
    "truncated": "cut to data.max_length",
}
"""What is counted of the rows and said once, by its key; behind "3 rows"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A checked row with its place and schema."""

    row: Row
    found: Found
    where: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A tokenized row; None is one that is left out, as it is too long."""

    example: Example | None
    notes: frozenset[str] = frozenset()
    """Keys of `NOTES`."""


@dataclass(slots=True)
class _Plan:
    """A row on the way to its example: the texts to tokenize, and how their tokens become it."""

    drafts: Sequence[Draft]
    build: Callable[[Sequence[Tokens]], tuple[Text, ...]]
    rewards: tuple[float, ...] = (0.0,)
    notes: set[str] = field(default_factory=set)


class Encoder:
    """Tokenizes rows for one tokenizer and one run's settings.

    Args:
        tokenizer: of the model, with its chat template.
        data: the run file's section.
        max_token: highest token id that the model has, which ids of tokenized rows are held to; None where it is not known.
        teachers: names of which a row's column `teacher` has to be one, where there are several; none reads no such column.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        data: DataConfig,
        *,
        max_token: int | None = None,
        teachers: Sequence[str] = (),
    ) -> None:
        self._tokenizer, self._data = tokenizer, data
        self._writer = TokenWriter(tokenizer)
        self._max_token, self._teachers = max_token, teachers
        self.watch: Callable[[tuple[Text, ...]], object] = lambda _: None
        """Is shown the texts of every row before the long ones are cut or left out."""
        self._plans = {
            "language_modeling": self._language_modeling,
            "prompt_only": self._prompt_only,
            "prompt_completion": self._prompt_completion,
            "preference": self._preference,
            "unpaired_preference": self._unpaired,
            "stepwise": self._stepwise,
            "tokenized": self._tokenized,
        }

    @cached_property
    def chat(self) -> Chat:
        """Renders the conversations; made when the first one comes."""
        return Chat(self._tokenizer, self._writer)

    def encode(self, rows: Sequence[Placed]) -> list[Encoded | RowFault]:
        """Each row's example, or what is wrong with it, in their order.

        Raises `ConfigError` where the settings do not fit the rows' schema.
        """
        plans = [self._plan(placed) for placed in rows]
        drafts = [draft for plan in plans if isinstance(plan, _Plan) for draft in plan.drafts]
        tokens = iter(self._writer.tokens(drafts))
        return [self._finished(placed, plan, tokens) if isinstance(plan, _Plan) else plan for placed, plan in zip(rows, plans, strict=True)]

    def text(self, ids: np.ndarray) -> str:
        """What tokens stand for, special ones included."""
        return self._writer.text(ids.tolist())

    def _plan(self, placed: Placed) -> _Plan | RowFault:
        try:
            return self._plans[placed.found.schema](placed.row, placed.found)
        except RowFault as fault:
            return fault.at(placed.where)
        except ConfigError as error:
            raise ConfigError(f"{placed.where}: {error}") from None

    def _finished(self, placed: Placed, plan: _Plan, tokens: Any) -> Encoded | RowFault:
        notes = set(plan.notes)
        mine = [next(tokens) for _ in plan.drafts]
        try:
            texts = plan.build(mine)
            self.watch(texts)
            fitted = fit(texts, self._data, self._writer.lead)
            teacher = self._teacher_of(placed.row)
        except RowFault as fault:
            return fault.at(placed.where)
        notes |= {"apart"} if any(one.apart for one in mine) else set()
        notes |= {"truncated"} if fitted.cut else set()
        if not fitted.texts:
            return Encoded(example=None)
        parts = {name: float(placed.row[name]) for name in NUMBERS if placed.row.get(name) is not None}
        example = Example(where=placed.where, texts=fitted.texts, rewards=plan.rewards, parts=parts, teacher=teacher)
        return Encoded(example=example, notes=frozenset(notes))

    def _teacher_of(self, row: Row) -> str | None:
        """The teacher that a row is for; None is all of them."""
        name = row.get("teacher") if self._teachers else None
        if name is not None and name not in self._teachers:
            raise RowFault(field="teacher", expected=f"one of the run file's teachers ({', '.join(self._teachers)})", got=described(name))
        if name is not None and self._data.packing != "none":
            raise ConfigError("rows that name a teacher cannot be packed with others: set data.packing=none")
        return name

    def _language_modeling(self, row: Row, found: Found) -> _Plan:
        if self._data.completion_only:
            raise ConfigError(
                f"data.completion_only is true, and the rows are {found}: they have no completion. Set it to null"
                + (", or train the assistant's turns with data.assistant_only=true" if found.conversational else "")
            )
        if not found.conversational:
            self._check_roles(found)
            return _Plan(drafts=[Draft(text=row["text"])], build=_texts)
        rendered = self.chat.render(row["messages"], **self._chat_options(row), column="messages", masked=self._data.assistant_only)
        return _Plan(drafts=[rendered.draft], build=_texts, notes=set(rendered.notes))

    def _prompt_only(self, row: Row, found: Found) -> _Plan:
        lead = list(self._writer.lead)
        if found.conversational:
            ids = self._writer.ids(self.chat.asked(row["prompt"], **self._chat_options(row), column="prompt"))
        else:
            ids = self._writer.ids(row["prompt"])
            ids = ids if ids[: len(lead)] == lead else [*lead, *ids]
        text = Text(ids=np.array(ids, dtype=np.int32), trained=np.zeros(len(ids), dtype=np.bool_), prompt_length=len(ids))
        return _Plan(drafts=[], build=lambda _: (text,))

    def _prompt_completion(self, row: Row, found: Found) -> _Plan:
        draft, notes = self._answer(row, "completion", found, whole=self._data.completion_only is False and not self._data.assistant_only)
        return _Plan(drafts=[draft], build=_texts, notes=notes)

    def _preference(self, row: Row, found: Found) -> _Plan:
        columns = ["chosen", "rejected", *(["reference"] if row.get("reference") is not None else [])]
        answers = [self._answer(row, column, found) for column in columns]
        rewards = (1.0, 0.0, 0.0)[: len(columns)]
        return _Plan(drafts=[draft for draft, _ in answers], build=_texts, rewards=rewards, notes=set().union(*(n for _, n in answers)))

    def _unpaired(self, row: Row, found: Found) -> _Plan:
        draft, notes = self._answer(row, "completion", found)
        return _Plan(drafts=[draft], build=_texts, rewards=(float(bool(row["label"])),), notes=notes)

    def _stepwise(self, row: Row, found: Found) -> _Plan:
        def build(_: Sequence[Tokens]) -> tuple[Text, ...]:
            return (self._steps(row),)

        return _Plan(drafts=[], build=build)

    def _steps(self, row: Row) -> Text:
        ids = self._writer.ids(row["prompt"])
        lead = self._writer.lead
        ids = ids if ids[: len(lead)] == list(lead) else [*lead, *ids]
        prompt, ends = len(ids), []
        for step in row["completions"]:
            ids += [*self._writer.inner_ids(step), *self._writer.inner_ids(self._data.step_separator)]
            ends.append(len(ids) - 1)
        # to the last token, as in the process reward models of arXiv:2211.14275
        labels = np.full(len(ids), np.nan, dtype=np.float32)
        labels[ends] = [float(label) for label in row["labels"]]
        trained = np.arange(len(ids)) >= max(1, prompt)
        return Text(ids=np.array(ids, dtype=np.int32), trained=trained, prompt_length=prompt, labels=labels)

    def _tokenized(self, row: Row, found: Found) -> _Plan:
        text = _of_columns(row, self._max_token)
        return _Plan(drafts=[], build=lambda _: (text,))

    def _answer(self, row: Row, column: str, found: Found, *, whole: bool = False) -> tuple[Draft, set[str]]:
        """A prompt with a completion behind it, whose tokens are trained; with `whole`, the prompt's too."""
        prompt, completion = row["prompt"], row[column]
        if not found.conversational:
            self._check_roles(found)
            length = len(prompt) + len(completion)
            spans = None if whole else ((len(prompt), length),)
            return Draft(text=prompt + completion, prompt=len(prompt), spans=spans), set()
        rendered = self.chat.render(
            [*prompt, *completion], **self._chat_options(row), column=column, answers_from=len(prompt), masked=not whole
        )
        return rendered.draft, set(rendered.notes)

    def _check_roles(self, found: Found) -> None:
        if self._data.assistant_only:
            raise ConfigError(
                f"data.assistant_only is true, and the rows are {found}, which have no assistant's turns: set it to false, or give messages"
            )

    def _chat_options(self, row: Row) -> dict[str, Any]:
        return {"tools": tools_of(row), "variables": {**self._data.chat_template_kwargs, **template_kwargs_of(row)}}


def count_notes(encoded: Sequence[Encoded | RowFault]) -> Counter[str]:
    """How many rows each key of `NOTES` is true of."""
    return Counter(note for one in encoded if isinstance(one, Encoded) for note in one.notes)


def _texts(tokens: Sequence[Tokens]) -> tuple[Text, ...]:
    for one in tokens:
        if not one.trained.any():
            raise RowFault(field="row", expected="a token that is trained", got=f"none in its {len(one.ids)} tokens")
    return tuple(Text(ids=one.ids, trained=one.trained, prompt_length=one.prompt_length) for one in tokens)


def _of_columns(row: Row, max_token: int | None) -> Text:
    ids = np.array(row["input_ids"], dtype=np.int64)
    if max_token is not None and ids.max() > max_token:
        at = int(ids.argmax())
        expected = f"a token of the model, at most {max_token}"
        raise RowFault(
            field=f"input_ids[{at}]", expected=expected, got=f"the number {ids[at]}", cure="tokenize with the model's own tokenizer"
        )
    trained = np.ones(len(ids), dtype=np.bool_)
    for name in ("completion_mask", "assistant_masks"):
        if row.get(name) is not None:
            trained &= np.array(row[name], dtype=np.bool_)
    if row.get("labels") is not None:
        trained &= np.array(row["labels"]) != MASKED
    prompt = 0 if trained.all() else int(trained.argmax())
    trained[:1] = False
    return Text(ids=ids.astype(np.int32), trained=trained, prompt_length=prompt)
