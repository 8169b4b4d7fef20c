"""Each transport against a real server: the weights themselves, the versions of tokens, and the requests in flight."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import torch
import transformers
from safetensors.torch import save_file

from agentrl.config import RunConfig
from agentrl.engines.vllm_control import BROKEN, Control, http_client
from agentrl.engines.vllm_preflight import Expectations, check_server, claim, release
from agentrl.engines.vllm_probe import Probe, prompt_logprobs
from agentrl.engines.vllm_publisher import VllmPublisher
from agentrl.engines.vllm_transports.filesystem import FilesystemTransport
from agentrl.engines.vllm_transports.lora import LoraTransport
from agentrl.engines.vllm_transports.stream import StreamTransport
from agentrl.errors import ConfigError, PublishError
from agentrl.learner.model import load_policy, plain_logprobs
from agentrl.learner.weights import all_weights
from agentrl.quickstart import model_path
from agentrl.records import Version

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

IDS = tuple(range(20, 60))
TOLERANCE = 1e-4
FLYING, LONG = 16, 900
"""Requests in flight, and their tokens: so many that they are still there when a publish comes."""
SWAPS = ["filesystem", "shared memory", "tcp"]


@dataclass
class Fleet:
    """One real server, and the learner's model beside it."""

    url: str
    http: httpx.Client = field(default_factory=http_client)
    model: Any = field(default_factory=lambda: transformers.AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32))
    publishers: list[VllmPublisher] = field(default_factory=list)

    def control(self, url: str) -> Control:
        return Control(url, self.http, timeout_s=120)

    @property
    def server(self) -> Control:
        return self.control(self.url)

    def publisher(self, transport: str, **options: Any) -> VllmPublisher:
        made = {
            "filesystem": lambda: FilesystemTransport(),
            "shared memory": lambda: StreamTransport(),
            "tcp": lambda: StreamTransport(remote=[self.url]),
        }[transport]()
        self.publishers.append(VllmPublisher(made, self.control, **options))
        return self.publishers[-1]

    def perturb(self, seed: int) -> None:
        """An optimizer step, as it were."""
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw))

    def probe(self, ids: tuple[int, ...] = IDS) -> Probe:
        return Probe(ids=ids, logprobs=logprobs_of(self.model, ids), tolerance=TOLERANCE)

    def generate(self, ids: tuple[int, ...] = IDS, *, tokens: int, model: str = "policy", **more: Any) -> dict[str, Any]:
        """One completion; greedy unless told otherwise."""
        sampling = {"max_tokens": tokens, "temperature": 0.0, "ignore_eos": True, "logprobs": 0} | more.pop("sampling", {})
        body = {"model": model, "token_ids": list(ids), "sampling_params": sampling, **more}
        answer = self.http.post(f"{self.url}/inference/v1/generate", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        choice: dict[str, Any] = answer.json()["choices"][0]
        return choice

    @contextlib.contextmanager
    def flying(self, ids: tuple[int, ...] = IDS, **options: Any) -> Iterator[list[dict[str, Any]]]:
        """Around what happens while many long requests are being decoded; their completions are in the list afterwards."""
        choices: list[dict[str, Any]] = []
        with ThreadPoolExecutor(FLYING) as threads:
            calls = [
                threads.submit(self.generate, ids, tokens=LONG, sampling={"temperature": 1.0, "seed": seed}, **options)
                for seed in range(FLYING)
            ]
            for call in calls:
                call.add_done_callback(lambda done: choices.append(done.result()))
            self.running(FLYING)
            yield choices
        for call in calls:
            call.result()  # an error of one is an error

    def running(self, wanted: float) -> None:
        """Return when so many requests are being decoded."""
        for line in self._until(wanted):
            if line == f"{wanted:.1f}":
                return

    def _until(self, wanted: float) -> Iterator[str]:
        for _ in range(2000):
            text = self.http.get(f"{self.url}/metrics", timeout=30).text
            yield next(line.rpartition(" ")[2] for line in text.splitlines() if line.startswith("vllm:num_requests_running"))
        raise AssertionError(f"never were {wanted} requests running")


def logprobs_of(model: Any, ids: tuple[int, ...], temperature: float = 1.0) -> tuple[float, ...]:
    """transformers' log-probs of `ids[1:]`."""
    with torch.no_grad():
        table = torch.log_softmax(model(torch.tensor([ids])).logits[0].double() / temperature, -1)
    return tuple(float(table[place, token]) for place, token in enumerate(ids[1:]))


@pytest.fixture
def fleet(vllm_server: Any) -> Iterator[Fleet]:
    made = Fleet(vllm_server.url)
    yield made
    for publisher in made.publishers:
        publisher.close()
    made.http.close()


def worst(got: tuple[float, ...], wanted: tuple[float, ...]) -> float:
    return max(abs(one - other) for one, other in zip(got, wanted, strict=True))


@pytest.mark.parametrize("transport", SWAPS)
def test_a_publish_changes_the_outputs_to_the_new_weights(fleet: Fleet, transport: str) -> None:
    publisher = fleet.publisher(transport)
    publisher.check([fleet.url])
    for step in (1, 2):
        before = prompt_logprobs(fleet.server, "policy", IDS)
        fleet.perturb(step)
        wanted = fleet.probe()
        result = publisher.publish(fleet.model.named_parameters(), Version(lineage=3, step=step), [fleet.url], wanted)
        assert result.failed == {}
        assert worst(prompt_logprobs(fleet.server, "policy", IDS), wanted.logprobs) < TOLERANCE
        assert worst(before, wanted.logprobs) > 0.1
        assert fleet.generate(tokens=4)["weight_versions"] == [{"version": f"3.{step}", "start": 0, "end": 4}]


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.3])
def test_sampled_log_probs_are_the_learners_with_and_without_a_cached_prefix(fleet: Fleet, temperature: float) -> None:
    publisher = fleet.publisher("filesystem")
    fleet.perturb(11)
    publisher.publish(fleet.model.named_parameters(), Version(step=1), [fleet.url])
    for seed in (0, 1):  # the second finds the prompt in the cache
        choice = fleet.generate(tokens=24, sampling={"temperature": temperature, "seed": seed}, cache_salt="0.1")
        ids = (*IDS, *choice["token_ids"])
        got = tuple(entry["logprob"] for entry in choice["logprobs"]["content"])
        assert worst(got, logprobs_of(fleet.model, ids, temperature)[len(IDS) - 1 :]) < TOLERANCE


