"""Tokens a second of the learner's whole step, against a bare torch loop over the same packed rows. Prints one JSON line.

    python examples/benchmarks/learner_throughput.py [--core 0] [--repeats 7]
    python examples/benchmarks/learner_throughput.py --device cuda

Both sides run in turn, in one process: on one pinned core with a model of 0.85 M parameters, or on a GPU in bfloat16 with one of
210 M. The bare loop is the least that trains: transformers' modules with the same
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
from agentrl.learner.attention import takes_ragged
from agentrl.learner.examples import candidates_of
from agentrl.learner.packing import Pack, micro_batches, pack
from agentrl.learner.samples import candidates
from agentrl.records import Group, Rollout, SamplingContract, Score, Source, Task, TokenSpan, Turn, Version, VersionRun

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentrl.learner.samples import Sample

NEEDS = objectives.Needs(group_size=2)
"""Of GRPO."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What is measured on a device."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    inner: int
    texts: int
    even: int
    """Sampled tokens of a text, where all are of one length."""
    median: float
    most: int
    """Of ragged ones."""
    bare_tokens: int
    """Of one forward of the bare loop; its best where this was written."""


SIZES = {
    "cpu": Size(vocabulary=512, width=128, layers=4, heads=4, inner=384, texts=128, even=64, median=36.6, most=400, bare_tokens=1360),
    "cuda": Size(
        vocabulary=32768, width=1024, layers=14, heads=16, inner=3072, texts=256, even=256, median=245, most=2000, bare_tokens=16384
    ),
}


def make_model(folder: str, size: Size) -> None:
    """A random Qwen3."""
    config = transformers.Qwen3Config(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads // 2,
        head_dim=size.width // size.heads,
        intermediate_size=size.inner,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)


def make_groups(lengths: Sequence[int], vocabulary: int, *, shared: bool, prompt: int = 16, members: int = 8) -> list[Group]:
    """Groups whose members sample so many tokens each, after one prompt or after each its own."""
    draw = np.random.default_rng(0)
    groups = []
    for index in range(0, len(lengths), members):
        start = draw.integers(0, vocabulary, prompt)
        rollouts = []
        for member, length in enumerate(lengths[index : index + members]):
            own = start if shared else np.concatenate([[member], start[1:]])  # another first token, and nothing is shared
            rollouts.append(rollout(draw, own, draw.integers(0, vocabulary, length), member))
        task = Task(id=str(index), environment="benchmark", row={})
        groups.append(Group(index=index, task=task, rollouts=tuple(rollouts), dispatched=Version()))
    return groups


def rollout(draw: np.random.Generator, start: np.ndarray, sampled: np.ndarray, member: int) -> Rollout:
    """One turn with these tokens and a random reward."""
    total = len(start) + len(sampled)
    span = TokenSpan(
        ids=np.concatenate([start, sampled]),
        source=np.repeat([Source.PROMPT, Source.SAMPLED], [len(start), len(sampled)]),
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
        device = torch.device(config.learner.device)
        self.half = device.type == "cuda"
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="agentrl_packed")
        self.model = model.to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.learner.lr, fused=True)
        self.imitates = imitates
        samples = [dataclasses.replace(sample, group=place) for place, sample in enumerate(found)]  # nothing shared
        self.packs: list[tuple[Pack, torch.Tensor]] = []
        for batch in micro_batches(samples, max_tokens=tokens, multiple_of=1):
            chosen = [samples[place] for place in batch]
            old = torch.from_numpy(np.concatenate([sample.sampler_logprobs for sample in chosen]))
            ragged = self.half and takes_ragged(device, torch.bfloat16)
            self.packs.append((pack(chosen, device, ragged=ragged), old.to(device)))
        self.trained = sum(len(old) for _, old in self.packs)

    def step(self) -> None:
        """Forward, backward, clip, step."""
        for packed, old in self.packs:
            with torch.autocast(packed.ids.device.type, torch.bfloat16, enabled=self.half):
                out = self.model.model(
                    input_ids=packed.ids[None], position_ids=packed.positions[None], use_cache=False, segments=packed.segments
                )
                logits = self.model.lm_head(out.last_hidden_state[0, packed.sources])
            logprobs = torch.log_softmax(logits.float(), -1).gather(1, packed.targets[:, None])[:, 0]
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
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - started)
    return [statistics.median(taken[1:]) for taken in times]


