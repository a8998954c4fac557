"""A look at a whole dataset before it is trained on: counts, sizes, class balance, and all that is wrong with it."""

import numpy as np

from bidir.config import DataError, RunConfig
from bidir.data.open import open_split
from bidir.data.split import Split


def describe_dataset(config: RunConfig) -> None:
    """Print counts, sizes and class balance of both parts. Errors: ``DataError`` with all that is wrong with either."""
    problems = []
    for part in ("train", "val"):
        try:
            print(f"{part}: {describe(open_split(config, part))}\n")
        except DataError as error:
            problems.append(f"{part}: {error}")
    if problems:
        raise DataError("\n".join(problems))


def describe(split: Split) -> str:
    """Counts, sizes and class balance of a split, all its files having been looked at. Errors: as ``Split.check``."""
    sizes = split.check(masks=split.masks is not None)
    height, width = ("/".join(f"{side:.0f}" for side in row) for row in np.percentile(sizes, (0, 50, 100), axis=0).T)
    told = f"{len(split)} images {'with' if split.masks else 'without'} masks, height {height} width {width} px "
    told += f"(least/median/most), {split.labels.sum(1).mean():.2f} classes each"
    for name, count in zip(split.class_names, split.labels.sum(0), strict=True):
        told += f"\n  {name:>16} {count:6d} images {count / len(split):6.1%}" + ("  <- none" if count == 0 else "")
    return told
