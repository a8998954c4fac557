"""``scenes``: a generated multi-label dataset in VOC layout that holds the field's real difficulties.

The part that tells a creature's class is small and sits on a body that all classes share, so class
activation maps under-segment; habitats go with classes, so activations leak; creatures overlap."""

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from bidir.config import DataError, Scenes
from bidir.data.make.creatures import CREATURES, HABITATS, draw_creature, draw_habitat
from bidir.data.overlay import save_palette_png
from bidir.method.tensors import IGNORE
from bidir.progress import bar

SCENE_CLASSES = tuple(CREATURES)
SUPERSAMPLE = 3


def render_scene(config: Scenes, index: int) -> tuple[np.ndarray, np.ndarray]:
    """One scene, fixed by (scenes_seed, index): image (S, S, 3) uint8, mask (S, S) uint8 of 0..6, 255 at edges."""
    random, size = np.random.default_rng((config.scenes_seed, index)), config.scenes_size * SUPERSAMPLE
    count = int(random.choice(3, p=(0.45, 0.35, 0.2))) + 1
    kinds = [SCENE_CLASSES[i] for i in random.permutation(len(SCENE_CLASSES))[:count]]
    at_home = random.random() < config.scenes_context
    habitat = CREATURES[kinds[0]][1] if at_home else list(HABITATS)[random.integers(len(HABITATS))]
    canvas, horizon = draw_habitat(habitat, size, random)
    (rows, columns), mask = np.ogrid[:size, :size], np.zeros((config.scenes_size,) * 2, np.uint8)
    near = np.sort(random.uniform(0.0, 1.0, count))  # painted from far to near
    if count == 1:
        near = random.uniform(0.15, 1.0, 1)
    lanes = (random.permutation(count) + random.uniform(0.25, 0.75, count)) / count
    for kind, depth, lane in zip(random.permutation(kinds), near, lanes, strict=True):
        length = size * (0.2 + 0.3 * depth) * (1.15 if count == 1 else 0.92)
        x = np.clip(size * (0.2 + 0.6 * lane), 0.72 * length, size - 0.72 * length)  # the head stays in view
        feet = size * (horizon + (0.96 - horizon) * (0.3 + 0.7 * depth))
        centre = (x, feet - 0.42 * length)
        layer = draw_creature(kind, size, centre, length, config.scenes_part_size, config.scenes_similarity, random)
        shadow = np.exp(-(((columns - x) / (0.55 * length)) ** 2 + ((rows - feet) / (0.09 * length)) ** 2))
        alpha = layer[..., 3:] / 255
        canvas = canvas * (1 - 0.35 * shadow)[..., None] * (1 - alpha) + layer[..., :3] * alpha
        cover = _shrink(alpha[..., 0], config.scenes_size)
        mask[cover > 0.25] = IGNORE
        mask[cover > 0.75] = 1 + SCENE_CLASSES.index(kind)
    found, counts = np.unique(mask, return_counts=True)
    mask[np.isin(mask, found[counts < 40])] = IGNORE  # all but hidden: neither a label nor background
    return np.clip(_shrink(canvas, config.scenes_size), 0, 255).round().astype(np.uint8), mask


def prepare_scenes(config: Scenes, data_root: Path) -> Path:
    """The folder of the generated dataset below ``data_root``, written once per setting of its knobs.
    Errors: ``DataError`` if the folder is there but was not finished."""
    knobs = {field.name: getattr(config, field.name) for field in fields(Scenes)}
    root = data_root / f"scenes-{hashlib.sha256(json.dumps(knobs, sort_keys=True).encode()).hexdigest()[:10]}"
    if root.exists():
        if not (root / "DONE").is_file():
            raise DataError(f"{root}: there, but without its DONE file; delete the folder, it is made again")
        return root
    draft = root.with_name(f"{root.name}.{os.getpid()}.part")
    try:
        _write(draft, config, knobs)
        os.replace(draft, root)
    except OSError:
        if not (root / "DONE").is_file():  # else another process was faster
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return root


def _write(root: Path, config: Scenes, knobs: dict) -> None:
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    total = config.scenes_train + config.scenes_val
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # most of the work is in NumPy and Pillow
        rows = list(bar(pool.map(partial(_write_scene, root, config), range(total)), "generate scenes", total))
    names, train = [name for name, *_ in rows], config.scenes_train
    lines = {"ImageSets/Segmentation/train.txt": names[:train], "ImageSets/Segmentation/val.txt": names[train:],
             "image_labels.txt": map(" ".join, rows), "classes.txt": ("background", *SCENE_CLASSES),
             "knobs.json": [json.dumps(knobs, indent=1)]}  # fmt: skip
    for name, content in lines.items():
        (root / name).write_text("\n".join(content) + "\n")
    files = sorted(path for path in root.rglob("*") if path.is_file())
    sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(root)}\n" for path in files]
    (root / "checksums.md5").write_text("".join(sums))
    (root / "DONE").touch()


def _write_scene(root: Path, config: Scenes, index: int) -> list[str]:
    """Write scene ``index`` and return its name and the classes to be seen in it."""
    image, mask = render_scene(config, index)
    name = f"scene_{index:05d}"
    Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg", quality=92)
    save_palette_png(mask, root / "SegmentationClass" / f"{name}.png")
    return [name, *(SCENE_CLASSES[i - 1] for i in np.unique(mask) if i not in (0, IGNORE))]


def _shrink(pixels: np.ndarray, size: int) -> np.ndarray:
    """Area-average a (SUPERSAMPLE * size, SUPERSAMPLE * size, ...) array to (size, size, ...)."""
    return pixels.reshape(size, SUPERSAMPLE, size, SUPERSAMPLE, *pixels.shape[2:]).mean((1, 3))
