"""The plugin, the options and the supervision, against vLLM itself."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import httpx
import pytest
import torch
import transformers
from real_vllm import command, have_ended, options, running, watch
from safetensors.torch import load_file, save_file

from agentrl.quickstart import model_path
from agentrl.transfer_format import Receipt, dtype_name, receive_header, send_end, send_tensor, tensor_bytes

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

PROMPT = [5, 6, 7, 8, 9, 10]


def post(server, route, body=None, **parameters):
    # a connection of its own for each: vLLM closes one on which a request failed
    return httpx.post(server.url + route, json=body, params=parameters, timeout=60, trust_env=False)


def done(answer):
    assert answer.is_success, answer.text
    return answer.json()


def generate(server, *, temperature=1.0, num_tokens=8):
    sampling = {"temperature": temperature, "max_tokens": num_tokens, "logprobs": 0, "seed": 7, "ignore_eos": True}
    body = {"model": "policy", "token_ids": PROMPT, "sampling_params": sampling}
    (choice,) = done(post(server, "/inference/v1/generate", body))["choices"]
    return choice


def logprobs_of(choice):
    return torch.tensor([one["logprob"] for one in choice["logprobs"]["content"]])


def expected_logprobs(weights, token_ids, temperature=1.0):
    model = transformers.AutoModelForCausalLM.from_pretrained(model_path()).eval()
    assert not model.load_state_dict(weights, strict=False).unexpected_keys
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT + token_ids])).logits[0, len(PROMPT) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(token_ids)[:, None])[:, 0]


def new_weights(seed):
    generator = torch.Generator().manual_seed(seed)
    weights = load_file(f"{model_path()}/model.safetensors")
    return {name: weight + 0.02 * torch.randn(weight.shape, generator=generator) for name, weight in weights.items()}


def receipt_of(weights):
    receipt = Receipt()
    for name, weight in weights.items():
        receipt.add(name, weight)
    return receipt.hexdigest()


def file_messages(weights, folder):
    """An update in two files."""
    names = list(weights)
    paths = []
    for index, part in enumerate((names[:9], names[9:])):
        paths.append(str(folder / f"{index}.safetensors"))
        save_file({name: weights[name] for name in part}, paths[-1])
    return [{"kind": "file", "paths": paths}]


def memory_messages(weights, folder):
    """An update in two messages that use the same memory one after the other."""
    names = list(weights)
    for part in (names[:9], names[9:]):
        layout, offset = [], 0
        with (folder / "memory").open("wb") as file:
            for name in part:
                content = tensor_bytes(weights[name])
                file.write(content)
                layout.append([name, dtype_name(weights[name].dtype), list(weights[name].shape), offset])
                offset += content.nbytes
        yield {"kind": "shm", "path": str(folder / "memory"), "layout": layout}


def stream_messages(weights, folder):
    """An update over a connection that the worker opens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        hellos = []

        def send():
            peer, _ = listener.accept()
            with peer:
                hellos.append(receive_header(peer))
                for name, weight in weights.items():
                    send_tensor(peer, name, weight)
                send_end(peer)

        sender = threading.Thread(target=send)
        sender.start()
        yield {"kind": "tcp", "host": "127.0.0.1", "port": listener.getsockname()[1], "token": "secret"}
        sender.join(30)
        assert hellos == [{"token": "secret", "rank": 0, "world_size": 1}]


def update(server, messages, version):
    done(post(server, "/pause", mode="keep", clear_cache="true"))
    done(post(server, "/start_weight_update"))
    for message in messages:
        done(post(server, "/update_weights", {"update_info": {**message, "version": version}}))
    done(post(server, "/finish_weight_update", {"weight_version": version}))
    done(post(server, "/reset_prefix_cache"))
    done(post(server, "/resume"))


def received(server):
    (told,) = done(post(server, "/collective_rpc", {"method": "agentrl_received"}))["results"]
    return told


@pytest.mark.parametrize(("messages", "version"), [(file_messages, "0.1"), (memory_messages, "0.2"), (stream_messages, "1.3")])
def test_an_update_changes_all_that_the_server_computes(vllm_server, tmp_path, messages, version):
    weights = new_weights(int(version[-1]))
    update(vllm_server, messages(weights, tmp_path), version)
    choice = generate(vllm_server)
    assert choice["weight_versions"] == [{"version": version, "start": 0, "end": 8}]
    # the whole log-prob, not only a change: a head that shares the embeddings' weights has been seen to stay behind
    torch.testing.assert_close(logprobs_of(choice), expected_logprobs(weights, choice["token_ids"]), atol=1e-4, rtol=0)
    assert received(vllm_server) == {"version": version, "checksum": receipt_of(weights), "names": len(weights)}


