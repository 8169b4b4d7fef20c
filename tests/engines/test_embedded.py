"""The engine's process, its clients and its end."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import trio
import trio.testing

from agentrl import wire
from agentrl.checksum import weights_checksum
from agentrl.config_engine import EngineConfig
from agentrl.engines.embedded import EmbeddedEngine, EmbeddedPublisher, start_engine
from agentrl.engines.messages import FromClient, Hello, Publish, Published
from agentrl.errors import ConfigError, PublishError, SamplerUnavailable
from agentrl.records import Version, VersionRun

START_S = 60.0


@pytest.fixture(scope="module")
def engine(models, tmp_path_factory):
    """One engine for all that leave it as it was: starting one takes seconds."""
    process = start(models, tmp_path_factory.mktemp("engine"))
    yield process
    process.stop()


def start(models, folder):
    config = EngineConfig(device="cpu", slots=8)
    return start_engine(models("qwen3").folder, config, version=Version(step=3), threads=1, log=folder / "engine.log")


def state_of(model):
    return {name: tensor for name, tensor in model.reference.state_dict().items() if name != "lm_head.weight"}


def test_many_calls_in_flight_are_answered_and_a_cancelled_one_is_aborted(engine, models, make_request):
    model = models("qwen3")
    prompts = [np.arange(1 + index) for index in range(12)]
    completions = {}

    async def call(client, index):
        completions[index] = await client.generate(make_request(prompts[index], 20 + index, seed=index))

    async def main():
        client = await EmbeddedEngine.connect(engine.socket_path, timeout_s=START_S)
        assert (client.context_length, client.vocab_size, client.dtype) == (256, 97, "float32")
        with trio.move_on_after(0.2):
            await client.generate(make_request([1, 2], 250))  # first alone, reading for itself
        async with trio.open_nursery() as nursery:
            abandoned = trio.CancelScope()

            async def abandon():
                with abandoned:
                    await client.generate(make_request([5], 250))

            nursery.start_soon(abandon)
            for index in range(len(prompts)):
                nursery.start_soon(call, client, index)
            await trio.testing.wait_all_tasks_blocked()
            abandoned.cancel()
        await client.aclose()

    trio.run(main)
    for index, completion in completions.items():
        assert len(completion.ids) == 20 + index
        assert completion.versions == (VersionRun(version=Version(step=3), start=0, end=20 + index),)
        assert np.abs(completion.logprobs - model.logprobs(prompts[index], completion)).max() < 1e-4
    assert len(completions) == 12
    publisher = EmbeddedPublisher.connect(engine, timeout_s=START_S)
    stats = publisher.stats()
    assert (stats.running, stats.waiting) == (0, 0)
    assert stats.tokens_sampled >= sum(range(20, 32))
    assert stats.busy_s > 0
    publisher.close()


def test_weights_are_published_verified_and_stamped(engine, models, make_request):
    model = models("qwen3")
    publisher = EmbeddedPublisher.connect(engine, timeout_s=START_S)
    assert publisher.dtype == "float32"
    changed = {name: tensor + 0.01 for name, tensor in state_of(model).items()}
    version = Version(lineage=1, step=9)
    publisher.pause()
    assert publisher.publish(iter(changed.items()), version) == weights_checksum(changed.items())
    publisher.resume()
    with pytest.raises(PublishError, match=r"refused version 10: the engine's model has no weight 'base.model.norm.weight'"):
        publisher.publish([("base.model.norm.weight", torch.ones(32))], Version(step=10))
    with pytest.raises(PublishError, match="was not sent"):
        publisher.publish([("model.norm.weight", torch.ones(32))], Version(step=10))
    with pytest.raises(PublishError, match="did not arrive as it was sent"):
        publisher.publish([*changed.items(), ("lm_head.weight", torch.zeros(97, 32))], version)
    partial = EmbeddedPublisher.connect(engine.socket_path, timeout_s=START_S, partial=True)
    partial.publish(changed.items(), version)
    partial.publish([("model.norm.weight", changed["model.norm.weight"])], version)

    async def main():
        client = await EmbeddedEngine.connect(engine.socket_path, timeout_s=START_S)
        result = await client.generate(make_request([1, 2, 3], 5))
        await client.aclose()
        return result

    completion = trio.run(main)
    assert completion.versions == (VersionRun(version=version, start=0, end=5),)
    assert publisher.stats().publishes == 4
    publisher.publish(state_of(model).items(), Version(step=3))  # as it was
    partial.close()
    publisher.close()


def test_requests_that_are_refused_or_late_raise_and_the_next_ones_work(engine, make_request):
    async def main():
        client = await EmbeddedEngine.connect(engine.socket_path, timeout_s=START_S)
        with pytest.raises(SamplerUnavailable, match="leaves no room in the context of 256"):
            await client.generate(make_request(np.zeros(256)))
        hurried = await EmbeddedEngine.connect(engine.socket_path, timeout_s=START_S)
        hurried._timeout_s = 0.02  # of its requests alone: connecting may take longer
        with pytest.raises(SamplerUnavailable, match=r"did not finish a request within 0\.02 s"):
            await hurried.generate(make_request([1], 250))
        completion = await client.generate(make_request([1], 3))
        assert len(completion.ids) == 3
        await client.aclose()
        await hurried.aclose()

    trio.run(main)


def test_everyone_who_waits_learns_that_the_engine_died(models, tmp_path, make_request):
    engine = start(models, tmp_path)
    failures = []

    async def main():
        client = await EmbeddedEngine.connect(engine.socket_path, timeout_s=START_S)

        async def call():
            try:
                await client.generate(make_request([1, 2], 250))
            except SamplerUnavailable as error:
                failures.append(str(error))

        async with trio.open_nursery() as nursery:
            for _ in range(20):  # more than there are slots
                nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            engine.child.process.send_signal(signal.SIGKILL)
        with pytest.raises(SamplerUnavailable, match="has ended"):
            await client.generate(make_request([1], 1))
        with pytest.raises(SamplerUnavailable, match="does not listen"):
            await EmbeddedEngine.connect(engine.socket_path, timeout_s=5)
        await client.aclose()

    try:
        trio.run(main)
        with pytest.raises(SamplerUnavailable, match="was killed by SIGKILL"):
            EmbeddedPublisher.connect(engine, timeout_s=5)
    finally:
        engine.stop()
    assert len(failures) == 20


def test_clients_are_told_why_a_model_does_not_load(tmp_path):
    process = start_engine(str(tmp_path), EngineConfig(device="cpu"), version=Version(), threads=1, log=tmp_path / "engine.log")
    try:
        with pytest.raises(ConfigError, match="does not load as a causal language model"):
            EmbeddedPublisher.connect(process.socket_path, timeout_s=START_S)
        assert process.child.process.wait(10) == 1
        assert "ConfigError" in (tmp_path / "engine.log").read_text()
    finally:
        process.stop()
    assert not process.socket_path.exists()


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="watches a process that is not its child")
def test_the_engine_outlives_no_parent_that_was_killed(models, tmp_path):
    script = """
