"""Searching a corpus: the index, the questions, and whole episodes."""

from __future__ import annotations

import json

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from rollout_fakes import FakeEngine, in_turn, make_tokenizer, thread_pool

from agentrl.config import RolloutConfig
from agentrl.config_engine import SamplingConfig
from agentrl.envs.search import Corpus, Search, world
from agentrl.errors import ConfigError
from agentrl.records import SamplingContract, Task
from agentrl.registry import load
from agentrl.rollout.episode import play_episode
from agentrl.rollout.render import Renderer
from agentrl.rollout.tree import Sampler

TOKENIZER = make_tokenizer()
DOCUMENTS = [
    {"title": "Norwick", "text": "Norwick is a town on the river Alder. It was founded in 1210."},
    {"title": "River Alder", "text": "The Alder is 210 km long and rises in the county of Tarn."},
    {"title": "Other", "text": "Nothing of interest."},
]
CORPUS = Corpus(DOCUMENTS)


def test_the_best_documents_come_first():
    assert CORPUS.search("where does the Alder rise", 1)[0][0] == "River Alder"
    assert CORPUS.search("Norwick founded", 5)[0][0] == "Norwick"
    assert CORPUS.search("zebra", 5) == []
    assert CORPUS.read("norwick") == DOCUMENTS[0]["text"]
    assert CORPUS.read("nowhere") is None


@pytest.mark.parametrize(
    "query", ["", "AND OR NOT", 'quo"te', "near(a b)", "title:x", "*", "^a", "a-b", "'; DROP TABLE documents; --", "\x00"]
)
def test_a_query_is_words_and_never_syntax(query):
    CORPUS.search(query, 3)
    assert CORPUS.read("Other")


@given(st.text())
def test_any_query_is_answered(query):
    assert len(CORPUS.search(query, 2)) <= 2


def test_the_land_that_is_made_up_is_the_same_everywhere_and_its_answers_are_in_its_documents():
    documents, facts = world()
    assert (documents, facts) == world()
    texts = {document["title"]: document["text"] for document in documents}
    assert len(texts) == len(documents)
    for fact in [fact for fact in facts if "town" in fact][:50]:
        assert fact["founded"] in texts[fact["town"]]
        river = texts[f"River {fact['river']}"]
        assert fact["length"] in river
        assert fact["source"] in river


def test_no_town_is_asked_about_in_both_splits():
    towns = [fact["town"] for fact in world()[1] if "town" in fact]
    asked = {
        split: {town for row in Search().tasks(split)[:300] for town in towns if town in row["prompt"].replace("?", " ").split()}
        for split in ("train", "eval")
    }
    assert not asked["train"] & asked["eval"]
    prompts = [row["prompt"] for row in Search().tasks("eval")]
    assert len(prompts) == len(set(prompts)) >= 400


def play(spec, row, *said):
    sampler = Sampler(engine=FakeEngine(in_turn(*said), TOKENIZER), renderer=Renderer(TOKENIZER), contract=SamplingContract())

    async def main():
        async with thread_pool(spec) as pool:
            task = Task.from_row(spec, row)
            return await play_episode(
                task, 0, sampler=sampler, others={}, pool=pool, sampling=SamplingConfig(), rollout=RolloutConfig(), seed=0
            )

    return trio.run(main)


def call(name, **arguments):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def test_an_episode_searches_reads_and_answers():
    spec = "agentrl.envs.search:Search"
    row = Search().tasks("eval")[0]
    town = next(fact["town"] for fact in world()[1] if fact.get("town", "?") in row["prompt"].replace("?", " ").split())
    said = [call("search", query=town), call("read", title=town), call("read", title="nowhere"), f"\\boxed{{{row['answer']}}}"]
    rollout = play(spec, row, *said)
    results = [message["content"] for message in rollout.messages if message["role"] == "tool"]
    assert town in results[0]
    assert "is a town on the river" in results[1]
    assert results[2] == "there is no document 'nowhere'"
    assert rollout.score.value == 1.0
    assert play(spec, row, "\\boxed{something else}").score.value == 0.0
    assert load(spec)().golden(Task.from_row(spec, row)) == [f"\\boxed{{{row['answer']}}}"]


def test_a_corpus_of_ones_own(tmp_path):
    corpus, questions = tmp_path / "corpus.jsonl", tmp_path / "questions.jsonl"
    corpus.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    rows = [{"prompt": f"How long is the Alder ({number})?", "answer": ["210 km", "210"]} for number in range(40)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = f"agentrl.envs.search:Search?corpus={corpus}&questions={questions}"
    assert (len(load(spec)().tasks("train")), len(load(spec)().tasks("eval"))) == (38, 2)
    assert play(spec, rows[0], "The answer is 210.").score.value == 1.0
    assert play(spec, {"prompt": "?", "answer": ""}, "\\boxed{x}").score.value is None


def test_a_corpus_without_its_columns_is_named(tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"title": "x"}\n')
    (tmp_path / "questions.jsonl").write_text('{"prompt": "x", "answer": "y"}\n')
    with pytest.raises(ConfigError, match="line 1: a row is an object with a `title` and a `text`"):
        Search(corpus=str(tmp_path / "corpus.jsonl"), questions=str(tmp_path / "questions.jsonl"))
    with pytest.raises(ConfigError, match="give both corpus and questions"):
        Search(corpus="x")
