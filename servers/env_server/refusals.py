"""Requests that an environment server does not even try, each with the status of HTTP that says so."""

from __future__ import annotations

from typing import ClassVar


class Refusal(Exception):
    """A request that is not even tried; `status` is HTTP's."""

    status: ClassVar[int] = 400


class UnknownSession(Refusal):
    """Nobody opened it here."""

    status = 404


class OutOfTurn(Refusal):
    """Its number is not the next one, or names another request."""

    status = 409


class SessionOver(Refusal):
    """It was closed, scored, or failed."""

    status = 410


class Full(Refusal):
    """No place is free."""

    status = 503


class Unauthorized(Refusal):
    """The key is missing or wrong, or there is none and the Host is not this machine's."""

    status = 401


class OtherEnvironment(Refusal):
    """The server was started again with another environment."""

    status = 409


class TooLarge(Refusal):
    """The body is longer than the server reads."""

    status = 413
