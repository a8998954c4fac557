"""Figures from numbers: curves, seeds with intervals; and how a figure is written."""

import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bidir.atomic import write_bytes, write_text
from bidir.run.folder import RunFolder
from bidir.study.intervals import differences, mean_interval, t_interval
from bidir.study.tables import MAP_TITLES, SHOWN, Maps, of_maps, saving

PAGE = 7.2  # inches: both columns of a paper
MARKERS, DASHES = "osD", ("-", "--", ":", "-.")
UNDATED = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}  # the same figure, the same bytes
LOSSES = {name: name for name in ("cls", "c2s", "s2c", "aff")}
CURVES = {"raw/branch_s": "Branch-S", "ms/y_c": "$Y_c$", "ms/cam": "CAM"}


def use_style() -> None:
    """The project's one style, from ``style.mplstyle``."""
    plt.style.use(Path(__file__).with_name("style.mplstyle"))


def subplots(*shape: int, **options: Any) -> tuple[Figure, Any]:
    """``plt.subplots`` of a closed figure: it is shown where a cell returns or displays it, and nowhere else."""
    figure, axes = plt.subplots(*shape, **options)
    plt.close(figure)
    return figure, axes


def save_figure(figure: Figure, stem: Path, data: pd.DataFrame, caption: str, dpi: int = 200) -> None:
    """Write ``figure`` as PNG, PDF and SVG, its numbers (with run ids) as CSV, its caption as Markdown."""
    with saving(stem.parent):
        for kind, metadata in UNDATED.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
            write_bytes(stem.with_suffix(f".{kind}"), buffer.getvalue())
        write_text(stem.with_suffix(".csv"), data.to_csv(index=False, float_format="%.6g"))
        write_text(stem.with_suffix(".md"), caption.strip() + "\n")


def plot_seeds(
    axis: Axes, table: pd.DataFrame, x: str, value: str, order: list, hue: str | None = None, paired: str | None = None
) -> None:
    """In percent: every row (a run) as a dot, beside it the mean as a dash with its 95 % t-interval, in ``order`` of x.
    ``hue``: a column whose values get a colour and a marker each. Thin lines join the runs of a seed along ``paired``,
    the column that is compared: ``x`` (default) or ``hue``."""
    hues = list(dict.fromkeys(table[hue])) if hue else [None]
    apart = 0.8 / len(hues)
    number = table[hue].map(hues.index) if hue else 0
    place = table[x].map(order.index) + apart * (number - (len(hues) - 1) / 2)
    dots = table.assign(percent=100 * table[value], dot=place - 0.2 * apart, number=number)
    for _, runs in dots.sort_values("dot").groupby(["seed", x if hue and paired == hue else "number"]):
        axis.plot(runs["dot"], runs["percent"], color="0.6", lw=0.5, alpha=0.6, zorder=1)
    for i, runs in dots.groupby("number"):
        look = {"mfc": "white" if i % 2 else None, "mew": 0.7, "color": f"C{i}", "label": hues[i]}
        axis.plot(runs["dot"], runs["percent"], MARKERS[i % 3], ms=2.8, **look)
    import seaborn as sns  # takes as long to import as all else here

    drawn = len(axis.lines)
    sns.pointplot(
        data=dots, x=x, y="percent", order=order, ax=axis, errorbar=t_interval, capsize=0.1, linestyle="none",
        marker="_", markersize=8, markeredgewidth=1.6, err_kws={"linewidth": 1.1}, dodge=apart * (len(hues) - 1),
        **({"hue": hue, "palette": [f"C{i}" for i in range(len(hues))]} if hue else {"color": "C0"}), legend=False,
    )  # fmt: skip
    for line in axis.lines[drawn:]:  # the interval stands to the right of its dots
        line.set_xdata(np.asarray(line.get_xdata(), float) + 0.2 * apart)
    axis.set(xlabel="", ylabel="")


