"""A look at a whole dataset before it is trained on: counts, sizes, class balance, and all that is wrong with it."""

from collections.abc import Callable

import numpy as np

from bidir.config import DataError, RunConfig
from bidir.data.open import open_split
from bidir.data.split import Split


def describe_dataset(config: RunConfig) -> None:
    """Print counts, sizes, ids and class balance of both parts. Errors: ``DataError`` with all that is wrong with them,
    which is what training refuses."""
    parts, problems = [], []
    for part in ("train", "val"):
        try:
            parts.append(open_split(config, part))
        except DataError as error:
            problems.append(f"{part}: {error}")
    if problems:
        raise DataError("\n".join(problems))
    check_files(*parts, config, progress=True, tell=print)


def check_files(
    train: Split, val: Split, config: RunConfig, progress: bool, tell: Callable[[str], None] | None = None
) -> Split:
    """Look at every file that a run will open; returns the validation images as checked.
    ``tell`` is called with what is there. Errors: ``DataError`` with all that is wrong."""
    problems, checked = [], {}
    if train.class_names != val.class_names:
        problems.append(f"classes of train {train.class_names} and val {val.class_names} differ; set classes")
    if shared := sorted({*train.images} & {*val.images}):
        problems.append(f"{shared[0]} ({len(shared)} in all) is to be trained on and scored on; mixed-up lists?")
    if train.labels.all() or not train.labels.any():
        shows = f"{'every' if train.labels.any() else 'no'} training image shows {', '.join(train.class_names)}"
        problems.append(f"train: {shows}: nothing to tell apart; add images that do not (of empty labels), or do")
    looks = [
        ("train", train, config.supervision == "full", None),
        ("val", val, bool(val.masks), config.eval_size if val.masks else None),
    ]
    if config.score_train:
        looks.append(("train, scored", train.select(train.spread(config.score_train)), True, config.eval_size))
    for part, split, masked, eval_size in looks:
        try:
            found = checked[part] = split.check(masked, progress, eval_size)
            told = f"{describe(found)}{held_against_labels(found) if masked else ''}\n"
            if tell:
                tell(f"{part}: {told}")
        except DataError as error:
            problems.append(f"{part}: {error}")
    if config.crop_size > (
        longest := checked["train"].sizes.max() * config.scale_max if "train" in checked else np.inf
    ):
        most = f"every image, even at scale_max ({longest:.0f} px)"
        problems.append(f"crop_size = {config.crop_size} is larger than {most}; set at most {int(longest)}")
    if problems:
        raise DataError("\n".join(problems))
    return checked["val"]


def describe(split: Split) -> str:
    """Counts, sizes, class balance and ids of a split that was checked."""
    sides = np.percentile(split.sizes, (0, 50, 100), axis=0).T
    height, width = ("/".join(f"{side:.0f}" for side in row) for row in sides)
    told = f"{len(split)} images {'with' if split.masks else 'without'} masks, height {height} width {width} px "
    told += f"(least/median/most), {split.labels.sum(1).mean():.2f} classes each; by id in masks:"
    if split.left_out:
        told += f"\n  left out: {split.left_out}"
    counts = [(~split.labels.any(1)).sum(), *split.labels.sum(0)]
    for number, name, count in zip(split.mask_ids, ("background alone", *split.class_names), counts, strict=True):
        told += f"\n{number:>5} {name:>16} {count:6d} images {count / len(split):6.1%}"
        told += "  <- none" if number and not count else ""
    return told


def held_against_labels(split: Split) -> str:
    """Where masks and image labels of a split that was checked differ; "" if nowhere.
    Errors: ``DataError`` if they do in nearly all images that can tell one class from another."""
    labels, found = split.labels, split.shown[:, 1:]
    wrong, telling = (labels != found).any(1), labels.any(1) & (~labels.all(1) | (labels.shape[1] == 1))
    counts = zip(split.class_names, (labels & ~found).sum(0), (found & ~labels).sum(0), strict=True)
    told = f"\n  masks and labels differ in {wrong.sum()} images ({wrong.mean():.0%}): " + "; ".join(
        f"{name} labelled without a pixel in {lacking}, with pixels but without label in {more}"
        for name, lacking, more in counts if lacking or more
    )  # fmt: skip
    if wrong.any() and wrong.sum() >= 0.9 * (wrong | telling).sum():
        ids = ", ".join(f"{number} {name}" for number, name in zip(split.mask_ids[1:], split.class_names, strict=True))
        raise DataError(f"{told}; masks have ids of another order? 0 background, {ids}, 255 ignored")
    told = told if wrong.any() else ""
    return told if split.shown[:, 0].any() else f"{told}\n  no mask holds a pixel of background, id 0"
