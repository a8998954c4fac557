"""A mask drawn over its image: VOC's colours, contours, class names; the palette, and masks written with it."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation, distance_transform_cdt

from bidir.atomic import write_bytes
from bidir.config import IGNORE


def draw_overlay(image: np.ndarray, mask: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """image (H, W, 3) uint8, mask (H, W) of 0..C and 255 -> (H, W, 3) uint8.
    Ignored pixels are hatched in grey. ``names`` of the C classes stand where ``named_regions`` says; (): none."""
    colour = voc_palette()[mask].astype(float)
    pixels = image.astype(float)
    foreground = (mask > 0) & (mask != IGNORE)
    pixels[foreground] = 0.55 * pixels[foreground] + 0.45 * colour[foreground]
    rows, columns = np.indices(mask.shape)
    hatch = (mask == IGNORE) & ((rows + columns) % 6 < 2)
    pixels[hatch] = 0.4 * pixels[hatch] + 0.6 * 160
    contour = _contour(mask)
    pixels[binary_dilation(contour) & ~contour] *= 0.55  # seen on snow too
    pixels[contour] = 255
    canvas = Image.fromarray(pixels.round().astype(np.uint8))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(max(10, min(mask.shape) // 14))
    for x, y, name in named_regions(mask, names) if names else ():
        draw.text((x, y), name, "white", font, anchor="mm", stroke_width=2, stroke_fill="black")
    return np.asarray(canvas)


def named_regions(mask: np.ndarray, names: tuple[str, ...]) -> list[tuple[int, int, str]]:
    """x, y and name of each foreground class that covers 1 % of a mask: at its thickest spot, clear of other names."""
    height, width = mask.shape
    labels: list[tuple[int, int, str]] = []
    large = [i for i in np.unique(mask) if i not in (0, IGNORE) and (mask == i).mean() >= 0.01]
    spots = [(*_thickest_spot(mask == index), names[index - 1]) for index in large]
    for x, y, name in sorted(spots, key=lambda spot: spot[1]):
        half, line = round(0.028 * len(name) * width), round(0.09 * height)  # about half a name's width; its height
        x = min(max(x, half), max(width - 1 - half, half))
        near = [there for at, there, other in labels if abs(x - at) < half + round(0.028 * len(other) * width)]
        y = max([y, *(there + line for there in near if y - there < line)])
        labels.append((x, min(y, height - 1), name))
    return labels


def _contour(mask: np.ndarray) -> np.ndarray:
    """Pixels whose right or lower neighbour has another class (ignored pixels draw no contour)."""
    edge = np.zeros(mask.shape, bool)
    for axis in (0, 1):
        here, there = np.moveaxis(mask, axis, 0)[:-1], np.moveaxis(mask, axis, 0)[1:]
        np.moveaxis(edge, axis, 0)[:-1] |= (here != there) & (here != IGNORE) & (there != IGNORE)
    return edge


def _thickest_spot(region: np.ndarray) -> tuple[int, int]:
    """x, y of a point as far from the region's outside as any, in steps to a neighbour."""
    depth = distance_transform_cdt(np.pad(region, 1), "taxicab")
    deepest = np.argwhere(depth == depth.max())
    y, x = deepest[len(deepest) // 2]
    return int(x) - 1, int(y) - 1


def voc_palette() -> np.ndarray:
    """VOC's 256 colours, (256, 3) uint8: bit k of the three colours comes from bits 3k.. of the id."""
    bit, channel = np.arange(8)[:, None], np.arange(3)
    bits = (np.arange(256)[:, None, None] >> (3 * bit + channel)) & 1
    return (bits << (7 - bit)).sum(1).astype(np.uint8)


def save_palette_png(mask: np.ndarray, path: Path) -> None:
    """Write a mask (H, W) uint8 as palette PNG, as VOC's masks are; atomic."""
    image = Image.fromarray(mask)
    image.putpalette(voc_palette().tobytes())
    save_png(image, path)


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG; atomic."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())
