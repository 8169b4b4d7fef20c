"""What the ranks beside the first one do, and what all of them send to the engine together."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.engines.vllm_setup import transport_of
from agentrl.finishing import pushes_after
from agentrl.further import further_examples
from agentrl.policies import updates
from agentrl.rollout.tokenizer import load_tokenizer
from agentrl.session import resolve_model
from agentrl.teacher_servers import scored, tutor_of
from agentrl.teachers import with_teachers
from agentrl.warm_start import warm_steps
from agentrl.written_texts import author_of, with_author

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from agentrl import objectives
    from agentrl.config import RunConfig
    from agentrl.learner import Learner


def sends_adapter(config: RunConfig) -> bool:
    """Whether the engine is sent the adapter itself, and not the model with the adapter merged."""
    return config.engine.kind == "vllm" and transport_of(config) == "lora"


def begins_apart(config: RunConfig) -> bool:
    """Whether the learner's weights are not those of the model's files at the first step: an adapter goes on, or layers are in few bits."""
    lora = config.learner.lora
    return lora is not None and (lora.adapter is not None or lora.quantize is not None)


def sent_weights(config: RunConfig, learner: Learner) -> Iterator[tuple[str, torch.Tensor]]:
    """What is published; a collective."""
    if config.engine.kind == "vllm":  # which keeps nothing of a model that is only sent in part
        return learner.adapter_weights() if sends_adapter(config) else learner.whole_weights()
    return learner.named_weights()


def follow(config: RunConfig, objective: objectives.Objective, options: objectives.ObjectiveConfig, checkpoint: Path | None) -> None:
    """What the other ranks do: the same steps on the same groups, and their part of each collective, in rank 0's order."""
    from agentrl.learner import Learner, ranks

    for number in (signal.SIGINT, signal.SIGTERM):  # rank 0 decides when the run ends
        signal.signal(number, signal.SIG_IGN)
    model_dir = resolve_model(config.model)
    learner = Learner(with_teachers(config, model_dir, resolve_model), objective, options, model_dir)
    needs = objective.needs(options)
    further = further_examples(config, objective.data, needs, load_tokenizer(model_dir), model_dir)
    learner.further = scored(with_author(further, author_of(config, learner)), tutor_of(config, needs))
    saved = None
    if checkpoint is not None:
        learner.load(checkpoint)
        saved = learner.step
    nowhere = Path()
    warmed = config.warm_start is not None and checkpoint is None
    if warmed:
        _exhaust(warm_steps(learner, config, None))
        learner.save(nowhere)
        saved = learner.step
    if sends_adapter(config):
        _exhaust(learner.adapter_weights())
    if checkpoint is not None or warmed or begins_apart(config) or config.engine.kind == "vllm":
        _exhaust(sent_weights(config, learner))
    while learner.step < config.num_steps and (groups := ranks.broadcast_groups(learner.accelerator, None)):
        learner.update(groups)
        _exhaust(sent_weights(config, learner))
        for _ in updates(config, learner.step):
            learner.export(nowhere, None)
            _exhaust(learner.named_weights())
        if learner.step % config.checkpoint.every == 0:
            learner.save(nowhere)
            saved = learner.step
        if pushes_after(config, learner.step):
            learner.export(nowhere, None)
    if saved != learner.step:
        learner.save(nowhere)
    learner.export(nowhere, None)


def _exhaust(parts: Iterator[object]) -> None:
    for _ in parts:
        pass
