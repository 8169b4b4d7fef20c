"""A vLLM server's control routes, played without one: it records what it is asked and fails where it is told to."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors import safe_open

from agentrl.engines.vllm_control import Control
from agentrl.transfer_format import Receipt

ONE, TWO = "http://127.0.0.1:1", "http://127.0.0.1:2"
SWAP = ["/pause", "agentrl_abort", "/start_weight_update", "/update_weights", "/finish_weight_update"]
SETTINGS = {
    "vllm_config": {
        "model_config": {
            "dtype": "torch.float32",
            "logprobs_mode": "processed_logprobs",
            "generation_config": "vllm",
            "override_generation_config": {},
        },
        "lora_config": {"max_lora_rank": 16, "max_loras": 3},
        "weight_transfer_config": {"backend": "agentrl"},
        "scheduler_config": {"enable_chunked_prefill": False},
        "device_config": {"device": "cpu"},
    },
    "vllm_env": {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": True},
}


@dataclass
class FakeServer:
    """Answers as vLLM 0.32 does with agentrl's extension; `answers` replaces the answer to a path or an RPC's name."""

    url: str
    answers: dict[str, Any] = field(default_factory=dict)
    """Path or RPC name -> status, exception or JSON value."""
    calls: list[str] = field(default_factory=list)
    bodies: dict[str, Any] = field(default_factory=dict)
    """Path -> the last body."""
    key: str = ""
    version: str = "default"
    paused: bool = False
    adapters: dict[str, str] = field(default_factory=dict)
    receipt: Receipt = field(default_factory=Receipt)
    context_length: int = 512
    gap: float = 1.0
    """Between the two likeliest tokens at temperature 1."""
    holder: str = ""

    def handle(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else {}
        path = request.url.path
        name = body["method"] if path == "/collective_rpc" else path
        query = request.url.query.decode()
        self.calls.append(name + (f"?{query}" if query and path != "/server_info" else ""))
        self.bodies[name] = body
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return httpx.Response(401, json={"error": "Unauthorized"})
        if name in self.answers:
            answer = self.answers[name]
            if isinstance(answer, Exception):
                raise answer
            return httpx.Response(answer, text="told to fail") if isinstance(answer, int) else httpx.Response(200, json=answer)
        return httpx.Response(200, json=getattr(self, "on_" + name.strip("/").replace("/", "_"))(body) or {"message": "done"})

    def on_version(self, body: dict[str, Any]) -> Any:
        return {"version": "0.32.0"}

    def on_health(self, body: dict[str, Any]) -> Any:
        return None

    def on_v1_models(self, body: dict[str, Any]) -> Any:
        base = {"id": "policy", "root": "/model", "max_model_len": self.context_length}
        return {"data": [base, *({"id": name, "root": path} for name, path in self.adapters.items())]}

    def on_server_info(self, body: dict[str, Any]) -> Any:
        return SETTINGS

    def on_weight_info(self, body: dict[str, Any]) -> Any:
        return {"weight_version": self.version}

    def on_get_world_size(self, body: dict[str, Any]) -> Any:
        return {"world_size": 1}

    def on_tokenize(self, body: dict[str, Any]) -> Any:
        return {"tokens": [ord(letter) for letter in body["prompt"]]}

    def on_inference_v1_generate(self, body: dict[str, Any]) -> Any:
        gap = self.gap / body["sampling_params"]["temperature"]
        prompt = [None, *({str(token): {"logprob": -1.0}} for token in body["token_ids"][1:])]
        content = [{"top_logprobs": [{"logprob": -999.0}, {"logprob": -0.5}, {"logprob": -0.5 - gap}]}]
        return {"prompt_logprobs": prompt, "choices": [{"logprobs": {"content": content}}]}

    def on_is_paused(self, body: dict[str, Any]) -> Any:
        return {"is_paused": self.paused}

    def on_pause(self, body: dict[str, Any]) -> Any:
        self.paused = True

    def on_resume(self, body: dict[str, Any]) -> Any:
        self.paused = False

    def on_start_weight_update(self, body: dict[str, Any]) -> Any:
        self.receipt = Receipt()

    def on_update_weights(self, body: dict[str, Any]) -> Any:
        assert self.paused
        for path in body["update_info"].get("paths", ()):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    self.receipt.add(name, file.get_tensor(name))

    def on_finish_weight_update(self, body: dict[str, Any]) -> Any:
        self.version = body["weight_version"]

    def on_reset_prefix_cache(self, body: dict[str, Any]) -> Any:
        return {"success": False}

    def on_abort_requests(self, body: dict[str, Any]) -> Any:
        return {"aborted": 0}

    def on_update_weight_version(self, body: dict[str, Any]) -> Any:
        self.version = body["new_version"]

    def on_init_weight_transfer_engine(self, body: dict[str, Any]) -> Any:
        return {}

    def on_shutdown_weight_transfer_engine(self, body: dict[str, Any]) -> Any:
        return {}

    def on_v1_load_lora_adapter(self, body: dict[str, Any]) -> Any:
        assert (Path(body["lora_path"]) / "adapter_config.json").exists()
        self.adapters[body["lora_name"]] = body["lora_path"]

    def on_v1_unload_lora_adapter(self, body: dict[str, Any]) -> Any:
        del self.adapters[body["lora_name"]]

    def on_agentrl_received(self, body: dict[str, Any]) -> Any:
        return {"results": [{"version": self.version, "checksum": self.receipt.hexdigest(), "names": len(self.receipt)}]}

    def on_agentrl_abort(self, body: dict[str, Any]) -> Any:
        return {"results": [None]}

    def on_agentrl_model(self, body: dict[str, Any]) -> Any:
        return {"results": [{"model_type": "qwen3", "vocab_size": 97, "hidden_size": 32}]}

    def on_agentrl_reads(self, body: dict[str, Any]) -> Any:
        try:
            return {"results": [{"text": Path(body["args"][0]).read_text(), "error": ""}]}
        except OSError as error:
            return {"results": [{"text": "", "error": str(error)}]}

    def on_agentrl_lease(self, body: dict[str, Any]) -> Any:
        owner, seconds = body["args"]
        granted = self.holder in ("", owner)
        if granted:
            self.holder = owner if float(seconds) else ""
        return {"results": [{"granted": granted, "owner": self.holder, "left_s": 60.0}]}


@dataclass
class FakeServers:
    """Several servers, told apart by their URLs; any other refuses the connection."""

    servers: tuple[FakeServer, ...]
    key: str = ""
    timeout_s: float = 5.0

    def control(self, url: str) -> Control:
        """What a publisher or a check is given."""
        return Control(url, httpx.Client(transport=httpx.MockTransport(self._handle)), key=self.key, timeout_s=self.timeout_s)

    def _handle(self, request: httpx.Request) -> httpx.Response:
        for server in self.servers:
            if server.url == f"{request.url.scheme}://{request.url.netloc.decode()}":
                return server.handle(request)
        raise httpx.ConnectError("connection refused")


def servers(count: int = 1, **options: Any) -> FakeServers:
    """Servers at http://127.0.0.1:1, :2 and so on."""
    return FakeServers(tuple(FakeServer(f"http://127.0.0.1:{port}", **options) for port in range(1, count + 1)))


def weights(scale: float = 1.0, **more: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """A model whose head is tied to its embeddings, which come once."""
    return [("embed.weight", scale * torch.arange(6.0).view(2, 3)), ("norm.weight", torch.ones(3)), *more.items()]


def checksum(tensors: list[tuple[str, torch.Tensor]]) -> str:
    receipt = Receipt()
    for name, tensor in reversed(tensors):
        receipt.add(name, tensor)
    return receipt.hexdigest()


def plain(calls: list[str]) -> list[str]:
    return [call.partition("?")[0] for call in calls]
