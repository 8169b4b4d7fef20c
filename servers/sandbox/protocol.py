"""What a sandbox's client and server say to each other: MessagePack over HTTP, every request with an id of its own.

`POST /sandboxes` opens one, `POST /sandboxes/ID` asks it for something, `DELETE /sandboxes/ID` closes it. A request that is sent twice is
done once. Status 200 brings the answer; 422 a file that cannot be had; 400 a request that makes no sense; 401 a wrong key; 404 a sandbox
that is no more; 503 asks to come again later, with nothing done; 500 is a sandbox that failed.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from agentrl.servers.sandbox.limits import Limits, Outcome, Turn

KEY_VARIABLE = "AGENTRL_SANDBOX_API_KEY"
MOST_BODY_BYTES = 128 << 20
CONTENT_TYPE = "application/msgpack"
FILE, SENSELESS, FORBIDDEN, GONE, LATER, FAILED = 422, 400, 401, 404, 503, 500
"""Statuses of what is no answer."""


class Open(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Open a sandbox; answered by its id."""

    request: str
    limits: Limits
    packages: tuple[str, ...] | Literal["all"] = ()


class Ask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="do"):
    """Base of what a sandbox is asked for."""

    request: str


class Run(Ask, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="run"):
    """Run a program; answered by an `Outcome`."""

    command: list[str]
    stdin: bytes = b""
    limits: Limits | None = None


class Read(Ask, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="read"):
    """Read a file; answered by bytes."""

    path: str
    most_bytes: int | None = None


class Write(Ask, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="write"):
    """Write a file; answered by nothing."""

    path: str
    data: bytes


class List(Ask, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="list"):
    """List a folder; answered by strings."""

    path: str


class Begin(Ask, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="begin"):
    """Begin a session; answered by its number."""

    language: Literal["python", "shell"]


class Say(Ask, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="say"):
    """Run code in a session; answered by a `Turn`."""

    session: int
    code: str
    timeout_s: float | None = None


class End(Ask, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="end"):
    """End a session; answered by nothing."""

    session: int


AnyAsk = Run | Read | Write | List | Begin | Say | End
Answer = Outcome | Turn | bytes | list[str] | int | str | None


def encoded(value: Any) -> bytes:
    """A message as bytes."""
    return msgspec.msgpack.encode(value)
