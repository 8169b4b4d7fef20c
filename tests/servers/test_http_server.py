from __future__ import annotations

import os
import signal

import httpx
import pytest
import trio
from http_serving import serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from agentrl.errors import ConfigError
from agentrl.servers.http_server import checked_key, has_key, is_loopback, listening_socket, run_until_signalled, url_of


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, True) for host in ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "")),
    ],
)
def test_what_only_this_machine_reaches(host, expected):
    assert is_loopback(host) == expected


def test_beyond_this_machine_there_must_be_a_key():
    assert checked_key("127.0.0.1", "KEY", "do it", {}) == ""
    assert checked_key("0.0.0.0", "KEY", "do it", {"KEY": "secret"}) == "secret"
    with pytest.raises(ConfigError, match="whoever reaches the server can do it: set KEY"):
        checked_key("0.0.0.0", "KEY", "do it", {"KEY": ""})
    for odd in ("\u00e9", "a\n", " a"):
        with pytest.raises(ConfigError, match="KEY may hold printable ASCII"):
            checked_key("127.0.0.1", "KEY", "do it", {"KEY": odd})


@pytest.mark.parametrize(
    ("given", "expected"),
    [(b"Bearer secret", True), (b"Bearer secre", False), (b"bearer secret", False), (b"", False), (b"Bearer \xff", False)],
)
def test_the_key_of_a_request(given, expected):
    request = Request({"type": "http", "headers": [(b"authorization", given)]})
    assert has_key(request, "secret") == expected
    assert has_key(request, "")


def test_an_address_in_use_is_refused():
    with listening_socket("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        assert url_of("127.0.0.1", sock) == f"http://127.0.0.1:{port}"
        assert url_of("::1", sock) == f"http://[::1]:{port}"
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1, port {port}"):
            listening_socket("127.0.0.1", port)
    with pytest.raises(ConfigError, match="port 99999"):
        listening_socket("127.0.0.1", 99999)


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
