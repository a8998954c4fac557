"""Figures and tables from numbers: curves, seeds with intervals; and how they are written."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate

from bidir.atomic import write_bytes, write_text
from bidir.run.folder import RunFolder
from bidir.study.intervals import compare, mean_interval, percent, seed_count, t_interval

COLUMN, PAGE = 3.5, 7.2  # inches: one column of a paper, and its two
MAP_TITLES = {
    "cam": "CAM", "seed": "propagated seed", "y_c": r"$Y_c$ (C teaches S)", "y_s": r"$Y_s$ (S teaches C)",
    "branch_c": "Branch-C", "branch_s": "Branch-S", "agreement": "agreement of the branches",
}  # fmt: skip
SHOWN = (("ms", "cam"), ("ms", "y_c"), ("raw", "branch_c"), ("raw", "branch_s"))  # maps of a figure, by default
UNDATED = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}  # the same figure, the same bytes
Maps = tuple[tuple[str, str], ...]


def use_style() -> None:
    """The project's one style, from ``style.mplstyle``."""
    plt.style.use(Path(__file__).with_name("style.mplstyle"))


def save_figure(figure: Figure, stem: Path, data: pd.DataFrame, caption: str, dpi: int = 200) -> None:
    """Write ``stem`` as PNG, PDF and SVG, the plotted numbers (with their run ids) as CSV, the caption as Markdown."""
    for kind in UNDATED:
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=UNDATED[kind])
        write_bytes(stem.with_suffix(f".{kind}"), buffer.getvalue())
    write_text(stem.with_suffix(".csv"), data.to_csv(index=False, float_format="%.6g"))
    write_text(stem.with_suffix(".md"), caption.strip() + "\n")


def save_table(text: pd.DataFrame, numbers: pd.DataFrame, stem: Path, caption: str) -> None:
    """Write ``text`` (cells ready to read) as Markdown and LaTeX, and ``numbers``, which it shows, as CSV."""
    flat = text.reset_index()
    markdown = tabulate(flat, headers="keys", tablefmt="github", showindex=False, disable_numparse=True)
    latex = tabulate(flat, headers="keys", tablefmt="latex_booktabs", showindex=False, disable_numparse=True)
    latex = latex.replace("±", r"$\pm$").replace("−", "$-$")
    write_text(stem.with_suffix(".md"), f"{markdown}\n\n{caption.strip()}\n")
    write_text(stem.with_suffix(".tex"), f"% {caption.strip()}\n{latex}\n")
    write_text(stem.with_suffix(".csv"), numbers.to_csv(index=False, float_format="%.6g"))


def save_differences(scores: pd.DataFrame, column: str, pairs: list[tuple], maps: Maps, stem: Path) -> pd.DataFrame:
    """Write ``compare`` of mIoU for those of ``pairs`` whose both values are there, as ``save_table`` does.

    Errors: ``LookupError`` if there is no such pair.
    """
    pairs = [pair for pair in pairs if {*pair} <= set(scores[column])]
    if not pairs:
        raise LookupError(
            f"of {', '.join(sorted(set(scores[column])))} no two are to be compared; run more of the grid"
        )
    wanted = scores[[key in maps for key in zip(scores["protocol"], scores["map"], strict=True)]]
    numbers = compare(wanted, column, pairs, ["protocol", "map"])
    said = [percent(*row, signed=True) for row in numbers[["mean", "half_width"]].to_numpy()]
    text = numbers.assign(comparison=numbers["second"] + " − " + numbers["first"], difference=said)
    text = text.set_index("comparison")[["protocol", "map", "difference", "seeds", "reading"]]
    told = (
        "Difference of mIoU in points, paired by seed, with the half width of the 95 % t-interval, not corrected for "
        "the number of comparisons; not resolved: the interval holds 0."
    )
    save_table(text, numbers, stem, told)
    return text


def told_runs(scores: pd.DataFrame, by: list[str], dots: bool = True) -> str:
    """What a caption says of its runs: their scale, how many seeds each group of ``by`` has, and what ``plot_seeds``
    drew, if ``dots``. ``scores``: a row per run or more, with the runs' settings.
    """
    scale = scores[["iterations", "batch_size", "crop_size"]].drop_duplicates().to_numpy()
    trained = " or ".join(f"{steps} iterations of {batch} crops of {crop} px" for steps, batch, crop in scale)
    seeds = seed_count(scores.groupby(by)["seed"].nunique())
    drawn = " Dots: runs, those of a seed joined; beside them their mean with its 95 % t-interval." if dots else ""
    return f"Trained for {trained}; {seeds}.{drawn}"


