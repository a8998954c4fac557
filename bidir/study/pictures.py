"""Pictures of images and the maps made of them, as overlays; torch is imported only where maps are made."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from bidir.config import RunConfig
from bidir.data.overlay import draw_overlay, named_regions, save_palette_png
from bidir.data.split import Split
from bidir.study.figures import PAGE, subplots
from bidir.study.tables import MAP_TITLES, SHOWN, WITH_Y_S, Maps

NAME = {"color": "white", "path_effects": [withStroke(linewidth=1.2, foreground="black")], "parse_math": False}
Masks = dict[str, dict[int, np.ndarray]]  # by title and number of the image


def plot_samples(config: RunConfig, count: int = 8) -> Figure:
    """Training crops as the network gets them, with image labels and the box of the true image."""
    from bidir.data.loader import TrainingCrops
    from bidir.data.open import open_split

    split = open_split(config, "train")
    crops, names = TrainingCrops(split, config), np.array(split.class_names)
    figure, axes = subplots(1, count, figsize=(PAGE, PAGE / count + 0.3))
    for axis, index in zip(axes, np.linspace(0, len(split) - 1, count).astype(int).tolist(), strict=True):
        crop = crops[0, index]
        top, left, bottom, right = crop.box[0].tolist()
        axis.imshow(crop.image[0].permute(1, 2, 0).byte().numpy())
        axis.add_patch(Rectangle((left, top), right - left - 1, bottom - top - 1, fill=False, ec="white", lw=0.8))
        axis.set_title("\n".join(names[split.labels[index]]), fontsize=6.5, loc="center", parse_math=False)
        axis.axis("off")
    return figure


def plot_qualitative(checkpoint: Path, images: list[int], maps: Maps, part: str = "val", **where: str) -> Figure:
    """Rows: images of ``part``; columns: image, mask, then ``maps`` of a checkpoint. ``where``: settings."""
    split, masks = predicted_masks(checkpoint, images, maps, part, **where)
    named = [name for _, name in maps]
    titles = {key: MAP_TITLES[key[1]] + (f", {key[0]}" if named.count(key[1]) > 1 else "") for key in maps}
    return draw_masks(split, images, {titles[key]: made for key, made in masks.items()})


def stored_masks(folder: Path, names: list[str], checkpoint: Path, anew: bool, **where: str) -> Masks:
    """The masks of the maps ``WITH_Y_S`` (by place in ``names``), kept in ``folder`` as palette PNG; made from
    ``checkpoint`` where one is lacking, or ``anew``; without Y_s where there is neither. Errors: ``FileNotFoundError``
    if that takes a checkpoint that is not there."""
    maps = WITH_Y_S if checkpoint.is_file() or (folder / "raw-y_s").is_dir() else SHOWN
    files = {key: {name: folder / "-".join(key) / f"{name}.png" for name in names} for key in maps}
    if anew or not all(file.is_file() for row in files.values() for file in row.values()):
        if not checkpoint.is_file():
            raise FileNotFoundError(f"maps are lacking in {folder}, and there is no {checkpoint}; set runs_dir")
        for key, masks in predicted_masks(checkpoint, names, maps, **where)[1].items():
            for name, mask in masks.items():
                save_palette_png(mask, files[key][name])
    return {MAP_TITLES[key[1]]: {i: np.array(Image.open(file)) for i, file in enumerate(row.values())}
            for key, row in files.items()}  # fmt: skip


def shown_images(config: RunConfig, names: list[str], folder: Path) -> Split:
    """The validation images of ``names``. Of generated scenes no others are rendered, and these into ``folder``."""
    from bidir.data.make.scenes import SCENE_CLASSES, render_scene
    from bidir.data.open import open_split

    if config.dataset != "scenes":
        split = open_split(config, "val")
        return split.select(np.array([split.names.index(name) for name in names]))
    paths = [tuple(folder / f"{name}.{kind}" for name in names) for kind in ("jpg", "png")]
    scenes = [render_scene(config, int(name.removeprefix("scene_"))) for name in names]
    for (image, mask), photo, truth in zip(scenes, *paths, strict=True):
        Image.fromarray(image).save(photo, quality=92)
        save_palette_png(mask, truth)
    ids = range(len(SCENE_CLASSES) + 1)
    return Split(SCENE_CLASSES, paths[0], np.array([np.isin(ids[1:], mask) for _, mask in scenes]), paths[1], (*ids,))


def predicted_masks(checkpoint: Path, images: list, maps: Maps, part: str = "val", **where: str) -> tuple[Split, dict]:
    """The images of ``part``, and per (protocol, map) and image, by number or name as given, the mask (H, W) uint8."""
    import torch

    from bidir.data.loader import WholeImages, collate
    from bidir.data.open import open_split
    from bidir.method.tensors import nearest
    from bidir.run.checkpoint import load_network
    from bidir.run.evaluation import predict_maps

    network, config, _ = load_network(checkpoint)
    split = open_split(config.replace(**where), part)
    wanted = {protocol: {name for p, name in maps if p == protocol} for protocol, _ in maps}
    masks: dict[tuple[str, str], dict] = {key: {} for key in maps}
    for image in images:
        i = split.names.index(image) if isinstance(image, str) else image
        batch = collate([WholeImages(split, config.eval_size, masks=False)[i]])
        for key, labels in predict_maps(network, batch, config, wanted).items():
            masks[key][image] = nearest(labels, split.read_image(i).shape[:2])[0].to(torch.uint8).numpy()
    return split, masks


def draw_masks(split: Split, images: list[int], masks: Masks, rows: list[str] | None = None) -> Figure:
    """Rows: images of ``split``; columns: image, true mask if there is one, then ``masks`` by title, as overlays."""
    photos = [split.read_image(i) for i in images]
    columns = {"image": None, **({"mask": {i: split.read_mask(i) for i in images}} if split.masks else {}), **masks}
    heights = [photo.shape[0] / photo.shape[1] for photo in photos]
    size = (PAGE, PAGE / len(columns) * sum(heights) + 0.4)
    figure, axes = subplots(len(images), len(columns), figsize=size, squeeze=False, height_ratios=heights)
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.0, hspace=0.0)
    for row, (i, photo) in enumerate(zip(images, photos, strict=True)):
        for axis, (title, made) in zip(axes[row], columns.items(), strict=True):
            axis.imshow(draw_overlay(photo, made[i], names=()) if made else photo, interpolation="lanczos")
            for x, y, name in named_regions(made[i], split.class_names) if made else ():
                axis.text(x, y, name, fontsize=6, ha="center", va="center", **NAME)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if row == 0:
                axis.set_title(title, fontsize=6.5, loc="center")
        if rows:
            axes[row, 0].set_ylabel(rows[row], fontsize=6.5, parse_math=False)
    return figure
