"""The server's state, without a socket and under a simulated clock; sandboxes are fakes."""

import threading

import httpx
import msgspec
import pytest
import trio
import trio.testing

from agentrl.errors import ConfigError
from agentrl.servers.sandbox import Limits, Outcome, SandboxFileError, SandboxUnavailable, Turn, protocol
from agentrl.servers.sandbox.service import BODY_S, MOST_ANSWERS, MOST_SESSIONS, Service


class FakeSession:
    def __init__(self):
        self.closed = False

    def run(self, code, timeout_s=None):
        return Turn(status="exited", code=0, output=f"{code} {timeout_s}".encode(), seconds=0, reason="", alive=True)

    def close(self):
        self.closed = True


class FakeSandbox:
    def __init__(self, limits, packages):
        self.limits, self.packages, self.runs, self.sessions = limits, packages, [], []
        self.gate, self.begun, self.end = threading.Event(), threading.Event(), threading.Event()
        self.gate.set()

    def run(self, command, *, stdin=b"", limits=None):
        self.runs.append(command)
        self.begun.set()
        assert self.gate.wait(10)
        if command == ["broken"]:
            raise SandboxUnavailable("it broke")
        return Outcome(status="exited", code=len(self.runs), stdout=stdin, stderr=b"", seconds=0, reason="")

    def read(self, path, *, most_bytes=None):
        raise SandboxFileError(f"{path}: there is no such file")

    def write(self, path, data):
        self.written = path, data

    def listing(self, path="."):
        return [path]

    def python(self):
        self.sessions.append(FakeSession())
        return self.sessions[-1]

    shell = python

    def close(self):
        self.end.set()

    @property
    def closed(self):
        return self.end.is_set()


class Held:
    """A service, a client of it, and the sandboxes that it opened."""

    def __init__(self, nursery, *, key="", most=2, idle_s=60.0, failures=()):
        self.opened, self.failures = [], list(failures)
        self.service = Service(nursery, self.open, most_sandboxes=most, idle_s=idle_s, key=key)
        transport = httpx.ASGITransport(self.service.app())
        self.http = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers={"content-type": protocol.CONTENT_TYPE})

    def open(self, limits, packages):
        if self.failures:
            raise self.failures.pop(0)
        self.opened.append(FakeSandbox(limits, packages))
        return self.opened[-1]

    async def new(self, request="first", **headers):
        return await self.http.post(
            "/sandboxes", content=protocol.encoded(protocol.Open(request=request, limits=Limits())), headers=headers
        )

    async def id(self, request="first"):
        answer = await self.new(request)
        assert answer.status_code == 200
        return msgspec.msgpack.decode(answer.content, type=str)

    async def later(self, seconds):
        """Let time pass, and what waits for it happen."""
        self.clock.jump(seconds)
        await trio.testing.wait_all_tasks_blocked(0.01)

    async def ask(self, box, ask, kind=None):
        answer = await self.http.post(f"/sandboxes/{box}", content=protocol.encoded(ask))
        return answer.status_code, msgspec.msgpack.decode(answer.content, **({"type": kind} if kind else {}))


def under_trio(body, **options):
    """Run a test's body with a service, under a clock that it turns on itself."""
    clock = trio.testing.MockClock()

    async def main():
        async with trio.open_nursery() as nursery:
            held = Held(nursery, **options)
            held.clock = clock
            await body(held)
            await held.service.close()
            nursery.cancel_scope.cancel()

    trio.run(main, clock=clock)


def run(request, *command):
    return protocol.Run(request=request, command=list(command), stdin=b"in")


def test_a_sandbox_is_opened_asked_and_closed():
    async def body(held):
        box = await held.id()
        assert held.opened[0].limits == Limits()
        assert (await held.ask(box, run("1", "a"), Outcome))[1].stdout == b"in"
        assert await held.ask(box, protocol.List(request="2", path="x")) == (200, ["x"])
        assert await held.ask(box, protocol.Write(request="3", path="x", data=b"\xff")) == (200, None)
        assert held.opened[0].written == ("x", b"\xff")
        assert await held.ask(box, protocol.Read(request="4", path="x")) == (422, "x: there is no such file")
        assert (await held.http.delete(f"/sandboxes/{box}")).status_code == 200
        assert held.opened[0].closed
        assert (await held.ask(box, run("5", "a")))[0] == 404

    under_trio(body)