import sys, time
from pathlib import Path
from agentrl.config_engine import EngineConfig
from agentrl.engines.embedded import EmbeddedPublisher, start_engine
from agentrl.records import Version
config = EngineConfig(device="cpu")
process = start_engine(sys.argv[1], config, version=Version(), threads=1, log=Path(sys.argv[2]))
EmbeddedPublisher.connect(process, timeout_s=60)
print(process.child.process.pid, flush=True)
time.sleep(600)
"""
    command = [sys.executable, "-c", script, models("qwen3").folder, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        ended = os.pidfd_open(pid)
        parent.kill()
        parent.wait()
        readable, _, _ = select.select([ended], [], [], 5)
        os.close(ended)
    assert readable, "the engine still runs 5 s after its parent was killed"


def fake_engine(path, answer):
    """Greets one client and answers its first message."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(1)

    def serve():
        with listener, listener.accept()[0] as sock:
            wire.send(
                sock,
                Hello(
                    context_length=8,
                    vocab_size=4,
                    dtype="float32",
                    model_type="",
                    decoder="",
                    version=Version(),
                    num_weights=1,
                    weight_bytes=4,
                ),
            )
            message = wire.Receiver(sock, FromClient).receive()
            if answer is not None:
                wire.send(sock, answer(message))
            sock.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_a_checksum_that_differs_is_an_error(tmp_path):
    def answer(message):
        assert isinstance(message, Publish)
        return Published(id=message.id, version=message.version, checksum="0" * 32)

    thread = fake_engine(tmp_path / "sock", answer)
    publisher = EmbeddedPublisher.connect(tmp_path / "sock", timeout_s=60)
    with pytest.raises(PublishError, match="the engine read back 0000"):
        publisher.publish([("a", torch.ones(1))], Version(step=1))
    publisher.close()
    thread.join()


def test_an_engine_that_never_answers_is_an_error(tmp_path):
    thread = fake_engine(tmp_path / "sock", None)
    publisher = EmbeddedPublisher.connect(tmp_path / "sock", timeout_s=2)  # which connecting keeps too
    with pytest.raises(PublishError, match="did not answer Publish within 2 s"):
        publisher.publish([("a", torch.ones(1))], Version(step=1))
    thread.join()


def test_what_is_no_engine_is_an_error(tmp_path):
    with pytest.raises(SamplerUnavailable):
        EmbeddedPublisher.connect(tmp_path / "nothing", timeout_s=1)


def test_rollout_processes_do_not_load_torch_with_the_client():
    script = "import agentrl.engines.embedded, agentrl.lifeline, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
