"""An OpenAI-compatible endpoint for one episode: any agent program that speaks chat completions can be trained, unchanged.

The endpoint passes each request on to the episode's `LLM`, which keeps the engine's own token ids; what a program sends back of its
history is matched by its content. It lives on the event loop of `Environment.episode` and listens on this machine alone by default.

What a program asks for and does not get: `temperature`, `top_p` and the like are those of the run, since the learner has to score the
distribution that was sampled (the response header `x-agentrl-ignored` names what was ignored); `stop`, `response_format`, forced
`tool_choice` and `logprobs` are refused, because answers without them would be other than the program thinks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agentrl.llm import POLICY, BudgetSpent, SamplingFailed
from agentrl.servers.http_guard import BODY_S, BodyTooLong, BodyTooSlow, has_key, whole_body

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from agentrl.llm import LLM, Reply

MOST_BODY_BYTES = 64 << 20
MOST_CHOICES = 128
KEEP_ALIVE_S = 3600.0
"""How long an idle connection stays open: programs think and run tools between two requests, and the endpoint ends with its episode."""
REFUSED: dict[str, Any] = {"stop": None, "response_format": {"type": "text"}, "logprobs": False, "top_logprobs": None, "logit_bias": None}
"""Parameters that change an answer's form, and the one value of each that asks for nothing."""
IGNORED = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed")


@dataclass
class Endpoint:
    """Where a program finds its model, and what has become of its requests."""

    base_url: str
    """For `OPENAI_BASE_URL`; ends in `/v1`."""
    api_key: str
    """For `OPENAI_API_KEY`; of this episode alone."""
    requests: int = 0
    spent: str = ""
    """Which budget a request found spent; the program got an error then."""
    refused: list[str] = field(default_factory=list)
    """Why requests were refused."""


@asynccontextmanager
async def openai_endpoint(
    llm: LLM, *, host: str = "127.0.0.1", models: Mapping[str, str] | None = None, default: str | None = POLICY
) -> AsyncIterator[Endpoint]:
    """Serve chat completions from the episode's model while the block lasts.

    Args:
        llm: of the episode.
        host: address to listen on; a program on another machine needs one that it can reach. The key protects it either way.
        models: names of models that programs ask for, and the policy behind each (`{"gpt-4o": "policy", "user": "simulator"}`).
        default: the policy for any other name; None refuses them.
    """
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    listener = socket.create_server((host, 0))
    endpoint = Endpoint(base_url=f"http://{host}:{listener.getsockname()[1]}/v1", api_key=f"agentrl-{secrets.token_urlsafe(24)}")
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.errorlog = config.accesslog = None
    config.graceful_timeout = 0.0
    config.shutdown_timeout = 1.0
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.h11_max_incomplete_size = 1 << 20
    loop = asyncio.get_running_loop()
    if loop.get_exception_handler() is None:
        loop.set_exception_handler(_quiet)
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(_app(llm, endpoint, dict(models or {}), default), config, shutdown_trigger=stop.wait))
    try:
        yield endpoint
    finally:
        stop.set()
        await asyncio.wait([serving], timeout=2.0)
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


