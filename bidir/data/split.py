"""A list of images with image labels and, where evaluation asks for them, masks."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bidir.config import IGNORE, DataError
from bidir.data.files import read_ids, read_picture
from bidir.progress import bar


@dataclass(frozen=True)
class Split:
    """Images, their labels and masks. ``mask_ids[i]`` is the mask value of class ``i`` (0 = background)."""

    class_names: tuple[str, ...]  # C foreground classes
    images: tuple[Path, ...]
    labels: np.ndarray  # (images, C) bool
    masks: tuple[Path, ...] | None  # PNG of class ids
    mask_ids: tuple[int, ...]  # C + 1 values
    other_ids: tuple[int, ...] = ()  # known classes outside the subset: ignored
    left_out: str = ""  # what was listed and is not among the images
    sizes: np.ndarray | None = None  # (images, 2) height and width, once checked
    shown: np.ndarray | None = None  # (images, C + 1) bool, classes in the masks that were looked at, once checked

    def __len__(self) -> int:
        return len(self.images)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(path.stem for path in self.images)

    def select(self, indices: np.ndarray) -> "Split":
        """The images at ``indices``, in that order."""
        paths = {name: tuple(of[i] for i in indices) for name in ("images", "masks") if (of := vars(self)[name])}
        rows = {name: of[indices] for name in ("labels", "sizes", "shown") if (of := vars(self)[name]) is not None}
        return replace(self, **paths, **rows)

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
        """Image (H, W, 3) uint8 RGB, as ``read_picture`` has it."""
        return read_picture(self.images[index])

    def read_mask(self, index: int) -> np.ndarray:
        """Mask (H, W) uint8 of class indices 0..C, ``IGNORE`` where unlabelled.
        Errors: ``DataError`` if there is no mask, it is damaged or names an unknown id."""
        if self.masks is None:
            raise DataError(f"{self.images[index]}: this dataset has no masks; evaluation needs them")
        path = self.masks[index]
        mask, lookup = read_ids(path), np.full(256, -1)
        lookup[list(self.mask_ids)] = range(len(self.mask_ids))
        lookup[[IGNORE, *self.other_ids]] = IGNORE
        if unknown := [int(v) for v in np.unique(mask) if lookup[v] < 0]:
            known = sorted([*self.mask_ids, *self.other_ids])
            raise DataError(f"{path}: unknown ids {unknown}; known: {known} and 255")
        return lookup[mask].astype(np.uint8)

    def check(self, masks: bool | None, progress: bool = True, eval_size: int | None = None) -> "Split":
        """Decode every image (and mask, if ``masks``; None: if there) once; returns the same with what was found.
        ``eval_size``: of images to be evaluated. Errors: ``DataError`` that lists all problems, all files having been
        looked at: also masks of other sizes than their images, images too narrow to be evaluated."""

        def one(index: int) -> tuple[tuple[int, int], np.ndarray] | str:
            """The size of an image and the classes in its mask, or what is wrong with them."""
            try:
                shape, shown = self.read_image(index).shape[:2], np.zeros(len(self.class_names) + 1, bool)
                if eval_size is not None and min(shape_of_evaluated(shape, eval_size)) < 2:
                    small = f"{self.images[index]}: {shape[1]} x {shape[0]} px, too narrow to be evaluated"
                    raise DataError(f"{small} at eval_size = {eval_size}; enlarge it or take it off the list")
                if masks or (masks is None and self.masks[index].is_file()):
                    mask = self.read_mask(index)
                    if mask.shape != shape:
                        needs = "sizes must be equal, the image turned as its EXIF orientation says"
                        sizes = f"mask of {mask.shape[::-1]} pixels for an image of {shape[::-1]}"
                        raise DataError(f"{self.masks[index]}: {sizes}; {needs}")
                    shown[[i for i in np.unique(mask) if i != IGNORE]] = True
                return shape, shown
            except DataError as error:
                return str(error)

        with ThreadPoolExecutor(4) as pool:
            looks = list(bar(pool.map(one, range(len(self))), "check images", len(self), not progress))
        if problems := [item for item in looks if isinstance(item, str)]:
            raise DataError("\n".join(problems))
        sizes, shown = zip(*looks, strict=True)
        return replace(self, sizes=np.array(sizes), shown=np.array(shown))


def shape_of_evaluated(shape: tuple[int, int], longest: int) -> tuple[int, int]:
    """Height and width at which an image is evaluated: its longest side as given, or as it is if that is 0."""
    scale = longest / max(shape) if longest else 1
    return tuple(int(side * scale) for side in shape)


def label_matrix(labels: list[list[str]], class_names: tuple[str, ...]) -> np.ndarray:
    """Lists of class names -> (images, C) bool."""
    return np.array([[name in present for name in class_names] for present in labels], dtype=bool)
