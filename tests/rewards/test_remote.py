from __future__ import annotations

import threading

import httpx
import pytest

from agentrl.rewards.remote import Patience, Remote, RemoteFailure


def remote(*answers, waits=None, url="http://judge.test/v1", **patience):
    """A server that gives these answers in turn, the last one for ever."""
    left = list(answers)

    def answer(request):
        given = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(given, Exception):
            raise given
        return given(request) if callable(given) else given

    kept = [] if waits is None else waits
    return Remote(url, key_env="NO_SUCH_KEY", patience=Patience(**patience), sleep=kept.append, transport=httpx.MockTransport(answer))


def test_an_answer_is_json_and_the_key_goes_along(monkeypatch):
    monkeypatch.setenv("NO_SUCH_KEY", "secret")

    def echo(request):
        return httpx.Response(200, json=[request.headers["authorization"], str(request.url), request.content.decode()])

    assert remote(echo).post("/score", {"a": "\ud800"}) == ["Bearer secret", "http://judge.test/v1/score", '{"a": "\\ud800"}']


@pytest.mark.parametrize(
    "fault",
    [
        httpx.Response(503, text="loading"),
        httpx.Response(429),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.Response(200, text="<html>"),
    ],
)
def test_a_passing_fault_is_asked_about_again(fault):
    waits = []
    assert remote(fault, fault, httpx.Response(200, json=5), waits=waits).post("/x", {}) == 5
    assert len(waits) == 2
    assert 0.25 <= waits[0] <= 0.5 <= waits[1] <= 1.0


def test_a_fault_that_stays_is_told_in_words():
    waits = []
    with pytest.raises(RemoteFailure, match=r"judge.test/v1 answered HTTP 503: try later, after 4 tries"):
        remote(httpx.Response(503, text="try\nlater"), waits=waits).post("/x", {})
    assert len(waits) == 3


@pytest.mark.parametrize("status", [301, 400, 401, 404, 422])
def test_a_refusal_is_final(status):
    with pytest.raises(RemoteFailure, match=f"HTTP {status}"):
        remote(httpx.Response(status), httpx.Response(200, json=1)).post("/x", {})


def test_the_server_says_how_long_to_wait():
    waits = []
    assert remote(httpx.Response(503, headers={"retry-after": "7"}), httpx.Response(200, json=1), waits=waits).post("/x", {}) == 1
    assert waits == [7.0]
    with pytest.raises(RemoteFailure, match="after 1 tries"):  # no use in waiting past the deadline
        remote(httpx.Response(503, headers={"retry-after": "70"}), httpx.Response(200, json=1)).post("/x", {})


def test_an_answer_without_end_is_cut_off():
    with pytest.raises(RemoteFailure, match="longer than 1,000 bytes"):
        remote(httpx.Response(200, content=b"[" + b"1," * 1000), most_bytes=1000).post("/x", {})


def test_only_so_many_requests_are_in_flight():
    asked, may_answer = threading.Event(), threading.Event()

    def slow(request):
        asked.set()
        assert may_answer.wait(30)
        return httpx.Response(200, json=1)

    server = remote(slow, concurrency=1, timeout_s=0.2)
    outcome = []

    def first():
        with pytest.raises(RemoteFailure) as failure:
            server.post("/x", {})
        outcome.append(str(failure.value))

    thread = threading.Thread(target=first)
    thread.start()
    assert asked.wait(30)
    with pytest.raises(RemoteFailure, match="1 requests were in flight"):
        server.post("/x", {})
    may_answer.set()
    thread.join(30)
    assert outcome == ["http://judge.test/v1: the answer did not end within 0.2 s"]


@pytest.mark.parametrize("url", ["", "judge", "ftp://judge", "http://"])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(ValueError, match="it is an address such as"):
        remote(httpx.Response(200), url=url)


def test_patience_is_above_0():
    with pytest.raises(ValueError, match="each is above 0"):
        Patience(attempts=0)
