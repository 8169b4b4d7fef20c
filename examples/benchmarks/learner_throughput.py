"""Tokens a second of the learner's whole step, against a bare torch loop over the same packed rows. Prints one JSON line.

    python examples/benchmarks/learner_throughput.py [--core 0] [--repeats 7]

Both sides run on one pinned core, in turn, in one process. The bare loop is the least that trains: transformers' modules with the same
packed attention, logits at the trained positions only, a plain log-softmax, the same loss, clipping and AdamW; its packs are built
beforehand. The learner's side is `Learner.update`, from groups to metrics.

`ratio`: rows whose prompts all differ, so that both sides compute the same tokens. `ratio_shared_prompts`: the same with groups of 8,
whose common prompt the learner computes once (tokens are counted as given, not as computed). `attended_pairs_ratio`: query-key pairs
that attention computes for ragged rows, over those that causal attention inside the rows needs. `ratio_sft`: `Learner.update_examples`
on ragged texts of which every token is trained, against the same loop with the negative log-likelihood.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
import transformers

from agentrl import objectives
from agentrl.config import RunConfig
from agentrl.config_learner import LearnerConfig
from agentrl.examples import Example, Text
from agentrl.learner import Learner
from agentrl.learner.examples import candidates_of
from agentrl.learner.packing import Pack, micro_batches, pack
from agentrl.learner.samples import candidates
from agentrl.records import Group, Rollout, SamplingContract, Score, Source, Task, TokenSpan, Turn, Version, VersionRun

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentrl.learner.samples import Sample

VOCABULARY = 512
NEEDS = objectives.Needs(group_size=2)
"""Of GRPO."""


def make_model(folder: str) -> None:
    """A Qwen3 of 0.85 M parameters."""
    config = transformers.Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=384,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)


def make_groups(lengths: Sequence[int], *, shared: bool, prompt: int = 16, members: int = 8) -> list[Group]:
    """Groups whose members sample so many tokens each, after one prompt or after each its own."""
    draw = np.random.default_rng(0)
    groups = []
    for index in range(0, len(lengths), members):
        start = draw.integers(0, VOCABULARY, prompt)
        rollouts = []
        for member, length in enumerate(lengths[index : index + members]):
            own = start if shared else np.concatenate([[member], start[1:]])  # another first token, and nothing is shared
            rollouts.append(rollout(draw, own, length, member))
        task = Task(id=str(index), environment="benchmark", row={})
        groups.append(Group(index=index, task=task, rollouts=tuple(rollouts), dispatched=Version()))
    return groups


def rollout(draw: np.random.Generator, start: np.ndarray, length: int, member: int) -> Rollout:
    """One turn with random tokens and a random reward."""
    total = len(start) + length
    span = TokenSpan(
        ids=np.concatenate([start, draw.integers(0, VOCABULARY, length)]),
        source=np.repeat([Source.PROMPT, Source.SAMPLED], [len(start), length]),
        logprobs=np.full(total, -6.2),
        versions=(VersionRun(version=Version(), start=len(start), end=total),),
    )
    turn = Turn(parent=-1, span=span, contract=SamplingContract(), finish_reason="length")
    score = Score(value=float(draw.normal()))
    task = Task(id="", environment="benchmark", row={})
    return Rollout(task=task, member=member, turns=(turn,), messages=(), ending="complete", score=score)


class Bare:
    """The bare loop."""

    def __init__(self, folder: str, config: RunConfig, found: Sequence[Sample], tokens: int, *, imitates: bool = False) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="agentrl_packed")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.learner.lr, fused=True)
        self.imitates = imitates
        samples = [dataclasses.replace(sample, group=place) for place, sample in enumerate(found)]  # nothing shared
        self.packs: list[tuple[Pack, torch.Tensor]] = []
        for batch in micro_batches(samples, max_tokens=tokens, multiple_of=1):
            chosen = [samples[place] for place in batch]
            old = torch.from_numpy(np.concatenate([sample.sampler_logprobs for sample in chosen]))
            self.packs.append((pack(chosen, torch.device("cpu")), old))
        self.trained = sum(len(old) for _, old in self.packs)

    def step(self) -> None:
        """Forward, backward, clip, step."""
        for packed, old in self.packs:
            out = self.model.model(
                input_ids=packed.ids[None], position_ids=packed.positions[None], use_cache=False, segments=packed.segments
            )
            logits = self.model.lm_head(out.last_hidden_state[0, packed.sources])
            logprobs = torch.log_softmax(logits, -1).gather(1, packed.targets[:, None])[:, 0]
            ratio = (logprobs - old).exp()
            losses = -logprobs if self.imitates else -torch.minimum(ratio, ratio.clamp(0.8, 1.2))
            loss = losses.sum() / self.trained
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def alternate(sides: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each side, run in turn."""
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats + 1):
        for side, taken in zip(sides, times, strict=True):
            started = time.perf_counter()
            side()
            taken.append(time.perf_counter() - started)
    return [statistics.median(taken[1:]) for taken in times]


