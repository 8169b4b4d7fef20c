"""What a step reports: sums and columns kept while it runs, read once at its end, equal on all ranks."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from agentrl.learner.ranks import gather_messages

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from accelerate import Accelerator  # type: ignore[import-untyped]

    from agentrl.learner.batch import Step
    from agentrl.objectives.base import Losses, TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One rank's figures of a step, as ranks send them to each other."""

    sums: dict[str, float]
    """Sums over the step: of token losses times their weights under `loss`, of an objective's metrics under their names."""
    per_rollout: tuple[str, ...]
    """Names in `sums` that were summed over rollouts; the others, `loss` excepted, over tokens."""
    counts: dict[str, float]
    log_ratios: np.ndarray
    """[trained] float64: learner's log-prob - sampler's, in nats."""
    entropies: np.ndarray
    """[trained] float64 nats."""


class StepMetrics:
    """Collects one step's figures on one rank."""

    def __init__(self) -> None:
        self._log_ratios: list[torch.Tensor] = []
        self._entropies: list[torch.Tensor] = []
        self._sums: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
        self._per_rollout: set[str] = set()
        self._counts: defaultdict[str, float] = defaultdict(float)
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Add the wall time of a block to `time/<part>_s`.

        Of blocks that run side by side it is the sum; on CUDA it is the time to launch the work, not to finish it.
        """
        started = time.perf_counter()
        yield
        self._seconds[part] += time.perf_counter() - started

    def take_in(self, other: StepMetrics) -> None:
        """Add what was collected elsewhere for a later micro-batch of this step."""
        self._log_ratios += other._log_ratios
        self._entropies += other._entropies
        for name, values in other._sums.items():
            self._sums[name] += values
        self._per_rollout |= other._per_rollout
        for name, count in other._counts.items():
            self._counts[name] += count
        for part, seconds in other._seconds.items():
            self._seconds[part] += seconds

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time of this rank by part."""
        return {f"time/{part}_s": value for part, value in self._seconds.items()}

    def count(self, **values: float) -> None:
        """Add to `learner/<name>`, which is summed over ranks."""
        for name, value in values.items():
            self._counts[f"learner/{name}"] += value

    @torch.no_grad()
    def add(self, batch: TokenBatch, losses: Losses, loss: torch.Tensor, entropy: torch.Tensor) -> None:
        """Take in one micro-batch: its tokens, the objective's losses and their weighted sum."""
        logprobs = batch.logprobs.detach()
        self._log_ratios.append(logprobs - batch.sampler_logprobs)
        self._entropies.append(entropy)
        self._sums["loss"].append(loss.detach())
        for name, values in losses.metrics.items():
            self._sums[name].append(values.detach().sum())
        if losses.per == "rollout":
            self._per_rollout.update(losses.metrics)
        if batch.reference_logprobs is not None and "kl" not in losses.metrics:
            gap = batch.reference_logprobs - logprobs
            self._sums["kl"].append((gap.expm1() - gap).sum())

    def gather(self, accelerator: Accelerator, step: Step) -> dict[str, float]:
        """The figures over all ranks; a collective. An objective's metrics are means over what the step's loss counts."""
        reports = gather_messages(accelerator, self._report(), Report)
        totals = _added(report.sums for report in reports)
        per_rollout = {name for report in reports for name in report.per_rollout}
        result = {"loss": totals.pop("loss", 0.0)}
        for name, total in totals.items():
            result[name] = total / (step.num_rollouts if name in per_rollout else step.num_tokens)
        log_ratios = np.concatenate([report.log_ratios for report in reports])
        if len(log_ratios):
            result["entropy"] = float(np.concatenate([report.entropies for report in reports]).mean())
            result |= _ratio_metrics(log_ratios)
        return result | _added(report.counts for report in reports) | step.counts

    def _report(self) -> Report:
        names = list(self._sums)
        values = torch.stack([torch.stack(self._sums[name]).sum().double() for name in names]).tolist() if names else []
        return Report(
            sums=dict(zip(names, values, strict=True)),
            per_rollout=tuple(sorted(self._per_rollout)),
            counts=dict(self._counts),
            log_ratios=_column(self._log_ratios),
            entropies=_column(self._entropies),
        )


def _column(parts: Sequence[torch.Tensor]) -> np.ndarray:
    return torch.cat(list(parts)).double().cpu().numpy() if parts else np.empty(0)


def _added(parts: Iterator[dict[str, float]]) -> dict[str, float]:
    totals: defaultdict[str, float] = defaultdict(float)
    for part in parts:
        for name, value in part.items():
            totals[name] += value
    return dict(totals)


def _ratio_metrics(log_ratios: np.ndarray) -> dict[str, float]:
    """How far the learner now is from the policy that sampled, before any clip: its own updates since, and the engines' differences."""
    with np.errstate(over="ignore"):
        ratios = np.exp(log_ratios)
    distance = np.abs(log_ratios)
    return {
        "policy/ratio_mean": float(ratios.mean()),
        "sampling/importance_sampling_ratio/min": float(ratios.min()),
        "sampling/importance_sampling_ratio/mean": float(ratios.mean()),
        "sampling/importance_sampling_ratio/max": float(ratios.max()),
        "sampling/ratio_p99": float(np.quantile(ratios, 0.99)),
        "sampling/ratio_outside_0.9_1.1": float(((ratios < 0.9) | (ratios > 1.1)).mean()),
        "sampling/sampling_logp_difference/mean": float(distance.mean()),
        "sampling/sampling_logp_difference/max": float(distance.max()),
    }
