"""The VOC palette and masks written with it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from bidir.files import write_bytes


def voc_palette() -> np.ndarray:
    """VOC's 256 colours, (256, 3) uint8: bit k of the three colours comes from bits 3k.. of the id."""
    ids = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette


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
