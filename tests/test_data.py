"""Datasets and augmentation: determinism, what is opened when, and every kind of bad input."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from bidir.config import ConfigError, RunConfig
from bidir.data import DataError, Split, open_split
from bidir.data.loader import StepSampler, TrainingCrops, WholeImages, augment, make_loader, same_size_batches
from bidir.data.scenes import SCENE_CLASSES, prepare_scenes, render_scene
from bidir.palette import save_palette_png, voc_palette
from bidir.training import check_data


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


@pytest.mark.parametrize("source", ["file", "xml", "masks"])
def test_voc_labels_are_the_same_from_each_source(voc, source):
    split = open_split(voc.replace(label_source=source, classes=["dog", "cat"]), "train")
    assert split.class_names == ("dog", "cat")
    assert split.names == ("a", "b")  # c holds neither
    assert split.labels.tolist() == [[False, True], [True, True]]


def test_masks_are_mapped_to_the_subset(voc):
    split = open_split(voc.replace(classes=["dog"]), "train")
    mask = split.read_mask(0)
    assert (mask[10:20, 20:30] == 1).all()  # dog, VOC's 12
    assert (mask[10:20, :10] == 255).all()  # cat: a known class outside the subset
    assert (mask[0] == 255).all()
    assert (mask[25:] == 0).all()


def test_training_opens_no_mask(voc, tmp_path):
    shutil.rmtree(tmp_path / "SegmentationClass")
    crops = TrainingCrops(open_split(voc, "train"), voc)
    assert crops[0, 0].mask is None
    with pytest.raises(DataError, match="no masks"):
        open_split(voc, "val").check(masks=True)


def test_folder_reads_the_csv(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "x.png")
    Image.new("L", (40, 40)).save(tmp_path / "y.jpg")  # grey: converted
    table = pd.DataFrame({"file": ["x.png", "y.jpg"], "labels": ["zebra ant", "ant"], "split": ["train", "val"]})
    table.to_csv(tmp_path / "labels.csv", index=False)
    config = RunConfig(dataset="folder", data_root=str(tmp_path))
    split = open_split(config, "train")
    assert split.class_names == ("ant", "zebra")
    assert split.labels.tolist() == [[True, True]]
    assert open_split(config, "val").read_image(0).shape == (40, 40, 3)
    assert open_split(config, "val").class_names == ("ant", "zebra")  # also where val holds no zebra
    with pytest.raises(ConfigError, match="part = 'test'"):
        open_split(config, "test")
    twins = pd.DataFrame({"file": ["x.png", "a/x.png"], "labels": ["ant", "ant"], "split": ["train", "train"]})
    twins.to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(DataError, match="a second image is called 'x'"):
        open_split(config, "train")
    table.drop(columns="split").to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(DataError, match="set holdout"):
        open_split(config, "val")
    assert len(open_split(config.replace(holdout=0.5), "val")) == 1


def test_holdout_parts_the_training_list(voc):
    config = voc.replace(holdout=0.34)
    train, val = open_split(config, "train"), open_split(config, "val")
    assert sorted(train.names + val.names) == ["a", "b", "c"]
    assert len(val) == 1


def break_list(root):
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a\nghost\n")


def break_labels(root):
    (root / "labels.txt").write_text("a cat\nb cat unicorn\nc person\n")


def empty_labels(root):
    (root / "labels.txt").write_text("a cat\nb\nc person\n")


def truncate_jpeg(root):
    path = root / "JPEGImages" / "b.jpg"
    path.write_bytes(path.read_bytes()[:400])


def shrink_mask(root):
    save_palette_png(np.zeros((20, 25), np.uint8), root / "SegmentationClass" / "d.png")


def unknown_id(root):
    save_palette_png(np.full((40, 50), 77, np.uint8), root / "SegmentationClass" / "d.png")


def colour_mask(root):
    Image.new("RGB", (50, 40)).save(root / "SegmentationClass" / "d.png")


@pytest.mark.parametrize(
    ("damage", "changes", "message"),
    [
        (lambda root: None, {"data_root": "/nowhere"}, "data_root = '/nowhere'"),
        (lambda root: shutil.rmtree(root / "JPEGImages"), {}, "no folder JPEGImages"),
        (lambda root: (root / "ImageSets/Segmentation/train.txt").write_text(""), {}, "names no image"),
        (lambda root: None, {"train_list": "trian"}, "lists in that folder: train, val"),
        (break_list, {}, "ghost.jpg: missing, named in"),
        (break_labels, {}, "image 'b' has label 'unicorn'; known: aeroplane"),
        (empty_labels, {}, "image 'b' has no labels"),
        (lambda root: (root / "labels.txt").write_text("a cat\n"), {}, "no line for image 'b'"),
        (lambda root: (root / "labels.txt").unlink(), {}, "labels.txt'"),
        (lambda root: None, {"classes": ["catt"]}, "['catt'] not in the class list"),
        (lambda root: None, {"classes": ["bus"]}, "no image with any of the classes bus"),
        (lambda root: None, {"holdout": 0.01}, "leaves one side empty"),
        (truncate_jpeg, {}, "b.jpg: the image cannot be read"),
        (shrink_mask, {}, "mask of (25, 20) pixels for an image of (50, 40)"),
        (unknown_id, {}, "unknown ids [77]"),
        (colour_mask, {}, "a mask needs one channel"),
        (unknown_id, {"label_source": "masks"}, "d.png: unknown ids [77]; known: 0..20"),
        (lambda root: (root / "SegmentationClass/b.png").unlink(), {"label_source": "masks"}, "b.png: the mask cannot"),
        (lambda root: (root / "SegmentationClass/d.png").unlink(), {}, "d.png: the mask cannot be read"),
        (lambda root: None, {"val_list": "train"}, "a.jpg (3 in all) is to be trained on and scored on"),
        (lambda root: None, {"crop_size": 101}, "crop_size = 101 is larger than every image, even at scale_max (100 "),
    ],
)  # fmt: skip
def test_bad_datasets_are_named(voc, tmp_path, damage, changes, message):
    damage(tmp_path)
    config = voc.replace(**changes)
    with pytest.raises(DataError) as error:
        check_data(open_split(config, "train"), open_split(config, "val"), config, progress=False)
    assert message in str(error.value)


def test_check_lists_every_problem(voc, tmp_path):
    truncate_jpeg(tmp_path)
    (tmp_path / "JPEGImages" / "a.jpg").write_bytes(b"not a picture")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8))
    noise.save(tmp_path / "c.png")
    start, _, rest = (tmp_path / "c.png").read_bytes().partition(b"IDAT")
    broken = start + b"IDAT" + rest.replace(b"IDAT", bytes(4))  # Pillow raises SyntaxError
    (tmp_path / "JPEGImages" / "c.jpg").write_bytes(broken)
    with pytest.raises(DataError) as error:
        open_split(voc, "train").check(masks=False, progress=False)
    assert all(f"{name}.jpg: the image cannot be read" in str(error.value) for name in "abc")


def test_scenes_are_fixed_by_seed_and_index(quick):
    first, again = render_scene(quick, 5), render_scene(quick, 5)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], render_scene(quick.replace(scenes_seed=1), 5)[0])
    assert not np.array_equal(first[0], render_scene(quick, 6)[0])


def test_scenes_are_in_voc_layout_with_true_checksums(quick):
    root = prepare_scenes(quick)
    assert prepare_scenes(quick) == root  # written once
    split = open_split(quick, "train")
    assert len(split) == quick.scenes_train
    assert split.class_names == SCENE_CLASSES
    for index in range(8):
        image, mask = render_scene(quick, index)
        np.testing.assert_array_equal(split.read_mask(index), mask)
        assert np.abs(split.read_image(index).astype(int) - image).mean() < 4  # JPEG
        present = {SCENE_CLASSES[i - 1] for i in np.unique(mask) if i not in (0, 255)}
        assert present == {n for n, there in zip(SCENE_CLASSES, split.labels[index], strict=True) if there}
        assert present
    import hashlib

    for line in (root / "checksums.md5").read_text().splitlines():
        digest, name = line.split(maxsplit=1)
        assert hashlib.md5((root / name).read_bytes()).hexdigest() == digest
    assert json.loads((root / "knobs.json").read_text())["scenes_size"] == quick.scenes_size


def test_knobs_do_what_they_say(quick):
    def area(**changes):
        return sum((render_scene(quick.replace(**changes), i)[1] > 0).sum() for i in range(12))

    assert area(scenes_part_size=2.0) > 1.03 * area(scenes_part_size=1.0) > 1.03 * area(scenes_part_size=0.3)
    from bidir.data.creatures import CREATURES, HABITATS, draw_creature, draw_habitat

    assert {habitat for _, habitat in CREATURES.values()} == set(HABITATS)
    alike = [
        draw_creature("lion", 60, (30, 30), 30, 1.0, similarity, np.random.default_rng(i))[30, 30, :3]
        for similarity in (0.0, 1.0)
        for i in range(20)
    ]
    spread = np.std(alike[:20], 0).mean(), np.std(alike[20:], 0).mean()
    assert spread[0] < spread[1]  # own colour: nearly fixed; shared colours: vary
    assert draw_habitat("snow", 64, np.random.default_rng(0))[0].mean() > 180


def test_a_half_written_dataset_is_named(quick, tmp_path):
    root = prepare_scenes(quick.replace(data_root=str(tmp_path), scenes_train=2, scenes_val=1))
    (root / "DONE").unlink()
    with pytest.raises(DataError, match="delete the folder"):
        prepare_scenes(quick.replace(data_root=str(tmp_path), scenes_train=2, scenes_val=1))


def gradient(height, width):
    """An image whose red is its row and whose green is its column, so that a crop tells where it is from."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, torch.full_like(rows, 7)]).to(torch.uint8)


