"""The control routes of one vLLM server, blocking: what publishing weights and the checks at the start ask of it.

The routes are those that vLLM opens under VLLM_SERVER_DEV_MODE=1. Tokens go another way (`agentrl.engines.vllm`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx

from agentrl.errors import SamplerUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BROKEN = "broken"
"""Stamped on tokens of a server whose update failed half-way: no version reads like this, so they can be taken for none."""
_SHOWN_CHARACTERS = 500
"""Of an answer that is quoted in an error."""


def http_client() -> httpx.Client:
    """A client for any number of `Control`s; the environment's proxies lead away from the servers, and are not used."""
    return httpx.Client(trust_env=False)


class RouteFailed(SamplerUnavailable):
    """A control route did not answer, or answered with an error."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status; None where nothing came back."""


class Control:
    """One server's control routes.

    Args:
        url: `http://host:port`.
        http: the client to send with; several servers and threads may share one.
        key: the server's API key, empty where it asks for none.
        timeout_s: longest wait for one answer.
    """

    def __init__(self, url: str, http: httpx.Client, *, key: str = "", timeout_s: float = 300.0) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._http = http
        # A server drops a connection that was idle for some seconds, maybe just as it is used again: each call opens its own.
        self._headers = {"Connection": "close"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        """The JSON answer of a GET; raises `RouteFailed`."""
        return self._send("GET", path, query=query)

    def post(
        self, path: str, body: Mapping[str, Any] | None = None, query: Mapping[str, str] | None = None, *, timeout_s: float | None = None
    ) -> Any:
        """The JSON answer of a POST; raises `RouteFailed`."""
        return self._send("POST", path, body=body, query=query, timeout_s=timeout_s)

    def is_well(self, timeout_s: float) -> None:
        """Raise `RouteFailed` unless the server says within that time that it can generate."""
        self._send("GET", "/health", timeout_s=timeout_s)

    def command(
        self, path: str, body: Mapping[str, Any] | None = None, query: Mapping[str, str] | None = None, *, timeout_s: float | None = None
    ) -> None:
        """A POST that vLLM confirms with an object; raises `RouteFailed` for any other answer, which is not vLLM's."""
        answer = self.post(path, body, query, timeout_s=timeout_s)
        if not isinstance(answer, dict):
            raise RouteFailed(f"POST {self.url}{path}: answered {_excerpt(str(answer))!r} instead of an object")

    def read(self, path: str, field: str, query: Mapping[str, str] | None = None) -> Any:
        """One field of what a GET answers; raises `RouteFailed` where there is none."""
        answer = self.get(path, query)
        if not isinstance(answer, dict) or field not in answer:
            raise RouteFailed(f"GET {self.url}{path}: answered {_excerpt(str(answer))!r}, which has no field {field!r}")
        return answer[field]

    def rpc(self, method: str, arguments: Sequence[str] = (), *, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """What each worker of the server answers to a method of agentrl's extension; raises `RouteFailed`."""
        answer = self.post("/collective_rpc", {"method": method, "args": list(arguments)}, timeout_s=timeout_s)
        results = answer.get("results") if isinstance(answer, dict) else None
        if not isinstance(results, list) or not results or not all(isinstance(one, dict) for one in results):
            raise RouteFailed(f"{self.url}/collective_rpc {method}: answered {_excerpt(str(answer))!r} instead of one object a worker")
        return results

    def _send(
        self,
        verb: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        wait_s = min(timeout_s or self.timeout_s, self.timeout_s)
        what = f"{verb} {self.url}{path}" + (f" {body['method']}" if body and "method" in body else "")
        try:
            answer = self._http.request(verb, self.url + path, params=dict(query or {}), json=body, headers=self._headers, timeout=wait_s)
        except httpx.TimeoutException:
            raise RouteFailed(f"{what}: no answer within {wait_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RouteFailed(f"{what}: {type(error).__name__}: {error}") from error
        if not answer.is_success:
            raise RouteFailed(f"{what}: status {answer.status_code}: {_excerpt(answer.text)}", status=answer.status_code)
        if not answer.content:
            return None
        try:
            return answer.json()
        except ValueError:
            return answer.text


def _excerpt(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " ..."
