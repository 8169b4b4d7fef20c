"""Learners on a CPU and on a GPU in one process, which accelerate's own state of the process does not allow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import accelerate
import learner_fakes as fakes
import torch

if TYPE_CHECKING:
    from agentrl.learner import Learner

GPU = "cuda"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """What the learner asks of an accelerator, for the only rank there is."""

    device: torch.device
    num_processes: int = 1
    process_index: int = 0
    is_main_process: bool = True
    distributed_type: accelerate.DistributedType = accelerate.DistributedType.NO

    def wait_for_everyone(self) -> None:
        """There is nobody else."""


def learner_on(device: str, folder: str, objective: Any, *, dtype: str = "float32", ema: Any = None, **learner: Any) -> Learner:
    """A learner that computes there in this type; `eps` keeps AdamW from blowing rounding up to whole steps."""
    config = fakes.run_config(learner={"dtype": dtype, "eps": 1e-4, "ema": ema} | learner)
    where = torch.device(device, torch.cuda.current_device()) if device == "cuda" else torch.device(device)
    return fakes.make_learner(folder, config, objective, accelerator=Alone(device=where))


def gradients_of(learner: Learner, data: Any) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """A step's gradients on the CPU in float64, as the optimizers are given them, and its metrics."""
    taken: dict[str, torch.Tensor] = {}
    hooks = []
    for number, optimizer in enumerate(learner.models.optimizers):
        model = learner.policy if number == 0 else learner.models.critic

        def read(*_: object, number: int = number, model: Any = model) -> None:
            found = {f"{number}.{name}": one.grad for name, one in model.named_parameters() if one.grad is not None}
            taken.update({name: one.detach().double().cpu() for name, one in found.items()})

        hooks.append(optimizer.register_step_pre_hook(read))
    metrics = learner.update(data) if learner._objective.data is None else learner.update_examples(data)
    for hook in hooks:
        hook.remove()
    return taken, metrics


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """All of them as one vector, by name."""
    return torch.cat([tensors[name].double().cpu().flatten() for name in sorted(tensors)])


def gap(found: torch.Tensor, right: torch.Tensor) -> float:
    """Relative L2 distance."""
    return float((found - right).norm() / right.norm())


def cosine(found: torch.Tensor, right: torch.Tensor) -> float:
    """Of the angle between them."""
    return float(torch.nn.functional.cosine_similarity(found, right, dim=0))


def parameters(learner: Learner) -> dict[str, torch.Tensor]:
    """Everything that training or an average changes, by name."""
    trained = {name: one.detach() for name, one in learner.policy.named_parameters() if one.requires_grad}
    return trained | {f"others.{name}": one for name, one in fakes.others(learner).items()}
