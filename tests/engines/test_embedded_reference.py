"""The engine's process with a reference beside the policy."""

from __future__ import annotations

import numpy as np
import pytest
import trio
from mixture_truth import error_of

from agentrl.config_engine import EngineConfig
from agentrl.engines.embedded import EmbeddedEngine, EmbeddedPublisher, start_engine
from agentrl.errors import ConfigError
from agentrl.records import Version

START_S = 60.0


def start(policy, reference, folder, version):
    config = EngineConfig(device="cpu", slots=8)
    log = folder / "engine.log"
    return start_engine(policy.folder, config, version=version, threads=1, log=log, reference_dir=reference.folder)


def test_a_process_samples_mixtures_and_publishes_to_the_policy_alone(models, tmp_path, make_request):
    policy, reference, other = models("qwen3"), models("qwen3", 1), models("qwen3", 2)
    prompts = [np.arange(5), np.arange(30, 50)]
    shares = [0.0, 0.3, 1.0]

    async def ask(path):
        answers = {}

        async def one(client, number, share):
            answers[number, share] = await client.generate(make_request(prompts[number], 20, seed=number, reference_share=share))

        client = await EmbeddedEngine.connect(path, timeout_s=START_S)
        async with trio.open_nursery() as nursery:
            for number in range(2):
                for share in shares:
                    nursery.start_soon(one, client, number, share)
        await client.aclose()
        return answers

    process = start(policy, reference, tmp_path, Version(step=3))
    try:
        first = trio.run(ask, process.socket_path)
        publisher = EmbeddedPublisher.connect(process, timeout_s=START_S)
        state = {name: tensor for name, tensor in other.reference.state_dict().items() if name != "lm_head.weight"}
        publisher.publish(state.items(), Version(step=4))
        second = trio.run(ask, process.socket_path)
        publisher.close()
    finally:
        process.stop()
    for answers, now, step in ((first, policy, 3), (second, other, 4)):
        for (number, share), completion in answers.items():
            assert [run.version.step for run in completion.versions] == [step]
            assert error_of(completion, prompts[number], now.reference, reference.reference, share) < 1e-5
    for number in range(2):
        assert first[number, 1.0].ids.tolist() == second[number, 1.0].ids.tolist()


def test_clients_are_told_that_the_reference_does_not_load(models, tmp_path):
    config = EngineConfig(device="cpu")
    log = tmp_path / "engine.log"
    process = start_engine(models("qwen3").folder, config, version=Version(), threads=1, log=log, reference_dir=str(tmp_path))
    try:
        with pytest.raises(ConfigError, match=r"the reference model: model .* does not load"):
            EmbeddedPublisher.connect(process.socket_path, timeout_s=START_S)
    finally:
        process.stop()
