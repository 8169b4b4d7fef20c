"""The one format in which records cross processes (msgpack frames) and reach the disk (JSON lines).

A frame is a 4-byte big-endian length and a msgpack body. Arrays travel as raw bytes with their dtype; on disk they are lists, so
that a run folder can be read with any tool. Decoding validates every field against the record's types.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec
import numpy as np
import trio

if TYPE_CHECKING:
    import socket

T = TypeVar("T")

MAX_FRAME_BYTES = 1 << 30
"""A longer frame is a broken peer: no record of ours comes near it."""

_HEADER = struct.Struct(">I")


class FrameError(ConnectionError):
    """The peer sent something that is not a frame of this protocol."""


def _encode_packed(value: object) -> object:
    if isinstance(value, np.ndarray):
        return {"dtype": value.dtype.str, "shape": list(value.shape), "data": np.ascontiguousarray(value).tobytes()}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"an object of type {type(value).__name__} cannot be sent between processes")


def _encode_text(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"an object of type {type(value).__name__} cannot be written to a run folder")


def _decode(kind: type[Any], value: Any) -> Any:
    if kind is np.ndarray:
        if isinstance(value, dict):
            return np.frombuffer(value["data"], dtype=np.dtype(value["dtype"])).reshape(value["shape"])
        return np.array([np.nan if item is None else item for item in value])
    raise TypeError(f"cannot decode a {kind.__name__}")


_packer = msgspec.msgpack.Encoder(enc_hook=_encode_packed)
_writer = msgspec.json.Encoder(enc_hook=_encode_text)


def to_json_line(record: object) -> bytes:
    """One line of JSON, newline included."""
    return _writer.encode(record) + b"\n"


def from_json(line: bytes | str, kind: type[T]) -> T:
    """Read a record of `kind` back; raises `msgspec.ValidationError` naming the field that is wrong."""
    return msgspec.json.decode(line, type=kind, dec_hook=_decode)


def pack(message: object) -> bytes:
    """Encode a message as one whole frame."""
    body = _packer.encode(message)
    return _HEADER.pack(len(body)) + body


def send(sock: socket.socket, message: object) -> None:
    """Send one frame; blocks."""
    sock.sendall(pack(message))


class Receiver(Generic[T]):
    """Reads frames of one message type (or a tagged union of them) off a blocking socket."""

    def __init__(self, sock: socket.socket, kind: Any) -> None:
        self._sock = sock
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind, dec_hook=_decode)

    def receive(self) -> T | None:
        """The next message, or None once the peer has closed; blocks. Raises `FrameError` on garbage."""
        header = self._read(_HEADER.size)
        if header is None:
            return None
        length = _checked_length(header)
        body = self._read(length)
        if body is None:
            return None
        return _decoded(self._decoder, body)

    def _read(self, count: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < count:
            try:
                part = self._sock.recv(min(count - len(parts), 1 << 20))
            except (ConnectionResetError, BrokenPipeError):
                return None
            if not part:
                return None
            parts += part
        return bytes(parts)


class Channel(Generic[T]):
    """Frames over a trio stream: `receive` one type (or tagged union), `send` anything. One receiver, many senders."""

    def __init__(self, stream: trio.abc.Stream, kind: Any) -> None:
        self._stream = stream
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind, dec_hook=_decode)
        self._sending = trio.Lock()
        self._buffer = bytearray()

    async def send(self, message: object) -> None:
        """Send one frame whole, even if cancelled meanwhile: half a frame would garble the stream for everyone."""
        frame = pack(message)
        with trio.CancelScope(shield=True):
            async with self._sending:
                await self._stream.send_all(frame)

    async def receive(self) -> T | None:
        """The next message, or None once the peer has closed. Safe to cancel: bytes read so far are kept."""
        while True:
            if len(self._buffer) >= _HEADER.size:
                length = _checked_length(bytes(self._buffer[: _HEADER.size]))
                if len(self._buffer) >= _HEADER.size + length:
                    body = bytes(self._buffer[_HEADER.size : _HEADER.size + length])
                    del self._buffer[: _HEADER.size + length]
                    return _decoded(self._decoder, body)
            try:
                part = await self._stream.receive_some(1 << 16)
            except (OSError, trio.BrokenResourceError):  # the peer died, maybe in the middle of a frame
                return None
            if not part:
                return None
            self._buffer += part

    async def aclose(self) -> None:
        """Close the stream under it."""
        await self._stream.aclose()


def _checked_length(header: bytes) -> int:
    length: int = _HEADER.unpack(header)[0]
    if length > MAX_FRAME_BYTES:
        raise FrameError(f"a peer announced a frame of {length} bytes; the most is {MAX_FRAME_BYTES}: it does not speak this protocol")
    return length


def _decoded(decoder: msgspec.msgpack.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except msgspec.DecodeError as error:
        raise FrameError(f"a peer sent a message that does not fit the protocol: {error}") from error


class Parser(Generic[T]):
    """Cuts messages of one type (or a tagged union of them) out of bytes that arrive in any pieces, for a loop that does its own I/O."""

    def __init__(self, kind: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind, dec_hook=_decode)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[T]:
        """Add bytes; returns the messages that are now whole. Raises `FrameError` on garbage."""
        self._buffer += data
        messages: list[T] = []
        start = 0
        while len(self._buffer) - start >= _HEADER.size:
            length = _checked_length(bytes(self._buffer[start : start + _HEADER.size]))
            end = start + _HEADER.size + length
            if len(self._buffer) < end:
                break
            messages.append(_decoded(self._decoder, bytes(self._buffer[start + _HEADER.size : end])))
            start = end
        del self._buffer[:start]
        return messages
