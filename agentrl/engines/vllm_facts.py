"""What a vLLM server says of itself: asked once, at the start, and again of each server that joins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentrl.engines.vllm_control import RouteFailed
from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from agentrl.engines.vllm_control import Control

START = "start it with `agentrl serve MODEL`"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """One server, as it is."""

    url: str
    models: tuple[str, ...]
    """Names that requests may ask for, adapters included."""
    context_length: int
    """Tokens of prompt and completion together."""
    model: dict[str, Any]
    """The text model's configuration as JSON values; empty without agentrl's extension."""
    dtype: str
    """Of the weights: `float32`."""
    vllm: str
    """Release of vLLM."""
    logprobs_mode: str
    generation_config: str
    """`vllm` where the model's own sampling defaults are ignored."""
    generation_overrides: dict[str, Any]
    """Sampling defaults of the command line."""
    max_lora_rank: int
    """0 where the server takes no adapters."""
    max_loras: int
    """Adapters that it computes with at once."""
    loads_adapters: bool
    """Whether adapters may be loaded while it runs."""
    backend: str
    """Of weight transfer; empty where there is none."""
    weight_version: str
    """What it stamps tokens with now."""
    cuts_prompts: bool
    """Whether it computes long prompts in pieces."""
    on_cpu: bool
    world_size: int
    """Workers that weights go to, data parallel ones included."""

    @property
    def vocab_size(self) -> int | None:
        """Rows of the model's embeddings, where known."""
        size = self.model.get("vocab_size")
        return size if isinstance(size, int) else None


def read_facts(server: Control) -> ServerFacts:
    """Ask a server for everything; raises `ConfigError` where it is none that a run can use, with the cure."""
    release = _release(server)
    models = _models(server)
    settings = _settings(server)
    parts = ("model", "lora", "weight_transfer", "scheduler", "device")
    model, lora, transfer, scheduler, device = (dict(settings["vllm_config"].get(f"{part}_config") or {}) for part in parts)
    try:
        return ServerFacts(
            url=server.url,
            models=tuple(str(one["id"]) for one in models),
            context_length=int(models[0]["max_model_len"]),
            model=_architecture(server),
            dtype=str(model["dtype"]).removeprefix("torch."),
            vllm=release,
            logprobs_mode=str(model["logprobs_mode"]),
            generation_config=str(model["generation_config"]),
            generation_overrides=dict(model.get("override_generation_config") or {}),
            max_lora_rank=int(lora.get("max_lora_rank", 0)),
            max_loras=int(lora.get("max_loras", 0)),
            loads_adapters=bool(settings.get("vllm_env", {}).get("VLLM_ALLOW_RUNTIME_LORA_UPDATING")),
            backend=str(transfer.get("backend", "")),
            weight_version=str(server.read("/weight_info", "weight_version")),
            cuts_prompts=bool(scheduler.get("enable_chunked_prefill")),
            on_cpu=device.get("device") == "cpu",
            world_size=int(server.read("/get_world_size", "world_size")),
        )
    except (KeyError, IndexError, TypeError, ValueError, RouteFailed) as error:
        raise ConfigError(
            f"{server.url} runs vLLM {release}, which does not describe itself as 0.32 and 0.33 do ({type(error).__name__}: {error}); "
            "install one of these for the server"
        ) from error


def _release(server: Control) -> str:
    try:
        return str(server.read("/version", "version"))
    except RouteFailed as error:
        if error.status == 401:
            raise _locked(server, error) from error
        if error.status is None and "answered" not in str(error):
            raise ConfigError(f"engine.servers: nothing answers at {server.url} ({error}); {START}, or mend the URL") from error
        raise ConfigError(f"engine.servers: {server.url} is not a vLLM server ({error}); {START}, or mend the URL") from error


def _models(server: Control) -> list[dict[str, Any]]:
    try:
        models = server.read("/v1/models", "data")
    except RouteFailed as error:
        if error.status == 401:
            raise _locked(server, error) from error
        raise ConfigError(f"{server.url} does not say which models it serves ({error}); {START}") from error
    if not isinstance(models, list) or not models or not all(isinstance(one, dict) for one in models):
        raise ConfigError(f"{server.url} serves no model: /v1/models answered {models!r}; {START}")
    return models


def _settings(server: Control) -> dict[str, Any]:
    try:
        settings = server.get("/server_info", {"config_format": "json"})
    except RouteFailed as error:
        raise ConfigError(
            f"{server.url} has no routes for training ({error}). Start it with VLLM_SERVER_DEV_MODE=1 in its environment, as `agentrl "
            "serve` does"
        ) from error
    if not isinstance(settings, dict) or not isinstance(settings.get("vllm_config"), dict):
        raise ConfigError(f"{server.url} does not describe itself: /server_info has no vllm_config; vLLM 0.32 and 0.33 do")
    return settings


def _architecture(server: Control) -> dict[str, Any]:
    try:
        return server.rpc("agentrl_model")[0]
    except RouteFailed:  # without the extension the probe alone compares models
        return {}


def _locked(server: Control, error: RouteFailed) -> ConfigError:
    return ConfigError(
        f"{server.url} asks for an API key ({error}). Set the environment variable that engine.api_key_env names, by default "
        "AGENTRL_VLLM_API_KEY, to the key that the server was started with"
    )
