from __future__ import annotations

import hashlib
import socket
import struct

import numpy as np
import pytest
import torch

from agentrl.transfer_format import (
    Receipt,
    dtype_name,
    dtype_named,
    fingerprint,
    receive_header,
    receive_tensors,
    send_end,
    send_header,
    send_tensor,
    tensor_bytes,
    tensor_from,
)

TENSORS = {
    "matrix": torch.arange(6, dtype=torch.float32).view(2, 3),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "scalar": torch.tensor(3, dtype=torch.int64),
    "empty": torch.empty(0, 4),
}


def receipt(tensors):
    found = Receipt()
    for name, tensor in tensors:
        found.add(name, tensor)
    return found


def test_the_checksum_by_hand():
    matrix = hashlib.sha256(struct.pack("<6f", *range(6))).digest()
    scalar = hashlib.sha256(struct.pack("<q", 3)).digest()
    whole = hashlib.sha256(b"matrix\0float32\x002,3\0" + matrix + b"scalar\0int64\0\0" + scalar).hexdigest()
    assert receipt([("scalar", TENSORS["scalar"]), ("matrix", TENSORS["matrix"])]).hexdigest() == whole


def test_the_fingerprint_of_a_large_tensor_by_hand():
    words = np.arange(3 * 1024 + 5, dtype=np.uint64) ** 3 + np.uint64(2**63)
    rows = words[: 3 * 1024].reshape(3, 1024)
    by_hand = hashlib.sha256(words[3 * 1024 :].tobytes() + rows.sum(0).tobytes() + rows.sum(1).tobytes()).digest()
    assert fingerprint(torch.from_numpy(words.view(np.int64))) == by_hand


def test_any_change_to_a_large_tensor_changes_its_fingerprint():
    large = torch.arange(200 * 1024, dtype=torch.int64)
    known = {fingerprint(large)}
    for change in (
        lambda one: one[150_000].add_(1),
        lambda one: one[:2].copy_(one[:2].flip(0).clone()),  # two words of a row
        lambda one: one[: 2 * 1024].copy_(one[: 2 * 1024].roll(1024).clone()),  # two rows
        lambda one: one.copy_(one.roll(1).clone()),
        lambda one: one[-1].add_(1),
    ):
        other = large.clone()
        change(other)
        known.add(fingerprint(other))
    assert len(known) == 6
    assert fingerprint(large[:-1]) not in known


def test_the_checksum_does_not_depend_on_order_or_layout():
    forwards, backwards = receipt(TENSORS.items()), receipt(reversed(TENSORS.items()))
    assert forwards.hexdigest() == backwards.hexdigest()
    assert len(forwards) == 4
    assert forwards.names() == TENSORS.keys()
    strided = TENSORS["matrix"].t().contiguous().t()
    assert receipt([("matrix", strided)]).hexdigest() == receipt([("matrix", TENSORS["matrix"])]).hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        ("other", TENSORS["matrix"]),
        ("matrix", TENSORS["matrix"] + 1),
        ("matrix", TENSORS["matrix"].view(3, 2)),
        ("matrix", TENSORS["matrix"].view(torch.int32)),
    ],
)
def test_whatever_differs_changes_the_checksum(other):
    assert receipt([other]).hexdigest() != receipt([("matrix", TENSORS["matrix"])]).hexdigest()


def test_a_name_that_comes_twice_is_refused():
    with pytest.raises(ValueError, match="weight 'matrix' came twice"):
        receipt([("matrix", TENSORS["matrix"])] * 2)


def test_types_have_names():
    assert dtype_named(dtype_name(torch.bfloat16)) is torch.bfloat16
    for name in ("nothing", "nn"):
        with pytest.raises(ValueError, match="is no type of torch"):
            dtype_named(name)


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_comes_back_from_its_bytes(name):
    tensor = TENSORS[name]
    back = tensor_from(bytearray(b"xxxxxxxx" + bytes(tensor_bytes(tensor))), dtype_name(tensor.dtype), list(tensor.shape), 8)
    assert back.dtype == tensor.dtype
    assert torch.equal(back, tensor)


def test_tensors_cross_a_connection():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for name, tensor in TENSORS.items():
            send_tensor(ours, name, tensor)
        send_end(ours)
        arrived = dict(receive_tensors(theirs))
    assert arrived.keys() == TENSORS.keys()
    assert all(torch.equal(arrived[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "closed the connection 4 bytes too early"),
        (b"GET / HTTP/1.1\r\n", "no agentrl of this version"),
        (struct.pack("!I", 3) + b"{x}", "no JSON"),
        (struct.pack("!I", 2) + b"[]", "no JSON object"),
        (struct.pack("!I", 2) + b"{}", "a header without name, dtype, shape and nbytes"),
    ],
)
def test_a_peer_that_speaks_something_else_is_an_error(content, message):
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(content)
        with pytest.raises(ConnectionError, match=message):
            list(receive_tensors(theirs))


def test_a_size_that_does_not_fit_the_shape_is_an_error():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send_header(ours, {"name": "w", "dtype": "float32", "shape": [2], "nbytes": 4})
        with pytest.raises(ConnectionError, match=r"w: 4 bytes are no float32 of shape \[2\]"):
            list(receive_tensors(theirs))


def test_headers_cross_a_connection():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send_header(ours, {"token": "x"})
        assert receive_header(theirs) == {"token": "x"}
