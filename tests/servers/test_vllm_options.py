from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import pytest

from agentrl.errors import ConfigError
from agentrl.servers.vllm_options import (
    LoraOptions,
    ServerOptions,
    command,
    environment,
    from_json,
    resolve,
    to_json,
    url,
)
from agentrl.servers.vllm_python import VllmPython

CPU = VllmPython(path="/v/bin/python", version="0.32.0", for_cpu=True, num_gpus=None)
CUDA = VllmPython(path="/v/bin/python", version="0.33.0", for_cpu=False, num_gpus=4)
HUB = "someone/some-model"


def resolved(python=CPU, environ=None, **fields):
    return resolve(ServerOptions(**{"model": HUB, **fields}), python, environ or {})


def words(**fields):
    return command(resolved(**fields), "/v/bin/python")


def value(line, flag):
    return line[line.index(flag) + 1]


def variables(environ=None, *, cores=8, same_python=False, **fields):
    environ = environ or {}
    return environment(resolved(environ=environ, **fields), environ, cores=cores, same_python=same_python)


def test_the_command_line_has_what_training_needs():
    line = words(port=8123, context_length=512, slots=64)
    assert line[:4] == ["/v/bin/python", "-P", "-m", "agentrl.servers.vllm_plugin.launch"]
    assert {
        flag: value(line, flag) for flag in ("--model", "--served-model-name", "--host", "--port", "--max-num-seqs", "--max-model-len")
    } == {
        "--model": HUB,
        "--served-model-name": "policy",
        "--host": "127.0.0.1",
        "--port": "8123",
        "--max-num-seqs": "64",
        "--max-model-len": "512",
    }
    assert value(line, "--logprobs-mode") == "processed_logprobs"
    assert value(line, "--generation-config") == "vllm"
    assert json.loads(value(line, "--weight-transfer-config")) == {"backend": "agentrl"}
    assert value(line, "--worker-extension-cls") == "agentrl.servers.vllm_plugin.worker.WorkerExtension"
    assert value(line, "--middleware") == "agentrl.servers.vllm_plugin.access.KeyGuard"
    assert {"--enable-scale-out", "--enable-prefix-caching"} <= set(line)


def test_a_cpu_gets_float32_without_compilation():
    line = words()
    assert value(line, "--dtype") == "float32"
    assert "--enforce-eager" in line
    assert "--no-enable-chunked-prefill" in line  # or seeded requests end it
    assert "--gpu-memory-utilization" not in line


def test_gpus_get_bfloat16_and_their_share_of_memory():
    line = words(python=CUDA, tensor_parallel=2, data_parallel=2, gpu_memory_utilization=0.5)
    assert value(line, "--dtype") == "bfloat16"
    assert value(line, "--gpu-memory-utilization") == "0.5"
    assert (value(line, "--tensor-parallel-size"), value(line, "--data-parallel-size")) == ("2", "2")
    assert "--enforce-eager" not in line
    assert "--no-enable-chunked-prefill" not in line


def test_what_the_user_adds_comes_last():
    assert words(args=("--max-num-seqs", "3"))[-2:] == ["--max-num-seqs", "3"]


