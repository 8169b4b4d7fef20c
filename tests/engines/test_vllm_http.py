"""HTTP to one server, over real sockets of this machine."""

from functools import partial

import pytest
import trio
import trio.testing

from agentrl.engines.vllm_http import IDLE_S, HttpError, HttpServer, Reply

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Answering:
    """A server that answers each request with the next of its answers, if it has any, and closes after `closes_after` requests."""

    def __init__(self, *answers, closes_after=1000, piece=1 << 20):
        self.answers, self.closes_after, self.piece = answers, closes_after, piece
        self.connections, self.open, self.requests = 0, 0, []

    async def serve(self, stream):
        self.connections += 1
        self.open += 1
        try:
            for _ in range(self.closes_after):
                if not (request := await read_request(stream)):
                    break
                self.requests.append(request)
                answer = self.answers[min(len(self.requests), len(self.answers)) - 1] if self.answers else b""
                for start in range(0, len(answer), self.piece):
                    await stream.send_all(answer[start : start + self.piece])
                    await trio.lowlevel.checkpoint()
        finally:
            self.open -= 1
            await trio.aclose_forcefully(stream)


async def read_request(stream):
    read = b""
    while b"\r\n\r\n" not in read or len(read.partition(b"\r\n\r\n")[2]) < length_of(read):
        data = await stream.receive_some()
        if not data:
            return b""
        read += data
    return read


def length_of(read):
    return int(read.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)


def talk(answering, body, *, headers=None, clock=None):
    """Run `body(server)` against it."""

    async def main():
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, answering.serve, 0, host="127.0.0.1"))
            server = HttpServer(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}", headers or {})
            try:
                with trio.fail_after(30):
                    return await body(server)
            finally:
                await server.aclose()
                nursery.cancel_scope.cancel()

    return trio.run(main, clock=clock)


async def ask(server):
    return await server.request("POST", "/path", b"{}")


async def ask_twice(server):
    return [await ask(server), await ask(server)]


def test_a_request_is_plain_http_with_the_headers_and_the_connection_is_kept():
    answering = Answering(OK)
    assert talk(answering, ask_twice, headers={"authorization": "Bearer secret"}) == [Reply(status=200, body=b"ok")] * 2
    assert answering.connections == 1
    head, _, body = answering.requests[0].partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert (lines[0], body) == (b"post /path http/1.1", b"{}")
    assert {b"authorization: bearer secret", b"content-type: application/json", b"content-length: 2"} < set(lines)


def test_many_at_once_have_connections_of_their_own_and_the_next_use_them_again():
    answering = Answering(OK)

    async def crowd(server):
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(ask, server)

    talk(answering, crowd)
    assert len(answering.requests) == 60
    assert answering.connections == 20


FORMS = {
    "an error": (b"HTTP/1.1 500 Oops\r\ncontent-length: 3\r\n\r\nbad", Reply(status=500, body=b"bad")),
    "not found": (b"HTTP/1.1 404 Not Found\r\nContent-Length:3\r\n\r\nbad", Reply(status=404, body=b"bad")),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", Reply(status=200, body=b"abc")),
    "a greeting": (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, Reply(status=200, body=b"ok")),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", Reply(status=204, body=b"")),
    "nothing": (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Reply(status=200, body=b"")),
    "the same length twice": (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok", Reply(status=200, body=b"ok")),
    "as vLLM does": (
        b"HTTP/1.1 200 OK\r\ndate: Mon\r\nserver: uvicorn\r\ncontent-length: 6\r\ncontent-type: application/json\r\n\r\n{1: 2}",
        Reply(status=200, body=b"{1: 2}"),
    ),
}


@pytest.mark.parametrize("piece", [1 << 20, 25, 7, 1])
@pytest.mark.parametrize("form", FORMS)
def test_answers_of_every_form_are_read_whole_or_in_pieces(form, piece):
    answer, reply = FORMS[form]
    answering = Answering(answer, piece=piece)
    assert talk(answering, ask_twice) == [reply, reply]
    assert answering.connections == 1


def test_an_answer_may_end_with_its_connection():
    answering = Answering(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nto the end", closes_after=1)
    assert talk(answering, ask_twice) == [Reply(status=200, body=b"to the end")] * 2
    assert answering.connections == 2


def test_what_comes_after_an_answer_is_never_taken_for_the_next_one():
    answering = Answering(OK + OK.replace(b"ok", b"no"))
    assert talk(answering, ask_twice) == [Reply(status=200, body=b"ok")] * 2
    assert answering.connections == 2


def test_a_connection_that_the_server_closed_while_idle_is_replaced():
    answering = Answering(OK, closes_after=1)

    async def later(server):
        await ask(server)
        while answering.open:
            await trio.lowlevel.checkpoint()
        return await ask(server)

    assert talk(answering, later) == Reply(status=200, body=b"ok")
    assert answering.connections == 2


def test_connections_that_were_idle_for_long_are_not_used():
    answering = Answering(OK)
    clock = trio.testing.MockClock()

    async def later(server):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask, server)
        clock.jump(IDLE_S + 0.1)
        return await ask(server)

    talk(answering, later, clock=clock)
    assert answering.connections == 4


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "without an answer"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", "6 bytes before the end of an answer of 10"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nhalf", "does not speak HTTP"),
        (b"HTTP/1.1 200 O", "without an answer"),
        (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", "does not speak HTTP"),
    ],
)
def test_no_answer_half_an_answer_and_no_http_name_the_server(answer, said):
    async def refused(server):
        with pytest.raises(HttpError, match=said) as raised:
            await ask(server)
        assert server.url in str(raised.value)

    talk(Answering(answer, closes_after=1), refused)


def test_nobody_listening_names_the_server():
    async def main():
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        await listeners[0].aclose()
        with pytest.raises(HttpError, match=f"http://127.0.0.1:{port} accepts no connection"):
            await HttpServer(f"http://127.0.0.1:{port}", {}).request("GET", "/")

    trio.run(main)


def test_cancelling_a_request_closes_its_connection():
    silent = Answering()

    async def cancel(server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, server)
            while not silent.requests:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        while silent.open:
            await trio.lowlevel.checkpoint()

    talk(silent, cancel)
    assert (silent.connections, silent.open) == (1, 0)
