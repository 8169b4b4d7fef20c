"""The embedded engine's client for the learner."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl import wire
from agentrl.engines.embedded_process import EngineProcess
from agentrl.engines.messages import AskStats, Done, Failure, FromEngine, Hello, Pause, Publish, Published, Resume, Stats, checked_hello
from agentrl.errors import AgentRLError, PublishError, SamplerUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from agentrl.records import Version


class EmbeddedPublisher:
    """The engine as the learner sees it: blocking, for one thread.

    Args:
        sock: connected.
        hello: the engine's greeting.
        timeout_s: longest wait for one answer.
        folder: the engine's socket is there; it is removed whatever becomes of this process.
        partial: weights that are not sent never change (a frozen base under LoRA); otherwise each publish must cover the whole model.
    """

    def __init__(self, sock: socket.socket, hello: Hello, *, timeout_s: float, folder: Path | None = None, partial: bool = False) -> None:
        self._folder = folder
        self.hello = hello
        self._sock = sock
        self._receiver: wire.Receiver[Any] = wire.Receiver(sock, FromEngine)
        self._timeout_s = timeout_s
        self._partial = partial
        self._next = 1

    @staticmethod
    def connect(engine: EngineProcess | str | Path, *, timeout_s: float, partial: bool = False) -> EmbeddedPublisher:
        """Connect and wait until the model is loaded.

        Raises `SamplerUnavailable` where the engine ends or is silent for `timeout_s` seconds, `ConfigError` where it refuses the model.
        """
        process, path = (engine, engine.socket_path) if isinstance(engine, EngineProcess) else (None, Path(engine))
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout_s)
        try:
            sock.connect(str(path))
            hello = checked_hello(wire.Receiver(sock, FromEngine).receive())
        except TimeoutError:
            sock.close()
            raise SamplerUnavailable(f"the embedded engine did not load its model within {timeout_s:g} s; raise engine.timeout_s") from None
        except (OSError, SamplerUnavailable) as error:
            sock.close()
            if process is not None and process.ended():
                raise SamplerUnavailable(process.child.describe_end()) from error
            raise SamplerUnavailable(str(error)) from error
        except BaseException:
            sock.close()
            raise
        return EmbeddedPublisher(sock, hello, timeout_s=timeout_s, folder=path.parent, partial=partial)

    @property
    def dtype(self) -> str:
        """Type of the engine's weights: `float32` or `bfloat16`."""
        return self.hello.dtype

    def publish(self, weights: Iterable[tuple[str, torch.Tensor]], version: Version) -> str:
        """Replace the engine's weights; see `Publisher`. Tensors are converted to the engine's type before they are sent and compared."""
        from agentrl.engines.weights_file import WeightsFile  # the only part that needs torch

        with WeightsFile(self.hello, self._folder) as file:
            try:
                file.write(weights)
            except OSError as error:  # it lives in memory, or in the temporary folder
                raise PublishError(f"no room for the weights of version {version.step} on their way to the engine: {error}") from error
            answer = self._ask(Publish(id=self._next, version=version, path=file.path, partial=self._partial), PublishError)
            if isinstance(answer, Failure):
                raise PublishError(f"the embedded engine refused version {version.step}: {answer.message}")
            if not isinstance(answer, Published) or answer.version != version:
                raise PublishError(f"the embedded engine answered with {answer!r}")
            if answer.checksum != file.checksum:
                raise PublishError(
                    f"version {version.step} did not arrive as it was sent: the engine read back {answer.checksum}, "
                    f"sent was {file.checksum}. Two different tensors for one tied weight would do this"
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
            what = f"{type(message).__name__} within {self._timeout_s:g} s"
            raise error_type(f"the embedded engine did not answer {what}; raise engine.timeout_s") from None
        except OSError as error:
            raise error_type(f"the connection to the embedded engine is broken: {error}") from error
        if answer is None:
            raise error_type("the embedded engine has ended; its log says why")
        if isinstance(answer, Failure) and answer.id == 0:
            raise error_type(answer.message)
        return answer
