"""One text in two vocabularies: the tokens of each that cover the same bytes.

A row is cut where trained tokens begin or end and at special tokens; each part's bytes are written in the teacher's vocabulary, and the two
runs of tokens are walked side by side. A piece ends wherever both have a token that ends at the same byte (as in GOLD, which extends ULD,
Boizard et al. 2024, arXiv:2402.12030). What a teacher's tokenizer writes otherwise than byte for byte is in no piece.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from agentrl.errors import ConfigError
from agentrl.learner.samples import View

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import PreTrainedTokenizerBase

    from agentrl.learner.samples import Sample

PIECE = "piece"
"""Name of the column that is 1 at the first token of each piece of text, and 0 elsewhere."""
PROBE = "A text, in 2 parts: na\u00efve caf\u00e9 \u2014 \u65e5\u672c\u8a9e\n\n\tdef f(x): return x**2  # ok"
"""What a tokenizer has to give back byte for byte before its tokens are taken for bytes."""


class Vocabulary:
    """A tokenizer's tokens as bytes.

    Raises `ConfigError` for a tokenizer whose tokens are none: byte-level ones and those of SentencePiece with byte fallback are.

    Args:
        tokenizer: a fast one.
        name: what messages call it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        backend: Any = getattr(tokenizer, "_tokenizer", None)
        if backend is None:
            raise ConfigError(
                f"{name} has a {type(tokenizer).__name__}, which does not say what its tokens are: save a tokenizer.json beside it"
            )
        self.name = name
        self._backend = backend
        added = tokenizer.added_tokens_decoder
        self.special = {number: one.content for number, one in added.items() if one.special}
        """Contents of special tokens by id."""
        self.ends = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
        byte_level = '"ByteLevel"' in json.dumps(json.loads(backend.to_str())["decoder"])
        read = _byte_level if byte_level else _metaspace
        self.bytes = {
            number: one.content.encode() if (one := added.get(number)) is not None else read(text) for text, number in self._tokens()
        }
        """Of every token, by id."""
        self._single = set() if byte_level else {number for text, number in self._tokens() if _SINGLE.fullmatch(text)}
        self.begins_with = self._beginning()
        """What it puts before every text."""
        if self.spelled(self.encode(PROBE)) not in (PROBE.encode(), b" " + PROBE.encode()):
            raise ConfigError(
                f"the tokenizer of {name} does not write a text byte for byte: it changes letters, or its tokens are no pieces of text. "
                "Objective gold compares the tokens of two vocabularies by their bytes; take a teacher with a byte-level tokenizer, or one "
                "of SentencePiece with byte fallback"
            )

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens around it."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def spelled(self, ids: Iterable[int]) -> bytes:
        """The bytes of some tokens."""
        return b"".join(self.bytes.get(token, b"") for token in ids)

    def like(self, token: int, other: Vocabulary) -> int | None:
        """This vocabulary's token for another one's special token; None where it has none."""
        content = other.special[token]
        same = next((number for number, own in self.special.items() if own == content), None)
        if same is not None:
            return same
        role = next((name for name, number in other.ends.items() if number == token), None)
        return self.ends[role] if role is not None else None

    @cached_property
    def by_bytes(self) -> dict[tuple[bool, bytes], int]:
        """Ids by whether they are special, and by their bytes; of several with the same bytes the first that is not a single byte's."""
        found: dict[tuple[bool, bytes], int] = {}
        for number in sorted(self.bytes, key=lambda one: (one in self._single, one)):
            found.setdefault((number in self.special, self.bytes[number]), number)
        return found

    def _tokens(self) -> Iterable[tuple[str, int]]:
        found: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        return found.items()

    def _beginning(self) -> list[int]:
        with_special, without = self._backend.encode("a").ids, self.encode("a")
        return [token for token in with_special[: max(0, len(with_special) - len(without))] if token == self.ends["bos"]]


