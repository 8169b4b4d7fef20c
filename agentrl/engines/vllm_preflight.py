"""The checks of a vLLM server at the start of a run: what would train wrongly is refused, with the flag that cures it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from agentrl.engines.vllm_api import GENERATE
from agentrl.engines.vllm_control import BROKEN, RouteFailed
from agentrl.engines.vllm_facts import ServerFacts, read_facts
from agentrl.engines.vllm_transports.base import BASE_MODEL
from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentrl.engines.vllm_control import Control

COMPARED = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
    "rms_norm_eps",
    "sliding_window",
)
"""Keys of a model's configuration that must agree; those that only one side has are passed over."""
LEASE_S = 120.0
"""For so long a server belongs to a run that has stopped renewing its claim."""
ALIASED_BENEATH = (
    "there vLLM 0.32 gives requests for the model beneath the adapters the delta of one of them, as soon as all of its places for adapters "
    "are taken (vllm-project/vllm#48421); use servers on GPUs, whose kernels tell them apart, or engine.kind=embedded"
)
"""Why a vLLM server on a CPU is no source of the reference. Measured too: its log-probs were off by up to 19 nats."""
MARGIN = 1e-3
"""Nats by which two tokens must differ before they tell anything apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectations:
    """What a run needs of each of its servers."""

    owner: str
    """Names the run: the same for a run and its resumption, different for any two runs, such as the run folder's path with host."""
    context_length: int | None = None
    """Tokens that a request may hold; None takes what the server has."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """The learner's text configuration, `config.get_text_config().to_dict()`."""
    dtype: str | None = None
    """Of the server's weights; None takes any."""
    text: str = ""
    """Tokenized by the server, and compared with `text_ids`; empty skips this."""
    text_ids: tuple[int, ...] = ()
    """The learner's ids of `text`, without special tokens."""
    transport: Literal["filesystem", "lora", "nccl", "stream"] = "filesystem"
    lora_rank: int = 0
    """Of the adapter that will be loaded; for the transport lora."""
    reference: bool = False
    """Whether the model beneath the adapters will be sampled from too; for the transport lora."""


def check_server(server: Control, expected: Expectations) -> ServerFacts:
    """Check one server and claim it for this run; raises `ConfigError` that names what cures it.

    The claim expires after `LEASE_S`: renew it with `claim` while the run goes on, give it back with `release`.
    """
    facts = read_facts(server)
    _check_model(server, facts, expected)
    _check_sampling(server, facts)
    _check_transport(facts, expected)
    if expected.transport in ("filesystem", "stream"):
        claim(server, expected.owner)
    else:
        _claim_if_possible(server, expected.owner)
    return facts


def claim(server: Control, owner: str, *, seconds: float = LEASE_S) -> None:
    """Take or renew a server for a run; raises `ConfigError` where another run has it."""
    try:
        answers = server.rpc("agentrl_lease", [owner, str(seconds)])
    except RouteFailed as error:
        raise ConfigError(
            f"{server.url} has none of agentrl's extension ({error}). Start it with --worker-extension-cls "
            "agentrl.servers.vllm_plugin.worker.WorkerExtension, as `agentrl serve` does, in an environment where agentrl is installed"
        ) from error
    for answer in answers:
        if not answer.get("granted"):
            raise ConfigError(
                f"{server.url} is used by another run, {answer.get('owner')!r}, whose weights this one would replace. Name another server, "
                f"or end that run; {answer.get('left_s')} s after its last sign of life the server is free"
            )


def release(server: Control, owner: str) -> None:
    """Give a server back, as far as it still answers."""
    try:
        server.rpc("agentrl_lease", [owner, "0"], timeout_s=5.0)
    except RouteFailed:  # then the claim expires
        return


def _claim_if_possible(server: Control, owner: str) -> None:
    try:
        server.rpc("agentrl_received")
    except RouteFailed:  # no extension, and these transports need none
        return
    claim(server, owner)


def _check_model(server: Control, facts: ServerFacts, expected: Expectations) -> None:
    if BASE_MODEL not in facts.models:
        raise ConfigError(
            f"{facts.url} serves {', '.join(facts.models)} and not {BASE_MODEL!r}; start it with --served-model-name {BASE_MODEL}, as "
            "`agentrl serve` does"
        )
    theirs, ours = facts.model, dict(expected.model)
    differing = [key for key in COMPARED if key in theirs and key in ours and theirs[key] != ours[key]]
    if differing:
        listed = ", ".join(f"{key} {theirs[key]!r} instead of {ours[key]!r}" for key in differing)
        raise ConfigError(f"{facts.url} serves another model than the learner trains: {listed}; start it with the run's own model")
    if expected.context_length is not None and facts.context_length < expected.context_length:
        raise ConfigError(
            f"{facts.url} takes {facts.context_length} tokens of context and engine.context_length is {expected.context_length}; start it "
            f"with --max-model-len {expected.context_length}, or set engine.context_length={facts.context_length}"
        )
    if expected.dtype is not None and facts.dtype != expected.dtype:
        raise ConfigError(
            f"{facts.url} computes in {facts.dtype} and engine.dtype is {expected.dtype}; start it with --dtype {expected.dtype}, or set "
            f"engine.dtype={facts.dtype}"
        )
    if expected.text:
        _check_tokenizer(server, expected)


