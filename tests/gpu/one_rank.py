"""Run by `test_runs.py` under torchrun, as the only rank: a model under FSDP2 and under DDP against the same one alone; prints figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "learner"))

import learner_fakes as fakes
import numpy as np
import torch
from dataset_rows import make_examples
from gpu_fakes import cosine, flat

from agentrl import objectives
from agentrl.learner import checkpoint, ranks
from agentrl.learner.attention import takes_ragged
from agentrl.learner.examples import candidates_of
from agentrl.learner.loading import load_policy
from agentrl.learner.optim import adamw
from agentrl.learner.packing import pack


def main(folder: str, out: Path) -> None:
    """Three losses and gradients, and whether a checkpoint of the shards comes back."""
    config = fakes.run_config(learner={"device": "cuda", "dtype": "bfloat16", "sharding": "fsdp2"})
    accelerator = ranks.start(config)
    samples = candidates_of(make_examples("supervised"), objectives.Needs()).samples
    packed = pack(samples, accelerator.device, ragged=takes_ragged(accelerator.device, torch.bfloat16))
    policies = [load_policy(config, folder, accelerator.device, master=torch.float32, trained=True) for _ in range(4)]
    alone, sharded, replica, again = policies
    ranks.shard(sharded, accelerator, dtype=torch.bfloat16)
    ranks.shard(again, accelerator, dtype=torch.bfloat16)
    module = ranks.replicate(replica, accelerator)
    found = {}
    for name, model, own in (("alone", alone, alone), ("fsdp", sharded, sharded), ("ddp", module, replica)):
        loss = -model(packed).logprobs.mean()
        loss.backward()
        grads = {key: ranks.whole(one.grad).detach() for key, one in own.named_parameters()}
        found[name] = (float(loss), flat(grads))
    optimizers = [adamw(one, config.learner) for one in (sharded, again)]
    optimizers[0].step()
    checkpoint.save_model(out, sharded, optimizers[0], writes=True)
    checkpoint.load_model(out, again, optimizers[1])
    pairs = zip(sharded.parameters(), again.parameters(), strict=True)
    equal = all(torch.equal(ranks.whole(one.detach()), ranks.whole(other.detach())) for one, other in pairs)
    said = ranks.gather_messages(accelerator, 1.5, float)
    result = {
        "backend": torch.distributed.get_backend() if torch.distributed.is_initialized() else None,
        "losses": {name: loss for name, (loss, _) in found.items()},
        "cosines": {name: cosine(grads, found["alone"][1]) for name, (_, grads) in found.items()},
        "restored": equal,
        "said": said,
        "finite": bool(np.isfinite([loss for loss, _ in found.values()]).all()),
    }
    print("RESULT " + json.dumps(result))
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