def plot_maps(scores: pd.DataFrame, x: str, order: list, hue: str | None = None, maps: Maps = SHOWN) -> Figure:
    """``mean_scores`` by ``x``, one panel per map, each with those of ``order`` that it has runs of."""
    parts = [of_maps(scores, (key,)) for key in maps]
    orders = [[value for value in order if value in set(part[x])] for part in parts]
    widths = [*map(len, orders)]
    figure, axes = subplots(1, len(maps), figsize=(PAGE, 2.3), sharey=True, squeeze=False, width_ratios=widths)
    for axis, part, values, (_, name) in zip(axes[0], parts, orders, maps, strict=True):
        plot_seeds(axis, part, x, "iou", values, hue)
        axis.set_title(MAP_TITLES[name])
    axes[0, 0].set_ylabel("mIoU (%)")
    if hue:
        axes[0, 0].legend()
    return figure


def plot_differences(
    scores: pd.DataFrame, numbers: pd.DataFrame, column: str, names: dict[tuple, str], maps: Maps = SHOWN
) -> tuple[Figure, pd.DataFrame]:
    """``compare`` of mIoU in points, a row per pair of ``names`` (its name), a panel per map; and what was drawn.
    Filled, blue where 0 is left out: means, from three seeds on with their 95 % t-interval; hollow: the seeds."""
    pairs = [pair for pair in names if pair in set(zip(numbers["first"], numbers["second"], strict=True))]
    keys = ["first", "second", "protocol", "map"]
    drawn = differences(of_maps(scores, maps), column, pairs, keys[2:], "iou")
    drawn = drawn[[*keys, "seed", "iou", "run_id_first", "run_id"]].merge(numbers, on=keys)
    figure, axes = subplots(1, len(maps), figsize=(PAGE, 0.7 + 0.3 * len(pairs)), sharey=True, squeeze=False)
    for axis, key in zip(axes[0], maps, strict=True):
        for pair, rows in of_maps(drawn, (key,)).groupby(["first", "second"]):
            at, row = pairs.index(pair), rows.iloc[0]
            look = {"color": "C0" if row["reading"] in ("higher", "lower") else "0.35"}
            half = 100 * row["half_width"] if row["seeds"] > 2 else None
            axis.errorbar(100 * row["mean"], at, xerr=half, fmt="D", capsize=2, lw=1.2, **look)
            axis.plot(100 * rows["iou"], [at + 0.27] * len(rows), "o", ms=2.4, mfc="white", mew=0.6, **look)
        axis.axvline(0, color="black", lw=0.6)
        axis.grid(axis="x")
        axis.set_title(MAP_TITLES[key[1]])
    axes[0, 0].set_yticks(range(len(pairs)), [names[pair] for pair in pairs])
    axes[0, 0].set_ylim(len(pairs) - 0.4, -0.6)
    axes[0, len(maps) // 2].set_xlabel("difference of mIoU (points)", x=len(maps) % 2 / 2)  # the middle of all panels
    return figure, drawn


def plot_curves(
    runs: dict[str, Path], losses: dict[str, str] = LOSSES, maps: dict[str, str] = CURVES, pale: Collection[str] = ()
) -> Figure:
    """Loss terms and validation mIoU over the iterations of runs, by legend name; ``pale`` ones are not in the legend.
    ``losses``: term -> title; ``maps``: protocol/map -> title."""
    figure, (left, right) = subplots(1, 2, figsize=(PAGE, 2.8))
    for number, (name, path) in enumerate(runs.items()):
        rows, facts, dash = pd.DataFrame(RunFolder(path).rows()), RunFolder(path).facts(), DASHES[number % 4]
        final = facts.get("results", {})  # on all images, the others on some: a point of its own
        for axis, titles, mark in ((left, losses, ""), (right, maps, "o")):
            for colour, (column, title) in enumerate(titles.items(), number if len(titles) == 1 else 0):
                look = {"color": f"C{colour}", "alpha": 0.35 if name in pale else 1}
                if column in rows:
                    values = rows.set_index("step")[column].dropna() * facts["config"].get(f"lambda_{column}", 1.0)
                    values = values.ewm(span=8).mean() if axis is left else 100 * values
                    label = None if name in pale else f"{title}, {name}" if len(runs) > 1 else title
                    axis.plot(values, mark + dash, label=label, **look)
                if column in final:
                    axis.plot(facts["config"]["iterations"], 100 * final[column], "o", mfc="white", **look)
    left.set(title="Loss terms, weighted (smoothed)", xlabel="iteration", yscale="log")
    right.set(title="Validation mIoU (%); hollow: all images", xlabel="iteration")
    for axis in (left, right):
        if axis.get_legend_handles_labels()[0]:  # none if all are pale, or not validated on the way
            axis.legend(ncols=4 if len(runs) == 1 else 2, fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return figure


def plot_dynamics(curves: pd.DataFrame, titles: dict[str, str], hues: list[str], starts: list[int]) -> Figure:
    """``over_training``, a panel for each name of ``titles``, in percent: means over the runs of each supervision in
    ``hues`` with their 95 % t-intervals; dotted lines at ``starts``."""
    figure, axes = subplots(2, 4, figsize=(PAGE, 3.6), sharex=True)
    curves = curves.query("name != 'c2s_share' or supervision != 'full'").dropna(subset="value")  # the mask, all of it
    for axis, (name, title) in zip(axes.flat, titles.items(), strict=True):
        for number, label in enumerate(hues):
            rows = curves[(curves["name"] == name) & (curves["supervision"] == label)]
            for kind, part in rows.sort_values("step").groupby("kind"):
                _plot_band(axis, part, kind, number, label)
        for start in starts:
            axis.axvline(start, color="0.5", lw=0.6, ls=":")
        bottom, top = axis.get_ylim()
        axis.set(title=title, ylim=(max(0, bottom), min(100, top)))
    plt.setp(axes[1], xlabel="iteration")
    axes[0, 0].set_ylabel("mIoU (%)")
    axes[1, 0].set_ylabel("mIoU or share (%)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=len(hues))
    return figure


def _plot_band(axis: Axes, rows: pd.DataFrame, kind: str, number: int, label: str) -> None:
    """Means over runs with intervals: final scores hollow and apart, those on the way joined, shares smoothed."""
    look, values = {"color": f"C{number}"}, rows.groupby("run_id")["value"]
    if kind == "train":
        rows = rows.assign(value=values.transform(lambda run: run.rolling(5, min_periods=1).mean()))
    line = 100 * mean_interval(rows, ["step"], "value").set_index("step")[["mean", "half_width"]].fillna(0)
    middle, half = line["mean"], line["half_width"]
    if kind == "final":  # on all images: not the same scale as the points before it
        hollow = {"fmt": MARKERS[number], "mfc": "white", "capsize": 2, "lw": 1, "label": label}
        axis.errorbar(line.index * (1 + 0.05 * (number - 1)), middle, half, **hollow, **look)
    else:
        axis.plot(middle, "-" if kind == "train" else MARKERS[number] + "-", **look)
        for edge in (middle - half, middle + half):
            axis.plot(edge, lw=0.4, **look)
        axis.fill_between(line.index, middle - half, middle + half, alpha=0.12, lw=0, **look)


def plot_cost(cost: pd.DataFrame) -> Figure:
    """Seconds and memory of each part, as ``bidir benchmark`` measures: a row per setting, in brackets times full."""
    settings = cost.groupby("setting", sort=False)
    size = {"figsize": (PAGE, 0.5 + 0.24 * len(cost)), "height_ratios": settings.size()}
    figure, axes = subplots(len(settings), 2, **size, squeeze=False)
    for row, (setting, part) in zip(axes, settings, strict=True):
        spread = [part["seconds_per_step"] - part["seconds_least"], part["seconds_most"] - part["seconds_per_step"]]
        drawn = ("seconds_per_step", "ratio", "{:.3g}", spread), ("peak_memory_mib", "memory_ratio", "{:.0f}", None)
        for axis, (column, ratio, form, lines) in zip(row, drawn, strict=True):
            bars = axis.barh(part["part"], part[column], xerr=lines, color="C0", height=0.65, error_kw={"lw": 0.8})
            labels = part[column].map(form.format) + part[ratio].map(lambda x: f" ({x:.2f})" if x == x else "")
            axis.bar_label(bars, labels, fontsize=6, padding=2)
            axis.margins(x=0.25)
            axis.grid(axis="x")
            axis.invert_yaxis()
        row[0].set_title(setting)
        row[1].set_yticklabels([])
    axes[-1, 0].set_xlabel("seconds")
    axes[-1, 1].set_xlabel("peak memory (MiB)")
    return figure
