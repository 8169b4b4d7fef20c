"""Questions over a corpus that only a search engine knows: SQLite's full-text index (FTS5), offline and in memory."""

from __future__ import annotations

import random
import re
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from agentrl.environment import Environment, Episode, Split
from agentrl.envs.dataset import read_rows, split_rows
from agentrl.envs.procedural import split_of
from agentrl.errors import ConfigError
from agentrl.llm import Message
from agentrl.records import Score, Task
from agentrl.registry import register
from agentrl.rewards.extract import answer_text

MOST_RESULTS = 10
SNIPPET_TOKENS = 24
MOST_CHARS = 4000
"""A document that is read is cut to this."""

Document = Mapping[str, Any]

_SYLLABLES = (
    *("al", "bor", "cas", "dun", "el", "fen", "gar", "hol", "is", "kel"),
    *("lor", "mar", "nor", "os", "pel", "rin", "sol", "tan", "ul", "ver"),
)


class Corpus:
    """Documents with a full-text index.

    Args:
        documents: each with `title` and `text`.
    """

    def __init__(self, documents: Sequence[Document]) -> None:
        self._lock = threading.Lock()  # one connection serves all episodes of a worker
        self._database = sqlite3.connect(":memory:", check_same_thread=False)
        self._database.execute("CREATE VIRTUAL TABLE documents USING fts5(title, text, tokenize='porter unicode61')")
        rows = [(str(document["title"]), str(document["text"])) for document in documents]
        self._database.executemany("INSERT INTO documents (title, text) VALUES (?, ?)", rows)

    def search(self, query: str, count: int) -> list[tuple[str, str]]:
        """Titles and snippets of the documents that match best (BM25); any word of the query may match."""
        words = [f'"{word}"' for word in re.findall(r"\w+", query)[:64]]  # quoted: a word is never an operator
        if not words:
            return []
        snippet = f"snippet(documents, 1, '', '', '...', {SNIPPET_TOKENS})"
        order = "ORDER BY bm25(documents, 4.0, 1.0), rowid LIMIT ?"
        with self._lock:
            found = self._database.execute(
                f"SELECT title, {snippet} FROM documents WHERE documents MATCH ? {order}", (" OR ".join(words), count)
            )
            return [(str(title), str(text)) for title, text in found]

    def read(self, title: str) -> str | None:
        """The text of a document; None where no document has that title."""
        with self._lock:
            row = self._database.execute("SELECT text FROM documents WHERE title = ? COLLATE NOCASE", (title.strip(),)).fetchone()
        return None if row is None else str(row[0])


