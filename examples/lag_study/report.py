"""The study's tables, put into README.md between its marks, and the picture lag_study.png."""

from __future__ import annotations

from collections import defaultdict
from statistics import mean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

Run = dict[str, Any]
Kept = dict[tuple[str, int], list[Run]]
"""Runs of all seeds by method and lag."""

LABELS = {
    "uncorrected": "uncorrected clip",
    "grpo": "grpo: clip against the sampler",
    "dppo": "dppo",
    "tis": "grpo + tis (max 2)",
    "icepop": "grpo + icepop",
    "cispo": "cispo",
    "decoupled_ppo": "decoupled_ppo (1 minibatch)",
    "decoupled_ppo_4": "decoupled_ppo (4 minibatches)",
    "m2po": "m2po",
    "gspo": "gspo",
}
STYLES = {  # Okabe and Ito's colours, which the colour-blind tell apart, and a mark and a dash each for print without colours
    "uncorrected": ("#D55E00", "X", "-"),
    "grpo": ("#000000", "o", "-"),
    "dppo": ("#0072B2", "s", "-"),
    "tis": ("#009E73", "^", "--"),
    "icepop": ("#56B4E9", "v", "--"),
    "cispo": ("#CC79A7", "D", "-."),
    "decoupled_ppo": ("#E69F00", "P", ":"),
}
BEGIN, END = "<!-- tables: written by report.py -->", "<!-- end of tables -->"


def write_report(runs: Sequence[Run], folder: Path) -> None:
    """Write what there are runs for; the picture is left out, with a message, where matplotlib is missing."""
    forced, real = by_cell(runs, "forced"), by_cell(runs, "async")
    text = "\n\n".join(tables(forced, real))
    readme = folder / "README.md"
    if readme.exists():
        before, _, rest = readme.read_text().partition(BEGIN)
        readme.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}")
    print(text)
    try:
        import matplotlib as mpl
    except ImportError:
        print("matplotlib is not installed, so lag_study.png was not drawn: pip install matplotlib, then run study.py --report-only")
        return
    mpl.use("agg")
    draw(forced, real, folder / "lag_study.png")


def by_cell(runs: Sequence[Run], kind: str) -> Kept:
    """Runs of one kind by method and lag, in the order of LABELS."""
    found: Kept = defaultdict(list)
    for method in LABELS:
        for run in runs:
            if run["kind"] == kind and run["method"] == method:
                found[method, run["lag"]].append(run)
    return dict(found)


def final(run: Run) -> float:
    """Held-out reward after the last update."""
    return float(list(run["held_out"].values())[-1])


def lags_of(kept: Kept) -> list[int]:
    return sorted({lag for _, lag in kept})


def methods_of(kept: Kept) -> list[str]:
    return list(dict.fromkeys(method for method, _ in kept))


def tables(forced: Kept, real: Kept) -> list[str]:
    """Markdown: held-out reward at each lag, what happened to the ratios, and the asynchronous loop."""
    found = ["Held-out reward after the last update, mean over seeds (smallest - largest), by updates that the sampler lags behind:"]
    found.append(table(forced, {f"lag {lag}": (lag, held_out_cell) for lag in lags_of(forced)}))
    late = [lag for lag in lags_of(forced) if lag >= 4]
    found.append(
        "Lowest held-out reward of any seed in the second half of the run; and means over all updates and seeds: the effective sample size "
        "of policy / sampler as a share (ESS), its 99th percentile (p99), the share of tokens that the method clipped or left out (struck):"
    )
    cells = {"lowest": lowest_cell} | {name: figure_cell(key) for name, key in FIGURES.items()}
    columns = {f"lag {lag}: {name}": (lag, cell) for lag in late for name, cell in cells.items()}
    found.append(table(forced, columns))
    if real:
        found.append("The real asynchronous loop, `agentrl train`: held-out reward, and mean staleness and ESS where staleness is allowed:")
        columns = {}
        for lag in lags_of(real):
            columns[f"max_staleness {lag}"] = (lag, held_out_cell)
            if lag:
                columns[f"{lag}: mean staleness"] = (lag, figure_cell("staleness"))
                columns[f"{lag}: ESS"] = (lag, figure_cell("ess"))
        found.append(table(real, columns))
    return found


