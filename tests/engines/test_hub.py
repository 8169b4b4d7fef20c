from __future__ import annotations

import socket

import pytest

from agentrl import wire
from agentrl.engines.hub import Hub
from agentrl.engines.messages import Abort, Failure, FromClient, FromEngine, Pause


@pytest.fixture
def hub(tmp_path):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "hub"))
    listener.listen(4)
    hub = Hub(listener, FromClient, lambda: Failure(id=0, message="greeting"))
    yield hub
    hub.close()


def connect(tmp_path):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(10)
    sock.connect(str(tmp_path / "hub"))
    return sock, wire.Receiver(sock, FromEngine)


def test_messages_are_put_together_from_pieces_and_split_when_they_come_at_once(hub, tmp_path):
    sock, receiver = connect(tmp_path)
    assert hub.poll(10) == []
    assert receiver.receive() == Failure(id=0, message="greeting")
    frames = wire.pack(Abort(id=1)) + wire.pack(Pause(id=2)) + wire.pack(Abort(id=3))
    received = []
    for start in range(0, len(frames), 7):
        sock.sendall(frames[start : start + 7])
        received += hub.poll(10)
    assert received == [(1, Abort(id=1)), (1, Pause(id=2)), (1, Abort(id=3))]
    sock.close()
    assert hub.poll(10) == [(1, None)]
    hub.send(1, Failure(id=9, message="too late"))


def test_a_client_that_does_not_read_holds_nobody_up(hub, tmp_path):
    slow, slow_receiver = connect(tmp_path)
    hub.poll(10)
    quick, quick_receiver = connect(tmp_path)
    hub.poll(10)
    large = Failure(id=1, message="x" * (4 << 20))
    hub.send(1, large)
    hub.send(2, Failure(id=2, message="short"))
    assert quick_receiver.receive() == Failure(id=0, message="greeting")
    assert quick_receiver.receive() == Failure(id=2, message="short")
    slow.setblocking(False)
    parser, messages = wire.Parser(FromEngine), []
    while len(messages) < 2:
        messages += parser.feed(slow.recv(1 << 20))
        hub.poll(0)
    assert messages[1] == large
    for sock in (slow, quick):
        sock.close()
    del slow_receiver


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x00\x00\x00\x02{}", b"\xff\xff\xff\xff"])
def test_a_peer_that_speaks_another_protocol_is_dropped(hub, tmp_path, garbage):
    sock, _ = connect(tmp_path)
    hub.poll(10)
    sock.sendall(garbage)
    assert hub.poll(10) == [(1, None)]
    sock.close()


def test_a_last_message_reaches_clients_that_have_only_just_come(hub, tmp_path):
    sock, receiver = connect(tmp_path)
    hub.broadcast(Failure(id=0, message="the end"), 5)
    assert [receiver.receive().message for _ in range(2)] == ["greeting", "the end"]
    sock.close()