def matched(own: Vocabulary, other: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """[matched] int64 twice: ids of the words that both vocabularies have, by their bytes, in the order of the other's ids."""
    pairs = sorted((number, own.by_bytes[key]) for key, number in other.by_bytes.items() if key in own.by_bytes)
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return table[:, 1], table[:, 0]


def pieces(own_ends: Sequence[int], other_ends: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the pieces that tokens are part of, from 0; -1 behind the last byte at which both have an end.

    Args:
        own_ends: byte at which each token ends.
        other_ends: the same of the other vocabulary's tokens.

    Returns: int32, one a token, of both.
    """
    own, other = np.asarray(own_ends, dtype=np.int64), np.asarray(other_ends, dtype=np.int64)
    shared = np.intersect1d(own, other)
    last = shared[-1] if len(shared) else -1
    of_own, of_other = (np.where(ends <= last, np.searchsorted(shared, ends), -1).astype(np.int32) for ends in (own, other))
    return of_own, of_other


@dataclass(slots=True)
class _Draft:
    """A row of the teacher's while it is written."""

    ids: list[int]
    trained: list[bool] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    """Of the trained ones."""
    own_groups: list[int] = field(default_factory=list)
    next_group: int = 0

    def __post_init__(self) -> None:
        self.trained = [False] * len(self.ids)

    def add(self, ids: Sequence[int], groups: Sequence[int] | None) -> None:
        self.ids += ids
        self.trained += [groups is not None] * len(ids)
        self.groups += groups or ()


class Alignment:
    """Rewrites samples of one vocabulary for a teacher of another.

    Args:
        own: of the policy.
        other: of the teacher.
        skips_ends: leave trained special tokens out of the pieces.
    """

    def __init__(self, own: Vocabulary, other: Vocabulary, *, skips_ends: bool) -> None:
        self._own, self._other, self._skips_ends = own, other, skips_ends

    def aligned(self, sample: Sample) -> Sample:
        """The sample with the teacher's view of it, and a column that marks where pieces begin."""
        rows, sources, targets, own_groups, groups = [], [], [], [], []
        number, start = 0, 0
        for row, places in zip(sample.rows, sample.sources, strict=True):
            count = len(places)
            ids = np.append(row, sample.targets[start + count - 1])
            trained = np.zeros(len(ids), dtype=bool)
            trained[places + 1] = True
            draft = self._written(ids.tolist(), trained, number)
            number, start = draft.next_group, start + count
            own_groups += draft.own_groups
            at = np.flatnonzero(draft.trained)
            if len(at):
                rows.append(np.array(draft.ids[: at[-1]], dtype=np.int32))
                sources.append((at - 1).astype(np.int64))
                targets.append(np.array(draft.ids, dtype=np.int64)[at])
                groups += draft.groups
        own = np.array(own_groups, dtype=np.int32)
        first = np.zeros(len(own))
        first[[int(np.flatnonzero(own == group)[0]) for group in np.unique(own[own >= 0])]] = 1.0
        view = None
        if rows:
            view = View(
                rows=tuple(rows),
                sources=tuple(sources),
                targets=np.concatenate(targets),
                own_groups=own,
                groups=np.array(groups, dtype=np.int32),
            )
        return replace(sample, view=view, columns={**sample.columns, PIECE: first})

    def _written(self, ids: list[int], trained: np.ndarray, number: int) -> _Draft:
        """A row of the teacher's, with numbers of pieces from `number` on."""
        draft = _Draft(ids=list(self._other.begins_with), next_group=number)
        start = 0
        if draft.ids and ids[0] == self._own.ends["bos"]:
            start = 1
        while start < len(ids):
            end = start + 1
            if ids[start] in self._own.special:
                self._add_special(draft, ids[start], trained=bool(trained[start]))
            else:
                while end < len(ids) and ids[end] not in self._own.special and trained[end] == trained[start]:
                    end += 1
                self._add_text(draft, ids[start:end], trained=bool(trained[start]))
            start = end
        if draft.trained and draft.trained[0]:  # nothing predicts it
            lost = draft.groups.pop(0)
            draft.trained[0] = False
            draft.groups = [-1 if one == lost else one for one in draft.groups]
            draft.own_groups = [-1 if one == lost else one for one in draft.own_groups]
        return draft

    def _add_special(self, draft: _Draft, token: int, *, trained: bool) -> None:
        there = self._other.like(token, self._own)
        counts = trained and there is not None and not self._skips_ends
        if trained:
            draft.own_groups.append(draft.next_group if counts else -1)
        if there is not None:
            draft.add([there], [draft.next_group if counts else -1] if trained else None)
        elif not trained:
            draft.add(self._other.encode(self._own.special[token]), None)
        draft.next_group += counts

    def _add_text(self, draft: _Draft, ids: list[int], *, trained: bool) -> None:
        spelled = self._own.spelled(ids)
        there = self._other.encode(spelled.decode("utf-8", "replace"))
        if not trained:
            draft.add(there, None)
            return
        own_ends = np.cumsum([len(self._own.bytes.get(token, b"")) for token in ids])
        ends = np.cumsum([len(self._other.bytes.get(token, b"")) for token in there])
        got = self._other.spelled(there)
        if got == b" " + spelled:  # SentencePiece begins a text with a space
            ends = ends - 1
            got = got[1:]
        own, other = pieces(own_ends.tolist(), ends.tolist())
        alike = _common(spelled, got)
        own, other = (np.where(stops <= alike, one, -1) for stops, one in ((own_ends, own), (ends, other)))
        kept = np.intersect1d(own[own >= 0], other[other >= 0])
        draft.own_groups += [int(one) + draft.next_group if one in kept else -1 for one in own]
        draft.add(there, [int(one) + draft.next_group if one in kept else -1 for one in other])
        draft.next_group += int(kept.max()) + 1 if len(kept) else 0


def _common(one: bytes, other: bytes) -> int:
    """Length of the start that both have."""
    if one == other:
        return len(one)
    return next((place for place, (left, right) in enumerate(zip(one, other, strict=False)) if left != right), min(len(one), len(other)))


def _byte_level(text: str) -> bytes:
    """The bytes that a byte-level tokenizer writes as these letters."""
    return bytes(_BYTE_OF[letter] for letter in text) if all(letter in _BYTE_OF for letter in text) else text.encode()


def _metaspace(text: str) -> bytes:
    """The bytes of a token of SentencePiece: its space is U+2581, and single bytes are `<0xNN>`."""
    single = _SINGLE.fullmatch(text)
    return bytes([int(single[1], 16)]) if single else text.replace("\u2581", " ").encode()


_SINGLE = re.compile("<0x([0-9A-Fa-f]{2})>")


def _letters() -> dict[str, int]:
    """Printable bytes stand for themselves, and the others for letters from U+0100 on, in their order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _letters()
