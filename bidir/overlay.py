"""A mask drawn over its image: colours of the VOC palette, contours and class names, so that colour is not all."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bidir.data.split import IGNORE
from bidir.palette import voc_palette


def draw_overlay(image: np.ndarray, mask: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """image (H, W, 3) uint8, mask (H, W) of 0..C and 255 -> (H, W, 3) uint8.

    Ignored pixels are hatched in grey. ``names`` of the C classes stand where ``named_regions`` says; (): none.
    """
    colour = voc_palette()[mask].astype(float)
    pixels = image.astype(float)
    foreground = (mask > 0) & (mask != IGNORE)
    pixels[foreground] = 0.55 * pixels[foreground] + 0.45 * colour[foreground]
    rows, columns = np.indices(mask.shape)
    hatch = (mask == IGNORE) & ((rows + columns) % 6 < 2)
    pixels[hatch] = 0.4 * pixels[hatch] + 0.6 * 160
    contour = _contour(mask)
    pixels[_grown(contour) & ~contour] *= 0.55  # seen on snow too
    pixels[contour] = 255
    canvas = Image.fromarray(pixels.round().astype(np.uint8))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(max(10, min(mask.shape) // 14))
    for x, y, name in named_regions(mask, names) if names else ():
        draw.text((x, y), name, "white", font, anchor="mm", stroke_width=2, stroke_fill="black")
    return np.asarray(canvas)


def named_regions(mask: np.ndarray, names: tuple[str, ...]) -> list[tuple[int, int, str]]:
    """x, y and name for each foreground class of a mask that covers 1 % of it: at its thickest spot, off the sides
    and clear of the names above it."""
    height, width = mask.shape
    found: list[tuple[int, int, str]] = []
    spots = []
    for index in np.unique(mask[(mask > 0) & (mask != IGNORE)]):
        if (mask == index).mean() >= 0.01:
            spots.append((*_thickest_spot(mask == index), names[index - 1]))
    for x, y, name in sorted(spots, key=lambda spot: spot[1]):
        half, line = round(0.028 * len(name) * width), round(0.09 * height)  # about half a name's width; its height
        x = min(max(x, half), max(width - 1 - half, half))
        near = [there for at, there, other in found if abs(x - at) < half + round(0.028 * len(other) * width)]
        y = max([y, *(there + line for there in near if y - there < line)])
        found.append((x, min(y, height - 1), name))
    return found


def _contour(mask: np.ndarray) -> np.ndarray:
    """Pixels whose right or lower neighbour has another class (ignored pixels draw no contour)."""
    edge = np.zeros(mask.shape, bool)
    for axis in (0, 1):
        here, there = np.moveaxis(mask, axis, 0)[:-1], np.moveaxis(mask, axis, 0)[1:]
        differs = (here != there) & (here != IGNORE) & (there != IGNORE)
        np.moveaxis(edge, axis, 0)[:-1] |= differs
    return edge


def _grown(region: np.ndarray) -> np.ndarray:
    """The region and its four-neighbours."""
    wide = np.pad(region, 1)
    return wide[1:-1, 1:-1] | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]


def _thickest_spot(region: np.ndarray) -> tuple[int, int]:
    """x, y of a point that survives the most erosions: far inside the region's largest part."""
    inside = np.pad(region, 1)
    while True:
        eroded = ~_grown(~inside)
        if not eroded.any():
            y, x = np.argwhere(inside)[len(np.argwhere(inside)) // 2]
            return int(x) - 1, int(y) - 1
        inside = eroded