def test_a_repeated_request_is_done_once():
    async def body(held):
        assert await held.id("same") == await held.id("same")
        box = await held.id("same")
        sandbox = held.opened[0]
        sandbox.gate.clear()
        codes = []

        async def ask():
            codes.append((await held.ask(box, run("one", "a"), Outcome))[1].code)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.to_thread.run_sync(sandbox.begun.wait)
            nursery.start_soon(ask)  # while the first is being worked on
            await trio.testing.wait_all_tasks_blocked(0.01)
            sandbox.gate.set()
        await ask()  # and afterwards
        assert codes == [1, 1, 1]
        assert sandbox.runs == [["a"]]
        assert len(held.opened) == 1

    under_trio(body)


def test_only_the_last_answers_are_kept():
    async def body(held):
        box = await held.id()
        for number in range(MOST_ANSWERS + 2):
            await held.ask(box, run(str(number), "a"))
        await held.ask(box, run(str(MOST_ANSWERS + 1), "a"))
        assert len(held.opened[0].runs) == MOST_ANSWERS + 2
        await held.ask(box, run("0", "a"))
        assert len(held.opened[0].runs) == MOST_ANSWERS + 3

    under_trio(body)


def test_a_sandbox_that_fails_is_no_verdict_and_may_be_asked_again():
    async def body(held):
        box = await held.id()
        assert await held.ask(box, run("1", "broken")) == (500, "it broke")
        assert await held.ask(box, run("1", "broken")) == (500, "it broke")
        assert len(held.opened[0].runs) == 2
        assert (await held.ask(box, run("2", "fine"), Outcome))[0] == 200

    under_trio(body)


def test_no_more_sandboxes_than_there_may_be():
    async def body(held):
        first = await held.id("1")
        await held.id("2")
        assert (await held.new("3")).status_code == 503
        await held.http.delete(f"/sandboxes/{first}")
        assert (await held.new("3")).status_code == 200

    under_trio(body)


def test_a_sandbox_that_cannot_be_opened_takes_no_place():
    async def body(held):
        assert (await held.new("1")).status_code == 500
        assert (await held.new("2")).status_code == 400
        assert (await held.new("1")).status_code == 200  # the same request again
        assert (await held.new("4")).status_code == 200

    under_trio(body, failures=[SandboxUnavailable("no bwrap"), ConfigError("no such package")])


def test_a_sandbox_that_nobody_asks_is_closed_and_one_that_works_is_not():
    async def body(held):
        box, other = await held.id("1"), await held.id("2")
        await held.later(50)
        assert (await held.ask(box, run("1", "a")))[0] == 200
        await held.later(50)
        assert await trio.to_thread.run_sync(held.opened[1].end.wait, 10)
        assert not held.opened[0].closed
        assert (await held.ask(other, run("1", "a")))[0] == 404
        sandbox = held.opened[0]
        sandbox.gate.clear()
        sandbox.begun.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(held.ask, box, run("2", "b"))
            assert await trio.to_thread.run_sync(sandbox.begun.wait, 10)
            for _ in range(5):
                await held.later(60)
            assert not sandbox.closed
            sandbox.gate.set()
        for _ in range(3):
            await held.later(60)
        assert await trio.to_thread.run_sync(sandbox.end.wait, 10)
        assert (await held.new("3")).status_code == 200  # its place is free

    under_trio(body)


def test_requests_do_not_pile_up_at_one_sandbox():
    async def body(held):
        box = await held.id()
        held.opened[0].gate.clear()
        statuses = []

        async def ask(number):
            statuses.append((await held.http.post(f"/sandboxes/{box}", content=protocol.encoded(run(str(number), "a")))).status_code)

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(ask, number)
                await trio.testing.wait_all_tasks_blocked()
            held.opened[0].gate.set()
        assert set(statuses) == {200, 503}
        assert statuses.count(200) == len(held.opened[0].runs) < 32

    under_trio(body)