@pytest.mark.parametrize("transport", SWAPS)
@pytest.mark.parametrize("kv", ["keep", "recompute"])
def test_a_request_in_flight_goes_on_with_the_right_spans(fleet: Fleet, transport: str, kv: str) -> None:
    publisher = fleet.publisher(transport, kv=kv)
    publisher.publish(fleet.model.named_parameters(), Version(step=1), [fleet.url])
    old = transformers.AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    fleet.perturb(21)
    with fleet.flying(cache_salt="0.1") as choices:
        result = publisher.publish(fleet.model.named_parameters(), Version(step=2), [fleet.url])
    assert result.failed == {}
    for choice in choices:
        spans = choice["weight_versions"]
        assert [span["version"] for span in spans] == ["0.1", "0.2"]
        split = spans[0]["end"]
        assert (spans[0]["start"], spans[1]["start"], spans[1]["end"]) == (0, split, LONG)
        ids = (*IDS, *choice["token_ids"])
        got = tuple(entry["logprob"] for entry in choice["logprobs"]["content"])
        assert worst(got[:split], logprobs_of(old, ids)[len(IDS) - 1 :][:split]) < TOLERANCE
        new = worst(got[split:], logprobs_of(fleet.model, ids)[len(IDS) - 1 :][split:])
        if kv == "recompute":
            assert new < TOLERANCE
        else:
            assert new > 1e-2  # the old weights' keys and values are still there, as asked


def test_a_kept_cache_is_not_met_by_requests_of_a_newer_version(fleet: Fleet) -> None:
    publisher = fleet.publisher("filesystem", kv="keep")
    publisher.publish(fleet.model.named_parameters(), Version(step=1), [fleet.url])
    fleet.perturb(31)
    prompt = tuple(20 + place % 300 for place in range(64))
    with fleet.flying(prompt, cache_salt="0.1") as choices:
        publisher.publish(fleet.model.named_parameters(), Version(step=2), [fleet.url])
        fresh = fleet.generate(prompt, tokens=1, cache_salt="0.2")
    assert {len(choice["weight_versions"]) for choice in choices} == {2}
    wanted = logprobs_of(fleet.model, (*prompt, fresh["token_ids"][0]))[-1]
    assert abs(fresh["logprobs"]["content"][0]["logprob"] - wanted) < TOLERANCE


