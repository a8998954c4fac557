"""Shared fixtures: small generated data, made once; shapes in annotations are checked while testing."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import warnings

import matplotlib
from jaxtyping import install_import_hook

matplotlib.use("Agg")  # here alone: the notebooks' kernels keep their own
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what libraries say while being imported
    rooms = ["bidir.method", "bidir.data", "bidir.run", "bidir.study", "bidir.apply"]
    # an int passes for a float, as PEP 484 says
    install_import_hook(rooms, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
    import bidir
    import bidir.study.pictures

    for name in bidir.__all__:
        getattr(bidir, name)  # loads its module

import json

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from bidir.config import RunConfig
from bidir.data.loader import StepSampler, TrainingCrops, make_loader
from bidir.data.open import dataset_manifest, open_split
from bidir.data.overlay import save_palette_png
from bidir.run.folder import RunFolder
from bidir.run.training import fit

LONGEST = ("test_notebooks.py", "test_training.py", "test_distributed.py")  # files


def pytest_collection_modifyitems(items):
    """The longest files first, so that the workers end together."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="session")
def quick(workspace):
    """The quick preset, writing below a temporary folder; random weights would do, ImageNet's are offline."""
    folders = {"data_root": str(workspace / "data"), "runs_dir": str(workspace / "runs"), "device": "cpu"}
    return RunConfig.from_parameters(folders, "quick")


@pytest.fixture(scope="session")
def folder_of():
    """The folder of the run that a configuration describes."""
    return lambda config: RunFolder.of(config, dataset_manifest(open_split(config, "train"), open_split(config, "val")))


@pytest.fixture(scope="session")
def first_batch():
    """The first batch of training crops of a configuration."""

    def first(config):
        split = open_split(config, "train")
        crops = TrainingCrops(split, config, masks=config.supervision == "full")
        return next(iter(make_loader(crops, StepSampler(len(split), config), 0)))

    return first


@pytest.fixture(scope="session")
def short(quick, workspace):
    """A run of 24 iterations: its configuration and its folder."""
    config = quick.replace(runs_dir=str(workspace / "short"), iterations=24, eval_every=0)
    return config, fit(config, progress=False)


@pytest.fixture
def photos(short, tmp_path):
    """Two images of different size and format."""
    split = open_split(short[0], "val")
    Image.fromarray(split.read_image(0)).save(tmp_path / "one.jpg")
    Image.fromarray(split.read_image(1)[:70, :90]).save(tmp_path / "two.png")
    return tmp_path


