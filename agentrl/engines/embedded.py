"""Starting the embedded engine, and its two clients: one for rollouts under trio, one for the learner.

Rollout processes import this module, so it must not load torch.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from agentrl import wire
from agentrl.engines.messages import Abort, AskStats, Completed, Done, Failure, FromEngine, Generate, Hello, Pause, Publish, Published, Resume, Stats
from agentrl.errors import AgentRLError, PublishError, SamplerUnavailable
from agentrl.processes import Child, start_child
from agentrl.records import SCHEMA_VERSION, Version

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from agentrl.config import EngineConfig
    from agentrl.engines.protocol import Completion, Request


@dataclass(slots=True, kw_only=True)
class EngineProcess:
    """A running engine. It also ends by itself when this process does."""

    child: Child
    socket_path: Path
    _lifeline: int
    _folder: Path | None
    """Made for the socket, and removed with it."""

    def stop(self) -> None:
        """End the engine; may be called again."""
        self.child.stop()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        self.socket_path.unlink(missing_ok=True)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def start_engine(model_dir: str, config: EngineConfig, *, version: Version, threads: int, log: Path, socket_path: Path | None = None) -> EngineProcess:
    """Start an engine process; it loads while the caller goes on, and clients may connect at once.

    Args:
        model_dir: a folder or Hub name that transformers loads.
        config: the engine's section of the run file.
        version: of the weights in `model_dir`.
        threads: CPU threads.
        log: its error output is appended here.
        socket_path: where it listens; by default in a new private folder. At most some 100 characters, a limit of Unix sockets.
    """
    folder = None
    if socket_path is None:
        folder = Path(tempfile.mkdtemp(prefix="agentrl-engine-"))
        socket_path = folder / "engine.sock"
    watched, lifeline = os.pipe()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(socket_path))
            listener.listen(128)
            child = start_child(
                "the embedded engine",
                "agentrl.engines.embedded_server",
                [
                    *("--model", model_dir, "--config", config.model_dump_json(), "--threads", str(threads)),
                    *("--version", str(version.lineage), str(version.step)),
                    *("--listen-fd", str(listener.fileno()), "--lifeline-fd", str(watched)),
                ],
                log=log,
                pass_fds=[listener.fileno(), watched],
                environment={"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"},
            )
    except BaseException:
        os.close(lifeline)
        raise
    finally:
        os.close(watched)
    return EngineProcess(child=child, socket_path=socket_path, _lifeline=lifeline, _folder=folder)


class EmbeddedEngine:
    """The engine as rollout processes see it; many calls may be in flight.

    Whoever waits for an answer and finds nobody reading the socket reads it, for all: so there is no task in the background.
    """

    def __init__(self, channel: wire.Channel[Any], hello: Hello, timeout_s: float) -> None:
        self.context_length = hello.context_length
        self.vocab_size = hello.vocab_size
        self.dtype = hello.dtype
        """The `dtype` of every contract that the engine accepts."""
        self._channel = channel
        self._timeout_s = timeout_s
        self._next = 1
        self._reading = False
        self._broken = ""
        self._waiting: dict[int, trio.Event] = {}
        self._answers: dict[int, Completed | Failure] = {}

    @staticmethod
    async def connect(path: str | Path, *, timeout_s: float) -> EmbeddedEngine:
        """Connect and wait until the model is loaded. Raises `SamplerUnavailable` where the engine ends or is silent for `timeout_s` seconds.

        Every later `generate` has the same deadline.
        """
        try:
            with trio.fail_after(timeout_s):
                channel: wire.Channel[Any] = wire.Channel(await trio.open_unix_socket(str(path)), FromEngine)
                hello = _checked_hello(await channel.receive())
        except trio.TooSlowError:
            raise SamplerUnavailable(f"the embedded engine did not load its model within {timeout_s:g} s; raise engine.timeout_s") from None
        except OSError as error:
            raise SamplerUnavailable(f"the embedded engine does not listen at {path}: {error}") from error
        return EmbeddedEngine(channel, hello, timeout_s)

    async def generate(self, request: Request) -> Completion:
        """Sample one completion; see `Engine`. Also raises `SamplerUnavailable` where the engine refuses the request, saying why."""
        number, self._next = self._next, self._next + 1
        self._waiting[number] = trio.Event()
        answer = None
        try:
            with trio.move_on_after(self._timeout_s):
                await self._send(Generate(id=number, request=request))
                answer = await self._answer(number)
        finally:
            del self._waiting[number]
            if answer is None and not self._broken:
                with contextlib.suppress(SamplerUnavailable):
                    await self._send(Abort(id=number))
        if answer is None:
            raise SamplerUnavailable(f"the embedded engine did not finish a request within {self._timeout_s:g} s; raise engine.timeout_s")
        if isinstance(answer, Failure):
            raise SamplerUnavailable(answer.message)
        return answer.completion

    async def aclose(self) -> None:
        """Drop the connection; requests in flight are aborted."""
        self._break("the connection to the embedded engine was closed")
        await self._channel.aclose()

    async def _send(self, message: object) -> None:
        try:
            await self._channel.send(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            self._break("the embedded engine has ended")
            raise SamplerUnavailable(self._broken) from None

    async def _answer(self, number: int) -> Completed | Failure:
        """Wait until the answer is there. One waiter at a time reads; when it leaves, it hands over to another."""
        while number not in self._answers:
            if self._broken:
                raise SamplerUnavailable(self._broken)
            if self._reading:
                await self._waiting[number].wait()
                self._waiting[number] = trio.Event()
                continue
            self._reading = True
            try:
                self._dispatch(await self._channel.receive())
            except (wire.FrameError, trio.ClosedResourceError) as error:
                self._break(f"the connection to the embedded engine is broken: {error}")
            finally:
                self._reading = False
                self._hand_over(number)
        return self._answers.pop(number)

    def _hand_over(self, leaving: int) -> None:
        """Wake someone else to read, unless that was this one's answer or more is to come: it goes on reading itself."""
        if leaving in self._answers or self._broken or trio.current_effective_deadline() == -math.inf:
            for number, event in self._waiting.items():
                if number != leaving and number not in self._answers:
                    event.set()
                    return

    def _dispatch(self, message: Any) -> None:
        if message is None:
            self._break("the embedded engine has ended; its log says why")
        elif isinstance(message, Failure) and message.id == 0:
            self._break(message.message)
        elif isinstance(message, Completed | Failure) and message.id in self._waiting:
            self._answers[message.id] = message
            self._waiting[message.id].set()

    def _break(self, why: str) -> None:
        self._broken = self._broken or why
        for event in self._waiting.values():
            event.set()


