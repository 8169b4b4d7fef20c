"""The process of the embedded engine: `python -m agentrl.engines.embedded_server`, started by `agentrl.engines.embedded.start_engine`.

One thread, one loop: take what clients sent, change weights if asked, sample one token for every running request, answer. It waits
only while there is nothing to sample. It ends when its parent does, or with an error that every client is told.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl import lifeline
from agentrl.config_engine import EngineConfig
from agentrl.errors import ConfigError, PublishError
from agentrl.records import Version

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.engines import messages
    from agentrl.engines.decoder import Loaded
    from agentrl.engines.hub import Hub
    from agentrl.engines.scheduler import Scheduler

KV_SHARE = 0.5
"""Share of the memory that is free once all models are loaded which KV caches may take."""
FIRST_CLIENT_S = 120.0
"""Longest wait for somebody to tell that the model did not load."""
FAREWELL_S = 2.0
"""Longest time to tell clients why the engine ends."""


class Server:
    """Serves the policy, and mixtures of it with the reference where there is one, to the clients of a hub."""

    def __init__(self, hub: Hub, scheduler: Scheduler, loaded: Loaded) -> None:
        self._hub = hub
        self._scheduler = scheduler
        self._loaded = loaded
        self._paused = False

    def serve(self) -> None:
        """Answer for ever. Waits for messages when there is nothing to sample or the engine is paused."""
        while True:
            busy = bool(self._scheduler.num_running or self._scheduler.num_waiting) and not self._paused
            for client, message in self._hub.poll(0 if busy else None):
                self._handle(client, message)
            if not self._paused:
                self._sample()

    def _sample(self) -> None:
        from agentrl.engines.messages import Completed, Failure

        for finished in self._scheduler.step():
            client, number = finished.key
            if isinstance(finished.result, str):
                self._hub.send(client, Failure(id=number, message=finished.result))
            else:
                self._hub.send(client, Completed(id=number, completion=finished.result))

    def _handle(self, client: int, message: messages.FromClient | None) -> None:
        from agentrl.engines import messages
        from agentrl.engines.requests import Refused

        match message:
            case None:
                self._scheduler.abort_client(client)
            case messages.Generate():
                try:
                    self._scheduler.submit((client, message.id), message.request)
                except Refused as reason:
                    self._hub.send(client, messages.Failure(id=message.id, message=str(reason)))
            case messages.Abort():
                self._scheduler.abort((client, message.id))
            case messages.Publish():
                self._hub.send(client, self._publish(message))
            case messages.Pause() | messages.Resume():
                self._paused = isinstance(message, messages.Pause)
                self._hub.send(client, messages.Done(id=message.id))
            case messages.AskStats():
                self._hub.send(client, self._stats(message.id))

    def _publish(self, message: messages.Publish) -> messages.Published | messages.Failure:
        from agentrl.engines.messages import Failure, Published

        try:
            checksum = self._scheduler.replace_weights(
                message.version, lambda: self._loaded.decoder.weights.load(message.path, partial=message.partial)
            )
        except PublishError as error:
            return Failure(id=message.id, message=str(error))
        return Published(id=message.id, version=message.version, checksum=checksum)

    def _stats(self, number: int) -> messages.Stats:
        from agentrl.engines.messages import Stats

        counters = self._scheduler.counters
        return Stats(
            id=number,
            version=self._scheduler.version,
            running=self._scheduler.num_running,
            waiting=self._scheduler.num_waiting,
            tokens_sampled=counters.tokens_sampled,
            tokens_prefilled=counters.tokens_prefilled,
            tokens_reused=counters.tokens_reused,
            steps=counters.steps,
            publishes=counters.publishes,
            busy_s=counters.busy_s,
        )


def build(
    listener: socket.socket, model_dir: str, config: EngineConfig, version: Version, reference_dir: str | None = None
) -> tuple[Hub, Server]:
    """Load the model, and the reference where one is named, and make their server. Raises `ConfigError` for what cannot be served."""
    from agentrl.engines.decoder import load_decoder, load_reference
    from agentrl.engines.hub import Hub
    from agentrl.engines.messages import FromClient, Hello
    from agentrl.engines.scheduler import Scheduler

    loaded = load_decoder(model_dir, config)
    reference = load_reference(reference_dir, config, loaded) if reference_dir is not None else None
    scheduler = Scheduler(
        loaded,
        num_slots=config.slots,
        recompute=config.kv == "recompute",
        version=version,
        memory_bytes=int(KV_SHARE * free_bytes(str(loaded.device))),
        reference=reference,
    )
    weights = loaded.decoder.weights

    def greet() -> Hello:
        return Hello(
            context_length=loaded.context_length,
            vocab_size=loaded.decoder.vocab_size,
            dtype=str(loaded.dtype).removeprefix("torch."),
            model_type=loaded.model_type,
            decoder=loaded.description,
            version=scheduler.version,
            num_weights=len(weights.bindings),
            weight_bytes=weights.nbytes,
        )

    hub = Hub(listener, FromClient, greet)
    return hub, Server(hub, scheduler, loaded)


def free_bytes(device: str) -> int:
    """Memory of a device that may still be used; on a CPU, what the kernel and the container's limit leave."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current"))
        if limit != "max":
            free = min(free, max(0, int(limit) - int(used)))
    except (OSError, StopIteration, ValueError):
        pass  # another system, or no such control group
    return free


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--reference", help="a frozen model to mix with it")
    parser.add_argument("--config", required=True, help="EngineConfig as JSON")
    parser.add_argument("--version", type=int, nargs=2, required=True, metavar=("LINEAGE", "STEP"))
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--lifeline-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    lifeline.watch(options.lifeline_fd)
    lifeline.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interruption is the supervisor's to handle
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    listener = socket.socket(fileno=options.listen_fd)
    version = Version(lineage=options.version[0], step=options.version[1])
    config = EngineConfig.model_validate_json(options.config)
    status = _run(listener, options.model, config, version, options.threads, options.reference)
    sys.stderr.flush()
    os._exit(status)  # whatever threads libraries have left must not delay the end


def _run(listener: socket.socket, model_dir: str, config: EngineConfig, version: Version, threads: int, reference_dir: str | None) -> int:
    from agentrl.engines.hub import Hub
    from agentrl.engines.messages import FromClient

    try:
        import torch

        torch.set_num_threads(threads)
        hub, server = build(listener, model_dir, config, version, reference_dir)
    except BaseException as error:
        failure = report(error)
        hub = Hub(listener, FromClient, lambda: failure)
        hub.poll(FIRST_CLIENT_S)  # those who will ask are still starting; whoever started the engine ends it sooner where nobody will
        hub.broadcast(failure, FAREWELL_S)
        return 1
    gc.collect()
    gc.freeze()  # what was loaded stays; a collection should not look at it again between two tokens
    return serve(hub, server)


def serve(hub: Hub, server: Server) -> int:
    """Serve until something fails, tell every client and return the exit status."""
    try:
        server.serve()
    except BaseException as error:
        hub.broadcast(report(error), FAREWELL_S)
    return 1


def report(error: BaseException) -> messages.Failure:
    """What clients are told of an error that ends the engine; the traceback goes to the log."""
    from agentrl.engines.messages import Failure

    traceback.print_exception(error)
    what = str(error) if isinstance(error, ConfigError) else f"the engine failed: {type(error).__name__}: {error}"
    return Failure(id=0, message=what, wrong_config=isinstance(error, ConfigError))


if __name__ == "__main__":
    main()
