"""Who can sample with a share of the reference, and what is said to those who cannot."""

from __future__ import annotations

import json

import pytest

from agentrl import wire
from agentrl.config import RunConfig
from agentrl.engines.reference_share import check_reference_share
from agentrl.errors import ConfigError
from agentrl.records import SamplingContract


def run(engine=None, learner=None):
    return RunConfig.model_validate({"model": "m", "env": "arithmetic", "engine": engine or {}, "learner": learner or {"device": "cpu"}})


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_embedded_engine_takes_any_share(share):
    check_reference_share(run(), share)
    check_reference_share(run(learner={"lora": {}}), share)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["embedded", "vllm"])
def test_what_is_no_share_is_an_error(share, kind):
    with pytest.raises(ConfigError, match="must be a number from 0 to 1"):
        check_reference_share(run({"kind": kind}), share)


@pytest.mark.parametrize("transport", ["auto", "lora"])
def test_vllm_takes_the_reference_alone_beneath_an_adapter(transport):
    config = run({"kind": "vllm", "transport": transport, "device": "cuda"}, {"lora": {}})
    for share in (0.0, 1.0):
        check_reference_share(config, share)
    with pytest.raises(ConfigError, match=r"the reference's share is 0\.25.*cannot mix two models' logits; set engine\.kind=embedded"):
        check_reference_share(config, 0.25)


@pytest.mark.parametrize("transport", ["auto", "filesystem", "nccl", "stream"])
def test_vllm_whose_weights_are_replaced_has_no_reference(transport):
    used = "filesystem" if transport == "auto" else transport
    config = run({"kind": "vllm", "transport": transport})
    check_reference_share(config, 0.0)
    with pytest.raises(ConfigError, match=rf"engine\.transport={used} replaces .*set learner\.lora.*or set engine\.kind=embedded"):
        check_reference_share(config, 1.0)


def test_vllm_on_a_cpu_takes_adapters_and_no_reference_beneath_them():
    config = run({"kind": "vllm", "device": "cpu"}, {"lora": {}})
    check_reference_share(config, 0.0)
    with pytest.raises(ConfigError, match=r"vllm on a CPU .*#48421.*GPUs.*engine\.kind=embedded"):
        check_reference_share(config, 1.0)
    check_reference_share(run({"kind": "vllm", "device": "cpu", "servers": ["http://a:8000"]}, {"lora": {}}), 1.0)  # they say it themselves


def test_a_lora_run_that_sends_whole_weights_has_no_reference():
    with pytest.raises(ConfigError, match=r"engine\.transport=filesystem replaces"):
        check_reference_share(run({"kind": "vllm", "transport": "filesystem"}, {"device": "cpu", "lora": {}}), 1.0)


def test_contracts_written_before_there_were_shares_still_read():
    contract = SamplingContract(temperature=0.7, reference_share=0.3)
    text = wire.to_json_line(contract)
    assert wire.from_json(text, SamplingContract) == contract
    older = json.loads(text)
    del older["reference_share"]
    assert wire.from_json(json.dumps(older), SamplingContract) == SamplingContract(temperature=0.7)