FIGURES = {"ESS": "ess", "p99": "ratio_p99", "struck": "struck"}


def table(kept: Kept, columns: dict[str, tuple[int, Callable[[list[Run]], str]]]) -> str:
    """A row a method."""
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for method in methods_of(kept):
        cells = [cell(kept[method, lag]) if (method, lag) in kept else "" for lag, cell in columns.values()]
        lines.append(f"| {LABELS[method]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def held_out_cell(runs: list[Run]) -> str:
    values = [final(run) for run in runs]
    spread = f" ({min(values):.2f} - {max(values):.2f})" if len(values) > 1 else ""
    return f"{mean(values):.2f}{spread}"


def lowest_cell(runs: list[Run]) -> str:
    return f"{min(min(list(run['held_out'].values())[len(run['held_out']) // 2 :]) for run in runs):.2f}"


def figure_cell(name: str) -> Callable[[list[Run]], str]:
    def cell(runs: list[Run]) -> str:
        values = [run["figures"][name] for run in runs if name in run["figures"]]
        return f"{mean(values):.2f}" if values else ""

    return cell


def draw(forced: Kept, real: Kept, path: Path) -> None:
    """Held-out reward over the run, a panel a lag; below, its end over the lag, and the end of the asynchronous runs."""
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25})
    lags = lags_of(forced)
    shown = [method for method in STYLES if any((method, lag) in forced for lag in lags)]
    figure = plt.figure(figsize=(13, 8.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1.15])
    curves = above.subplots(1, len(lags), sharey=True, squeeze=False)[0]
    for axis, lag in zip(curves, lags, strict=True):
        for method in shown:
            if (method, lag) in forced:
                draw_curve(axis, forced[method, lag], method)
        axis.set(title=f"lag {lag}", xlabel="updates", ylim=(-0.02, 1.02))
    curves[0].set_ylabel("held-out reward")
    ends, loop = below.subplots(1, 2, sharey=True, width_ratios=[1.5, 1])
    draw_ends(ends, forced, shown, lags)
    ends.set(title="after the last update, by forced lag", xlabel="updates that the sampler is behind", ylabel="held-out reward")
    if real:
        draw_ends(loop, real, shown, lags_of(real))
    loop.set(title="after the last update, agentrl train", xlabel="max_staleness", ylim=(-0.02, 1.02))
    handles, labels = ends.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_curve(axis: Any, runs: list[Run], method: str) -> None:
    """Mean over seeds, and a band from the smallest to the largest."""
    colour, mark, dash = STYLES[method]
    steps = [int(step) for step in runs[0]["held_out"]]
    values = [list(run["held_out"].values()) for run in runs]
    columns = list(zip(*values, strict=True))
    axis.fill_between(steps, [min(one) for one in columns], [max(one) for one in columns], color=colour, alpha=0.12, linewidth=0)
    axis.plot(steps, [mean(one) for one in columns], color=colour, marker=mark, linestyle=dash, markersize=5, linewidth=1.6)


def draw_ends(axis: Any, kept: Kept, methods: Sequence[str], lags: Sequence[int]) -> None:
    """The end of each run, methods side by side at each lag; bars reach from the smallest to the largest of the seeds."""
    for place, method in enumerate(methods):
        colour, mark, _ = STYLES[method]
        at = [index + (place - (len(methods) - 1) / 2) * 0.09 for index, lag in enumerate(lags) if (method, lag) in kept]
        values = [[final(run) for run in kept[method, lag]] for lag in lags if (method, lag) in kept]
        means = [mean(one) for one in values]
        bars = [
            [middle - min(one) for middle, one in zip(means, values, strict=True)],
            [max(one) - middle for middle, one in zip(means, values, strict=True)],
        ]
        axis.errorbar(at, means, yerr=bars, color=colour, marker=mark, linestyle="none", markersize=8, capsize=3, label=LABELS[method])
    for edge in range(1, len(lags)):
        axis.axvline(edge - 0.5, color="0.8", linewidth=1)
    axis.grid(visible=False, axis="x")
    axis.set_xticks(range(len(lags)), [str(lag) for lag in lags])
    axis.set_xlim(-0.5, len(lags) - 0.5)
