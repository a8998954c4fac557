"""Figures and tables: curves, seeds with intervals, maps beside their images; and how they are written."""

from __future__ import annotations

import io
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from tabulate import tabulate

from bidir.config import RunConfig
from bidir.data import Split, open_split
from bidir.data.loader import TrainingCrops, WholeImages, collate
from bidir.evaluation import predict_maps
from bidir.files import write_bytes, write_text
from bidir.overlay import draw_overlay, named_regions
from bidir.runs import load_network, read_rows
from bidir.statistics import compare, mean_interval, percent, seed_count, t_interval
from bidir.supervision import nearest

COLUMN, PAGE = 3.5, 7.2  # inches: one column of a paper, and its two
MAP_TITLES = {
    "cam": "CAM", "seed": "propagated seed", "y_c": r"$Y_c$ (C teaches S)", "y_s": r"$Y_s$ (S teaches C)",
    "branch_c": "Branch-C", "branch_s": "Branch-S", "agreement": "agreement of the branches",
}  # fmt: skip
SHOWN = (("ms", "cam"), ("ms", "y_c"), ("raw", "branch_c"), ("raw", "branch_s"))  # maps of a figure, by default
UNDATED = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}  # the same figure, the same bytes
Maps = tuple[tuple[str, str], ...]
OUTLINE = [withStroke(linewidth=1.2, foreground="black")]


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


def forget(stem: Path) -> None:
    """Remove what was drawn of a figure or table before, since its runs are lacking now."""
    for old in stem.parent.glob(f"{stem.name}.*"):
        old.unlink()


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


def plot_samples(config: RunConfig, count: int = 8) -> Figure:
    """Training crops as the network gets them, with image labels and the box of the true image."""
    split = open_split(config, "train")
    crops = TrainingCrops(split, config)
    figure, axes = plt.subplots(1, count, figsize=(PAGE, PAGE / count + 0.3))
    for axis, index in zip(axes, np.linspace(0, len(split) - 1, count).astype(int), strict=True):
        crop = crops[0, int(index)]
        axis.imshow(crop.image.permute(1, 2, 0).byte().numpy())
        top, left, bottom, right = crop.box.tolist()
        axis.add_patch(
            plt.Rectangle((left, top), right - left - 1, bottom - top - 1, fill=False, color="white", lw=0.8)
        )
        names = [name for name, there in zip(split.class_names, split.labels[index], strict=True) if there]
        axis.set_title("\n".join(names), fontsize=6.5, loc="center")
        axis.axis("off")
    return figure


def plot_curves(runs: dict[str, Path]) -> Figure:
    """Loss terms and validation mIoU over the iterations of one or more runs, by legend name."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 2.4))
    dashes = ["-", "--", ":", "-."]
    for (name, path), dash in zip(runs.items(), dashes * len(runs), strict=False):
        rows = pd.DataFrame(read_rows(path / "metrics.jsonl"))
        facts = json.loads((path / "run.json").read_text())
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


def plot_qualitative(
    checkpoint: Path, images: list[int], maps: Maps = SHOWN, part: str = "val", **where: str
) -> Figure:
    """Rows: images of ``part``; columns: image, mask, then ``maps`` (protocol, name) of a checkpoint.

    ``where`` may override configuration fields such as ``data_root``.
    """
    split, masks = predicted_masks(checkpoint, images, maps, part, **where)
    named = [name for _, name in maps]
    titles = {key: MAP_TITLES[key[1]] + (f", {key[0]}" if named.count(key[1]) > 1 else "") for key in maps}
    return draw_masks(split, images, {titles[key]: found for key, found in masks.items()})


def predicted_masks(
    checkpoint: Path, images: list[int], maps: Maps, part: str = "val", **where: str
) -> tuple[Split, dict[tuple[str, str], dict[int, np.ndarray]]]:
    """The images of ``part``, and per (protocol, map) and image the mask (H, W) uint8 of 0..C, 255 = ignored."""
    network, config, _ = load_network(checkpoint)
    split = open_split(config.replace(**where), part)
    found: dict[tuple[str, str], dict[int, np.ndarray]] = {key: {} for key in maps}
    for i in images:
        batch = collate([WholeImages(split, config.eval_size, masks=False)[i]])
        for protocol in dict(maps):
            names = {m for p, m in maps if p == protocol}
            for name, labels in predict_maps(network, batch, config, protocol, names).items():
                mask = nearest(labels, split.read_image(i).shape[:2])[0]
                found[protocol, name][i] = mask.to(torch.uint8).numpy()
    return split, found


def draw_masks(
    split: Split, images: list[int], masks: dict[str, dict[int, np.ndarray]], rows: list[str] | None = None
) -> Figure:
    """Rows: images of ``split``; columns: image, true mask if there is one, then ``masks`` by title, as overlays."""
    truth = {"mask": {i: split.read_mask(i) for i in images}} if split.masks else {}
    columns: dict[str, dict[int, np.ndarray]] = {"image": {i: split.read_image(i) for i in images}}
    drawn = {**truth, **masks}
    for title, found in drawn.items():
        columns[title] = {i: draw_overlay(split.read_image(i), found[i], names=()) for i in images}
    heights = [columns["image"][i].shape[0] / columns["image"][i].shape[1] for i in images]
    width = PAGE / len(columns)
    figure, axes = plt.subplots(
        len(images), len(columns), figsize=(PAGE, width * sum(heights) + 0.4), squeeze=False,
        gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.0, hspace=0.0)
    for row, i in enumerate(images):
        for axis, (title, pictures) in zip(axes[row], columns.items(), strict=True):
            axis.imshow(pictures[i], interpolation="lanczos")
            for x, y, name in named_regions(drawn[title][i], split.class_names) if title in drawn else ():
                axis.text(x, y, name, color="white", fontsize=6, ha="center", va="center", path_effects=OUTLINE)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if row == 0:
                axis.set_title(title, fontsize=6.5, loc="center")
        if rows:
            axes[row, 0].set_ylabel(rows[row], fontsize=6.5)
    return figure
