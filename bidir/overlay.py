"""A mask drawn over its image: colours of the VOC palette, contours and class names, so that colour is not all."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bidir.data.split import IGNORE
from bidir.palette import voc_palette


def draw_overlay(image: np.ndarray, mask: np.ndarray, class_names: tuple[str, ...], names: bool = True) -> np.ndarray:
    """image (H, W, 3) uint8, mask (H, W) of 0..C and 255 -> (H, W, 3) uint8.

    Ignored pixels are hatched in grey. Names stand at the thickest spot of each class.
    """
    colour = voc_palette()[mask].astype(float)
    pixels = image.astype(float)
    foreground = (mask > 0) & (mask != IGNORE)
    pixels[foreground] = 0.55 * pixels[foreground] + 0.45 * colour[foreground]
    rows, columns = np.indices(mask.shape)
    hatch = (mask == IGNORE) & ((rows + columns) % 6 < 2)
    pixels[hatch] = 0.4 * pixels[hatch] + 0.6 * 160
    pixels[_contour(mask)] = 255
    canvas = Image.fromarray(pixels.round().astype(np.uint8))
    if names:
        draw = ImageDraw.Draw(canvas)
        font = ImageFont.load_default(max(10, min(mask.shape) // 14))
        for index in np.unique(mask[foreground]):
            x, y = _thickest_spot(mask == index)
            draw.text((x, y), class_names[index - 1], "white", font, anchor="mm", stroke_width=2, stroke_fill="black")
    return np.asarray(canvas)


def _contour(mask: np.ndarray) -> np.ndarray:
    """Pixels whose right or lower neighbour has another class (ignored pixels draw no contour)."""
    edge = np.zeros(mask.shape, bool)
    for axis in (0, 1):
        here, there = np.moveaxis(mask, axis, 0)[:-1], np.moveaxis(mask, axis, 0)[1:]
        differs = (here != there) & (here != IGNORE) & (there != IGNORE)
        np.moveaxis(edge, axis, 0)[:-1] |= differs
    return edge


def _thickest_spot(region: np.ndarray) -> tuple[int, int]:
    """x, y of a point that survives the most erosions: far inside the region's largest part."""
    inside = np.pad(region, 1)
    while True:
        eroded = inside.copy()
        eroded[1:-1, 1:-1] &= inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
        if not eroded.any():
            y, x = np.argwhere(inside)[len(np.argwhere(inside)) // 2]
            return int(x) - 1, int(y) - 1
        inside = eroded
