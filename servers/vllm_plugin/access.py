"""A guard of all routes: vLLM's own API key covers `/v1` and its like, but not the routes that change weights or call workers."""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_ROUTES = frozenset({"/health", "/ping"})
"""Answered to anybody: they say only that the server is up."""
KEY = "VLLM_API_KEY"
"""Environment variable that vLLM reads its own key from."""
_REFUSAL = b'{"error": "this server asks for an API key on every route: send the header Authorization: Bearer KEY"}'


class KeyGuard:
    """ASGI middleware that answers 401 to requests without the key.

    Args:
        app: what is guarded.
        key: the key; by default the environment's, and where that is empty nothing is guarded.
    """

    def __init__(self, app: App, key: str | None = None) -> None:
        self._app = app
        self._key = os.environ.get(KEY, "") if key is None else key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse, one connection."""
        if not self._key or scope["type"] not in ("http", "websocket") or scope["path"] in OPEN_ROUTES or self._allowed(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": _REFUSAL})

    def _allowed(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._key.encode())