def test_an_update_that_failed_half_way_serves_nothing_and_is_brought_up_to_date(fleet: Fleet) -> None:
    publisher = fleet.publisher("filesystem")
    publisher.publish(fleet.model.named_parameters(), Version(step=1), [fleet.url])
    fleet.perturb(41)
    half = [(name, tensor) for name, tensor in fleet.model.named_parameters() if "k_proj" not in name]
    bad = fleet.publisher("filesystem")
    with fleet.flying(cache_salt="0.1") as choices, pytest.raises(PublishError, match="reached no vLLM server"):
        bad.publish(half, Version(step=2), [fleet.url])
    for choice in choices:
        assert choice["finish_reason"] == "abort"
        assert {span["version"] for span in choice["weight_versions"] or ()} <= {"0.1", BROKEN}
    assert fleet.server.read("/weight_info", "weight_version") == BROKEN
    assert fleet.server.read("/is_paused", "is_paused") is False
    good = fleet.publisher("shared memory")
    assert good.publish(fleet.model.named_parameters(), Version(step=2), [fleet.url], fleet.probe()).failed == {}
    assert good.bring_up_to_date(fleet.url).error == ""


def test_a_server_that_a_dead_learner_left_in_the_middle_of_an_update_is_mended(fleet: Fleet, tmp_path: Path) -> None:
    stale = {name: tensor + 1.0 for name, tensor in fleet.model.named_parameters() if "q_proj" in name or "up_proj" in name}
    save_file(stale, tmp_path / "half.safetensors")
    fleet.server.command("/pause", query={"mode": "keep", "clear_cache": "false"})
    fleet.server.command("/start_weight_update")
    fleet.server.command("/update_weights", {"update_info": {"kind": "file", "paths": [str(tmp_path / "half.safetensors")]}})
    check_server(fleet.server, Expectations(owner="a new run"))
    release(fleet.server, "a new run")
    fleet.perturb(51)
    publisher = fleet.publisher("filesystem")
    assert publisher.publish(fleet.model.named_parameters(), Version(step=1), [fleet.url], fleet.probe()).failed == {}
    assert fleet.server.read("/is_paused", "is_paused") is False


def test_unknown_and_misshapen_weights_are_refused_by_the_server(fleet: Fleet) -> None:
    whole = list(fleet.model.named_parameters())
    publisher = fleet.publisher("filesystem")
    for sent, message in (
        ([*whole, ("model.layers.0.self_attn.nothing.weight", torch.ones(2, 2))], "nothing"),
        ([(name, tensor[:-1] if "o_proj" in name else tensor) for name, tensor in whole], "POST"),
    ):
        with pytest.raises(PublishError, match=message):
            fleet.publisher("filesystem").publish(sent, Version(step=1), [fleet.url])
    assert publisher.publish(whole, Version(step=1), [fleet.url], fleet.probe()).failed == {}


def test_an_adapter_merged_into_the_whole_model_travels_like_any_other_weights(fleet: Fleet) -> None:
    lora = {"rank": 4, "target_modules": ["q_proj", "down_proj"]}  # without k and v, which lie in one layer with q there
    config = RunConfig(model=model_path(), learner={"lora": lora, "device": "cpu"})
    policy = load_policy(config, model_path(), torch.device("cpu"), master=torch.float32, trained=True)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    wanted = tuple(plain_logprobs(policy, IDS))
    probe = Probe(ids=IDS, logprobs=wanted, tolerance=TOLERANCE)
    assert fleet.publisher("filesystem").publish(all_weights(policy), Version(step=1), [fleet.url], probe).failed == {}
    assert worst(wanted, logprobs_of(fleet.model, IDS)) > 0.1


def adapter(seed: int, scale: float) -> tuple[list[tuple[str, torch.Tensor]], dict[str, Any]]:
    """A random adapter on q and down projections of the quickstart's model, in peft's names."""
    draw = torch.Generator().manual_seed(seed)
    config = transformers.AutoConfig.from_pretrained(model_path())
    heads = config.num_attention_heads * config.head_dim
    tensors = []
    for layer in range(config.num_hidden_layers):
        for module, wide, high in (
            ("self_attn.q_proj", config.hidden_size, heads),
            ("mlp.down_proj", config.intermediate_size, config.hidden_size),
        ):
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors.append((f"{name}.lora_A.weight", 0.1 * torch.randn(4, wide, generator=draw)))
            tensors.append((f"{name}.lora_B.weight", scale * torch.randn(high, 4, generator=draw)))
    return tensors, {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["q_proj", "down_proj"],
        "base_model_name_or_path": None,
        "inference_mode": True,
    }


