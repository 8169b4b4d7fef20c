from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import httpx
import pytest
import trio
from http_serving import serving
from reward_models import save_reward_model
from typer.testing import CliRunner

from agentrl.cli import make_app
from agentrl.servers.reward_rows import RewardOptions, RewardRow, RowScore
from agentrl.servers.reward_scorer import RewardScorer
from agentrl.servers.reward_server import Busy, Gatherer, RewardServer, ServerLimits

LIMITS = ServerLimits(rows_a_request=4, rows_waiting=6, body_mib=1)


def lengths(rows):
    """A model whose score is the answer's length."""
    return [RowScore(value=float(len(row.completion))) if row.completion else RowScore.failed("it is empty") for row in rows]


@contextmanager
def server(score=lengths, *, key="", limits=LIMITS, kind="outcome"):
    gatherer = Gatherer(score, limits)
    app = RewardServer(gatherer, {"model": "m", "kind": kind}, key=key, limits=limits).app()
    with serving(app, beside=gatherer.run) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


def test_scores_and_reasons():
    with server() as client:
        answer = client.post("/score", json={"prompts": ["p", "p"], "completions": ["abc", ""]})
        assert answer.json() == {"scores": [3.0, None], "errors": [None, "it is empty"]}
        assert client.get("/health").text == "ok"
        assert client.get("/info").json() == {"model": "m", "kind": "outcome", "rows": 2, "calls": 1, "waiting": 0}


def test_steps_are_told():
    with server(lambda rows: [RowScore(value=0.25, steps=(0.5, 0.25))], kind="process") as client:
        answer = client.post("/score", json={"prompts": ["p"], "steps": [["a", "b"]]}).json()
    assert answer == {"scores": [0.25], "errors": [None], "steps": [[0.5, 0.25]]}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 422, "Expecting value"),
        (b"[" * 100_000, 422, ""),
        (b"\xff", 422, "decode"),
        (b'{"prompts": ["p"]}', 422, "give `prompts` with"),
        (json.dumps({"prompts": ["p"] * 5, "completions": ["c"] * 5}).encode(), 422, "1 to 4 rows"),
        (json.dumps({"prompts": ["p"], "completions": ["c" * (1 << 20)]}).encode(), 413, "longer than 1 MiB"),
    ],
)
def test_a_request_that_makes_no_sense(body, status, said):
    with server() as client:
        answer = client.post("/score", content=body)
        assert answer.status_code == status
        assert said in answer.json()["error"]
        assert client.post("/score", json={"prompts": ["p"], "completions": ["c"]}).status_code == 200


def test_the_key():
    with server(key="secret") as client:
        assert client.get("/health").status_code == 200
        for headers in ({}, {"authorization": "Bearer wrong"}):
            answers = [client.get("/info", headers=headers), client.post("/score", headers=headers, json={})]
            assert [answer.status_code for answer in answers] == [401, 401]
        assert "set AGENTRL_REWARD_API_KEY" in answers[0].json()["error"]
        headers = {"authorization": "Bearer secret"}
        assert client.post("/score", headers=headers, json={"prompts": ["p"], "completions": ["c"]}).json()["scores"] == [1.0]


def test_a_page_in_a_browser_on_this_machine_gets_nothing():
    with server() as client:
        for answer in (
            client.get("/info", headers={"host": "attacker.example"}),
            client.post("/score", headers={"host": "attacker.example"}),
        ):
            assert answer.status_code == 401
            assert "must be called localhost" in answer.json()["error"]
        assert client.get("/info", headers={"host": "localhost:8300"}).status_code == 200


def test_a_model_that_raises_fails_its_rows_and_not_the_server():
    calls = iter([ZeroDivisionError("by nothing"), None])

    def score(rows):
        if (error := next(calls)) is not None:
            raise error
        return lengths(rows)

    with server(score) as client:
        body = {"prompts": ["p"], "completions": ["c"]}
        assert client.post("/score", json=body).json()["errors"] == ["the reward model failed: ZeroDivisionError: by nothing"]
        assert client.post("/score", json=body).json()["scores"] == [1.0]


def test_a_request_that_waits_too_long_is_told_so():
    release = threading.Event()
    with server(lambda rows: [release.wait(30) and RowScore(value=1.0)], limits=ServerLimits(answer_s=0.05)) as client:
        answer = client.post("/score", json={"prompts": ["p"], "completions": ["c"]})
        release.set()
    assert (answer.status_code, answer.json()["error"]) == (504, "the rows were not scored within 0.05 s")