def test_logprobs_are_those_of_the_sampled_distribution(vllm_server, tmp_path):
    weights = new_weights(4)
    update(vllm_server, file_messages(weights, tmp_path), "0.4")
    choice = generate(vllm_server, temperature=0.6)
    torch.testing.assert_close(logprobs_of(choice), expected_logprobs(weights, choice["token_ids"], 0.6), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "failing", "words"),
    [
        ({"model.nothing.weight": torch.ones(3)}, "/update_weights", "nothing"),
        ({"model.norm.weight": torch.ones(5)}, "/update_weights", "5"),
        ({"model.norm.weight": None}, "/finish_weight_update", "lacks weights that the model has: model.norm.weight"),
        ({"model.layers.0.self_attn.v_proj.weight": None}, "/finish_weight_update", "a part of model.layers.0.self_attn.qkv_proj"),
    ],
)
def test_an_update_of_other_weights_fails_and_the_next_one_is_whole(vllm_server, tmp_path, change, failing, words):
    wrong = {name: weight for name, weight in {**new_weights(5), **change}.items() if weight is not None}
    before = done(httpx.get(f"{vllm_server.url}/weight_info", trust_env=False))
    done(post(vllm_server, "/start_weight_update"))
    (message,) = file_messages(wrong, tmp_path)
    answers = {"/update_weights": post(vllm_server, "/update_weights", {"update_info": message})}
    if answers["/update_weights"].is_success:
        answers["/finish_weight_update"] = post(vllm_server, "/finish_weight_update", {"weight_version": "0.9"})
    assert answers[failing].status_code == 500
    assert words in answers[failing].json()["error"]["message"]
    assert done(httpx.get(f"{vllm_server.url}/weight_info", trust_env=False)) == before

    done(post(vllm_server, "/collective_rpc", {"method": "agentrl_abort"}))
    weights = new_weights(6)
    update(vllm_server, file_messages(weights, tmp_path), "0.6")
    choice = generate(vllm_server)
    torch.testing.assert_close(logprobs_of(choice), expected_logprobs(weights, choice["token_ids"]), atol=1e-4, rtol=0)


def test_an_update_that_nobody_finished_can_be_given_up(vllm_server, tmp_path):
    done(post(vllm_server, "/start_weight_update"))
    assert "already active" in post(vllm_server, "/start_weight_update").json()["error"]["message"]
    for _ in range(2):
        assert done(post(vllm_server, "/collective_rpc", {"method": "agentrl_abort"})) == {"results": [None]}
    update(vllm_server, file_messages(new_weights(7), tmp_path), "0.7")


def test_a_server_with_a_key_refuses_every_route_without_it(tmp_path):
    secret = "a very secret key"
    with running(tmp_path, environment={"AGENTRL_VLLM_API_KEY": secret}) as server:
        for route in ("/v1/models", "/weight_info", "/metrics"):
            assert httpx.get(server.url + route, trust_env=False).status_code == 401
            wrong = {"Authorization": "Bearer another"}
            assert httpx.get(server.url + route, headers=wrong, trust_env=False).status_code == 401
            right = {"Authorization": f"Bearer {secret}"}
            assert httpx.get(server.url + route, headers=right, trust_env=False).is_success
        assert post(server, "/collective_rpc", {"method": "reset_weights"}).status_code == 401
        assert httpx.get(f"{server.url}/health", trust_env=False).is_success
        assert secret not in server.log.read_text()


def test_killing_the_parent_takes_down_every_process(tmp_path):
    values = options()
    code = "import subprocess, sys, json, os; subprocess.run([*json.loads(sys.argv[1]), '--die-with-parent', str(os.getpid())])"
    words = command(values, 0)[:-2]
    parent = subprocess.Popen([sys.executable, "-c", code, json.dumps(words)], stderr=subprocess.PIPE, text=True)
    below = {}
    try:
        for line in parent.stderr:  # it is still loading then, with the whole tree there
            if "(Worker pid=" in line:
                break
        below = watch(parent.pid)
        assert len(below) >= 5  # supervisor, guardian, API server, engine core, worker
        parent.kill()
        assert have_ended(below)
    finally:
        parent.kill()
        parent.wait()
        parent.stderr.close()


def test_a_server_that_is_told_to_end_leaves_nothing(tmp_path):
    process = subprocess.Popen(command(options(), os.getpid()), stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            if "(EngineCore pid=" in line:
                break
        below = watch(process.pid)
        assert len(below) >= 3
        process.send_signal(signal.SIGTERM)
        assert have_ended(below)
        assert process.wait(10) == 130
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()
        process.stderr.close()
