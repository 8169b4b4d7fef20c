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
    from collections.abc import Iterator, Mapping, Sequence

    from accelerate import Accelerator  # type: ignore[import-untyped]

    from agentrl.learner.batch import Part
    from agentrl.objectives.losses import Losses, TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One rank's figures of a step, as ranks send them to each other."""

    totals: dict[str, float]
    """The parts of the loss, each a sum of losses times their weights."""
    sums: dict[str, float]
    """An objective's metrics under their names."""
    per: dict[str, str]
    """What each of `sums` was summed over: token, rollout or pair."""
    numbers: dict[str, float]
    """By name, of how many values the sum is, where it is not one of all that `per` says."""
    lowest: dict[str, float]
    """The smallest of some values, by name; `highest` the largest."""
    highest: dict[str, float]
    counts: dict[str, float]
    log_ratios: np.ndarray
    """[trained] float64: learner's log-prob - sampler's, in nats."""
    weights: np.ndarray
    """[trained] float64: factors of the corrections, where there are any."""
    entropies: np.ndarray
    """[trained] float64 nats."""


class StepMetrics:
    """Collects one step's figures on one rank."""

    def __init__(self) -> None:
        self._log_ratios: list[torch.Tensor] = []
        self._weights: list[torch.Tensor] = []
        self._entropies: list[torch.Tensor] = []
        self._totals: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
        self._sums: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
        self._numbers: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
        self._lowest: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
        self._highest: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
        self._per: dict[str, str] = {}
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
        self._weights += other._weights
        self._entropies += other._entropies
        for mine, others in zip(self._by_name, other._by_name, strict=True):
            for name, values in others.items():
                mine[name] += values
        self._per |= other._per
        for name, count in other._counts.items():
            self._counts[name] += count
        for part, seconds in other._seconds.items():
            self._seconds[part] += seconds

    @property
    def _by_name(self) -> Sequence[defaultdict[str, list[torch.Tensor]]]:
        return self._totals, self._sums, self._numbers, self._lowest, self._highest

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time of this rank by part."""
        return {f"time/{part}_s": value for part, value in self._seconds.items()}

    def count(self, **values: float) -> None:
        """Add to `learner/<name>`, which is summed over ranks."""
        for name, value in values.items():
            self._counts[f"learner/{name}"] += value

    @torch.no_grad()
    def add(self, batch: TokenBatch, losses: Losses, parts: Mapping[str, torch.Tensor], entropy: torch.Tensor) -> None:
        """Take in one micro-batch: its tokens, the objective's losses, and the parts of the loss as weighted sums."""
        logprobs = batch.logprobs.detach()
        self._log_ratios.append(logprobs - batch.sampler_logprobs)
        self._entropies.append(entropy.detach())
        if losses.weights is not None:
            self._weights.append(losses.weights.detach())
        for name, value in parts.items():
            self._totals[name].append(value.detach())
        for per, metrics in ((losses.per, losses.metrics), ("token", losses.token_metrics)):
            for name, values in metrics.items():
                self._sums[name].append(values.detach().sum())
                self._per[name] = per
        for name, values in losses.lowest.items():
            self._lowest[name].append(values.detach().min())
        for name, values in losses.highest.items():
            self._highest[name].append(values.detach().max())
        for name, values in losses.some_metrics.items():
            self._sums[name].append(values.detach().nansum())
            self._numbers[name].append((~values.isnan()).sum())
        if batch.reference_logprobs is not None and "kl" not in {*losses.metrics, *losses.token_metrics, *losses.some_metrics}:
            gap = batch.reference_logprobs - logprobs
            self._sums["kl"].append((gap.expm1() - gap).sum())
            self._per["kl"] = "token"

    def gather(self, accelerator: Accelerator, part: Part) -> dict[str, float]:
        """The figures of one optimizer step over all ranks; a collective. An objective's metrics are means over what its loss counts."""
        reports = gather_messages(accelerator, self._report(), Report)
        counted = {"token": part.num_tokens, "rollout": part.num_rollouts, "pair": part.num_pairs}
        counted |= dict(zip(("chosen_token", "rejected_token", "gold_token"), part.num_by_role, strict=False))
        per = {name: kind for report in reports for name, kind in report.per.items()}
        result = {"loss": 0.0} | _added(report.totals for report in reports)
        numbers = _added(report.numbers for report in reports)
        for name, total in _added(report.sums for report in reports).items():
            number = numbers[name] if name in numbers else counted[per[name]]
            if number:
                result[name] = total / number
        for report in reports:
            for name, value in report.lowest.items():
                result[name] = min(value, result.get(name, value))
            for name, value in report.highest.items():
                result[name] = max(value, result.get(name, value))
        log_ratios = np.concatenate([report.log_ratios for report in reports])
        log_ratios = log_ratios[~np.isnan(log_ratios)]  # what no policy sampled has no ratio
        weights = np.concatenate([report.weights for report in reports])
        entropies = np.concatenate([report.entropies for report in reports])
        entropies = entropies[~np.isnan(entropies)]  # a head of outputs has no distribution
        if len(entropies):
            result["entropy"] = float(entropies.mean())
        if len(log_ratios):
            result |= _ratio_metrics(log_ratios)
        if len(weights):
            result |= _weight_metrics(weights)
        return result | _added(report.counts for report in reports)

    def _report(self) -> Report:
        return Report(
            totals=_summed(self._totals),
            sums=_summed(self._sums),
            per=self._per,
            numbers=_summed(self._numbers),
            lowest={name: -value for name, value in _largest(self._lowest, -1.0).items()},
            highest=_largest(self._highest, 1.0),
            counts=dict(self._counts),
            log_ratios=_column(self._log_ratios),
            weights=_column(self._weights),
            entropies=_column(self._entropies),
        )


