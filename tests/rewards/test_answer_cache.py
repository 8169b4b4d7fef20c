from __future__ import annotations

import multiprocessing

import pytest

from agentrl.rewards.answer_cache import AnswerCache, default_folder


def test_an_answer_is_found_by_an_equal_question(tmp_path):
    cache = AnswerCache(tmp_path / "deep" / "cache")
    assert cache.find({"a": 1}) is None
    cache.keep({"a": 1, "b": [2.5, None]}, "yes \U0001f600 \ud83d")
    assert AnswerCache(tmp_path / "deep" / "cache").find({"b": [2.5, None], "a": 1}) == "yes \U0001f600 \ud83d"
    assert cache.find({"a": 2, "b": [2.5, None]}) is None


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"answer": "x"}', '{"answer": 5, "digest": "?"}', '{"answer": "forged", "digest": "1"}']
)
def test_a_broken_file_is_no_answer(tmp_path, content):
    cache = AnswerCache(tmp_path)
    cache.keep("q", "right")
    (path,) = tmp_path.rglob("*.json")
    path.write_text(content)
    assert cache.find("q") is None
    cache.keep("q", "again")
    assert cache.find("q") == "again"


def test_a_folder_that_cannot_be_written_costs_only_the_answer(tmp_path):
    (tmp_path / "file").write_text("")
    cache = AnswerCache(tmp_path / "file" / "cache")
    cache.keep("q", "a")
    assert cache.find("q") is None


def _keep_many(folder):
    cache = AnswerCache(folder)
    for number in range(100):
        cache.keep(number % 10, f"answer {number % 10}")
        found = cache.find(number % 7)
        assert found in (None, f"answer {number % 7}")


def test_processes_share_a_folder(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_keep_many, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(list(tmp_path.rglob("*.json"))) == 10
    assert not list(tmp_path.rglob(".new-*"))


def test_where_caches_lie(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder("judge") == tmp_path / "agentrl" / "judge"
