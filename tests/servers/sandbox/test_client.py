import httpx
import pytest
from sandbox_watch import LIMITS

from agentrl.errors import ConfigError
from agentrl.servers.sandbox import Limits, Outcome, SandboxFileError, SandboxUnavailable, open_sandbox, protocol
from agentrl.servers.sandbox.client import PATIENCE_S, RemoteSandbox

DONE = Outcome(status="exited", code=0, stdout=b"\xff", stderr=b"", seconds=0.5, reason="")


class Server:
    """Answers from a list; an exception is raised, a number is an empty answer of that status."""

    def __init__(self, *answers):
        self.answers, self.requests = list(answers), []

    def __call__(self, request):
        self.requests.append(request)
        if request.method == "DELETE":
            return httpx.Response(200)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response):
            return answer
        return httpx.Response(answer) if type(answer) is int else httpx.Response(200, content=protocol.encoded(answer))


def opened(server, **options):
    slept = []
    sandbox = RemoteSandbox("http://server/", transport=httpx.MockTransport(server), sleep=slept.append, key="", **options)
    return sandbox, slept


FAULTS = [503, 502, 504, httpx.ConnectError("refused"), httpx.ReadTimeout("late"), httpx.RemoteProtocolError("broke off")]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_call_that_was_not_answered_is_repeated_as_the_same_request(fault):
    server = Server("id", fault, fault, DONE)
    sandbox, slept = opened(server)
    assert sandbox.run(["x"]) == DONE
    asked = server.requests[1:]
    assert len(asked) == 3
    assert len({request.content for request in asked}) == 1
    assert slept == [0.25, 0.5]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_never_answers_is_unavailable_and_no_verdict(fault):
    server = Server("id", *[fault] * 100)
    sandbox, slept = opened(server)
    with pytest.raises(SandboxUnavailable, match=r"did not answer .* times in a row"):
        sandbox.run(["x"])
    assert sum(slept) <= PATIENCE_S
    assert len(slept) > 5


def test_opening_is_repeated_too():
    sandbox, slept = opened(Server(503, httpx.ConnectTimeout("late"), "id", ["a"]))
    assert sandbox.listing() == ["a"]
    assert len(slept) == 2


def test_different_calls_are_different_requests():
    server = Server("id", DONE, DONE)
    sandbox, _ = opened(server)
    sandbox.run(["x"])
    sandbox.run(["x"])
    assert server.requests[1].content != server.requests[2].content


@pytest.mark.parametrize(
    ("status", "error"),
    [(422, SandboxFileError), (400, ValueError), (401, ConfigError), (404, SandboxUnavailable), (500, SandboxUnavailable)],
)
def test_a_refusal_has_its_own_error_and_is_not_repeated(status, error):
    server = Server("id", httpx.Response(status, content=protocol.encoded("the reason")))
    sandbox, slept = opened(server)
    with pytest.raises(error, match="the reason"):
        sandbox.read("x")
    assert slept == []


@pytest.mark.parametrize("answer", [httpx.Response(200, content=b"<html>"), httpx.Response(404, text="nginx"), "a string"])
def test_what_is_no_sandbox_server_is_unavailable(answer):
    sandbox, _ = opened(Server("id", answer))
    with pytest.raises(SandboxUnavailable, match="no sandbox server"):
        sandbox.run(["x"])


def test_a_closed_sandbox_does_nothing():
    server = Server("id")
    sandbox, _ = opened(server)
    sandbox.close()
    sandbox.close()
    assert [request.method for request in server.requests] == ["POST", "DELETE"]
    with pytest.raises(SandboxUnavailable, match="was closed"):
        sandbox.run(["x"])


def test_closing_does_not_need_the_server():
    def gone(request):
        if request.method == "DELETE":
            raise httpx.ConnectError("gone")
        return httpx.Response(200, content=protocol.encoded("id"))

    opened(gone)[0].close()


def test_a_real_server_gives_what_a_sandbox_of_ones_own_gives(server):
    with open_sandbox(server, limits=LIMITS) as sandbox:
        outcome = sandbox.run(["sh", "-c", "cat; id -un; exit 3"], stdin=b"\xff\x00")
        assert (outcome.status, outcome.code, outcome.stdout) == ("exited", 3, b"\xff\x00sandbox\n")
        assert sandbox.run(["sleep", "9"], limits=Limits(wall_s=0.2)).status == "timeout"
        sandbox.write("a/b", b"\xff")
        assert sandbox.read("a/b") == b"\xff"
        assert sandbox.listing() == ["a/", "a/b"]
        with pytest.raises(SandboxFileError, match="no such file"):
            sandbox.read("c")
        session, shell = sandbox.python(), sandbox.shell()
        session.run("x = 1")
        assert session.run("x + 1").output == b"2\n"
        assert shell.run("cd a; pwd").output == b"/sandbox/a\n"
        assert session.run("while True: pass", timeout_s=0.2).status == "timeout"
        session.close()
        with pytest.raises(ValueError, match="no session"):
            session.run("x")


def test_a_real_server_lets_no_more_in_than_it_may(server):
    opened = [open_sandbox(server) for _ in range(4)]
    with pytest.raises(SandboxUnavailable, match="status 503"):
        RemoteSandbox(server, patience_s=0.5)
    for sandbox in opened:
        sandbox.close()
    with open_sandbox(server) as sandbox:
        assert sandbox.run(["true"]).ok


def test_a_server_that_loses_every_tenth_call_neither_loses_nor_repeats_a_run(server):
    count = 0

    def flaky(request):
        nonlocal count
        count += 1
        if count % 10 == 3:
            return httpx.Response(503)
        with httpx.Client(trust_env=False) as client:
            answer = client.send(httpx.Request(request.method, request.url, headers=request.headers, content=request.content))
        if count % 10 == 7:
            raise httpx.ReadTimeout("the answer was lost on its way")
        return httpx.Response(answer.status_code, content=answer.content)

    waits = []
    with RemoteSandbox(server, limits=LIMITS, transport=httpx.MockTransport(flaky), sleep=waits.append) as sandbox:
        outcomes = [sandbox.run(["sh", "-c", f"echo {number} >> done; exit {number}"]) for number in range(40)]
        lines = sandbox.read("done").decode().split()
    assert [outcome.code for outcome in outcomes] == list(range(40))
    assert lines == [str(number) for number in range(40)]
    assert len(waits) >= 8