def merged(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    """The figures of a step's optimizer steps as one: counts added up, smallest and largest kept, the rest averaged."""
    result: dict[str, float] = {}
    for name in dict.fromkeys(name for one in figures for name in one):
        values = [one[name] for one in figures if name in one]
        if name.startswith(("learner/", "time/")):
            result[name] = sum(values)
        elif name.endswith(("/min", "/max")) or name.startswith(("min_", "max_")):
            result[name] = min(values) if name.endswith("/min") or name.startswith("min_") else max(values)
        else:
            result[name] = sum(values) / len(values)
    return result


def effective_share(weights: np.ndarray) -> float:
    """Effective sample size of importance weights as a share of their number: (sum w)^2 / (n sum w^2); 0 where all are 0.

    Source: Kong 1992, "A note on importance sampling using standardized weights".
    """
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / (len(weights) * squares) if squares else 0.0


def _summed(parts: Mapping[str, list[torch.Tensor]]) -> dict[str, float]:
    """One transfer from the device for all of them."""
    names = list(parts)
    values = torch.stack([torch.stack(parts[name]).sum().double() for name in names]).tolist() if names else []
    return dict(zip(names, values, strict=True))


def _largest(parts: Mapping[str, list[torch.Tensor]], sign: float) -> dict[str, float]:
    """The largest of each, of what is multiplied by `sign`."""
    return {name: float((sign * torch.stack(values)).max()) for name, values in parts.items()}


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
        "sampling/ratio_p01": float(np.quantile(ratios, 0.01)),
        "sampling/ratio_p99": float(np.quantile(ratios, 0.99)),
        "sampling/ess": effective_share(np.exp(log_ratios - log_ratios.max())),
        "sampling/ratio_outside_0.9_1.1": float(((ratios < 0.9) | (ratios > 1.1)).mean()),
        "sampling/sampling_logp_difference/mean": float(distance.mean()),
        "sampling/sampling_logp_difference/max": float(distance.max()),
    }


def _weight_metrics(weights: np.ndarray) -> dict[str, float]:
    """What corrections made of the ratios."""
    return {
        "correction/weight_mean": float(weights.mean()),
        "correction/weight_p01": float(np.quantile(weights, 0.01)),
        "correction/weight_p99": float(np.quantile(weights, 0.99)),
        "correction/ess": effective_share(weights),
    }
