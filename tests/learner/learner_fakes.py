"""Tiny models and made-up groups for the learner's tests, and for the scripts that run on two ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import transformers

from agentrl import objectives
from agentrl.config import RunConfig
from agentrl.learner import Learner
from agentrl.records import Group, Rollout, SamplingContract, Score, Source, Task, TokenSpan, Turn, Version, VersionRun

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY = 48


def tiny_model(folder: Path, *, kind: str = "qwen3", seed: int = 0, scale: float = 0.15, **options: object) -> str:
    """Write a random model of one of transformers' architectures, its weights large enough for a spread-out policy."""
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "initializer_range": scale,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    config = transformers.AutoConfig.for_model(kind, **(common | options))
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    return str(folder)


def run_config(**options: object) -> RunConfig:
    """A run file's settings; `learner` and `sampling` are merged over the tests' own."""
    learner = {"device": "cpu", "lr": 1e-3, "threads": 1} | dict(options.pop("learner", {}))  # type: ignore[call-overload]
    return RunConfig(model="unused", learner=learner, steps=10, **options)  # type: ignore[arg-type]


def make_learner(folder: str, config: RunConfig, objective: str | dict[str, object] = "grpo", **options: object) -> Learner:
    """A learner with a registered objective."""
    chosen = {"name": objective} if isinstance(objective, str) else objective
    return Learner(config, objectives.get(str(chosen["name"])), objectives.validate(chosen), folder, **options)  # type: ignore[arg-type]


def span(draw: np.random.Generator, new: int, sampled: int, *, logprob: float = -3.0, version: int = 0) -> TokenSpan:
    """Some tokens of a prompt or an environment, then some sampled ones."""
    length = new + sampled
    logprobs = np.full(length, np.nan, dtype=np.float32)
    logprobs[new:] = logprob + draw.normal(0, 0.3, sampled)
    return TokenSpan(
        ids=draw.integers(3, VOCABULARY, length),
        source=[Source.PROMPT] * new + [Source.SAMPLED] * sampled,
        logprobs=logprobs,
        versions=(VersionRun(version=Version(step=version), start=new, end=length),) if sampled else (),
    )


def turn(tokens: TokenSpan, parent: int = -1) -> Turn:
    return Turn(parent=parent, span=tokens, contract=SamplingContract(), finish_reason="stop")


def with_prompt(prompt: np.ndarray, tokens: TokenSpan) -> TokenSpan:
    """The same tokens, begun with a given prompt."""
    ids = tokens.ids.copy()
    ids[: len(prompt)] = prompt
    return TokenSpan(ids=ids, source=tokens.source, logprobs=tokens.logprobs, versions=tokens.versions)


def rollout(turns: list[Turn], *, member: int, score: float | None, ending: str = "complete", task: Task | None = None) -> Rollout:
    return Rollout(
        task=task or Task(id="t", environment="e", row={}),
        member=member,
        turns=tuple(turns),
        messages=(),
        ending=ending,  # type: ignore[arg-type]
        score=Score.unscorable("no verdict") if score is None else Score(value=score),
    )


def make_groups(seed: int = 0, *, groups: int = 3, members: int = 4, longest: int = 9, forks: bool = True, prompt: int = 5) -> list[Group]:
    """Ragged groups: a common prompt, one or two turns, now and then a fork, scores from {0, 1, 2}."""
    draw = np.random.default_rng(seed)
    result = []
    for index in range(groups):
        start = draw.integers(3, VOCABULARY, prompt + index)
        rollouts = []
        for member in range(members):
            turns = [turn(with_prompt(start, span(draw, len(start), int(draw.integers(1, longest + 1)))))]
            if draw.random() < 0.5:
                turns.append(turn(span(draw, 2, int(draw.integers(1, longest + 1))), parent=0))
            if forks and draw.random() < 0.4:
                turns.append(turn(span(draw, 3, int(draw.integers(1, longest + 1))), parent=0))
            rollouts.append(rollout(turns, member=member, score=float(draw.integers(0, 3))))
        task = Task(id=f"t{index}", environment="e", row={})
        result.append(Group(index=index, task=task, rollouts=tuple(rollouts), dispatched=Version()))
    return result


def gradients(learner: Learner, groups: list[Group]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """A step's gradient, as the optimizer is given it, and its metrics."""
    taken: dict[str, torch.Tensor] = {}

    def read(optimizer: torch.optim.Optimizer, *_: object) -> None:
        for name, parameter in learner.policy.named_parameters():
            if parameter.grad is not None:
                grad = parameter.grad
                taken[name] = (grad.full_tensor() if hasattr(grad, "full_tensor") else grad).detach().clone()

    handle = learner.models.optimizers[0].register_step_pre_hook(read)
    metrics = learner.update(groups)
    handle.remove()
    return taken, metrics


def gradient_at_rest(learner: Learner, groups: list[Group], **options: object) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The same by a step whose learning rate is 0, so that one learner can be asked again; with other learner settings, if any."""
    config = learner.config
    learner.config = config.model_copy(update={"learner": config.learner.model_copy(update={"lr": 0.0} | options)})
    found = gradients(learner, groups)
    learner.config = config
    return found


def distance(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """The largest relative L2 distance of a parameter's gradients."""
    assert left.keys() == right.keys()
    gaps = {name: float((left[name].double() - right[name].double()).norm()) for name in left}
    return max(gap / float(right[name].double().norm()) if gap else 0.0 for name, gap in gaps.items())
