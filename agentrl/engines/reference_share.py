"""Which engines can sample with a share of the frozen reference, as Nash-MD and XPO need it; asked before a run starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentrl.engines.vllm_preflight import ALIASED_BENEATH
from agentrl.engines.vllm_setup import transport_of
from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from agentrl.config import RunConfig


def check_reference_share(config: RunConfig, share: float) -> None:
    """Raise `ConfigError` where the run's engine cannot sample with this `SamplingContract.reference_share`; the message says what can.

    The embedded engine takes any share, with the model that training starts from as its `reference_dir`. vLLM servers take 1 where the
    policy is an adapter beside that model, on GPUs; for servers that are joined, `Expectations.reference` has that checked.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"the reference's share in what is sampled must be a number from 0 to 1, got {share}")
    if share == 0 or config.engine.kind == "embedded":
        return
    cure = "set engine.kind=embedded, which holds a second copy of the model that training starts from and mixes the two token by token"
    if share < 1:
        raise ConfigError(
            f"engine.kind is vllm and the objective samples from a mixture of policy and reference (the reference's share is {share:g}): "
            f"a vLLM server cannot mix two models' logits; {cure}, or take the reference alone (a share of 1)"
        )
    transport = transport_of(config)
    if transport != "lora":
        raise ConfigError(
            f"engine.kind is vllm and the objective samples from the reference: engine.transport={transport} replaces the model that "
            f"training starts from on the servers; set learner.lora, whose adapters leave it there (engine.transport=lora), or {cure}"
        )
    if not config.engine.servers and _on_cpu(config.engine.device):
        raise ConfigError(f"engine.kind is vllm on a CPU and the objective samples from the reference: {ALIASED_BENEATH}")


def _on_cpu(device: str) -> bool:
    """Where servers of the run's own compute, by `engine.device`."""
    if device != "auto":
        return device == "cpu"
    import torch

    return torch.cuda.device_count() == 0