@pytest.mark.parametrize(("rank", "reserved"), [(1, "1"), (2, "8"), (16, "16"), (33, "64"), (512, "512")])
def test_adapters_get_room_for_the_next_rank_that_vllm_knows(rank, reserved):
    line = words(lora=LoraOptions(rank=rank, max_loras=2))
    assert "--enable-lora" in line
    assert (value(line, "--max-lora-rank"), value(line, "--max-loras")) == (reserved, "2")
    assert variables(lora=LoraOptions(rank=rank))["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"


def test_without_adapters_none_can_be_loaded():
    assert "--enable-lora" not in words()
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in variables()


def test_the_nccl_backend_is_vllms_own():
    assert json.loads(value(words(python=CUDA, transfer="nccl"), "--weight-transfer-config")) == {"backend": "nccl"}


def test_the_environment_opens_the_routes_of_training_and_reports_to_nobody():
    found = variables({"PATH": "/bin"})
    assert found["PATH"] == "/bin"
    assert (found["VLLM_SERVER_DEV_MODE"], found["VLLM_NO_USAGE_STATS"]) == ("1", "1")


def test_threads_on_a_cpu_are_shared_not_bound():
    found = variables(threads=3, cpu_kv_gib=2)
    assert (found["OMP_NUM_THREADS"], found["VLLM_CPU_OMP_THREADS_BIND"], found["VLLM_CPU_KVCACHE_SPACE"]) == ("3", "nobind", "2")
    assert variables(cores=8)["OMP_NUM_THREADS"] == "8"


@pytest.mark.parametrize(
    ("environ", "expected"), [({}, "1,3"), ({"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, "5,7"), ({"CUDA_VISIBLE_DEVICES": "a,b,c,d"}, "b,d")]
)
def test_gpus_are_numbered_as_this_process_sees_them(environ, expected):
    assert variables(environ, python=CUDA, devices=(1, 3), tensor_parallel=2)["CUDA_VISIBLE_DEVICES"] == expected


def test_the_hub_is_left_alone_for_a_model_that_is_here(tmp_path):
    assert variables(model=str(tmp_path))["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in variables()


def test_a_relative_folder_becomes_absolute(tmp_path):
    (tmp_path / "model").mkdir()
    with contextlib.chdir(tmp_path):
        assert resolved(model="model").model == str(tmp_path / "model")


def test_what_a_launcher_told_the_learner_is_not_passed_on():
    environ = {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_PORT": "1",
        "TORCHELASTIC_RUN_ID": "x",
        "ACCELERATE_USE_FSDP": "1",
        "PYTHONPATH": "/x",
    }
    assert not set(environ) & set(variables(environ))
    assert variables(environ, same_python=True)["PYTHONPATH"] == "/x"


def test_plugins_that_are_listed_include_ours():
    assert variables({"VLLM_PLUGINS": "theirs"})["VLLM_PLUGINS"] == "theirs,agentrl"
    assert "VLLM_PLUGINS" not in variables()


def test_a_key_goes_by_the_environment_and_not_by_the_command_line():
    environ = {"MY_KEY": "secret"}
    assert variables(environ, api_key_env="MY_KEY")["VLLM_API_KEY"] == "secret"
    assert "secret" not in " ".join(command(resolved(environ=environ, api_key_env="MY_KEY"), "python"))
    assert variables({"VLLM_API_KEY": "of another server"})["VLLM_API_KEY"] == ""


def test_beyond_this_machine_a_key_is_required():
    with pytest.raises(ConfigError, match=r"host 0\.0\.0\.0 can be reached from other machines.*set AGENTRL_VLLM_API_KEY to a secret"):
        resolved(host="0.0.0.0")
    assert resolved(host="0.0.0.0", environ={"AGENTRL_VLLM_API_KEY": "k"}).host == "0.0.0.0"
    assert resolved(host="::1").host == "::1"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"port": 0}, "port 0: it must be 1 to 65535"),
        ({"slots": 0}, "slots is 0; it must be at least 1"),
        ({"context_length": 1}, "context_length is 1; it must be at least 2"),
        ({"device": "tpu"}, "device 'tpu': it must be auto, cpu or cuda"),
        ({"device": "cpu", "devices": (0,)}, "devices 0 are GPUs, and the device is cpu"),
        ({"devices": (1, 1), "tensor_parallel": 2}, "devices 1,1: name each GPU once"),
        ({"devices": (0, 1, 2), "tensor_parallel": 2}, "devices 0,1,2 are 3, .* needs 2; name 2, or set their product to 3"),
        ({"lora": LoraOptions(rank=513)}, "LoRA rank 513: vLLM serves ranks from 1 to 512"),
    ],
)
def test_values_that_no_server_could_have_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        ServerOptions(model=HUB, **fields)


def test_a_build_for_the_other_device_is_refused():
    with pytest.raises(ConfigError, match=r"cuda was asked for, and /v/bin/python has vLLM 0\.32\.0 for cpu.*agentrl\[vllm\]"):
        resolved(device="cuda")
    with pytest.raises(ConfigError, match="cuda was asked for"):
        resolved(devices=(0,))
    with pytest.raises(ConfigError, match=r"cpu was asked for, and .* for cuda.*make setup-vllm"):
        resolved(python=CUDA, device="cpu")


def test_gpus_that_are_not_there_are_refused():
    with pytest.raises(ConfigError, match="GPU 4 is not there: this process sees 4 of them, numbered 0 to 3"):
        resolved(python=CUDA, devices=(4,))
    with pytest.raises(ConfigError, match="GPU 1 is not there: this process sees 1"):
        resolved(python=CUDA, tensor_parallel=2, environ={"CUDA_VISIBLE_DEVICES": "3"})
    with pytest.raises(ConfigError, match="this process sees 0 of them; without any, use vLLM for the CPU"):
        resolved(python=replace(CUDA, num_gpus=0))
    assert resolved(python=replace(CUDA, num_gpus=None), devices=(7,)).devices == (7,)


def test_options_travel_as_json():
    options = ServerOptions(model=HUB, devices=(1, 2), tensor_parallel=2, lora=LoraOptions(rank=8), args=("--x",))
    assert from_json(to_json(options)) == options


@pytest.mark.parametrize("text", ["{}", '{"model": 1}', '{"model": "m", "port": "x"}', '{"model": "m", "device": "tpu"}', "nothing"])
def test_json_that_is_no_options_is_refused(text):
    with pytest.raises(ConfigError, match="the server's options"):
        from_json(text)


def test_the_address_that_clients_use():
    assert url(ServerOptions(model=HUB, port=81), "node7") == "http://127.0.0.1:81"
    assert url(ServerOptions(model=HUB, host="0.0.0.0", port=81), "node7") == "http://node7:81"
    assert url(ServerOptions(model=HUB, host="::1", port=81), "node7") == "http://[::1]:81"