def compare(folder: str, groups: Sequence[Group], repeats: int, bare_tokens: int) -> dict[str, float]:
    """Real tokens a second of both sides on the same rows."""
    config = RunConfig(model=folder, learner=LearnerConfig(device="cpu", lr=1e-6), steps=10**6)
    objective, options = objectives.get("grpo"), objectives.validate({"name": "grpo"})
    learner = Learner(config, objective, options, folder)
    bare = Bare(folder, config, candidates(groups, config, NEEDS).samples, bare_tokens)
    tokens = learner.update(groups)["learner/tokens"]
    ours, theirs = alternate([lambda: learner.update(groups), bare.step], repeats)
    return {"learner_tokens_per_s": tokens / ours, "bare_tokens_per_s": tokens / theirs, "ratio": theirs / ours}


def compare_sft(folder: str, lengths: Sequence[int], repeats: int, bare_tokens: int) -> float:
    """The learner's real tokens a second over the bare loop's, on texts of these lengths."""
    config = RunConfig(model=folder, learner=LearnerConfig(device="cpu", lr=1e-6), steps=10**6)
    learner = Learner(config, objectives.get("sft"), objectives.validate({"name": "sft"}), folder)
    draw = np.random.default_rng(0)
    ids = [draw.integers(0, VOCABULARY, length + 1).astype(np.int32) for length in lengths]
    texts = [Text(ids=one, trained=np.arange(len(one)) > 0) for one in ids]
    examples = [Example(where="", texts=(text,), rewards=(0.0,)) for text in texts]
    bare = Bare(folder, config, candidates_of(examples, objectives.Needs()).samples, bare_tokens, imitates=True)
    ours, theirs = alternate([lambda: learner.update_examples(examples), bare.step], repeats)
    return theirs / ours


def pairs_ratio(lengths: Sequence[int]) -> float:
    """Pairs computed over pairs needed, over a step's micro-batches."""
    config = RunConfig(model="", learner=LearnerConfig(device="cpu"))
    samples = candidates(make_groups(lengths, shared=True), config, NEEDS).samples
    batches = micro_batches(samples, max_tokens=4096, multiple_of=1)
    segments = [pack([samples[place] for place in batch], torch.device("cpu")).segments for batch in batches]
    return sum(one.computed_pairs for one in segments) / sum(one.needed_pairs for one in segments)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--bare-tokens", type=int, default=1360, help="tokens of one forward of the bare loop; its best where this was written"
    )
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {options.core})
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    draw = np.random.default_rng(1)
    ragged = np.clip(draw.lognormal(3.6, 0.9, 128), 4, 400).astype(int).tolist()
    even = [64] * 128
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder)
        result = compare(folder, make_groups(even, shared=False), options.repeats, options.bare_tokens)
        shared = compare(folder, make_groups(even, shared=True), options.repeats, options.bare_tokens)
        uneven = compare(folder, make_groups(ragged, shared=False), options.repeats, options.bare_tokens)
        sft = compare_sft(folder, ragged, options.repeats, options.bare_tokens)
    print(
        json.dumps(
            {
                "benchmark": "learner_throughput",
                "threads": 1,
                **{name: round(value, 3) for name, value in result.items()},
                "ratio_shared_prompts": round(shared["ratio"], 3),
                "ratio_ragged": round(uneven["ratio"], 3),
                "ratio_sft": round(sft, 3),
                "attended_pairs_ratio": round(pairs_ratio(ragged), 4),
            }
        )
    )


if __name__ == "__main__":
    main()