def test_crops_keep_image_and_mask_together_and_say_where_the_image_is():
    config = RunConfig(crop_size=64, scale_min=0.4, scale_max=2.5)
    image = gradient(60, 90)
    mask = image[:1] // 10  # a mask made from the rows, so that it can be compared with the image
    sizes = set()
    for seed in range(60):
        crop, cut, box = augment(image, mask, config, np.random.default_rng(seed))
        top, left, bottom, right = box.tolist()
        inside = torch.zeros(64, 64, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        assert (crop[2][inside] == 7).all()
        assert (crop[2][~inside] == 104).all()
        assert (cut[~inside] == 255).all()
        assert (cut[inside] - crop[0][inside].long() // 10).abs().max() <= 1
        columns = crop[1][inside].view(bottom - top, right - left)[0].int()
        assert columns.diff().min() >= 0 or columns.diff().max() <= 0  # upright or mirrored
        sizes.add((bottom - top, right - left))
    assert (64, 64) in sizes
    assert min(min(s) for s in sizes) < 40


def test_scale_of_a_crop_is_the_one_drawn():
    config = RunConfig(crop_size=50, scale_min=2.0, scale_max=2.0)
    crop, _, _ = augment(gradient(100, 100), None, config, np.random.default_rng(0))
    assert crop[0].float().max() - crop[0].float().min() == pytest.approx(25, abs=2)


def batches(config, workers, start=0):
    split = open_split(config, "train")
    sampler = StepSampler(len(split), config, start)
    return list(make_loader(TrainingCrops(split, config), sampler, workers))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # four workers on two cores are meant
def test_batches_do_not_depend_on_workers_or_where_training_started(quick):
    config = quick.replace(iterations=14, color_jitter=0.3)  # into a second epoch of 48 images
    alone = batches(config, 0)
    torch.manual_seed(99)
    for workers, start in ((1, 0), (4, 0), (0, 5)):
        others = batches(config, workers, start)
        assert len(others) == 14 - start
        for a, b in zip(alone[start:], others, strict=True):
            assert torch.equal(a.image, b.image)
            assert torch.equal(a.index, b.index)
            assert torch.equal(a.box, b.box)
    assert sorted(torch.cat([b.index for b in alone[:12]]).tolist()) == list(range(48))  # each once an epoch


def test_processes_share_the_global_batch(quick):
    whole = list(StepSampler(48, quick))
    shares = [list(StepSampler(48, quick, rank=rank, world=2)) for rank in range(2)]
    for batch, first, second in zip(whole, *shares, strict=True):
        assert sorted(first + second) == sorted(batch)
        assert len(first) == len(second)


def test_whole_images_batch_by_size(voc):
    sizes = np.array([[4, 6], [5, 5], [4, 6], [4, 6]])
    assert sorted(map(sorted, same_size_batches(sizes, 2))) == [[0, 2], [1], [3]]
    sample = WholeImages(open_split(voc, "val"), size=100)[0]
    assert sample.image.shape == (3, 80, 100)
    assert sample.mask.shape == (40, 50)


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


def test_manifest_tells_datasets_apart(voc, tmp_path):
    split = open_split(voc, "train")
    assert split.manifest() == open_split(voc, "train").manifest()
    assert isinstance(split, Split)
    (tmp_path / "labels.txt").write_text("a cat\nb cat\nc person\n")
    assert split.manifest() != open_split(voc, "train").manifest()