def test_sessions_have_numbers():
    async def body(held):
        box = await held.id()
        begin = protocol.Begin(request="1", language="python")
        assert await held.ask(box, begin) == (200, 1)
        assert await held.ask(box, begin) == (200, 1)
        say = protocol.Say(request="2", session=1, code="x", timeout_s=3.0)
        assert (await held.ask(box, say, Turn))[1].output == b"x 3.0"
        assert (await held.ask(box, protocol.Say(request="3", session=9, code="x")))[0] == 400
        for number in range(MOST_SESSIONS - 1):
            assert (await held.ask(box, protocol.Begin(request=f"b{number}", language="shell")))[0] == 200
        assert (await held.ask(box, protocol.Begin(request="over", language="shell")))[0] == 400
        assert await held.ask(box, protocol.End(request="4", session=1)) == (200, None)
        assert held.opened[0].sessions[0].closed
        assert (await held.ask(box, protocol.Begin(request="again", language="shell")))[0] == 200

    under_trio(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"{}",
        protocol.encoded({"do": "format", "request": "1"}),
        protocol.encoded({"do": "run", "request": "1"}),
        protocol.encoded({"do": "run", "request": "1", "command": "echo"}),
        protocol.encoded({"do": "run", "request": "1", "command": ["a"], "limits": {"wall_s": -1}}),
        protocol.encoded({"do": "run", "request": "1", "command": ["a"], "extra": 1}),
        b"\x91" * 100_000,
    ],
)
def test_a_request_that_makes_no_sense_is_refused(body):
    async def check(held):
        box = await held.id()
        for path in ("/sandboxes", f"/sandboxes/{box}"):
            answer = await held.http.post(path, content=body)
            assert answer.status_code == 400
            assert "cannot be read" in msgspec.msgpack.decode(answer.content)
        assert held.opened[0].runs == []
        assert (await held.ask(box, run("2", "a")))[0] == 200

    under_trio(check)


def test_a_wrong_key_opens_nothing():
    async def body(held):
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret-not"}, {"authorization": b"Bearer \xff"}):
            assert (await held.new("1", **headers)).status_code == 401
        assert (await held.new("1", authorization="Bearer secret")).status_code == 200
        assert (await held.http.delete("/sandboxes/x")).status_code == 401
        assert (await held.http.get("/health")).status_code == 200
        assert len(held.opened) == 1

    under_trio(body, key="secret")


def test_a_page_in_a_browser_opens_nothing():
    async def body(held):
        assert (await held.new("1", **{"content-type": "text/plain"})).status_code == 400
        assert (await held.new("1", host="attacker.example")).status_code == 401
        assert (await held.new("1", host="localhost:8200")).status_code == 200
        assert len(held.opened) == 1

    under_trio(body)


def test_a_request_that_does_not_arrive_is_given_up():
    async def body(held):
        async def stuck():
            yield b"begun"
            await trio.sleep_forever()

        answers = []
        box = await held.id()

        async def ask():
            answers.append(await held.http.post(f"/sandboxes/{box}", content=stuck()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            held.clock.jump(BODY_S)
        assert answers[0].status_code == 503  # to be sent again
        assert "did not arrive within 240 s" in answers[0].text
        assert (await held.ask(box, run("1", "a")))[0] == 200

    under_trio(body, idle_s=1000.0)


def test_a_client_gets_no_larger_limits_than_there_are():
    async def body(held):
        wanted = protocol.Open(request="1", limits=Limits(memory_mib=10**6))
        answer = await held.http.post("/sandboxes", content=protocol.encoded(wanted))
        assert answer.status_code == 400
        assert "memory_mib is 1000000" in answer.text
        box = await held.id()
        ask = protocol.Run(request="1", command=["a"], limits=Limits(wall_s=10**6))
        assert (await held.ask(box, ask))[0] == 400
        assert held.opened[0].runs == []

    under_trio(body)


def test_every_sandbox_is_closed_at_the_end():
    opened = []

    async def body(held):
        await held.id("1")
        await held.id("2")
        opened.extend(held.opened)

    under_trio(body)
    assert [sandbox.closed for sandbox in opened] == [True, True]