def world(seed: int = 0, size: int = 2000) -> tuple[list[Document], list[Mapping[str, str]]]:
    """A made-up land: a document a town, a river and a county, and the facts behind them, a row a town."""
    stream = random.Random(f"search/{seed}")
    names = _names(stream, size + size // 2 + 24)
    counties, rivers, towns = names[:24], names[24 : 24 + size // 2], names[24 + size // 2 :]
    facts: list[Mapping[str, str]] = []
    documents: list[Document] = []
    for town in towns:
        fact = {"town": town, "river": stream.choice(rivers), "county": stream.choice(counties), "founded": str(stream.randint(900, 1890))}
        facts.append(fact)
        documents.append({"title": town, "text": f"{town} is a town on the river {fact['river']}. It was founded in {fact['founded']}."})
    source = {river: stream.choice(counties) for river in rivers}
    length = {river: str(stream.randint(20, 900)) for river in rivers}
    for river in rivers:
        documents.append(
            {"title": f"River {river}", "text": f"The {river} is {length[river]} km long and rises in the county of {source[river]}."}
        )
    for county in counties:
        seat = stream.choice(towns)
        documents.append({"title": f"County of {county}", "text": f"The county of {county} is governed from {seat}."})
        facts.append({"county_named": county, "seat": seat})
    whole = [{**fact, "source": source[fact["river"]], "length": length[fact["river"]]} if "river" in fact else fact for fact in facts]
    stream.shuffle(documents)
    return documents, whole


def _names(stream: random.Random, count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(stream.choice(_SYLLABLES) for _ in range(stream.randint(2, 3))).capitalize()] = None
    return list(found)


def questions(facts: Sequence[Mapping[str, str]], split: Split) -> list[Mapping[str, Any]]:
    """Questions of one hop (when was a town founded) and of two (how long is its river, where does it rise); a town is in one split."""
    return [
        {"prompt": question, "answer": answer}
        for fact in facts
        if "town" in fact and split_of(fact["town"]) == split
        for question, answer in (
            (f"In which year was {fact['town']} founded?", fact["founded"]),
            (f"How long is the river that {fact['town']} lies on, in km?", fact["length"]),
            (f"In which county does the river rise that {fact['town']} lies on?", fact["source"]),
        )
    ]


@cache
def _built_in() -> tuple[Corpus, list[Mapping[str, str]]]:
    documents, facts = world()
    return Corpus(documents), facts


@cache
def _from_file(path: str) -> Corpus:
    documents = read_rows(Path(path), needs=("title", "text"))
    return Corpus(documents)


@register("search")
class Search(Environment):
    """Answer questions with `search` and `read` over a local corpus.

    Args:
        corpus: JSON lines with `title` and `text`; by default a made-up land of towns and rivers, with questions of one hop and two.
        questions: JSON lines with `prompt` and `answer` (text, or a list of accepted ones), for a corpus of your own.
        eval_questions: to evaluate on; by default every 20th of `questions`, which is then not trained on.
    """

    system = "Find the answer in the documents. Write it alone, as \\boxed{...}."
    max_turns = 8

    def __init__(self, corpus: str | None = None, questions: str | None = None, eval_questions: str | None = None) -> None:
        if (corpus is None) != (questions is None):
            raise ConfigError("search: give both corpus and questions, or neither for the land that is made up")
        self._questions, self._eval_questions = questions, eval_questions
        self._corpus = _built_in()[0] if corpus is None else _from_file(corpus)

    def tasks(self, split: Split) -> Sequence[Mapping[str, Any]]:
        """The questions; of the made-up land, no town is asked about in both splits."""
        if self._questions is None:
            return questions(_built_in()[1], split)
        rows = read_rows(Path(self._questions), needs=("prompt", "answer"))
        if self._eval_questions is not None:
            return rows if split == "train" else read_rows(Path(self._eval_questions), needs=("prompt", "answer"))
        return split_rows(rows, split)

    def start(self, task: Task) -> list[Message]:
        """The question."""
        return [{"role": "user", "content": task.row["prompt"]}]

    def search(self, query: str, count: int = 3) -> str:
        """Search the documents.

        Args:
            query: Words to look for.
            count: How many results.
        """
        found = self._corpus.search(query, min(max(count, 1), MOST_RESULTS))
        return "\n".join(f"{title}: {text}" for title, text in found) or "nothing found"

    def read(self, title: str) -> str:
        """Read a document.

        Args:
            title: Its title.
        """
        text = self._corpus.read(title)
        return f"there is no document {title!r}" if text is None else text[:MOST_CHARS]

    def score(self, episode: Episode) -> Score:
        """1 where the answer is one of those that are accepted, by its words; else 0."""
        answers = episode.task.row["answer"]
        accepted = {_plain(answer) for answer in ([answers] if isinstance(answers, str) else answers)}
        if not accepted - {""}:
            return Score.unscorable(f"task {episode.task.id} has no answer to compare with")
        said = answer_text(episode.answer)
        value = float(said is not None and _plain(said) in accepted)
        return Score(value=value, parts={"correct": value})

    def golden(self, task: Task) -> Sequence[str]:
        """The answer alone."""
        answers = task.row["answer"]
        return [f"\\boxed{{{answers if isinstance(answers, str) else answers[0]}}}"]


def _plain(text: Any) -> str:
    """Words in lower case, without articles and punctuation."""
    return " ".join(word for word in re.findall(r"\w+", str(text).lower()) if word not in ("a", "an", "the"))
