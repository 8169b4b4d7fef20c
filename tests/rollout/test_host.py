"""The environment worker's protocol, spoken over a socket by hand."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from rollout_fakes import ENV, has_ended, make_task, watch

from agentrl import wire
from agentrl.environment import Episode
from agentrl.rollout.host import Host
from agentrl.rollout.messages import (
    Answer,
    CallTool,
    Close,
    Closed,
    Compare,
    Compared,
    Failed,
    Grade,
    Graded,
    Observation,
    Open,
    Opened,
    Ready,
    Replied,
    Response,
    Setup,
)


class Asker:
    """One end of a worker's socket."""

    def __init__(self, sock, spec, max_output_chars):
        sock.settimeout(60)
        self._sock = sock
        self._receiver = wire.Receiver(sock, Response)
        self.receive = self._receiver.receive
        self.ready = self(Setup(imports=[], spec=spec, max_output_chars=max_output_chars))

    def __call__(self, request):
        wire.send(self._sock, request)
        return self.receive()


@contextmanager
def worker(name, *, max_output_chars=100):
    """A worker in a thread of this process."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=Host(theirs).run, daemon=True)
    thread.start()
    with theirs:
        with ours:
            yield Asker(ours, f"{ENV}:{name}", max_output_chars)
        thread.join(60)
        assert not thread.is_alive()


@contextmanager
def worker_process(name, log):
    """A worker as it is in a run; closing the socket is all that ends it."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "agentrl.rollout.host", str(theirs.fileno()), str(os.getpid())]
    with theirs, log.open("wb") as output:
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=output, stderr=output, start_new_session=True)
    with process:
        with ours:
            yield Asker(ours, f"{ENV}:{name}", 100)
        assert process.wait(60) != 0


def open_episode(ask, session=1, **row):
    return ask(Open(call=100 + session, session=session, task=make_task(**row)))


def tool(ask, name, session=1, **arguments):
    return ask(CallTool(call=7, session=session, name=name, arguments=arguments))


def grade(ask, answer, session=1):
    return ask(
        Grade(call=8, session=session, messages=[{"role": "assistant", "content": answer}], completion_ids=[1, 2], ending="complete")
    )


def test_an_episode_from_its_start_to_its_score():
    with worker("Guess") as ask:
        assert ask.ready == Ready()
        opened = open_episode(ask)
        assert isinstance(opened, Opened)
        assert (opened.call, opened.prompt, opened.max_turns, opened.replies) == (101, "hi", None, False)
        names = [entry["function"]["name"] for entry in opened.tools]
        assert names == sorted(names)
        assert "look" in names
        assert tool(ask, "look", count="3") == Observation(call=7, text="xxx", done=False)
        assert tool(ask, "finish") == Observation(call=7, text="", done=True)
        graded = grade(ask, "parts")
        assert isinstance(graded, Graded)
        assert (graded.score.value, graded.score.parts) == (0.75, {"a": 0.25, "b": 0.5})
        assert ask.receive() == Closed(session=1)


def test_episodes_share_nothing():
    with worker("Guess") as ask:
        for session in (1, 2):
            open_episode(ask, session)
        tool(ask, "look", 1)
        assert tool(ask, "total", 1).text == "1"
        assert tool(ask, "total", 2).text == "0"


def test_an_episode_has_one_asyncio_loop():
    with worker("Guess") as ask:
        open_episode(ask)
        first = tool(ask, "wait", seconds=0)
        assert first.text.startswith("loop ")
        assert tool(ask, "wait", seconds="0.001").text == first.text


def test_what_a_tool_does_wrong_is_an_observation_or_a_failure():
    with worker("Guess", max_output_chars=60) as ask:
        open_episode(ask)
        assert tool(ask, "boom") == Observation(call=7, text="error: KeyError: 'no such place'", done=False, error=True)
        assert tool(ask, "look", count="many") == Observation(
            call=7, text='error: count must be an integer, got "many"', done=False, error=True
        )
        assert tool(ask, "surrogate").text == "a?b"
        long = tool(ask, "look", count=65).text
        assert long == "x" * 60 + "\n[cut here: 5 of 65 characters are not shown]"
        for name, reason in [("leave", "SystemExit: 3"), ("infrastructure", "the sandbox is down")]:
            failed = tool(ask, name)
            assert isinstance(failed, Failed)
            assert f"play_env.py:Guess, tool {name}: {reason}" in failed.reason
        assert tool(ask, "total").text == "1"  # and the worker goes on


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("nan", "score: score returned nan; allowed: a finite number"),
        ("inf", "score: .*returned inf"),
        ("word", r"score: score returned '.*' \(of type str\); allowed: a finite number"),
        ("raise", r"score: ZeroDivisionError: by nothing \(play_env.py:\d+\)"),
    ],
)
def test_a_score_that_is_none_is_a_failure_that_names_the_boundary(answer, reason):
    with worker("Guess") as ask:
        open_episode(ask)
        failed = grade(ask, answer)
        assert isinstance(failed, Failed)
        assert re.search(reason, failed.reason)
        assert ask.receive() == Closed(session=1)
        open_episode(ask, 2)
        none = grade(ask, "none", 2)
        assert none.score.value is None
        assert none.score.reason.endswith("returned None")


