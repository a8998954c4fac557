"""The one place that says what a file holds: a picture, a mask, a text, a list of images."""

import re
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from bidir.config import DataError

SUFFIXES = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}  # .jpg, .tif, ...


def is_picture(path: Path) -> bool:
    """Whether a file is called as a picture, in capitals or not; hidden files are none."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB as a viewer shows it: turned as EXIF says, 16 bits scaled to 8, white where transparent.
    Errors: ``DataError`` for a file that is damaged, or holds several pictures or numbers of 32 bits."""
    try:
        with Image.open(path) as file:
            several = file.format != "MPO" and getattr(file, "n_frames", 1) > 1  # MPO: a telephone's photograph
            image = ImageOps.exif_transpose(file)
        if image.mode[0] in "IF":  # I;16, I, F
            values = np.asarray(image) / 257
            several |= image.mode == "F" or not 0 <= values.min() <= values.max() < 256
            image = Image.fromarray(values.astype(np.uint8))
        if several:
            raise ValueError("several pictures or numbers of 32 bits; save one with 8 or 16 bits")
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return np.array(image.convert("RGB"))
    except Exception as error:  # Pillow raises many kinds for a damaged file
        raise DataError(f"{path}: the image cannot be read ({error}); replace it or take it off the list") from error


def read_ids(path: Path) -> np.ndarray:
    """Mask (H, W) uint8 of the ids in a file, turned as EXIF says. Errors: ``DataError``."""
    try:
        with Image.open(path) as file:
            lossy, ids = file.format in ("JPEG", "MPO"), np.array(ImageOps.exif_transpose(file))
    except Exception as error:
        raise DataError(f"{path}: the mask cannot be read ({error})") from error
    if lossy or ids.ndim != 2 or ids.dtype.kind not in "bui" or not 0 <= ids.min() <= ids.max() <= 255:
        needs = "a mask needs one channel of 8-bit class ids (palette PNG, no JPEG)"
        raise DataError(f"{path}: {ids.shape} {ids.dtype}; {needs}")
    return ids.astype(np.uint8)


def find(folder: Path, names: list[str], usual: str) -> list[Path]:
    """The picture of each name: ``folder/name.usual`` if that is there, or if no other kind of picture is."""
    paths = [folder / f"{name}{usual}" for name in names]
    lacking = {path.parent for path in paths if not path.is_file() and path.parent.is_dir()}
    there = {file.with_suffix(""): file for place in lacking for file in sorted(place.iterdir()) if is_picture(file)}
    return [path if path.is_file() else there.get(path.parent / path.name.removesuffix(usual), path) for path in paths]


def read_text(path: Path) -> str:
    """A text: UTF-8 or UTF-16, with or without byte-order mark, or Windows-1252. Errors: ``DataError``."""
    raw = path.read_bytes()
    for codec in ("utf-16",) if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else ("utf-8-sig", "cp1252"):
        with suppress(UnicodeError):
            if "\0" not in (text := raw.decode(codec)):
                return text
    raise DataError(f"{path}: no text; save it as UTF-8 (a spreadsheet: as CSV)")


def image_name(text: str) -> str:
    """What a list or table calls an image: its path below JPEGImages, without the suffix of a picture."""
    name = text.strip().replace("\\", "/").rpartition("JPEGImages/")[2].removeprefix("./").lstrip("/")
    return name.removesuffix(Path(name).suffix) if Path(name).suffix.lower() in SUFFIXES else name


def read_list(path: Path, folder: Path | None = None) -> list[str]:
    """The image names in a list of ``ImageSets``, as ``image_name`` has them; beside one may stand its mask or a flag.
    Names with blanks are those of pictures in ``folder``. Errors: ``DataError``."""
    if not path.is_file():
        there = sorted(p.stem for p in path.parent.glob("*.txt"))
        raise DataError(f"{path}: not there; lists in that folder: {', '.join(there) or 'none'}")
    names: list[str] = []
    for line in read_text(path).splitlines():
        words = [image_name(word) for word in re.split(r"[\s,;]+", line) if word]
        if len(words) > 1 and folder and find(folder, [image_name(line)], ".jpg")[0].is_file():
            words = [image_name(line)]
        elif len(words) == 2 and (words[1] in ("-1", "0", "1") or Path(words[0]).name == Path(words[1]).name):
            del words[1]
        names += words
    if not names or any(".." in name.split("/") for name in names):
        raise DataError(f"{path}: names no image, or leads out of JPEGImages; give names of images below that")
    return names


def require(paths: list[Path] | tuple[Path, ...], why: str) -> None:
    """``DataError`` that names the files that are not there, and ``why`` they should be."""
    if missing := [str(path) for path in paths if not path.is_file()]:
        listed = "\n".join(missing[:20]) + ("\n..." if len(missing) > 20 else "")
        count = f" ({len(missing)} in all)" if len(missing) > 1 else ""
        raise DataError(f"{listed}: missing{count}, {why}; add the files or take them off the list")