@pytest.fixture
def voc(tmp_path):
    """Three small images in VOC layout, labels in a file, in XML and in the masks."""
    random = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    labels = {"a": ["cat"], "b": ["cat", "dog"], "c": ["person"], "d": ["dog"], "e": ["person"]}
    ids = {"cat": 8, "dog": 12, "person": 15}
    for name, present in labels.items():
        Image.fromarray(random.integers(0, 255, (40, 50, 3), np.uint8)).save(tmp_path / "JPEGImages" / f"{name}.jpg")
        mask = np.zeros((40, 50), np.uint8)
        for i, kind in enumerate(present):
            mask[10:20, 20 * i : 20 * i + 10] = ids[kind]
        mask[0] = 255
        save_palette_png(mask, tmp_path / "SegmentationClass" / f"{name}.png")
        objects = "".join(f"<object><name>{kind}</name></object>" for kind in present)
        (tmp_path / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    (tmp_path / "labels.txt").write_text("".join(f"{name} {' '.join(row)}\n" for name, row in labels.items()))
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_text("a\nb\nc\n")
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("d\ne\n")
    return RunConfig(dataset="voc", data_root=str(tmp_path), labels_file="labels.txt", crop_size=32)


SIZE = (64, 48)  # width, height of the miniatures of published datasets


@pytest.fixture(scope="session")
def tiny():
    """Settings of a run on such a miniature."""
    return {"dataset": "voc", "iterations": 3, "batch_size": 2, "crop_size": 48, "eval_every": 0,
            "warmup_iterations": 1, "c2s_start": 1, "s2c_start": 1, "propagation_start": 2,
            "encoder_weights": "random", "device": "cpu"}  # fmt: skip


@pytest.fixture(scope="session")
def block():
    """A mask whose upper left quarter is ``value``."""

    def made(value):
        mask = np.zeros(SIZE[::-1], np.uint8)
        mask[: SIZE[1] // 2, : SIZE[0] // 2] = value
        return mask

    return made


@pytest.fixture(scope="session")
def palette_mask():
    """Writes a mask as published ones are: a palette PNG, here with a palette of greys."""

    def write(path, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(mask.astype(np.uint8), "P")
        image.putpalette(list(range(256)) * 3)
        image.save(path)

    return write


def photo(path, mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"L": SIZE[::-1], "RGB": (*SIZE[::-1], 3), "CMYK": (*SIZE[::-1], 4)}[mode]
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape, np.uint8), mode).save(path)


VOC_LISTS = {"train": ["t1", "t2"], "val": ["v1", "v2"], "test": ["x1"]}
SBD_LISTS = {"train": ["t1", "s1", "v1"], "val": ["s2", "s3"]}  # t1 has VOC's own mask, v1 must not be trained on


@pytest.fixture(scope="session")
def voc_labels():
    """The classes in each image of the miniature of VOC and SBD."""
    return {"t1": ["dog"], "t2": ["cat", "dog"], "v1": ["dog"], "v2": ["cat"], "s1": ["cat"], "s2": ["tvmonitor"],
            "s3": ["dog", "cat"]}  # fmt: skip


@pytest.fixture
def published_voc(tmp_path, voc_labels, block, palette_mask):
    """A VOC devkit and SBD, with a grayscale and a CMYK photograph among them."""
    root, sbd = tmp_path / "source" / "VOCdevkit" / "VOC2012", tmp_path / "sbd"
    for i, name in enumerate([*voc_labels, "x1"]):
        photo(root / "JPEGImages" / f"{name}.jpg", {"t2": "L", "s1": "CMYK"}.get(name, "RGB"), i)
    for name, classes in voc_labels.items():
        objects = "".join(f"<object><name>{c}</name></object>" for c in [*classes, classes[0]])
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    for name, images in VOC_LISTS.items():
        path = root / "ImageSets" / "Segmentation" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(images) + "\n")
    for name in ("t1", "t2", "v1", "v2"):
        palette_mask(root / "SegmentationClass" / f"{name}.png", block(8 if "cat" in voc_labels[name] else 12))
    (sbd / "cls").mkdir(parents=True)
    for name, images in SBD_LISTS.items():
        (sbd / f"{name}.txt").write_text("\n".join(images) + "\n")
        for image in images:
            mask = block(20 if image == "s2" else 8)
            savemat(sbd / "cls" / f"{image}.mat", {"GTcls": {"Segmentation": mask, "CategoriesPresent": 8}})
    return tmp_path / "source", sbd


@pytest.fixture
def published_coco(tmp_path):
    """Two training and one validation image that show objects: a polygon, overlapping polygons, a crowd as RLE."""
    root = tmp_path / "coco"
    width, height = SIZE
    categories = [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "traffic light"}, {"id": 7, "name": "train"}]

    def box(left, top, right, bottom):
        return [[left, top, right, top, right, bottom, left, bottom]]

    def one(number, image, category, outline, area, crowd=0):
        return {"id": number, "image_id": image, "category_id": category, "segmentation": outline, "area": area,
                "iscrowd": crowd}  # fmt: skip

    crowd = {"size": [height, width], "counts": [0, height * 10, height * (width - 10)]}  # the ten left columns
    annotations = {
        "train": [one(1, 1, 3, box(0, 0, 8, 4), 32), one(2, 1, 90, box(0, 0, 32, 32), 1024),
                  one(3, 2, 7, crowd, height * 10, 1), one(4, 2, 3, box(5, 0, 20, 10), 150)],
        "val": [one(5, 4, 90, box(10, 10, 20, 20), 100)],
    }  # fmt: skip
    images = {"train": [1, 2, 3], "val": [4]}  # image 3 shows nothing
    for part, numbers in images.items():
        files = [f"COCO_{part}2014_{n:012d}.jpg" for n in numbers]
        for n, file in zip(numbers, files, strict=True):
            photo(root / f"{part}2014" / file, seed=n)
        listed = [{"id": n, "file_name": file, "width": width, "height": height}
                  for n, file in zip(numbers, files, strict=True)]  # fmt: skip
        content = {"images": listed, "annotations": annotations[part], "categories": categories}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{part}2014.json").write_text(json.dumps(content))
    return root
