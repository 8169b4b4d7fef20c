from __future__ import annotations

import socket

import msgspec
import numpy as np
import pytest
import trio
from fakes import make_group

from agentrl import wire
from agentrl.records import Group


def equal(left: Group, right: Group) -> bool:
    spans = [
        (turn.span, other.span)
        for a, b in zip(left.rollouts, right.rollouts, strict=True)
        for turn, other in zip(a.turns, b.turns, strict=True)
    ]
    return (left.index, left.task, left.scores, left.dispatched) == (right.index, right.task, right.scores, right.dispatched) and all(
        a.ids.tobytes() == b.ids.tobytes()
        and a.source.tobytes() == b.source.tobytes()
        and np.array_equal(a.logprobs, b.logprobs, equal_nan=True)
        and a.versions == b.versions
        for a, b in spans
    )


def test_a_group_survives_disk_and_socket_bit_for_bit():
    group = make_group(3, [1.0, 0.1, None])
    assert equal(group, wire.from_json(wire.to_json_line(group), Group))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire.send(ours, group)
        received = wire.Receiver[Group](theirs, Group).receive()
    assert received is not None
    assert equal(group, received)


def test_the_end_of_the_peer_is_none_even_in_the_middle_of_a_frame():
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(wire.pack({"a": 1})[:-2])
        assert wire.Receiver(theirs, dict).receive() is None


def test_garbage_is_an_error_not_a_hang():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"\xff\xff\xff\xff")
        with pytest.raises(wire.FrameError, match="announced a frame"):
            wire.Receiver(theirs, dict).receive()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire.send(ours, {"index": "not a number"})
        with pytest.raises(wire.FrameError, match="does not fit"):
            wire.Receiver(theirs, Group).receive()


def test_a_wrong_field_in_a_file_is_named():
    with pytest.raises(msgspec.ValidationError, match="index"):
        wire.from_json(b'{"index": "three"}', Group)


def test_cancelling_a_receive_loses_no_bytes():
    async def main() -> list[dict]:
        ours, theirs = trio.socket.socketpair()
        sender, receiver = trio.SocketStream(ours), wire.Channel(trio.SocketStream(theirs), dict)
        frame = wire.pack({"n": 1})
        await sender.send_all(frame[:5])
        with trio.move_on_after(0) as scope:
            await receiver.receive()
        assert scope.cancelled_caught
        await sender.send_all(frame[5:] + wire.pack({"n": 2}))
        messages = [await receiver.receive(), await receiver.receive()]
        await sender.aclose()
        assert await receiver.receive() is None
        await receiver.aclose()
        return messages

    assert trio.run(main) == [{"n": 1}, {"n": 2}]