def test_what_user_code_prints_goes_to_the_log(tmp_path):
    with worker_process("Guess", tmp_path / "log") as ask:
        open_episode(ask)
        assert tool(ask, "talk").text == "talked"
    assert (tmp_path / "log").read_text() == "said in a tool\nwritten to 1\n"


def test_replies():
    with worker("Dialog") as ask:
        assert open_episode(ask).replies
        assert ask(Answer(call=3, session=1, text="abc")) == Replied(call=3, text="you said 3", done=False)
        assert ask(Answer(call=4, session=1, text="enough")) == Replied(call=4, text="you said 6", done=True)
        assert ask(Answer(call=5, session=1, text="bye")) == Replied(call=5, text=None, done=False)
        assert ask(Close(session=1)) == Closed(session=1)


@pytest.mark.parametrize("kind", ["number", "empty", "bare", "set"])
def test_prompts_of_other_types_are_refused(kind):
    with worker("Odd") as ask:
        failed = open_episode(ask, kind=kind)
        assert isinstance(failed, Failed)
        assert "cannot be sent" in failed.reason if kind == "set" else "start: it returned a" in failed.reason


def test_a_reply_of_another_type_is_refused():
    with worker("Odd") as ask:
        open_episode(ask, kind="fine")
        assert "reply: it returned a int: 7" in ask(Answer(call=3, session=1, text="")).reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Guess?nothing=1", "does not accept its arguments"),
        ("Missing", "has no 'Missing'"),
        ("length", "does not accept its arguments"),
        ("Strange", "named parameters only"),
    ],
)
def test_an_environment_that_cannot_be_made_says_so(name, reason):
    with worker(name) as ask:
        assert isinstance(ask.ready, Failed)
        assert reason in ask.ready.reason


def test_a_system_text_comes_first():
    with worker("Guess?system=Be brief.") as ask:
        assert open_episode(ask).prompt == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
        messages = [{"role": "system", "content": "mine"}]
        assert open_episode(ask, 2, prompt=messages).prompt == messages


def test_a_single_turn_is_made_once():
    with worker("single?rows=3") as ask:
        assert open_episode(ask).tools == []
        assert grade(ask, "four").score.value == 4.0


def test_the_reward_of_a_turn_goes_out_once():
    with worker("Paid") as ask:
        open_episode(ask)
        assert tool(ask, "earn", amount=0.5) == Observation(call=7, text="", done=False, reward=0.5)
        assert tool(ask, "earn", amount=0) == Observation(call=7, text="", done=False)
        assert tool(ask, "earn_and_fail", amount=1).reward == 1.0
        assert ask(Answer(call=3, session=1, text="bye")) == Replied(call=3, text=None, done=False, reward=3.0)
        failed = tool(ask, "earn_oddly", kind="nan")
        assert isinstance(failed, Failed)
        assert "Paid, tool earn_oddly: turn_reward is nan; allowed: a finite number" in failed.reason


def test_an_environment_that_rewards_no_turn_may_be_frozen():
    with worker("Frozen") as ask:
        assert isinstance(open_episode(ask), Opened)
        assert tool(ask, "look") == Observation(call=7, text="seen", done=False)


def compare(ask, first, second="x"):
    episodes = [
        Episode(task=make_task(), prompt="hi", messages=[{"role": "assistant", "content": text}], completion_ids=[1], ending="complete")
        for text in (first, second)
    ]
    return ask(Compare(call=9, session=1, first=episodes[0], second=episodes[1]))


@pytest.mark.parametrize("name", ["Judged", "JudgedLater"])
def test_two_episodes_are_compared_until_the_session_is_closed(name):
    with worker(name) as ask:
        assert open_episode(ask).tools == []
        assert compare(ask, "longer") == Compared(call=9, value=1.0)
        assert compare(ask, "none") == Compared(call=9, value=None)
        failed = compare(ask, "nan")
        assert isinstance(failed, Failed)
        assert f"{name}, compare: compare returned nan; allowed: a number from 0" in failed.reason
        assert ask(Close(session=1)) == Closed(session=1)


def test_the_worker_imports_nothing_heavy():
    script = "import sys, agentrl.rollout.host; print(sorted({'torch', 'transformers', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout == "[]\n"


def test_a_worker_ends_with_its_parent_and_so_does_what_it_started(tmp_path):
    with worker_process("Guess", tmp_path / "log") as ask:
        open_episode(ask)
        watched = watch(int(tool(ask, "spawn", apart=False).text))
        assert not has_ended(watched, 0)
    assert has_ended(watched)


def test_garbage_instead_of_a_setup_ends_a_host_quietly():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire.send(ours, Close(session=1))
        Host(theirs).run()
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.recv(1)
