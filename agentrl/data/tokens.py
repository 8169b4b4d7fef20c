"""From texts to token ids, many at once, with the characters that are trained turned into tokens that are.

A completion is tokenized together with its prompt where the prompt's own tokens are then a prefix of the whole, as they are when the model
is asked. Where a token would lie across the end of the prompt the two are tokenized apart, which is counted: the prompt's tokens are
always the ones that the model sees at inference.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from agentrl.rollout.tokenizer import codec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    Span = tuple[int, int]

_BEFORE = "\n"  # in front of a piece, so that a tokenizer that puts a space before a text puts it there


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A text that is to be tokenized."""

    text: str
    prompt: int = 0
    """Characters before the completion."""
    spans: tuple[Span, ...] | None = None
    """Trained characters, in order; None is all of them."""
    cuts: tuple[int, ...] = ()
    """Characters before which a token ends, in order: inside of what would else be read as a special token."""
    plain: bool = True
    """Whether the tokenizer's own beginning and end of a text belong around it; a chat template writes them itself."""

    @property
    def is_simple(self) -> bool:
        """Whether all that follows some place is trained, and what stands before is not."""
        return not self.cuts and (self.spans is None or self.spans == ((self.prompt, len(self.text)),))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """A tokenized text."""

    ids: np.ndarray
    """[length] int32."""
    trained: np.ndarray
    """[length] bool."""
    prompt_length: int = 0
    apart: bool = False
    """Whether it was tokenized in pieces, as a token would have lain across their border."""


class TokenWriter:
    """Tokenizes for one tokenizer, whose backend it uses in batches.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._encode, self._decode = codec(tokenizer)
        backend: Any = getattr(tokenizer, "_tokenizer", None)
        self._backend: Any = backend if tokenizer.is_fast and backend is not None else None
        self.eos_id: int | None = tokenizer.eos_token_id
        self.lead: tuple[int, ...] = self._lead()
        """What the tokenizer puts before a text: the beginning of text, in most that have one."""
        ids, before = self._encode("a", False), self._encode(_BEFORE, False)
        self._pads_start = self._encode(f"{_BEFORE}a", False) != [*before, *ids]
        self._before = before

    def tokens(self, drafts: Sequence[Draft]) -> list[Tokens]:
        """The tokens of each, in their order."""
        simple = iter(self._batch([draft.text for draft in drafts if draft.is_simple]))
        spanned = [draft.text for draft in drafts if not draft.is_simple]
        encoded = iter(self._backend.encode_batch(spanned, add_special_tokens=False) if self._backend else spanned)
        prompts = sorted({draft.text[: draft.prompt] for draft in drafts if draft.prompt})
        of_prompt = dict(zip(prompts, self._batch(prompts), strict=True))
        return [
            self._simple(draft, next(simple), of_prompt) if draft.is_simple else self._spanned(draft, next(encoded), of_prompt)
            for draft in drafts
        ]

    def ids(self, text: str) -> list[int]:
        """Tokens of a text without anything around it."""
        return self._encode(text, False)

    def inner_ids(self, text: str) -> list[int]:
        """Tokens of a text that others stand before."""
        if not self._pads_start:
            return self._encode(text, False)
        ids, size = self._encode(_BEFORE + text, False), len(self._before)
        return ids[size:] if ids[:size] == self._before else self._encode(text, False)

    def text(self, ids: Sequence[int]) -> str:
        """What tokens stand for, special ones included."""
        return self._decode(list(ids))

    def _lead(self) -> tuple[int, ...]:
        bare, full = self._encode("a", False), self._encode("a", True)
        found = (at for at in range(len(full)) if full[at : at + len(bare)] == bare)
        return tuple(full[: next(found, 0)])

    def _batch(self, texts: Sequence[str]) -> list[list[int]]:
        if self._backend is None:
            return [self._encode(text, False) for text in texts]
        return [one.ids for one in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)] if texts else []

    def _simple(self, draft: Draft, ids: list[int], of_prompt: dict[str, list[int]]) -> Tokens:
        cut, apart = 0, False
        if draft.prompt:
            prompt = of_prompt[draft.text[: draft.prompt]]
            cut = len(prompt)
            apart = ids[:cut] != prompt
            if apart:
                ids = [*prompt, *self.inner_ids(draft.text[draft.prompt :])]
        if draft.plain:
            added = len(self.lead) if ids[: len(self.lead)] != list(self.lead) else 0
            ids = [*self.lead[:added], *ids]
            cut = max(cut + added, len(self.lead))
            if self.eos_id is not None and (len(ids) <= cut or ids[-1] != self.eos_id):
                ids.append(self.eos_id)
        prompt_length = cut if draft.prompt or draft.spans is not None else 0
        trained = np.ones(len(ids), dtype=np.bool_)
        trained[: max(1, 0 if draft.spans is None else cut)] = False
        return Tokens(ids=np.array(ids, dtype=np.int32), trained=trained, prompt_length=prompt_length, apart=apart)

    def _spanned(self, draft: Draft, encoding: Any, of_prompt: dict[str, list[int]]) -> Tokens:
        assert not draft.plain, "texts without a template are trained from some place to their end"
        spans = ((0, len(draft.text)),) if draft.spans is None else draft.spans
        places = sorted({0, draft.prompt, len(draft.text), *draft.cuts, *(at for span in spans for at in span)})
        tokens = None if self._backend is None or draft.cuts else self._places(encoding, places, len(draft.text))
        if tokens is not None and draft.prompt:
            prompt = of_prompt[draft.text[: draft.prompt]]
            tokens = tokens if encoding.ids[: tokens[draft.prompt]] == prompt else None
        apart = tokens is None and not draft.cuts
        if tokens is None:
            ids, tokens = self._in_pieces(draft.text, places)
        else:
            ids = encoding.ids
        trained = np.zeros(len(ids), dtype=np.bool_)
        for start, end in spans:
            trained[tokens[start] : tokens[end]] = True
        trained[:1] = False
        return Tokens(ids=np.array(ids, dtype=np.int32), trained=trained, prompt_length=tokens[draft.prompt], apart=apart)

    def _places(self, encoding: Any, places: Sequence[int], length: int) -> dict[int, int] | None:
        """The token that begins at each of these characters; None where one lies inside of a token."""
        found = {length: len(encoding.ids), 0: 0}
        for at in places:
            if at in found:
                continue
            token = encoding.char_to_token(at)
            if token is None or encoding.token_to_chars(token)[0] != at:
                return None
            found[at] = token
        return found

    def _in_pieces(self, text: str, places: Sequence[int]) -> tuple[list[int], dict[int, int]]:
        ids: list[int] = []
        found = {places[0]: 0}
        for start, end in pairwise(places):
            ids += self.inner_ids(text[start:end]) if start else self._encode(text[:end], False)
            found[end] = len(ids)
        return ids, found