def row(text):
    return RewardRow(prompt="", completion=text)


def test_rows_that_come_together_are_scored_together(autojump_clock):
    batches = []

    def score(rows):
        batches.append([one.completion for one in rows])
        return lengths(rows)

    async def main():
        gatherer = Gatherer(score, ServerLimits(gather_s=1.0, rows_at_once=3))
        scores = {}

        async def ask(texts, after_s):
            await trio.sleep(after_s)
            scores[texts] = [one.value for one in await gatherer.score([row(text) for text in texts])]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(gatherer.run)
            async with trio.open_nursery() as asking:
                asking.start_soon(ask, ("a", "bb"), 0)
                asking.start_soon(ask, ("ccc", "dddd"), 0.5)
                asking.start_soon(ask, ("eeeee",), 50)
            nursery.cancel_scope.cancel()
        assert scores == {("a", "bb"): [1, 2], ("ccc", "dddd"): [3, 4], ("eeeee",): [5]}
        assert (gatherer.rows, gatherer.calls) == (5, 3)

    trio.run(main, clock=autojump_clock)
    assert batches == [["a", "bb", "ccc"], ["dddd"], ["eeeee"]]


def test_too_many_rows_are_sent_away_and_those_given_up_make_room(autojump_clock):
    async def main():
        gatherer = Gatherer(lengths, LIMITS)  # nobody runs it
        with trio.move_on_after(1) as gone:
            await gatherer.score([row("a")] * 6)
        assert gone.cancelled_caught
        assert gatherer.waiting == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gatherer.score, [row("a")] * 4)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(Busy, match="4 rows are waiting"):
                await gatherer.score([row("a")] * 3)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=autojump_clock)


@pytest.fixture
def autojump_clock():
    return trio.testing.MockClock(autojump_threshold=0.01)


def test_a_real_model_behind_many_clients(tmp_path):
    folder = save_reward_model(tmp_path)
    scorer = RewardScorer(RewardOptions(model=folder, device="cpu"))
    texts = ["two " * (number % 9) + "four" for number in range(16)]
    expected = [scorer.score([RewardRow(prompt="so ", completion=text)])[0].value for text in texts]
    got: queue.Queue[tuple[int, float]] = queue.Queue()
    with server(scorer.score, limits=ServerLimits(gather_s=0.02)) as client:

        def ask(number):
            answer = client.post("/score", json={"prompts": ["so "], "completions": [texts[number]]})
            got.put((number, answer.json()["scores"][0]))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        info = client.get("/info").json()
    assert [value for _, value in sorted(got.queue)] == pytest.approx(expected, abs=1e-5)
    assert info["rows"] == 16
    assert info["calls"] < 16


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(tmp_path):
    folder = save_reward_model(tmp_path, process=True, labels=2)
    command = [sys.executable, "-m", "agentrl", "serve-reward", folder, "--port", "0", "--device", "cpu", "--aggregate", "mean"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            url = re.search(r"is served at (http://127\.0\.0\.1:\d+), without a key", line)[1]
            assert f'rewards: ["agentrl.rewards.reward_model:reward_server?url={url}"]' in line
            answer = httpx.post(f"{url}/score", json={"prompts": ["two?"], "completions": ["so\n\nfour"]}, timeout=30).json()
            assert answer["scores"] == pytest.approx([sum(answer["steps"][0]) / 2])
            assert httpx.get(f"{url}/info").json()["kind"] == "process"
            os.kill(process.pid, signal.SIGINT)
            assert process.wait(30) == 130
        finally:
            process.kill()
        assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--aggregate", "max"], "aggregate is 'max'"),
        (["--host", "0.0.0.0"], "set AGENTRL_REWARD_API_KEY"),
        (["--port", "0"], "cannot load the configuration of the reward model 'no/such-model-folder/at-all'"),
    ],
)
def test_what_cannot_be_served_is_refused(arguments, said, monkeypatch):
    monkeypatch.delenv("AGENTRL_REWARD_API_KEY", raising=False)
    result = CliRunner().invoke(make_app(None, None), ["serve-reward", "no/such-model-folder/at-all", *arguments])
    assert result.exit_code == 2
    assert said in result.stderr
