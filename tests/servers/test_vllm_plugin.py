"""What of the plugin runs without vLLM; the rest is tested in `vllm_server`, against a real one."""

from __future__ import annotations

import ast
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import trio
from safetensors.torch import save_file

import agentrl.servers.vllm_plugin as plugin
from agentrl.servers.vllm_plugin.access import KeyGuard
from agentrl.servers.vllm_plugin.sources import from_files, from_learner, from_shared_memory
from agentrl.transfer_format import receive_header, send_end, send_tensor

WEIGHTS = {"b.weight": torch.arange(6, dtype=torch.float32).view(2, 3), "a.bias": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}


def same(tensors):
    tensors = dict(tensors)
    assert tensors.keys() == WEIGHTS.keys()
    return all(tensor.dtype == WEIGHTS[name].dtype and torch.equal(tensor, WEIGHTS[name]) for name, tensor in tensors.items())


def test_tensors_come_from_files(tmp_path):
    paths = []
    for index, (name, tensor) in enumerate(WEIGHTS.items()):
        paths.append(str(tmp_path / f"{index}.safetensors"))
        save_file({name: tensor}, paths[-1])
    assert same(from_files(paths))


def test_files_that_are_not_there_are_named():
    with pytest.raises(ValueError, match="/nowhere: no such file on the server's machine; learner and server must share"):
        list(from_files(["/nowhere"]))
    with pytest.raises(ValueError, match="names no paths"):
        list(from_files([]))


def test_tensors_come_from_shared_memory(tmp_path):
    path = tmp_path / "memory"
    path.write_bytes(bytes(8) + b"".join(tensor.view(torch.uint8).numpy().tobytes() for tensor in WEIGHTS.values()))
    layout = [["b.weight", "float32", [2, 3], 8], ["a.bias", "bfloat16", [2], 32]]
    assert same(from_shared_memory(str(path), layout))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (["w", "float32", [3], 0], r"a float32 of shape \[3\] at byte 0 does not fit into 8 bytes"),
        (["w", "float32", [1], -4], "does not fit"),
        (["w", "float33", [1], 0], "'float33' is no type of torch"),
    ],
)
def test_a_layout_that_does_not_fit_the_memory_is_refused(tmp_path, entry, message):
    path = tmp_path / "memory"
    path.write_bytes(bytes(8))
    with pytest.raises(ValueError, match=message):
        list(from_shared_memory(str(path), [entry]))


def test_memory_of_another_machine_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"cannot be mapped .*shared memory reaches servers on the learner's machine only"):
        list(from_shared_memory(str(tmp_path / "nothing"), []))


def test_tensors_come_from_the_learner():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        hellos = []

        def send():
            peer, _ = listener.accept()
            with peer:
                hellos.append(receive_header(peer))
                for name, tensor in WEIGHTS.items():
                    send_tensor(peer, name, tensor)
                send_end(peer)

        sender = threading.Thread(target=send)
        sender.start()
        assert same(from_learner("127.0.0.1", listener.getsockname()[1], "secret", 1, 4))
        sender.join(30)
    assert hellos == [{"token": "secret", "rank": 1, "world_size": 4}]


def test_a_learner_that_goes_away_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closer = threading.Thread(target=lambda: listener.accept()[0].close())
        closer.start()
        with pytest.raises(ConnectionError):
            list(from_learner("127.0.0.1", listener.getsockname()[1], "", 0, 1))
        closer.join(30)
    with pytest.raises(ValueError, match="needs host and port"):
        list(from_learner("", 0, "", 0, 1))


def asked(path, *, key="secret", header=None, kind="http"):
    """Status that a guarded application answers with; 200 is the application's own."""
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    async def send(message):
        sent.append(message)

    async def receive():
        raise AssertionError

    scope = {"type": kind, "path": path, "headers": [] if header is None else [(b"authorization", header)]}
    trio.run(KeyGuard(app, key), scope, receive, send)
    return sent[0].get("status", sent[0].get("code"))


@pytest.mark.parametrize("path", ["/v1/models", "/collective_rpc", "/update_weights", "/metrics", "/health/x", "/"])
def test_every_route_asks_for_the_key(path):
    assert asked(path) == 401
    assert asked(path, header=b"Bearer wrong") == 401
    assert asked(path, header=b"Basic secret") == 401
    assert asked(path, header=b"Bearer secret") == 200
    assert asked(path, header=b"bearer secret") == 200


def test_health_is_open_and_so_is_a_server_without_a_key():
    assert asked("/health") == 200
    assert asked("/collective_rpc", key="") == 200


def test_a_websocket_without_the_key_is_closed():
    assert asked("/v1/realtime", kind="websocket") == 1008


def test_without_vllm_registering_only_says_so(caplog):
    plugin.register()
    (record,) = caplog.records
    assert "agentrl's weight-transfer backend is off" in record.getMessage()


def test_the_plugin_imports_nothing_that_a_server_may_lack():
    allowed = {"agentrl", "safetensors", "torch", "vllm", *sys.stdlib_module_names}
    for path in Path(plugin.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= allowed, path
            ours = {name for name in names if name.startswith("agentrl")}
            assert all(name.startswith(("agentrl.servers.vllm_plugin", "agentrl.transfer_format")) or name == "agentrl" for name in ours), (
                path
            )


def test_importing_the_plugin_loads_nothing_heavy():
    code = "import sys, agentrl.servers.vllm_plugin; sys.exit(bool({'torch', 'numpy', 'pydantic', 'msgspec'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
