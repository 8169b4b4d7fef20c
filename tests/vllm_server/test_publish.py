"""Each transport against a real server: the weights themselves, the versions of tokens, and the requests in flight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from publish_fleet import IDS, LONG, TOLERANCE, Fleet, logprobs_of, worst
from safetensors.torch import save_file

from agentrl.config import RunConfig
from agentrl.engines.vllm_control import BROKEN
from agentrl.engines.vllm_preflight import Expectations, check_server, claim, release
from agentrl.engines.vllm_probe import Probe, prompt_logprobs
from agentrl.engines.vllm_transports.filesystem import FilesystemTransport
from agentrl.errors import ConfigError, PublishError
from agentrl.learner.loading import load_policy
from agentrl.learner.model import plain_logprobs
from agentrl.learner.weights import all_weights
from agentrl.quickstart import model_path
from agentrl.records import Version

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

SWAPS = ["filesystem", "shared memory", "tcp"]


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
    with fleet.flying(cache_salt="0.1") as choices:
        fleet.server.command("/pause", query={"mode": "keep", "clear_cache": "false"})  # none ends before the update begins
        with pytest.raises(PublishError, match="reached no vLLM server"):
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