def run_config(folder: str, device: str) -> RunConfig:
    """Of the learner's side."""
    return RunConfig(model=folder, learner=LearnerConfig(device=device, lr=1e-6), steps=10**6)


def compare(config: RunConfig, groups: Sequence[Group], repeats: int, bare_tokens: int) -> dict[str, float]:
    """Real tokens a second of both sides on the same rows."""
    folder = config.model
    objective, options = objectives.get("grpo"), objectives.validate({"name": "grpo"})
    learner = Learner(config, objective, options, folder)
    bare = Bare(folder, config, candidates(groups, config, NEEDS).samples, bare_tokens)
    tokens = learner.update(groups)["learner/tokens"]
    ours, theirs = alternate([lambda: learner.update(groups), bare.step], repeats)
    return {"learner_tokens_per_s": tokens / ours, "bare_tokens_per_s": tokens / theirs, "ratio": theirs / ours}


def compare_sft(config: RunConfig, lengths: Sequence[int], vocabulary: int, repeats: int, bare_tokens: int) -> float:
    """The learner's real tokens a second over the bare loop's, on texts of these lengths."""
    learner = Learner(config, objectives.get("sft"), objectives.validate({"name": "sft"}), config.model)
    draw = np.random.default_rng(0)
    ids = [draw.integers(0, vocabulary, length + 1).astype(np.int32) for length in lengths]
    texts = [Text(ids=one, trained=np.arange(len(one)) > 0) for one in ids]
    examples = [Example(where="", texts=(text,), rewards=(0.0,)) for text in texts]
    bare = Bare(config.model, config, candidates_of(examples, objectives.Needs()).samples, bare_tokens, imitates=True)
    ours, theirs = alternate([lambda: learner.update_examples(examples), bare.step], repeats)
    return theirs / ours


def pairs_ratio(lengths: Sequence[int], vocabulary: int) -> float:
    """Pairs computed over pairs needed, over a step's micro-batches."""
    config = RunConfig(model="", learner=LearnerConfig(device="cpu"))
    samples = candidates(make_groups(lengths, vocabulary, shared=True), config, NEEDS).samples
    batches = micro_batches(samples, max_tokens=4096, multiple_of=1)
    segments = [pack([samples[place] for place in batch], torch.device("cpu")).segments for batch in batches]
    return sum(one.computed_pairs for one in segments) / sum(one.needed_pairs for one in segments)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", choices=list(SIZES), default="cpu")
    parser.add_argument("--bare-tokens", type=int, help="tokens of one forward of the bare loop")
    options = parser.parse_args()
    size = SIZES[options.device]
    if options.device == "cpu":
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {options.core})
        torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    draw = np.random.default_rng(1)
    ragged = np.clip(draw.lognormal(np.log(size.median), 0.9, size.texts), 4, size.most).astype(int).tolist()
    even = [size.even] * size.texts
    repeats, bare_tokens = options.repeats, options.bare_tokens or size.bare_tokens
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder, size)
        config = run_config(folder, options.device)
        result = compare(config, make_groups(even, size.vocabulary, shared=False), repeats, bare_tokens)
        shared = compare(config, make_groups(even, size.vocabulary, shared=True), repeats, bare_tokens)
        uneven = compare(config, make_groups(ragged, size.vocabulary, shared=False), repeats, bare_tokens)
        sft = compare_sft(config, ragged, size.vocabulary, repeats, bare_tokens)
    print(
        json.dumps(
            {
                "benchmark": "learner_throughput",
                "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu, one thread",
                **{name: round(value, 3) for name, value in result.items()},
                "ratio_shared_prompts": round(shared["ratio"], 3),
                "ratio_ragged": round(uneven["ratio"], 3),
                "ratio_sft": round(sft, 3),
                "attended_pairs_ratio": round(pairs_ratio(ragged, size.vocabulary), 4),
            }
        )
    )


if __name__ == "__main__":
    main()