class EmbeddedPublisher:
    """The engine as the learner sees it: blocking, for one thread.

    Args:
        sock: connected.
        hello: the engine's greeting.
        timeout_s: longest wait for one answer.
        partial: weights that are not sent never change (a frozen base under LoRA); otherwise each publish must cover the whole model.
    """

    def __init__(self, sock: socket.socket, hello: Hello, *, timeout_s: float, partial: bool = False) -> None:
        self.hello = hello
        self._sock = sock
        self._receiver: wire.Receiver[Any] = wire.Receiver(sock, FromEngine)
        self._timeout_s = timeout_s
        self._partial = partial
        self._next = 1

    @staticmethod
    def connect(engine: EngineProcess | str | Path, *, timeout_s: float, partial: bool = False) -> EmbeddedPublisher:
        """Connect and wait until the model is loaded. Raises `SamplerUnavailable` where the engine ends or is silent for `timeout_s` seconds."""
        process = engine if isinstance(engine, EngineProcess) else None
        path = process.socket_path if process else engine
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout_s)
        try:
            sock.connect(str(path))
            hello = _checked_hello(wire.Receiver(sock, FromEngine).receive())
        except TimeoutError:
            sock.close()
            raise SamplerUnavailable(f"the embedded engine did not load its model within {timeout_s:g} s; raise engine.timeout_s") from None
        except (OSError, SamplerUnavailable) as error:
            sock.close()
            if process is not None and process.child.process.poll() is not None:
                raise SamplerUnavailable(process.child.describe_end()) from error
            raise SamplerUnavailable(str(error)) from error
        return EmbeddedPublisher(sock, hello, timeout_s=timeout_s, partial=partial)

    @property
    def dtype(self) -> str:
        """Type of the engine's weights: `float32` or `bfloat16`."""
        return self.hello.dtype

    def publish(self, weights: Iterable[tuple[str, torch.Tensor]], version: Version) -> str:
        """Replace the engine's weights; see `Publisher`. Tensors are converted to the engine's type before they are sent and compared."""
        from agentrl.engines.weights_file import WeightsFile  # the only part that needs torch

        with WeightsFile(self.hello) as file:
            file.write(weights)
            answer = self._ask(Publish(id=self._next, version=version, path=file.path, partial=self._partial), PublishError)
            if isinstance(answer, Failure):
                raise PublishError(f"the embedded engine refused version {version.step}: {answer.message}")
            if not isinstance(answer, Published) or answer.version != version:
                raise PublishError(f"the embedded engine answered with {answer!r}")
            if answer.checksum != file.checksum:
                raise PublishError(
                    f"version {version.step} did not arrive as it was sent: the engine read back {answer.checksum}, sent was {file.checksum}. "
                    "Two different tensors for one tied weight would do this"
                )
            return answer.checksum

    def pause(self) -> None:
        """Stop sampling; requests in flight wait."""
        self._done(Pause(id=self._next))

    def resume(self) -> None:
        """Go on sampling."""
        self._done(Resume(id=self._next))

    def stats(self) -> Stats:
        """What the engine has done so far."""
        answer = self._ask(AskStats(id=self._next), SamplerUnavailable)
        if not isinstance(answer, Stats):
            raise SamplerUnavailable(f"the embedded engine answered with {answer!r}")
        return answer

    def close(self) -> None:
        """Drop the connection."""
        self._sock.close()

    def _done(self, message: Pause | Resume) -> None:
        answer = self._ask(message, SamplerUnavailable)
        if not isinstance(answer, Done):
            raise SamplerUnavailable(f"the embedded engine answered with {answer!r}")

    def _ask(self, message: Publish | Pause | Resume | AskStats, error_type: type[AgentRLError]) -> Any:
        self._next += 1
        try:
            wire.send(self._sock, message)
            answer = self._receiver.receive()
        except TimeoutError:
            self.close()  # a late answer would be taken for the next one's
            raise error_type(f"the embedded engine did not answer {type(message).__name__} within {self._timeout_s:g} s") from None
        except OSError as error:
            raise error_type(f"the connection to the embedded engine is broken: {error}") from error
        if answer is None:
            raise error_type("the embedded engine has ended; its log says why")
        if isinstance(answer, Failure) and answer.id == 0:
            raise error_type(answer.message)
        return answer


def _checked_hello(message: Any) -> Hello:
    if isinstance(message, Failure):
        raise SamplerUnavailable(message.message)
    if not isinstance(message, Hello):
        raise SamplerUnavailable("the embedded engine ended before it had loaded its model; its log says why")
    if message.schema_version > SCHEMA_VERSION:
        raise SamplerUnavailable(f"the engine speaks schema version {message.schema_version}; this agentrl knows {SCHEMA_VERSION}: use one release for both")
    return message
