"""VOC's palette, and masks drawn over images."""

import numpy as np
from PIL import Image

from bidir.data.overlay import draw_overlay, save_palette_png, voc_palette


def test_palette_is_vocs(tmp_path):
    """The first colours of the VOC devkit's colour map: aeroplane, bicycle, bird, ..., tvmonitor."""
    palette = voc_palette()
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    assert all(tuple(palette[i]) == colour for i, colour in known.items())
    assert tuple(palette[255]) == (224, 224, 192)
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    save_palette_png(mask, tmp_path / "m.png")
    written = Image.open(tmp_path / "m.png")
    assert written.mode == "P"
    np.testing.assert_array_equal(np.array(written), mask)
    np.testing.assert_array_equal(np.array(written.convert("RGB")), palette[mask])


def test_overlay_colours_contours_and_hatching():
    image = np.full((60, 80, 3), 100, np.uint8)
    mask = np.zeros((60, 80), np.uint8)
    mask[10:30, 10:50] = 2
    mask[40:, :] = 255
    drawn = draw_overlay(image, mask, ())
    np.testing.assert_array_equal(drawn[5, 5], image[5, 5])
    np.testing.assert_array_equal(drawn[20, 15], np.round(55 + 0.45 * voc_palette()[2]))
    assert (drawn[9, 10:50] == 255).all()  # contour
    assert (drawn[29, 10:50] == 255).all()
    assert 0.2 < (drawn[42:, :, 0] != 100).mean() < 0.5
    assert (draw_overlay(image, mask, ("a", "b")) != drawn).any()  # the name
