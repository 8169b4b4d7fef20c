"""Tiny models and made-up groups for the learner's tests, and for the scripts that run on two ranks."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

from agentrl import objectives
from agentrl.config import RunConfig, TeacherConfig
from agentrl.learner import Learner
from agentrl.records import Group, Rollout, SamplingContract, Score, Source, Task, TokenSpan, Turn, Version, VersionRun

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
    found, own = objectives.get(str(chosen["name"])), objectives.validate(chosen)
    if found.needs(own).teacher is not None and not config.teacher:
        config = config.model_copy(update={"teacher": [TeacherConfig(model=teacher_folder(folder))]})
    return Learner(config, found, own, folder, **options)  # type: ignore[arg-type]


def teacher_folder(folder: str) -> str:
    """A teacher of another size beside a model, made once; its norms stay in float64."""
    place = Path(folder) / "teacher"
    if not place.exists():
        with tempfile.TemporaryDirectory(dir=folder) as draft:
            tiny_model(Path(draft) / "model", kind="starcoder2", seed=7, hidden_size=48, tie_word_embeddings=False)
            with contextlib.suppress(OSError):  # another rank was faster
                (Path(draft) / "model").rename(place)
    return str(place)


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
    return max((gap / float(right[name].double().norm()) if gap else 0.0 for name, gap in gaps.items()), default=0.0)


def others(learner: Learner) -> dict[str, torch.Tensor]:
    """The weights of critic and reference and the averages, whole; a collective where the ranks hold shards."""
    averages = {} if learner.averages is None else learner.averages.values
    kept = {
        f"{kind}.{name}": (one.full_tensor() if hasattr(one, "full_tensor") else one).clone()
        for kind, values in averages.items()
        for name, one in values.items()
    }
    models = {"critic": learner.models.critic, "reference": learner.models.reference, "head": learner.policy.value_head}
    return kept | {
        f"{kind}.{name}": (one.full_tensor() if hasattr(one, "full_tensor") else one).detach().clone()
        for kind, model in models.items()
        if model is not None
        for name, one in model.named_parameters()
    }


def every_gradient(learner: Learner, groups: list[Group], **options: object) -> list[dict[str, torch.Tensor]]:
    """The gradients of each optimizer step of a step at rest, those of a critic of its own under `critic.`; optionally other settings."""
    config, models = learner.config, learner.models
    taken: list[dict[str, torch.Tensor]] = []

    def read(optimizer: torch.optim.Optimizer, *_: object) -> None:
        own = optimizer is not models.optimizers[0]
        module = models.critic if own else learner.policy
        found = {f"{'critic.' if own else ''}{name}": one.grad.clone() for name, one in module.named_parameters() if one.grad is not None}
        if own:
            taken[-1] |= found
        else:
            taken.append(found)

    handles = [optimizer.register_step_pre_hook(read) for optimizer in models.optimizers]
    learner.config = config.model_copy(update={"learner": config.learner.model_copy(update={"lr": 0.0, "max_grad_norm": None} | options)})
    learner.step, step = 0, learner.step
    learner.update(groups)
    learner.config, learner.step = config, step
    for handle in handles:
        handle.remove()
    return taken


def rivals(groups: list[Group], share: float) -> list[Group]:
    """The same groups, the second half of each sampled with a share of the reference."""
    contract = SamplingContract(reference_share=share)
    result = []
    for group in groups:
        half = len(group.rollouts) // 2
        second = [
            dataclasses.replace(one, turns=tuple(dataclasses.replace(each, contract=contract) for each in one.turns))
            for one in group.rollouts[half:]
        ]
        result.append(dataclasses.replace(group, rollouts=(*group.rollouts[:half], *second)))
    return result


def with_scores(groups: list[Group], scores: list[list[float | None]]) -> list[Group]:
    """The same groups with other scores."""
    return [
        dataclasses.replace(
            group,
            rollouts=tuple(
                dataclasses.replace(one, score=Score.unscorable("no verdict") if value is None else Score(value=value))
                for one, value in zip(group.rollouts, values, strict=True)
            ),
        )
        for group, values in zip(groups, scores, strict=True)
    ]


def with_turn_rewards(groups: list[Group], seed: int = 0) -> list[Group]:
    """The same groups, some turns with a reward of their own that is part of the score."""
    draw = np.random.default_rng(seed)
    result = []
    for group in groups:
        rollouts = []
        for one in group.rollouts:
            given = [float(draw.choice([0.0, -1.0, 0.5])) for _ in one.turns]
            turns = tuple(dataclasses.replace(each, reward=reward) for each, reward in zip(one.turns, given, strict=True))
            value = None if one.score.value is None else one.score.value + sum(given)
            rollouts.append(dataclasses.replace(one, turns=turns, score=one.score if value is None else Score(value=value)))
        result.append(dataclasses.replace(group, rollouts=tuple(rollouts)))
    return result


def shaken(learner: Learner, seed: int = 0, scale: float = 0.02) -> Learner:
    """The learner with its weights moved away from where it began, those of its critic too."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in learner.models.trained:
            parameter.add_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64).to(parameter.dtype) * scale)
    return learner
