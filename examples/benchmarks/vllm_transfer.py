"""Weight transfer of a model of 500 MB to a vLLM server on this machine; prints one JSON line.

    python examples/benchmarks/vllm_transfer.py --python .venv-vllm/bin/python

A random model of Qwen3's architecture in float32 is served, and publishes over each transport take turns with the floor: a plain copy of
the model's file into memory, then vLLM's own `reload_weights` from there. `ratio` is the median publish, from the first byte that is
collected to the resumed server with everything checked, over the median floor; `paused_ratio` the time for which generation stood still
over the same. A long request is in flight throughout, and what it loses is counted in.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from agentrl.engines.vllm_control import Control, RouteFailed, http_client
from agentrl.engines.vllm_publisher import VllmPublisher
from agentrl.engines.vllm_transports.filesystem import FilesystemTransport
from agentrl.engines.vllm_transports.store import SharedFolder
from agentrl.engines.vllm_transports.stream import StreamTransport
from agentrl.quickstart import model_path
from agentrl.records import Version
from agentrl.servers.vllm_options import ServerOptions
from agentrl.servers.vllm_server import VllmServer, prepare

if TYPE_CHECKING:
    from collections.abc import Iterator

START_S = 300.0
SHAPE = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 11,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="of vLLM's environment; by default .venv-vllm's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"])
    return parser.parse_args()


def make_model(folder: Path, layers: int) -> Any:
    """A random model with the quickstart's tokenizer, which nothing here asks for tokens."""
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**SHAPE | {"num_hidden_layers": layers})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder, max_shard_size="100GB")
    for path in Path(model_path()).glob("tokenizer*"):
        shutil.copy(path, folder)
    return model


@contextlib.contextmanager
def serving(model: Path, python: str | None) -> Iterator[str]:
    """The URL of a server that is up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ServerOptions(model=str(model), port=port, python=python, dtype="float32", context_length=2048, device="cpu")
    _, words, variables = prepare(options, os.environ)
    with VllmServer(words, variables) as server:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + START_S
        with http_client() as http:
            while time.monotonic() < end:
                with contextlib.suppress(RouteFailed):
                    Control(url, http).get("/health")
                    break
                if server.wait(1.0) is not None:
                    raise SystemExit("the server ended before it was up; its own lines above say why")
            else:
                raise SystemExit(f"the server was not up after {START_S:g} s")
        yield url


class Load:
    """Requests in flight, one after the other, until the end."""

    def __init__(self, server: Control) -> None:
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            sampling = {"max_tokens": 64, "temperature": 1.0, "ignore_eos": True, "detokenize": False}
            self._server.post("/inference/v1/generate", {"model": "policy", "token_ids": [1, 2, 3], "sampling_params": sampling})


def floor(server: Control, model: Path, memory: Path) -> dict[str, float]:
    """Seconds of a plain copy, and of vLLM's own load of the copy."""
    shutil.rmtree(memory / "copy", ignore_errors=True)
    started = time.perf_counter()
    shutil.copytree(model, memory / "copy")
    copied = time.perf_counter()
    server.post("/pause", query={"mode": "keep", "clear_cache": "false"})
    paused = time.perf_counter()
    body = {"method": "reload_weights", "kwargs": {"weights_path": str(memory / "copy")}}
    server.post("/collective_rpc", body)
    loaded = time.perf_counter()
    server.post("/resume")
    return {"copy_s": copied - started, "load_s": loaded - paused, "floor_s": copied - started + loaded - paused}


def publish(publisher: VllmPublisher, url: str, model: Any, step: int) -> dict[str, float]:
    """Seconds of a publish, and of the stillness in it."""
    started = time.perf_counter()
    result = publisher.publish(model.named_parameters(), Version(step=step), [url])
    taken = time.perf_counter() - started
    if result.failed:
        raise SystemExit(result.failed[url])
    return {"publish_s": taken, "collect_s": result.collect_s, "paused_s": result.outcomes[0].paused_s}


def measure(url: str, model: Any, folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Medians of each side, which take turns."""
    figures: dict[str, list[dict[str, float]]] = {"floor": [], "filesystem": [], "stream": []}
    with contextlib.ExitStack() as ends:
        http = ends.enter_context(http_client())
        shared = SharedFolder()
        ends.callback(shared.close)
        publishers = {
            name: VllmPublisher(transport, lambda one: Control(one, http))
            for name, transport in (("filesystem", FilesystemTransport()), ("stream", StreamTransport()))
        }
        for publisher in publishers.values():
            ends.callback(publisher.close)
        ends.enter_context(Load(Control(url, http)))
        for number in range(rounds + 1):  # the first round warms up
            figures["floor"].append(floor(Control(url, http), folder, shared.path))
            shutil.rmtree(shared.path / "copy")  # neither side writes over pages that it has already
            for name, publisher in publishers.items():
                figures[name].append(publish(publisher, url, model, number))
    return {side: {key: statistics.median(one[key] for one in rows[1:]) for key in rows[0]} for side, rows in figures.items()}


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        model = make_model(folder, options.layers)
        with serving(folder, options.python) as url:
            medians = measure(url, model, folder, options.rounds)
    line = {
        "benchmark": "vllm_transfer",
        "megabytes": round(sum(one.numel() * one.element_size() for one in model.parameters()) / 1e6),
        "cores": os.cpu_count(),
        "rounds": options.rounds,
        **{side: {key: round(value, 3) for key, value in row.items()} for side, row in medians.items()},
    }
    for side in ("filesystem", "stream"):
        line[f"ratio_{side}"] = round(medians[side]["publish_s"] / medians["floor"]["floor_s"], 2)
        line[f"paused_ratio_{side}"] = round(medians[side]["paused_s"] / medians["floor"]["floor_s"], 2)
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