def _quiet(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report what went wrong on the loop, but not that a connection was still open when the endpoint ended (Python 3.11 does)."""
    if not isinstance(context.get("exception"), asyncio.CancelledError):
        loop.default_exception_handler(context)


def _app(llm: LLM, endpoint: Endpoint, models: dict[str, str], default: str | None) -> Any:
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def chat(request: Request) -> Response:
        try:
            _check_key(request, endpoint)
            asked = _Asked.read(await _body(request), models, default)
            endpoint.requests += 1
            replies = await _replies(llm, asked, request)
        except BudgetSpent as error:
            endpoint.spent = str(error)
            return _fault(400, str(error), "context_length_exceeded")
        except _Refused as error:
            endpoint.refused.append(str(error))
            return _fault(error.status, str(error), error.code)
        except SamplingFailed as error:
            endpoint.refused.append(str(error))
            return _fault(400, str(error), "invalid_request")
        return _answer(asked, replies)

    async def list_models(request: Request) -> Response:
        try:
            _check_key(request, endpoint)
        except _Refused as error:
            return _fault(error.status, str(error), error.code)
        names = [*models, *([default] if default else [])]
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "agentrl"} for name in dict.fromkeys(names)]
        return JSONResponse({"object": "list", "data": data})

    return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"]), Route("/v1/models", list_models)])


class _Refused(Exception):
    def __init__(self, message: str, *, status: int = 400, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def _fault(status: int, message: str, code: str) -> Response:
    from starlette.responses import JSONResponse

    kind = "authentication_error" if status == 401 else "invalid_request_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": code}}, status_code=status)


def _check_key(request: Request, endpoint: Endpoint) -> None:
    if not has_key(request, endpoint.api_key):
        raise _Refused("this episode has another key: use the one that OPENAI_API_KEY holds", status=401, code="invalid_api_key")


async def _body(request: Request) -> dict[str, Any]:
    try:
        async with asyncio.timeout(BODY_S):
            data = await whole_body(request, MOST_BODY_BYTES)
    except BodyTooLong as error:
        raise _Refused(str(error), status=413) from None
    except TimeoutError:
        raise _Refused(str(BodyTooSlow(BODY_S)), status=408) from None
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _Refused(f"the request is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise _Refused("the request is not a JSON object")
    return body


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A request that can be played."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    model: str
    policy: str
    max_tokens: int | None
    choices: int
    stream: bool
    with_usage: bool
    ignored: tuple[str, ...]

    @staticmethod
    def read(body: dict[str, Any], models: Mapping[str, str], default: str | None) -> _Asked:
        model = str(body.get("model") or "")
        policy = models.get(model, default)
        if policy is None:
            raise _Refused(f"there is no model {model!r}; models: {', '.join(models) or 'none'}", status=404, code="model_not_found")
        for name, nothing in REFUSED.items():
            if body.get(name) not in (None, nothing, [], {}):
                raise _Refused(f"{name} is not available in training: the policy's answers are as it sampled them; leave {name} out")
        choice = body.get("tool_choice", "auto")
        if choice not in ("auto", "none", None):
            raise _Refused(f"tool_choice {choice!r} cannot be forced on the policy in training; allowed: auto, none")
        if not isinstance(options := body.get("stream_options") or {}, dict):
            raise _Refused(f"stream_options must be an object, got {options!r:.80}")
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
            raise _Refused("messages must be a list of objects with role and content")
        tools = [] if choice == "none" else body.get("tools") or []
        if not isinstance(tools, list) or not all(isinstance(tool, dict) and isinstance(tool.get("function"), dict) for tool in tools):
            raise _Refused('tools must be a list of {"type": "function", "function": {...}}')
        return _Asked(
            messages=[{**one, "role": "system"} if one.get("role") == "developer" else one for one in messages],
            tools=tools,
            model=model or policy,
            policy=policy,
            max_tokens=_count(body, "max_completion_tokens") or _count(body, "max_tokens"),
            choices=min(_count(body, "n") or 1, MOST_CHOICES),
            stream=bool(body.get("stream")),
            with_usage=bool(options.get("include_usage")),
            ignored=tuple(name for name in IGNORED if body.get(name) is not None),
        )


def _count(body: Mapping[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise _Refused(f"{name} must be an integer of at least 1, got {value!r:.80}")


async def _replies(llm: LLM, asked: _Asked, request: Request) -> list[Reply]:
    """Sample every choice. None is sampled on once one has failed, or the client is gone: what nobody reads is not trained."""
    sampling = [asyncio.ensure_future(_sample(llm, asked)) for _ in range(asked.choices)]
    leaving: asyncio.Future[Any] = asyncio.ensure_future(_gone(request))
    every: asyncio.Future[Any] = asyncio.gather(*sampling)
    try:
        await asyncio.wait([every, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not every.done():
            raise _Refused("the client has closed the connection", status=499)
        return list(await every)
    finally:
        for task in (*sampling, leaving):
            task.cancel()
        await asyncio.gather(*sampling, leaving, every, return_exceptions=True)


async def _gone(request: Request) -> None:
    """Wait until the client has closed the connection; its request has been read whole."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _sample(llm: LLM, asked: _Asked) -> Reply:
    return await llm.chat(asked.messages, tools=asked.tools, policy=asked.policy, max_tokens=asked.max_tokens)


def _answer(asked: _Asked, replies: list[Reply]) -> Response:
    from starlette.responses import Response, StreamingResponse

    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": asked.model}
    headers = {"x-agentrl-ignored": ", ".join(asked.ignored)} if asked.ignored else {}
    if asked.stream:
        return StreamingResponse(_events(head, asked, replies), media_type="text/event-stream", headers=headers)
    choices = [
        {"index": index, "message": _said(reply), "logprobs": None, "finish_reason": _reason(reply)} for index, reply in enumerate(replies)
    ]
    whole = {**head, "object": "chat.completion", "choices": choices, "usage": _usage(replies)}
    return Response(json.dumps(whole), media_type="application/json", headers=headers)  # in ASCII: a text may hold lone surrogates


def _said(reply: Reply) -> dict[str, Any]:
    """The message, with no content where there is none beside calls, as OpenAI's own servers say it."""
    message = dict(reply.message)
    if message.get("tool_calls") and not message["content"]:
        message["content"] = None
    return message


def _reason(reply: Reply) -> str:
    return "length" if reply.finish_reason == "length" else "tool_calls" if reply.calls else "stop"


def _usage(replies: list[Reply]) -> dict[str, int]:
    prompt = replies[0].usage.get("prompt_tokens", 0)
    completion = sum(reply.usage.get("completion_tokens", 0) for reply in replies)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


async def _events(head: dict[str, Any], asked: _Asked, replies: list[Reply]) -> AsyncIterator[str]:
    """The whole answers as a stream of server-sent events: a turn is sampled whole before any of it is told."""

    def event(choices: list[dict[str, Any]], **more: Any) -> str:
        return f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': choices, **more})}\n\n"

    for index, reply in enumerate(replies):
        message = _said(reply)
        calls = [{"index": at, **call} for at, call in enumerate(message.pop("tool_calls", []))]
        delta = {**message, **({"tool_calls": calls} if calls else {})}
        yield event([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])
        yield event([{"index": index, "delta": {}, "logprobs": None, "finish_reason": _reason(reply)}])
    if asked.with_usage:
        yield event([], usage=_usage(replies))
    yield "data: [DONE]\n\n"
