"""What the model answers to some held-out prompts while it trains: shown on the terminal, kept in `samples.jsonl` of the run folder."""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text as Shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedTokenizerBase

    from agentrl.examples import Example
    from agentrl.learner import Learner

TEXT_PROMPT = 32
"""Tokens that are the prompt of a text that has none, at most half of it."""
SHOWN_CHARACTERS = 280
"""Of a cell on the terminal; the file has all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A held-out prompt, and how the dataset goes on."""

    prompt: tuple[int, ...]
    reference: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSample:
    """One answer."""

    prompt: str
    completion: str
    reference: str
    """What the dataset has; the chosen text of a preference."""
    tokens: int
    """Of the completion."""
    ended: bool
    """With a token that ends a text, and not with the room."""


class Examples(Protocol):
    """Rows of a dataset, tokenized."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


def openings(examples: Examples, count: int) -> list[Opening]:
    """The prompts of the first so many texts: always the same, so that one evaluation can be read beside another."""
    return list(islice(_openings(examples), count))


def _openings(examples: Examples) -> Iterator[Opening]:
    for index in range(len(examples)):
        example = examples[index]
        for text in example.texts if example.joined else example.texts[:1]:
            cut = text.prompt_length or min(TEXT_PROMPT, len(text.ids) // 2)
            if cut:
                ids = text.ids.tolist()
                yield Opening(prompt=tuple(ids[:cut]), reference=tuple(ids[cut:]))


def answered(learner: Learner, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Opening], *, max_tokens: int) -> list[TextSample]:
    """The policy's most likely answers under the weights as they are."""
    from agentrl.learner.greedy import greedy

    stops = stop_ids(learner, tokenizer)
    found = greedy(learner.policy, [one.prompt for one in prompts], max_tokens=max_tokens, stop_ids=stops)
    return [
        TextSample(
            prompt=_decoded(tokenizer, one.prompt),
            completion=_decoded(tokenizer, ids),
            reference=_decoded(tokenizer, one.reference),
            tokens=len(ids),
            ended=bool(ids) and ids[-1] in stops,
        )
        for one, ids in zip(prompts, found, strict=True)
    ]


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text: Any = tokenizer.decode(list(ids), skip_special_tokens=False)
    return str(text)


def stop_ids(learner: Learner, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end a text, by the model's generation config and by the tokenizer."""
    config: Any = getattr(learner.policy.base, "generation_config", None)
    ends: Any = None if config is None else config.eos_token_id
    found = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    return frozenset([*found, *([] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)])])


def table(samples: Sequence[TextSample], *, step: int, width: int = 110) -> str:
    """The samples side by side, as text for a terminal of some columns."""
    grid = Table(title=f"answers at step {step}", title_justify="left", box=None, padding=(0, 2, 1, 0), pad_edge=False, width=width)
    for heading in ("prompt", "completion", "reference"):
        grid.add_column(heading, ratio=1, overflow="fold")
    for one in samples:
        completion = one.completion if one.ended else f"{one.completion} (cut after {one.tokens} tokens)"
        grid.add_row(*(Shown(_shortened(text)) for text in (one.prompt, completion, one.reference)))
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False, markup=False)
    console.print(grid)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines())


def _shortened(text: str) -> str:
    """Start and end of a long text: a prompt's end is its question."""
    if len(text) <= SHOWN_CHARACTERS:
        return text
    half = SHOWN_CHARACTERS // 2
    return f"{text[:half].rstrip()} [...] {text[-half:].lstrip()}"
