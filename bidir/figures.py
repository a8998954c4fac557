"""Figures of runs: curves, scores, and maps beside their images. Each returns a matplotlib figure."""

from __future__ import annotations

import io
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure

from bidir.config import RunConfig
from bidir.data import Split, open_split
from bidir.data.loader import TrainingCrops, WholeImages, collate
from bidir.evaluation import predict_maps
from bidir.files import write_bytes, write_text
from bidir.overlay import draw_overlay
from bidir.runs import load_network, read_rows
from bidir.supervision import nearest

COLUMN, PAGE = 3.5, 7.2  # inches: one column of a paper, and its two
MAP_TITLES = {
    "cam": "CAM", "seed": "propagated seed", "y_c": r"$Y_c$ (C teaches S)", "y_s": r"$Y_s$ (S teaches C)",
    "branch_c": "Branch-C", "branch_s": "Branch-S",
}  # fmt: skip


def use_style() -> None:
    """The project's one style, from ``style.mplstyle``."""
    plt.style.use(Path(__file__).with_name("style.mplstyle"))


def save_figure(figure: Figure, stem: Path, data: pd.DataFrame | None = None) -> None:
    """Write ``stem`` as PNG, PDF and SVG, and the plotted numbers as CSV; each atomic."""
    for kind in ("png", "pdf", "svg"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind)
        write_bytes(stem.with_suffix(f".{kind}"), buffer.getvalue())
    if data is not None:
        write_text(stem.with_suffix(".csv"), data.to_csv(index=False))


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
        final = {"kind": "val", "step": facts["config"]["iterations"], **facts.get("results", {})}
        rows = pd.concat([rows, pd.DataFrame([final])], ignore_index=True)
        train, val = rows[rows["kind"] == "train"], rows[rows["kind"] == "val"]
        for colour, term in enumerate(t for t in ("cls", "c2s", "s2c", "aff") if t in train):
            smooth = train[term].ewm(span=8, ignore_na=True).mean().where(train[term].notna())
            left.plot(train["step"], smooth, dash, color=f"C{colour}", label=f"{term}, {name}")
        for colour, (column, label) in enumerate(
            (("raw/branch_s", "Branch-S"), ("ms/y_c", "$Y_c$"), ("ms/cam", "CAM"))
        ):
            if column in val:
                right.plot(
                    val["step"], 100 * val[column], dash, marker="o", color=f"C{colour}", label=f"{label}, {name}"
                )
    left.set(title="Loss terms, unweighted (smoothed)", xlabel="iteration", yscale="log")
    right.set(title="Validation mIoU on the way (%)", xlabel="iteration")
    for axis in (left, right):
        axis.legend(ncols=1 if len(runs) == 1 else 2, fontsize=6)
    return figure


def plot_scores(scores: pd.DataFrame, hue: str) -> Figure:
    """Final mIoU by map, one dot per run, bars their mean. ``scores``: mean rows with map and ``hue``."""
    figure, axis = plt.subplots(figsize=(PAGE, 2.5))
    data = scores.assign(percent=100 * scores["iou"])
    order = [name for name in MAP_TITLES if name in set(data["map"])]
    shared = {"x": "map", "y": "percent", "hue": hue, "order": order, "ax": axis, "data": data}
    sns.barplot(**shared, errorbar=None, alpha=0.85, palette="colorblind")
    sns.stripplot(**shared, dodge=True, size=4, palette=["#222222"] * data[hue].nunique(), legend=False, jitter=False)
    for bars in axis.containers:
        axis.bar_label(bars, fmt="%.1f", fontsize=6.5, padding=4)
    axis.set(xlabel="", ylabel="mIoU (%)", ylim=(0, 1.1 * data["percent"].max()))
    axis.set_xticks(range(len(order)), [MAP_TITLES[name] for name in order])
    axis.legend(title="", loc="lower left", bbox_to_anchor=(0, 1), ncols=4)  # above the bars
    return figure


def plot_qualitative(
    checkpoints: dict[str, Path],
    images: list[int],
    maps: tuple[tuple[str, str], ...] = (("ms", "cam"), ("ms", "y_c"), ("raw", "branch_c"), ("raw", "branch_s")),
    **where: str,
) -> Figure:
    """Rows: validation images; columns: image, mask, then ``maps`` (protocol, name) of each checkpoint.

    ``where`` may override configuration fields such as ``data_root``.
    """
    columns: list[tuple[str, dict[int, np.ndarray]]] = []
    for name, path in checkpoints.items():
        network, config, _ = load_network(path)
        split = open_split(config.replace(**where), "val")
        if not columns:
            columns = [("image", {i: split.read_image(i) for i in images})]
            if split.masks:
                columns.append(("mask", {i: _overlay(split, i, split.read_mask(i)) for i in images}))
        found = {(p, m): {} for p, m in maps}
        for i in images:
            batch = collate([WholeImages(split, config.eval_size, masks=False)[i]])
            for protocol in dict(maps):
                names = {m for p, m in maps if p == protocol}
                predictions = predict_maps(network, batch, config, protocol, names)
                for map_name, labels in predictions.items():
                    mask = nearest(labels, split.read_image(i).shape[:2])[0]
                    found[protocol, map_name][i] = _overlay(split, i, mask.to(torch.uint8).numpy())
        title = f"\n{name}" if len(checkpoints) > 1 else ""
        columns += [(MAP_TITLES[m] + title, drawn) for (_, m), drawn in found.items()]
    return _grid(columns, images)


def _overlay(split: Split, index: int, mask: np.ndarray) -> np.ndarray:
    return draw_overlay(split.read_image(index), mask, split.class_names)


def _grid(columns: list[tuple[str, dict[int, np.ndarray]]], images: list[int]) -> Figure:
    heights = [columns[0][1][i].shape[0] / columns[0][1][i].shape[1] for i in images]
    width = PAGE / len(columns)
    figure, axes = plt.subplots(
        len(images), len(columns), figsize=(PAGE, width * sum(heights) + 0.4), squeeze=False,
        gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.0, hspace=0.0)
    for row, i in enumerate(images):
        for axis, (title, pictures) in zip(axes[row], columns, strict=True):
            axis.imshow(pictures[i], interpolation="lanczos")
            axis.axis("off")
            if row == 0:
                axis.set_title(title, fontsize=6.5, loc="center")
    return figure
