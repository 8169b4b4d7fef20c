from __future__ import annotations

import socket

from agentrl import wire
from agentrl.engines.embedded_server import Server, free_bytes, serve
from agentrl.engines.hub import Hub
from agentrl.engines.messages import Failure, FromClient, FromEngine, Generate


class FailingScheduler:
    """Takes a request and fails at the first step."""

    num_running = 0
    num_waiting = 0

    def submit(self, key, request):
        self.num_waiting = 1

    def step(self):
        if self.num_waiting:
            raise MemoryError("no room for activations")
        return []


def test_an_error_while_sampling_reaches_the_clients_and_ends_the_engine(tmp_path, make_request, capsys):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "engine"))
    listener.listen(4)
    hub = Hub(listener, FromClient, lambda: Failure(id=0, message="greeting"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(10)
        client.connect(str(tmp_path / "engine"))
        wire.send(client, Generate(id=7, request=make_request([1])))
        assert serve(hub, Server(hub, FailingScheduler(), None)) == 1
        receiver = wire.Receiver(client, FromEngine)
        receiver.receive()
        assert receiver.receive() == Failure(id=0, message="the engine failed: MemoryError: no room for activations")
    hub.close()
    assert "Traceback" in capsys.readouterr().err


def test_free_memory_is_known():
    assert 1 << 20 < free_bytes("cpu") < 1 << 50
