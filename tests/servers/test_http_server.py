from __future__ import annotations

import os
import signal

import httpx
import pytest
import trio
import trio.testing
from http_serving import serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from agentrl.errors import ConfigError
from agentrl.servers.http_guard import BodyTooSlow
from agentrl.servers.http_server import listening, listening_socket, read_body, run_until_signalled, url_of, version


def test_an_address_in_use_is_refused():
    with listening_socket("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        assert url_of("127.0.0.1", sock) == f"http://127.0.0.1:{port}"
        assert url_of("::1", sock) == f"http://[::1]:{port}"
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1, port {port}"):
            listening_socket("127.0.0.1", port)
    with pytest.raises(ConfigError, match="port 99999"):
        listening_socket("127.0.0.1", 99999)
    with listening("127.0.0.1", port) as (sock, url):
        assert url == f"http://127.0.0.1:{port}"
        assert sock.getsockname() == ("127.0.0.1", port)


def test_a_body_has_to_arrive_in_time():
    gaps = iter([10.0, 49.0, 2.0])

    async def receive():
        await trio.sleep(next(gaps))
        return {"type": "http.request", "body": b"a", "more_body": True}

    async def main():
        with pytest.raises(BodyTooSlow, match="the request did not arrive within 60 s"):
            await read_body(Request({"type": "http", "headers": []}, receive), 100)
        assert trio.current_time() - began == pytest.approx(60.0)

    clock = trio.testing.MockClock(autojump_threshold=0)
    began = clock.current_time()
    trio.run(main, clock=clock)


def test_the_version_is_told():
    assert version()[0].isdigit()


def test_it_answers_until_it_is_cancelled():
    async def hello(request):
        return PlainTextResponse("hello")

    with serving(Starlette(routes=[Route("/", hello)])) as url:
        assert httpx.get(url).text == "hello"
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_server(number):
    async def serve():
        os.kill(os.getpid(), number)
        await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        run_until_signalled(serve)