def _check_tokenizer(server: Control, expected: Expectations) -> None:
    """Texts are tokenized by the learner's side alone, but a server with other ids has another vocabulary."""
    try:
        body = {"model": BASE_MODEL, "prompt": expected.text, "add_special_tokens": False}
        tokens = server.post("/tokenize", body)["tokens"]
    except (RouteFailed, KeyError, TypeError):  # started without a tokenizer, which nothing here needs
        return
    if tuple(tokens) != expected.text_ids:
        raise ConfigError(
            f"{server.url} has another tokenizer than the run's model: {expected.text!r} is {list(tokens)} there and "
            f"{list(expected.text_ids)} here; start it with the run's own model, and without --tokenizer"
        )


def _check_sampling(server: Control, facts: ServerFacts) -> None:
    if facts.on_cpu and facts.cuts_prompts:
        raise ConfigError(
            f"{facts.url} computes long prompts in pieces on a CPU, and vLLM {facts.vllm} ends as soon as it cuts one of a request with a "
            "seed there, which each of agentrl's has; start it with --no-enable-chunked-prefill, as `agentrl serve` does"
        )
    own = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty"} & facts.generation_overrides.keys()
    if facts.generation_config != "vllm" or own:
        what = (
            f"--generation-config {facts.generation_config}" if not own else f"--override-generation-config with {', '.join(sorted(own))}"
        )
        raise ConfigError(
            f"{facts.url} runs with {what}, which may shape what it samples behind the learner's back; start it with --generation-config "
            "vllm and without --override-generation-config"
        )
    if facts.logprobs_mode != "processed_logprobs" or (_settled(server, facts) and _ignores_temperature(server)):
        raise ConfigError(
            f"{facts.url} returns log-probs of the mode {facts.logprobs_mode}, and the learner needs those of what was sampled, after the "
            "temperature; start it with --logprobs-mode processed_logprobs"
        )


def _settled(server: Control, facts: ServerFacts) -> bool:
    """Whether the server can be asked for tokens.

    A learner that died, or an update that failed, may have left it paused or with half of its weights. The next publish mends both.
    """
    return facts.weight_version != BROKEN and server.read("/is_paused", "is_paused") is False


def _ignores_temperature(server: Control) -> bool:
    """Whether the two likeliest tokens lie as far apart at half the temperature; where they are equally likely nothing can be told."""
    plain, sharp = (_top_gap(server, temperature) for temperature in (1.0, 0.5))
    return plain > MARGIN and sharp < 1.5 * plain


def _top_gap(server: Control, temperature: float) -> float:
    """Nats between the two likeliest first tokens after a fixed prompt. More are asked for: the sampled one takes a place among them."""
    sampling = {"max_tokens": 1, "temperature": temperature, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": 0, "logprobs": 4}
    body = {"model": BASE_MODEL, "token_ids": [1, 2, 3, 4, 5], "sampling_params": sampling | {"detokenize": False}}
    try:
        answer = server.post(GENERATE, body)
    except RouteFailed as error:
        if error.status == 404:
            raise ConfigError(
                f"{server.url} has no route for token ids ({error}); start it with --enable-scale-out, as `agentrl serve` does"
            ) from error
        raise ConfigError(f"{server.url} samples nothing: {error}") from error
    try:
        found = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        first, second = sorted((float(one["logprob"]) for one in found), reverse=True)[:2]
        return first - second
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ConfigError(f"{server.url} returns no log-probs with its tokens; vLLM 0.32 and 0.33 do: {str(answer)[:300]}") from error


def _check_transport(facts: ServerFacts, expected: Expectations) -> None:
    if expected.transport == "lora":
        _check_lora(facts, expected.lora_rank)
        if expected.reference and facts.on_cpu:
            raise ConfigError(f"{facts.url} computes on a CPU, and the objective samples from the reference: {ALIASED_BENEATH}")
        return
    wanted = "nccl" if expected.transport == "nccl" else "agentrl"
    if facts.backend != wanted:
        flag = f"""--weight-transfer-config '{{"backend": "{wanted}"}}'"""
        other = "nccl" if facts.backend == "nccl" else "filesystem" if facts.backend == "agentrl" else ""
        choice = f", or set engine.transport={other}" if other else ""
        raise ConfigError(
            f"{facts.url} has {facts.backend or 'no'} weight transfer and engine.transport={expected.transport} needs {wanted}; start it "
            f"with {flag}, as `agentrl serve` does{choice}"
        )


def _check_lora(facts: ServerFacts, rank: int) -> None:
    start = f"start it with --enable-lora --max-lora-rank {rank} --max-loras 3 and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment"
    if not facts.max_lora_rank:
        raise ConfigError(
            f"{facts.url} takes no adapters and engine.transport=lora needs that; {start}, or set engine.transport=filesystem"
        )
    if facts.max_lora_rank < rank:
        raise ConfigError(
            f"{facts.url} takes adapters up to rank {facts.max_lora_rank} and learner.lora.rank is {rank}; {start}, or set "
            f"learner.lora.rank={facts.max_lora_rank}"
        )
    if not facts.loads_adapters:
        raise ConfigError(f"{facts.url} loads no adapters while it runs; {start}")
