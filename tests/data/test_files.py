"""What a picture is: turned, scaled and composed as a viewer shows it; what is none is named."""

import numpy as np
import pytest
from PIL import Image

from bidir.config import DataError
from bidir.data.files import is_picture, read_ids, read_picture, read_text

CORNER = np.zeros((24, 40, 3), np.uint8)
CORNER[:8, :8] = 200  # upper left, as displayed


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_as_its_exif_says_and_fits_the_mask_as_displayed(tmp_path, orientation):
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # Pillow's transpositions: what undoes it
    stored = Image.fromarray(CORNER)
    stored = stored if back is None else stored.transpose(Image.Transpose(back))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("jpg", "png", "tif", "webp"):
        stored.save(tmp_path / f"x.{kind}", exif=exif, **({"quality": 95} if kind == "jpg" else {}))
        shown = read_picture(tmp_path / f"x.{kind}")
        assert shown.shape == CORNER.shape
        assert np.abs(shown.astype(int) - CORNER).mean() < 3, kind


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_grey_of_16_bits_is_scaled(tmp_path, kind):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / f"x.{kind}")
    assert np.abs(read_picture(tmp_path / f"x.{kind}")[..., 0] - ramp / 257).max() <= 1


def test_what_is_transparent_is_white(tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4] = (10, 20, 30, 255)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    shown = read_picture(tmp_path / "x.png")
    assert (shown[:4] == (10, 20, 30)).all()
    assert (shown[4:] == 255).all()


@pytest.mark.parametrize(("mode", "name"), [("F", "x.tif"), ("I", "x.tif")])
def test_numbers_of_32_bits_are_refused(tmp_path, mode, name):
    Image.new(mode, (8, 8), 70000).save(tmp_path / name)
    with pytest.raises(DataError, match="numbers of 32 bits; save one"):
        read_picture(tmp_path / name)


def test_a_mask_keeps_its_ids(tmp_path):
    ids = np.arange(64, dtype=np.uint8).reshape(8, 8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(ids)).save(tmp_path / "x.png", exif=exif)
    assert (read_ids(tmp_path / "x.png") == ids).all()
    Image.new("RGB", (8, 8)).save(tmp_path / "y.png")
    with pytest.raises(DataError, match="one channel of 8-bit"):
        read_ids(tmp_path / "y.png")


def test_pictures_go_by_their_suffix_in_any_case(tmp_path):
    names = ["a.JPG", "b.jpeg", "c.TIFF", "d.gif", "e.webp", "f.bmp", "g.txt", "h", "._i.jpg", "j.pdf"]
    assert [name[0] for name in names if is_picture(tmp_path / name)] == list("abcdef")


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_a_text_of_any_origin(tmp_path, codec):
    (tmp_path / "x").write_bytes("rouge-\u00e9\n".encode(codec))
    assert read_text(tmp_path / "x") == "rouge-\u00e9\n"
