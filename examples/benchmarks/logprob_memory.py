"""Peak memory of log-probs, forward and backward, over a vocabulary of 262,144 words. Prints one JSON line.

    python examples/benchmarks/logprob_memory.py [--peer-python PATH_OF_A_PYTHON_WITH_TRL] [--threads 2]

Each side runs in a process of its own: hidden states of 2,048 tokens (size 640) times a head of 262,144 words, float32, the gradient of
the mean log-prob with respect to both. `*_mib` is the peak resident memory above the parameters (head and hidden states) and their
gradients. `naive` is logits, log-softmax and gather; `agentrl` is `agentrl.learner.logprobs` with the default tile; `trl`, where a
Python with it is given, is the function under its trainers' fused head. `gradient_error` is the relative L2 distance to the naive
gradient of the head, and of the hidden states.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

TOKENS, SIZE, VOCABULARY = 2048, 640, 262144


def naive(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The whole matrix at once."""
    return torch.log_softmax(hidden @ weight.t(), -1).gather(1, targets[:, None])[:, 0]


def agentrl(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Ours, entropies included."""
    from agentrl.learner.logprobs import Head, token_logprobs

    return token_logprobs(hidden, weight, None, targets, Head())[0]


def trl(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """TRL's, entropies included, as its GRPO trainer calls it."""
    from trl.kernels import ChunkedLogProbFunction  # type: ignore[import-not-found,unused-ignore]
    from trl.trainer import utils  # type: ignore[import-not-found,unused-ignore]

    width = getattr(utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", 8192)
    result: torch.Tensor = ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, width, None, 1.0, ("log_probs", "entropy"))[0]
    return result


SIDES = {"naive": naive, "agentrl": agentrl, "trl": trl}


def peak_bytes() -> int:
    """The most memory that this process has held, from the kernel."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status: this benchmark needs Linux")


def measure(side: str, out: Path) -> None:
    """Run one side in this process and leave its figures and gradients in `out`."""
    generator = torch.Generator().manual_seed(0)
    small = [torch.randn(4, SIZE, requires_grad=True), torch.randn(64, SIZE, requires_grad=True)]
    SIDES[side](small[0], small[1], torch.zeros(4, dtype=torch.int64)).mean().backward()  # imports and thread pools come before the count
    hidden = torch.randn(TOKENS, SIZE, generator=generator, requires_grad=True)
    weight = (torch.randn(VOCABULARY, SIZE, generator=generator) * SIZE**-0.5).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = peak_bytes()
    started = time.perf_counter()
    SIDES[side](hidden, weight, targets).mean().backward()
    seconds = time.perf_counter() - started
    gradients = 4 * (hidden.numel() + weight.numel())
    peak = peak_bytes() - before - gradients
    torch.save({"mib": peak / 2**20, "seconds": seconds, "hidden": hidden.grad, "weight": weight.grad}, out)


def error(found: torch.Tensor, right: torch.Tensor) -> float:
    """Relative L2 distance."""
    return float((found - right).norm() / right.norm())


def main() -> None:
    """Measure each side and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="a Python that imports trl")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        torch.set_num_threads(options.threads)
        measure(options.side, Path(options.out))
        return
    pythons = {"naive": sys.executable, "agentrl": sys.executable} | ({"trl": options.peer_python} if options.peer_python else {})
    result: dict[str, object] = {"benchmark": "logprob_memory", "threads": options.threads}
    with tempfile.TemporaryDirectory() as folder:
        for side, python in pythons.items():
            file = Path(folder) / f"{side}.pt"
            command = [python, __file__, "--side", side, "--out", str(file), "--threads", str(options.threads)]
            subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])})
            found = torch.load(file, weights_only=True)
            result |= {f"{side}_mib": round(found["mib"], 1), f"{side}_s": round(found["seconds"], 2)}
            if side == "naive":
                right = found
            else:
                file.unlink()
                result[f"{side}_gradient_error"] = {name: error(found[name], right[name]) for name in ("weight", "hidden")}
            if side == "agentrl":
                result["agentrl_over_naive"] = round(found["mib"] / right["mib"], 4)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