def plot_seeds(
    axis: Axes, table: pd.DataFrame, x: str, value: str, order: list, hue: str | None = None, paired: str | None = None
) -> None:
    """In percent: every seed as a dot, beside it the mean as a dash with its 95 % t-interval, in ``order`` of x.

    ``table``: a row per run; ``hue``: a column whose values get a colour and a marker each. Thin lines join the runs
    of a seed along ``paired``, the column that is compared: ``x`` (default) or ``hue``.
    """
    hues = list(dict.fromkeys(table[hue])) if hue else [None]
    apart = 0.8 / len(hues)
    number = table[hue].map(hues.index) if hue else 0
    place = table[x].map(order.index) + apart * (number - (len(hues) - 1) / 2)
    dots = table.assign(percent=100 * table[value], dot=place - 0.2 * apart, number=number)
    for _, one in dots.sort_values("dot").groupby(["seed", x if hue and paired == hue else "number"]):
        axis.plot(one["dot"], one["percent"], color="0.6", lw=0.5, alpha=0.6, zorder=1)
    for i in range(len(hues)):
        one = dots[dots["number"] == i]
        axis.plot(
            one["dot"], one["percent"], "osD"[i % 3], ms=2.8, mfc="white" if i % 2 else None, mew=0.7, color=f"C{i}"
        )
    shared = {"data": dots, "x": x, "y": "percent", "order": order, "ax": axis, "errorbar": t_interval, "capsize": 0.1}
    shared |= {"hue": hue, "palette": [f"C{i}" for i in range(len(hues))]} if hue else {"color": "C0"}
    look = {"linestyle": "none", "marker": "_", "markersize": 8, "markeredgewidth": 1.6, "err_kws": {"linewidth": 1.1}}
    drawn = len(axis.lines)
    sns.pointplot(**shared, **look, dodge=apart * (len(hues) - 1) if hue else False)
    for line in axis.lines[drawn:]:  # the interval stands to the right of its dots
        line.set_xdata(np.asarray(line.get_xdata(), float) + 0.2 * apart)
    axis.set(xlabel="", ylabel="")
    if axis.get_legend():
        axis.get_legend().remove()


def plot_curves(runs: dict[str, Path]) -> Figure:
    """Loss terms and validation mIoU over the iterations of one or more runs, by legend name."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 2.4))
    dashes = ["-", "--", ":", "-."]
    for (name, path), dash in zip(runs.items(), dashes * len(runs), strict=False):
        folder = RunFolder(path)
        rows, facts = pd.DataFrame(folder.rows()), folder.facts()
        final = facts.get("results", {})  # on all images, the others on some: a point of its own
        train, val = rows[rows["kind"] == "train"], rows[rows["kind"] == "val"]
        for colour, term in enumerate(t for t in ("cls", "c2s", "s2c", "aff") if t in train):
            smooth = train[term].ewm(span=8, ignore_na=True).mean().where(train[term].notna())
            left.plot(train["step"], smooth, dash, color=f"C{colour}", label=f"{term}, {name}")
        for colour, (column, label) in enumerate(
            (("raw/branch_s", "Branch-S"), ("ms/y_c", "$Y_c$"), ("ms/cam", "CAM"))
        ):
            if column in val:
                right.plot(val["step"], 100 * val[column], "o" + dash, color=f"C{colour}", label=f"{label}, {name}")
            if column in final:
                right.plot(facts["config"]["iterations"], 100 * final[column], "o", mfc="white", color=f"C{colour}")
    left.set(title="Loss terms, unweighted (smoothed)", xlabel="iteration", yscale="log")
    right.set(title="Validation mIoU (%); hollow: all images", xlabel="iteration")
    for axis in (left, right):
        axis.legend(ncols=1 if len(runs) == 1 else 2, fontsize=6)
    return figure


def plot_maps(scores: pd.DataFrame, x: str, order: list, hue: str | None = None, maps: Maps = SHOWN) -> Figure:
    """mIoU by ``x``, one panel per map, each with those of ``order`` that it has runs of.

    ``scores``: rows of class ``mean`` with the runs' settings.
    """
    parts = [scores[(scores["protocol"] == protocol) & (scores["map"] == name)] for protocol, name in maps]
    orders = [[value for value in order if value in set(part[x])] for part in parts]
    widths = [len(values) for values in orders]
    figure, axes = plt.subplots(1, len(maps), figsize=(PAGE, 2.3), sharey=True, squeeze=False, width_ratios=widths)
    for axis, part, values, (_, name) in zip(axes[0], parts, orders, maps, strict=True):
        plot_seeds(axis, part, x, "iou", values, hue)
        axis.set_title(MAP_TITLES[name])
    axes[0, 0].set_ylabel("mIoU (%)")
    if hue:
        axes[0, 0].legend()
    return figure


def summarise(scores: pd.DataFrame, by: list[str], maps: Maps = SHOWN) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean mIoU ± half width per ``by`` and map: the text of a table, and its numbers."""
    numbers = mean_interval(scores, [*by, "protocol", "map"], "iou")
    text = numbers.assign(text=[percent(*row) for row in numbers[["mean", "half_width"]].to_numpy()])
    text = text.pivot(index=by, columns=["protocol", "map"], values="text")[list(maps)]
    text.columns = [f"{MAP_TITLES[name].split(' (')[0].replace('$', '')} ({protocol})" for protocol, name in maps]
    seeds = numbers.groupby(by, sort=False)["seeds"].min()
    return text.loc[seeds.index].assign(seeds=seeds), numbers
