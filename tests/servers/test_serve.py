from __future__ import annotations

import http.server
import threading

import pytest
from typer.testing import CliRunner

from agentrl.cli import make_app
from agentrl.errors import ConfigError, SamplerUnavailable
from agentrl.servers.serve import is_healthy, options_from_flags, ready_line
from agentrl.servers.vllm_options import LoraOptions, ServerOptions


def options(**flags):
    return options_from_flags("m", **{"devices": None, "lora_rank": None, "max_loras": None, "args": None, **flags})


def call(*arguments, raises=None):
    calls = []

    def serve(**flags):
        calls.append(flags)
        if raises:
            raise raises

    result = CliRunner().invoke(make_app(lambda: None, lambda: None, serve), ["serve", *arguments])
    return result, calls


def test_the_command_passes_its_flags_on():
    result, (flags,) = call(
        "MODEL", "--port", "8001", "--devices", "1,2", "--tensor-parallel", "2", "--lora-rank", "8", "--", "--seed", "3"
    )
    assert result.exit_code == 0
    assert {name: value for name, value in flags.items() if value is not None} == {
        "model": "MODEL",
        "args": ["--seed", "3"],
        "port": 8001,
        "host": "127.0.0.1",
        "devices": "1,2",
        "tensor_parallel": 2,
        "lora_rank": 8,
    }
    assert options_from_flags(**flags) == ServerOptions(
        model="MODEL", args=("--seed", "3"), port=8001, devices=(1, 2), tensor_parallel=2, lora=LoraOptions(rank=8)
    )


@pytest.mark.parametrize(("error", "status"), [(ConfigError("wrong"), 2), (SamplerUnavailable("it ended"), 1), (KeyboardInterrupt(), 130)])
def test_the_exit_status_says_whose_fault_it_was(error, status):
    result, _ = call("MODEL", raises=error)
    assert result.exit_code == status


def test_flags_left_out_take_the_defaults():
    assert options(port=None, dtype=None) == ServerOptions(model="m")
    assert options(lora_rank=4, max_loras=5).lora == LoraOptions(rank=4, max_loras=5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"devices": "0;1"}, "--devices 0;1: give the numbers of GPUs with commas between them"),
        ({"max_loras": 2}, "--max-loras 2 makes room for adapters, and there is no --lora-rank"),
        ({"device": "gpu"}, "--device gpu: it must be auto, cpu or cuda"),
        ({"dtype": "float16"}, "--dtype float16: it must be auto, float32 or bfloat16"),
        ({"transfer": "rdma"}, "--transfer rdma: it must be agentrl or nccl"),
    ],
)
def test_flags_that_mean_nothing_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        options(**flags)


def test_the_line_that_is_printed_can_be_put_into_a_run_file():
    line = ready_line(ServerOptions(model="m"), "http://127.0.0.1:8000", with_key=False)
    assert line == "m is served at http://127.0.0.1:8000; in a run file: engine: {kind: vllm, servers: [http://127.0.0.1:8000]}"
    assert "api_key_env: AGENTRL_VLLM_API_KEY" in ready_line(ServerOptions(model="m"), "http://h:1", with_key=True)


def test_health_is_asked_of_the_server_itself():
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *words):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert is_healthy(ServerOptions(model="m", host="0.0.0.0", port=server.server_port))
        thread.join(30)
        port = server.server_port
    assert not is_healthy(ServerOptions(model="m", port=port))
