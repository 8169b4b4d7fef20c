from __future__ import annotations

import asyncio

import pytest
from starlette.requests import ClientDisconnect, Request

from agentrl.errors import ConfigError
from agentrl.servers.http_guard import BodyTooLong, checked_key, denial, has_key, is_loopback, whole_body


def request(**headers):
    return Request(
        {
            "type": "http",
            "scheme": "http",
            "path": "/",
            "query_string": b"",
            "server": ("127.0.0.1", 8100),
            "headers": [(name.encode(), value) for name, value in headers.items()],
        }
    )


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, True) for host in ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "node7", "")),
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
    assert has_key(request(authorization=given), "secret") == expected
    assert has_key(request(authorization=given), "")


def test_a_denial_says_what_was_wrong_with_the_key():
    said = "this server asks for an API key and got {}; set KEY to the server's where the run starts"
    assert denial(request(), "secret", "KEY") == said.format("no key")
    assert denial(request(authorization=b"Bearer wrong"), "secret", "KEY") == said.format("a wrong key")
    assert denial(request(authorization=b"Bearer secret"), "secret", "KEY") == ""


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, True) for host in (b"127.0.0.1", b"127.0.0.1:8100", b"localhost:8100", b"LOCALHOST", b"[::1]:8100")),
        *((host, False) for host in (b"attacker.example", b"attacker.example:8100", b"localhost.example", b"10.0.0.1:8100")),
        *((host, False) for host in (b"at_tacker.example:8100", b"a@127.0.0.1", b"127.0.0.1:x", b"127.0.0.1:1:2", b"[", b"\xff", b"")),
    ],
)
def test_without_a_key_a_server_goes_by_a_name_of_this_machine(host, expected):
    said = denial(request(host=host), "", "KEY")
    assert (said == "") == expected
    assert said == "" or "must be called localhost or 127.0.0.1, and not" in said
    assert denial(request(host=host, authorization=b"Bearer secret"), "secret", "KEY") == ""  # no page in a browser has the key


def test_a_request_without_a_name_is_this_machines():
    assert denial(request(), "", "KEY") == ""


def read(*parts, most_bytes=6):
    """The body that comes in parts; None is a client that goes away."""
    coming = iter(parts)

    async def receive():
        part = next(coming)
        return {"type": "http.disconnect"} if part is None else {"type": "http.request", "body": part, "more_body": part != b""}

    return asyncio.run(whole_body(Request({"type": "http", "headers": []}, receive), most_bytes))


def test_a_body_is_read_up_to_its_limit():
    assert read(b"abc", b"def", b"") == b"abcdef"
    with pytest.raises(BodyTooLong, match="a request may hold 6 bytes, and this one is longer"):
        read(b"abc", b"defg")  # nothing is asked for beyond it
    with pytest.raises(ClientDisconnect):
        read(b"abc", None)