def merged(tensors: list[tuple[str, torch.Tensor]]) -> Any:
    """The quickstart's model with an adapter merged into it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    by_name = dict(tensors)
    with torch.no_grad():
        for name, low in tensors:
            if name.endswith("lora_A.weight"):
                layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                model.get_parameter(f"{layer}.weight").add_(2.0 * by_name[name.replace("lora_A", "lora_B")] @ low)
    return model


def test_adapters_of_several_versions_are_served_side_by_side_and_requests_keep_theirs(fleet: Fleet) -> None:
    base = transformers.AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    fleet.publisher("filesystem").publish(base.named_parameters(), Version(step=0), [fleet.url])
    trial, config = adapter(0, 0.0)
    publisher = VllmPublisher(LoraTransport(config, trial, max_loras=3), fleet.control, partial=True)
    fleet.publishers.append(publisher)
    publisher.check([fleet.url])
    models = {f"policy@5.{step}": adapter(step, 0.2)[0] for step in (1, 2, 3, 4)}
    first, second, *later = models
    publisher.publish(models[first], Version(lineage=5, step=1), [fleet.url])
    with fleet.flying(model=first, cache_salt="anew") as choices:
        for step, name in enumerate((second, *later), start=2):  # the first name is unloaded on the way
            result = publisher.publish(models[name], Version(lineage=5, step=step), [fleet.url])
            assert (result.model, result.failed) == (name, {})
            assert result.outcomes[0].paused_s == 0
        assert not choices, "the requests were over before the last adapter came; ask for more of them"
    assert len(choices) == FLYING
    for choice in choices:
        assert choice["finish_reason"] == "length"
        ids = (*IDS, *choice["token_ids"])
        got = tuple(entry["logprob"] for entry in choice["logprobs"]["content"])
        assert worst(got, logprobs_of(merged(models[first]), ids)[len(IDS) - 1 :]) < TOLERANCE
    served = {one["id"] for one in fleet.server.read("/v1/models", "data")}
    assert {name for name in models if name in served} == set(list(models)[1:])
    for name in list(models)[1:]:
        assert worst(prompt_logprobs(fleet.server, name, IDS), logprobs_of(merged(models[name]), IDS)) < TOLERANCE
    assert worst(prompt_logprobs(fleet.server, "policy", IDS), logprobs_of(base, IDS)) < TOLERANCE
    for name in list(models)[1:]:
        fleet.server.post("/v1/unload_lora_adapter", {"lora_name": name})


def test_adapters_that_the_server_cannot_serve_are_refused_with_the_cure(fleet: Fleet) -> None:
    trial, config = adapter(0, 0.1)
    wide = [(name, torch.cat([tensor] * 256, 0 if "lora_A" in name else 1)) for name, tensor in trial]
    for tensors, changes, message in (
        (wide, {"r": 1024}, "Lower learner.lora.rank, now 1024"),
        (
            [(name.replace("q_proj", "nonsense"), tensor) for name, tensor in trial],
            {"target_modules": ["nonsense", "down_proj"]},
            "Choose other learner.lora.target_modules",
        ),
    ):
        transport = LoraTransport(config | changes, tensors)
        with pytest.raises(ConfigError, match=message):
            transport.check(fleet.server)
        transport.close()


def test_the_server_passes_the_checks_and_belongs_to_one_run(fleet: Fleet) -> None:
    config = fleet.model.config.get_text_config().to_dict()
    good: dict[str, Any] = {"owner": "this run", "model": config, "dtype": "float32"}
    facts = check_server(fleet.server, Expectations(**good))
    assert (facts.backend, facts.vocab_size, facts.logprobs_mode) == ("agentrl", config["vocab_size"], "processed_logprobs")
    with pytest.raises(ConfigError, match="used by another run, 'this run'"):
        claim(fleet.server, "another run")
    release(fleet.server, "this run")
    claim(fleet.server, "another run")
    release(fleet.server, "another run")
    with pytest.raises(ConfigError, match=r"another model .*hidden_size"):
        check_server(fleet.server, Expectations(**{**good, "model": config | {"hidden_size": 1}}))
    transport = FilesystemTransport()
    transport.check(fleet.server)
    transport.close()
    with pytest.raises(ConfigError, match="does not see the folder"):
        transport.check(fleet.server)
