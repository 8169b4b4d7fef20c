"""The environment worker's protocol, spoken over a socket by hand."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest
from rollout_fakes import ENV, make_task

from agentrl import wire
from agentrl.rollout.host import Host
from agentrl.rollout.messages import (
    Answer,
    CallTool,
    Close,
    Closed,
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


@contextmanager
def worker(name, *, max_output_chars=100):
    """A real worker process, set up; also its first answer."""
    ours, theirs = socket.socketpair()
    with theirs:
        arguments = [sys.executable, "-m", "agentrl.rollout.host", str(theirs.fileno()), str(os.getpid())]
        process = subprocess.Popen(arguments, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    ours.settimeout(60)
    receiver = wire.Receiver(ours, Response)

    def ask(request):
        wire.send(ours, request)
        return receiver.receive()

    with ours, process:
        try:
            ask.process, ask.ready = process, ask(Setup(imports=[], spec=f"{ENV}:{name}", max_output_chars=max_output_chars))
            ask.receive = receiver.receive
            yield ask
        finally:
            ours.close()  # the parent is gone: the worker ends by itself
            process.wait(60)


def open_episode(ask, session=1, **row):
    return ask(Open(call=100 + session, session=session, task=make_task(**row)))


def tool(ask, name, session=1, **arguments):
    return ask(CallTool(call=7, session=session, name=name, arguments=arguments))


def grade(ask, answer, session=1):
    return ask(Grade(call=8, session=session, messages=[{"role": "assistant", "content": answer}], completion_ids=[1, 2], ending="complete"))


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
    with worker("Guess", max_output_chars=20) as ask:
        open_episode(ask)
        assert tool(ask, "boom") == Observation(call=7, text="error: KeyError: 'no"[:20] + tool(ask, "boom").text[20:], done=False, error=True)
        assert tool(ask, "look", count="many").error
        assert tool(ask, "surrogate").text == "a?b"
        long = tool(ask, "look", count=25).text
        assert long == "x" * 20 + "\n[cut here: 5 of 25 characters are not shown]"
        for name, reason in [("leave", "SystemExit: 3"), ("infrastructure", "the sandbox is down")]:
            failed = tool(ask, name)
            assert isinstance(failed, Failed)
            assert f"play_env.py:Guess, tool {name}: {reason}" in failed.reason
        assert tool(ask, "total").text == "2"  # and the worker goes on


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("nan", "score: .*Guess.score returned nan"),
        ("inf", "score: .*returned inf"),
        ("word", "score: .*returned a str; allowed: a number"),
        ("raise", r"score: ZeroDivisionError: by nothing \(play_env.py:\d+\)"),
    ],
)
def test_a_score_that_is_none_is_a_failure_that_names_the_boundary(answer, reason):
    with worker("Guess") as ask:
        open_episode(ask)
        failed = grade(ask, answer)
        assert isinstance(failed, Failed)
        assert pytest.importorskip("re").search(reason, failed.reason)
        assert ask.receive() == Closed(session=1)
        open_episode(ask, 2)
        none = grade(ask, "none", 2)
        assert none.score.value is None
        assert none.score.reason.endswith("returned None")


def test_what_user_code_prints_stays_out_of_the_protocol():
    with worker("Guess") as ask:
        open_episode(ask)
        assert tool(ask, "talk").text == "talked"
        process = ask.process
    assert process.stdout.read() == b""
    assert process.stderr.read() == b"said in a tool\nwritten to 1\n"


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


def test_the_worker_imports_no_torch_and_ends_with_its_parent():
    script = "import sys, agentrl.rollout.host; print(sorted({'torch', 'transformers', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout == "[]\n"
    with worker("Guess") as ask:
        open_episode(ask)
        pid = int(tool(ask, "spawn", apart=False).text)
        process = ask.process
    assert process.returncode != 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0) if is_running(pid) else os.kill(2**22, 0)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_garbage_instead_of_a_setup_ends_a_host_quietly():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire.send(ours, Close(session=1))
        Host(theirs).run()
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.recv(1)
