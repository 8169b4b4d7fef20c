"""The named models of a learner: the policy, and where the objective asks for them a reference and a critic."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from agentrl.errors import CheckpointError, ConfigError
from agentrl.learner import ranks
from agentrl.learner.critic import ValueModel, load_critic
from agentrl.learner.loading import load_policy
from agentrl.learner.logprobs import Asked
from agentrl.learner.optim import adamw
from agentrl.learner.smoothing import check_smoothing
from agentrl.learner.standin import copied, standing_in
from agentrl.learner.teacher import Teachers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from accelerate import Accelerator  # type: ignore[import-untyped]

    from agentrl.config import RunConfig
    from agentrl.learner.lessons import Lessons
    from agentrl.learner.model import Policy, Scores
    from agentrl.learner.packing import Pack
    from agentrl.objectives.needs import Critic, Needs

CRITIC_LR = 10.0
"""A value model of its own learns at this multiple of the policy's rate where nothing is said: its head starts from nothing."""


class Models:
    """Which models there are, which of them are trained, and how the ranks share them."""

    def __init__(
        self, config: RunConfig, needs: Needs, folder: str, accelerator: Accelerator, master: torch.dtype, *, reference: bool = True
    ) -> None:
        """Load them all, the reference only where it is wanted; raises `ConfigError` for a model that cannot be trained here."""
        self._config = config
        self.needs = needs
        device = accelerator.device
        self.policy = load_policy(config, folder, device, master=master, trained=True, values=self._critic_is("head"), output=needs.output)
        if needs.temperature is not None:
            self.policy.head = replace(self.policy.head, temperature=needs.temperature)
        if needs.uniform:
            check_smoothing(self.policy.head)
        self.policy.asked = Asked(mean_logits=needs.logits, collision=needs.collision, uniform=needs.uniform)
        self.reference = self._load_reference(folder, device, master) if needs.reference and reference else None
        self.start: dict[str, torch.Tensor] | None = None
        """The adapter as the run began, where it is the reference."""
        self.critic = load_critic(config, folder, device, master=master) if self._critic_is("model") else None
        self.teachers: Teachers | None = None
        if needs.teacher is not None:
            self.teachers = Teachers.load(needs.teacher, self.policy, config, folder, device, master)
        self.policy_module: torch.nn.Module = self.policy
        self.critic_module: torch.nn.Module | None = self.critic
        if accelerator.num_processes > 1:
            self._share(accelerator)
        if needs.reference and reference and config.learner.lora is not None and config.learner.lora.reference == "start":
            self.start = copied(self.policy)
        self.optimizers = [adamw(self.policy, config.learner)]
        if self.critic is not None:
            self.optimizers.append(adamw(self.critic, config.learner))

    def _critic_is(self, kind: str) -> bool:
        return self.needs.critic is not None and self.needs.critic.kind == kind

    def _load_reference(self, folder: str, device: torch.device, master: torch.dtype) -> Policy | None:
        """None where the policy is the reference too, without its adapter or with the one that it began with."""
        if self._config.learner.lora is None:
            return load_policy(self._config, folder, device, master=master, trained=False)
        if self._config.learner.reference_sync is not None:
            raise ConfigError(
                "learner.reference_sync moves the reference towards the policy, and with learner.lora the reference is the model without "
                "its adapter, which never moves: remove one of the two"
            )
        return None

    def _share(self, accelerator: Accelerator) -> None:
        if self._config.learner.sharding == "ddp":
            self.policy_module = ranks.replicate(self.policy, accelerator)
            self.critic_module = None if self.critic is None else ranks.replicate(self.critic, accelerator)
            return
        for model in (self.policy, self.reference, self.critic):
            if model is not None:
                ranks.shard(model, accelerator, dtype=model.dtype)
        if self.teachers is not None:
            self.teachers.shard(accelerator)

    @property
    def modules(self) -> list[torch.nn.Module]:
        """What is trained, as the ranks share it."""
        return [self.policy_module] + ([] if self.critic_module is None else [self.critic_module])

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        """Every parameter that an optimizer steps."""
        return [parameter for optimizer in self.optimizers for group in optimizer.param_groups for parameter in group["params"]]

    def forward(self, packed: Pack, lessons: Lessons | None = None) -> Scores:
        """The policy's scores, held against what teachers say where they do, with the values of whichever critic there is."""
        scores: Scores = self.policy_module(packed) if lessons is None else self.policy_module(packed, lessons)
        return scores if self.critic_module is None else scores._replace(values=self.critic_module(packed))

    def reference_logprobs(self, packed: Pack) -> torch.Tensor:
        """[trained] nats under the reference, or under the policy without its adapter, or with the one that it began with."""
        if self.reference is not None:
            logprobs: torch.Tensor = self.reference(packed).logprobs
            return logprobs
        with self.policy.without_adapter() if self.start is None else standing_in(self.policy, self.start):
            return self.policy(packed).logprobs  # type: ignore[no-any-return]

    def reshard(self) -> None:
        """Give up the whole parameters that forward passes without a backward pass left."""
        for model in (self.policy, self.reference, self.critic):
            ranks.reshard(model)
        if self.teachers is not None:
            self.teachers.reshard()

    def rates(self, rate: float) -> list[float]:
        """The optimizers' learning rates where the policy's is `rate`; a critic of its own follows the same schedule."""
        critic = self.needs.critic
        if self.critic is None or critic is None:
            return [rate]
        peak = self._config.learner.lr
        factor = critic.lr / peak if critic.lr and peak else CRITIC_LR
        return [rate, rate * factor]

    def warm_up(self, critic: Critic, step: int) -> None:
        """Take the policy's gradients away while only the critic is to be trained."""
        if step < critic.warmup_steps:
            for name, parameter in self.policy.named_parameters():
                if not name.startswith("value_head."):
                    parameter.grad = None

    @torch.no_grad()
    def sync_reference(self, step: int) -> None:
        """Move the reference towards the policy, where and when the run file says, and a teacher that follows it; `step` counts from 1."""
        if self.teachers is not None and self.teachers.follower is not None:
            self.teachers.follower.follow(self.policy, step)
        sync = self._config.learner.reference_sync
        if sync is not None and self.reference is not None and step % sync.every == 0:
            own = dict(self.policy.named_parameters())
            for name, parameter in self.reference.named_parameters():
                parameter.lerp_(own[name].to(parameter.dtype), sync.rate)

    def check_kept(self, folder: Path) -> None:
        """Raise `CheckpointError` where a checkpoint and this run differ in what they hold beside the policy."""
        wanted = {name for name, _, _ in self.saved() if name}
        for name, key in (("critic", "objective.critic"), ("reference", "learner.reference_sync"), ("teacher", "objective.teacher")):
            there = (folder / name).is_dir()
            if name in wanted and not there:
                raise CheckpointError(f"checkpoint {folder} holds no {name}, and this run trains with one of its own: {key} changed")
            if name == "reference" and there and self.reference is not None and name not in wanted:
                raise CheckpointError(
                    f"checkpoint {folder} holds a reference that has moved, and this run would go back to the one that it began with: "
                    f"set {key} as it was"
                )

    def saved(self) -> Iterator[tuple[str, Policy | ValueModel, torch.optim.Optimizer | None]]:
        """What a checkpoint holds: (folder within it, model, its optimizer)."""
        yield "", self.policy, self.optimizers[0]
        if self.critic is not None:
            yield "critic", self.critic, self.optimizers[1]
        if self.reference is not None and self._config.learner.reference_sync is not None:
            yield "reference", self.reference, None
        if self.teachers is not None and self.teachers.follower is not None:
            yield "teacher", self.teachers.follower.model, None
