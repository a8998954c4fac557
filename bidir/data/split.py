"""A list of images with image labels and, where evaluation asks for them, masks."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from bidir.config import IGNORE, DataError
from bidir.progress import bar

UNREADABLE = (OSError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises for files it cannot decode


@dataclass(frozen=True)
class Split:
    """Images, their labels and masks. ``mask_ids[i]`` is the mask value of class ``i`` (0 = background)."""

    class_names: tuple[str, ...]  # C foreground classes
    images: tuple[Path, ...]
    labels: np.ndarray  # (images, C) bool
    masks: tuple[Path, ...] | None  # PNG of class ids
    mask_ids: tuple[int, ...]  # C + 1 values
    other_ids: tuple[int, ...] = ()  # known classes outside the subset: ignored

    def __len__(self) -> int:
        return len(self.images)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(path.stem for path in self.images)

    def select(self, indices: np.ndarray) -> "Split":
        """The images at ``indices``, in that order."""
        images, masks = (paths and tuple(paths[i] for i in indices) for paths in (self.images, self.masks))
        return replace(self, images=images, labels=self.labels[indices], masks=masks)

    def spread(self, count: int) -> np.ndarray:
        """Positions of ``count`` images, evenly spaced; of all if there are no more."""
        return np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int)

    def manifest(self) -> str:
        """Hex digest of class names, image names, file sizes and labels."""
        digest = hashlib.sha256(repr((self.class_names, self.names)).encode())
        digest.update(repr([path.stat().st_size for path in self.images]).encode())
        digest.update(np.packbits(self.labels).tobytes())
        return digest.hexdigest()

    def read_image(self, index: int) -> np.ndarray:
        """Image (H, W, 3) uint8 RGB. Errors: ``DataError`` for a file that is damaged."""
        path = self.images[index]
        try:
            with Image.open(path) as image:
                return np.array(image.convert("RGB"))
        except UNREADABLE as error:
            fix = "replace it or take it off the list"
            raise DataError(f"{path}: the image cannot be read ({error}); {fix}") from error

    def read_mask(self, index: int) -> np.ndarray:
        """Mask (H, W) uint8 of class indices 0..C, ``IGNORE`` where unlabelled.
        Errors: ``DataError`` if there is no mask, it is damaged, of another size or names an unknown id."""
        if self.masks is None:
            raise DataError(f"{self.images[index]}: this dataset has no masks; evaluation needs them")
        path = self.masks[index]
        try:
            with Image.open(path) as image, Image.open(self.images[index]) as photo:
                mask, size = np.array(image), photo.size
        except UNREADABLE as error:
            raise DataError(f"{path}: the mask cannot be read ({error})") from error
        if mask.ndim != 2 or mask.dtype != np.uint8:
            needs = "a mask needs one channel of 8-bit class ids (palette PNG)"
            raise DataError(f"{path}: {mask.shape} {mask.dtype}; {needs}")
        if mask.shape[::-1] != size:
            raise DataError(f"{path}: mask of {mask.shape[::-1]} pixels for an image of {size}; sizes must be equal")
        lookup = np.full(256, -1)
        lookup[list(self.mask_ids)] = range(len(self.mask_ids))
        lookup[[IGNORE, *self.other_ids]] = IGNORE
        if unknown := [int(v) for v in np.unique(mask) if lookup[v] < 0]:
            known = sorted([*self.mask_ids, *self.other_ids])
            raise DataError(f"{path}: unknown ids {unknown}; known: {known} and 255")
        return lookup[mask].astype(np.uint8)

    def check(self, masks: bool, progress: bool = True) -> np.ndarray:
        """Decode every image (and mask, if ``masks``) once; returns sizes (images, 2) as height, width.
        Errors: ``DataError`` that lists all problems, all files having been looked at."""

        def look(index: int) -> tuple[int, int] | str:
            """The size of an image, or what is wrong with it or its mask."""
            try:
                if masks:
                    self.read_mask(index)
                return self.read_image(index).shape[:2]
            except DataError as error:
                return str(error)

        with ThreadPoolExecutor(4) as pool:
            looks = list(bar(pool.map(look, range(len(self))), "check images", len(self), not progress))
        if problems := [item for item in looks if isinstance(item, str)]:
            raise DataError("\n".join(problems))
        return np.array(looks)


def label_matrix(labels: list[list[str]], class_names: tuple[str, ...]) -> np.ndarray:
    """Lists of class names -> (images, C) bool."""
    return np.array([[name in present for name in class_names] for present in labels], dtype=bool)
