"""Preparation of VOC with SBD and of COCO: miniature trees in the published formats, the whole way to training."""

import functools
import hashlib
import http.server
import json
import shutil
import tarfile
import threading

import nbformat
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import SBDataset, VOCSegmentation, voc
from typer.testing import CliRunner

from bidir.cli import app
from bidir.config import RunConfig
from bidir.data import DataError, open_split
from bidir.data.coco import prepare_coco
from bidir.data.prepare import PUBLISHED, prepare_voc
from bidir.data.voc import VOC_CLASSES
from bidir.execution import run_notebook
from bidir.prediction import export_pseudo_masks
from bidir.runs import load_checkpoint
from bidir.training import fit

SIZE = (64, 48)  # width, height
TINY = {"dataset": "voc", "iterations": 3, "batch_size": 2, "crop_size": 48, "eval_every": 0, "warmup_iterations": 1,
        "c2s_start": 1, "s2c_start": 1, "propagation_start": 2, "encoder_weights": "random",
        "device": "cpu"}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools


def photo(path, mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"L": SIZE[::-1], "RGB": (*SIZE[::-1], 3), "CMYK": (*SIZE[::-1], 4)}[mode]
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape, np.uint8), mode).save(path)


def palette_mask(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask.astype(np.uint8), "P")
    image.putpalette(list(range(256)) * 3)
    image.save(path)


def block(value, background=0):
    """A mask whose upper left quarter is ``value``."""
    mask = np.full(SIZE[::-1], background, np.uint8)
    mask[: SIZE[1] // 2, : SIZE[0] // 2] = value
    return mask


VOC_LISTS = {"train": ["t1", "t2"], "val": ["v1", "v2"], "test": ["x1"]}
SBD_LISTS = {"train": ["t1", "s1", "v1"], "val": ["s2", "s3"]}  # t1 has VOC's own mask, v1 must not be trained on
LABELS = {"t1": ["dog"], "t2": ["cat", "dog"], "v1": ["dog"], "v2": ["cat"], "s1": ["cat"], "s2": ["tvmonitor"],
          "s3": ["dog", "cat"]}  # fmt: skip


@pytest.fixture
def published_voc(tmp_path):
    """A VOC devkit and SBD, with a grayscale and a CMYK photograph among them."""
    root, sbd = tmp_path / "source" / "VOCdevkit" / "VOC2012", tmp_path / "sbd"
    for i, name in enumerate([*LABELS, "x1"]):
        photo(root / "JPEGImages" / f"{name}.jpg", {"t2": "L", "s1": "CMYK"}.get(name, "RGB"), i)
    for name, classes in LABELS.items():
        objects = "".join(f"<object><name>{c}</name></object>" for c in [*classes, classes[0]])
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    for name, images in VOC_LISTS.items():
        path = root / "ImageSets" / "Segmentation" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(images) + "\n")
    for name in ("t1", "t2", "v1", "v2"):
        palette_mask(root / "SegmentationClass" / f"{name}.png", block(8 if "cat" in LABELS[name] else 12))
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


def test_counts_of_the_published_need_no_leave(published_voc, published_coco, tmp_path, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "voc", {"train": 2, "val": 2, "test": 1, "train_aug": 5})
    monkeypatch.setitem(PUBLISHED, "coco", {"train": 2, "val": 1})
    shutil.rmtree(published_voc[0] / "VOCdevkit" / "VOC2012" / "SegmentationClass")  # training needs none
    folders = (
        prepare_voc(published_voc[0], tmp_path / "voc", published_voc[1]),
        prepare_coco(published_coco, tmp_path / "c"),
    )
    assert all(json.loads((out / "manifest.json").read_text())["published"] for out in folders)


def test_pseudo_masks_of_some_classes_train_a_second_model(published_voc, tmp_path):
    """They carry the dataset's own ids: cat is 8 and dog 12, whatever their place among the model's classes."""
    out = prepare_voc(published_voc[0], tmp_path / "out", published_voc[1], any_count=True)
    config = RunConfig(**TINY, data_root=str(out), train_list="train_aug", classes=("dog", "cat"),
                       runs_dir=str(tmp_path / "runs"))  # fmt: skip
    first = fit(config, progress=False)
    export_pseudo_masks(first / "checkpoint.pt", "train", tmp_path / "pseudo", "cam")
    ids = {path.stem: {*np.unique(np.array(Image.open(path)))} for path in (tmp_path / "pseudo").glob("*.png")}
    assert ids.keys() == {"t1", "t2", "s1", "s3"}
    assert {i for found in ids.values() for i in found} <= {0, 8, 12}
    assert 8 in ids["s1"]
    assert 12 not in ids["s1"]  # its image label says cat
    for path in (tmp_path / "pseudo").glob("*.png"):
        target = out / "SegmentationClass" / path.name
        target.unlink()
        path.rename(target)
    second = fit(config.replace(supervision="full"), progress=False)
    assert (second / "DONE").is_file()


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_voc_with_sbd_the_whole_way_to_training(published_voc, tmp_path):
    source, sbd = published_voc
    out = prepare_voc(source, tmp_path / "out", sbd, any_count=True)
    assert (out / "ImageSets/Segmentation/train_aug.txt").read_text().split() == ["s1", "s2", "s3", "t1", "t2"]
    config = RunConfig(**TINY, data_root=str(out), train_list="train_aug", runs_dir=str(tmp_path / "runs"))
    train = open_split(config, "train")
    found = {name: {c for c, there in zip(VOC_CLASSES, row, strict=True) if there}
             for name, row in zip(train.names, train.labels, strict=True)}  # fmt: skip
    assert found == {name: {*LABELS[name]} for name in train.names}
    masks = {name: train.read_mask(i) for i, name in enumerate(train.names)}
    assert np.array_equal(masks["s2"], block(20))  # tvmonitor, from the .mat
    assert np.array_equal(masks["t1"], block(12))  # VOC's own, not SBD's, which says 8
    with Image.open(out / "SegmentationClass" / "s2.png") as image:
        assert image.mode == "P"
        assert image.getpalette()[60:63] == [0, 64, 128]  # VOC's colour of tvmonitor
    run = fit(config, progress=False)
    assert load_checkpoint(run / "checkpoint.pt")["classes"] == VOC_CLASSES
    told = json.loads((out / "manifest.json").read_text())
    assert told["images"] == {"train": 2, "val": 2, "test": 1, "train_aug": 5}
    assert told["published"] is False
    assert told["sha256"]["image_labels.txt"] == hashlib.sha256((out / "image_labels.txt").read_bytes()).hexdigest()


def test_preparing_goes_on_and_notices_what_changed(published_voc, tmp_path):
    source, sbd = published_voc
    broken = sbd / "cls" / "s3.mat"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:100])
    with pytest.raises(DataError, match=r"s3\.mat: no mask of SBD"):
        prepare_voc(source, tmp_path / "out", sbd, any_count=True)
    made = tmp_path / "out" / "SegmentationClass" / "s1.png"
    before = made.stat().st_mtime_ns
    assert not (tmp_path / "out" / "manifest.json").exists()
    broken.write_bytes(whole)
    out = prepare_voc(source, tmp_path / "out", sbd, any_count=True)
    assert made.stat().st_mtime_ns == before
    told = (out / "manifest.json").read_text()
    prepare_voc(source, out, sbd, any_count=True)
    assert (out / "manifest.json").read_text() == told
    palette_mask(out / "SegmentationClass" / "s1.png", block(3))
    with pytest.raises(DataError, match=r"SegmentationClass changed since manifest\.json"):
        prepare_voc(source, out, sbd, any_count=True)


def remove(path):
    path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s, d: remove(d / "cls" / "s2.mat"), r"s2\.mat: missing, SBD's masks"),
        (lambda s, d: remove(s / "JPEGImages" / "s3.jpg"), r"s3\.jpg: missing"),
        (lambda s, d: remove(s / "Annotations" / "v2.xml"), r"v2\.xml: missing"),
        (lambda s, d: (s / "ImageSets/Segmentation/train.txt").write_text("t1 v2"), "v2 .1 in all. is in train and in"),
        (lambda s, d: savemat(d / "cls" / "s1.mat", {"GTcls": {"Segmentation": block(21)}}), r"s1\.mat: .*id 21"),
        (lambda s, d: savemat(d / "cls" / "s1.mat", {"GTinst": 1}), r"s1\.mat: no mask of SBD"),
        (lambda s, d: (d / "cls").rename(d / "masks"), "no folder cls"),
        (lambda s, d: (d / "cls" / "s1.mat").write_bytes(b""), r"s1\.mat: no mask of SBD"),
        (
            lambda s, d: (s / "ImageSets/Segmentation/test.txt").write_text("s1"),
            "s1 .1 in all. is in test and in train_aug",
        ),
        (lambda s, d: (s / "ImageSets/Segmentation/val.txt").write_text("v1 v1"), "list val names v1 twice"),
    ],
)
def test_what_is_wrong_with_voc_is_named(published_voc, tmp_path, spoil, message):
    source, sbd = published_voc
    spoil(source / "VOCdevkit" / "VOC2012", sbd)
    with pytest.raises(DataError, match=message):
        prepare_voc(source, tmp_path / "out", sbd, any_count=True)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_counts_are_the_published_ones_unless_told_otherwise(published_voc, published_coco, tmp_path):
    with pytest.raises(DataError, match=r"list train holds 2 images, the published one 1464.*--any-count"):
        prepare_voc(*[published_voc[0], tmp_path / "out", published_voc[1]])
    with pytest.raises(DataError, match="list train holds 2 images, the published one 82081"):
        prepare_coco(published_coco, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_is_not_made_from_two_sources(published_voc, published_coco, tmp_path):
    source, sbd = published_voc
    prepare_voc(source, tmp_path / "out", any_count=True)
    with pytest.raises(DataError, match="was begun from other lists"):
        prepare_voc(source, tmp_path / "out", sbd, any_count=True)
    prepare_coco(published_coco, tmp_path / "coco_out", any_count=True)
    edit(published_coco / "annotations" / "instances_val2014.json", lambda c: c["annotations"][0].update(area=1))
    with pytest.raises(DataError, match="was begun from other lists or annotations"):
        prepare_coco(published_coco, tmp_path / "coco_out", any_count=True)


def test_truncated_images_are_all_listed(published_voc, tmp_path):
    source, sbd = published_voc
    for name in ("t1", "s2", "x1"):
        path = source / "VOCdevkit" / "VOC2012" / "JPEGImages" / f"{name}.jpg"
        path.write_bytes(path.read_bytes()[:200])
    unread = ": the image cannot be read.*"
    with pytest.raises(DataError, match=rf"(?s)s2\.jpg{unread}t1\.jpg{unread}x1\.jpg{unread}"):
        prepare_voc(source, tmp_path / "out", sbd, any_count=True)


def test_a_hidden_test_list_needs_no_masks_and_other_masks_must_fit(published_voc, tmp_path):
    out = prepare_voc(*[published_voc[0], tmp_path / "out"], any_count=True)
    config = RunConfig(**TINY, data_root=str(out), runs_dir=str(tmp_path / "runs"))
    for mask in (out / "SegmentationClass").iterdir():
        mask.unlink()
    assert open_split(config, "val").masks is None
    assert (fit(config, progress=False) / "DONE").is_file()  # trained; nothing to score
    Image.new("RGBA", SIZE).save(out / "SegmentationClass" / "v1.png")
    with pytest.raises(DataError, match=r"v1\.png: .*a mask needs one channel"):
        open_split(config, "val").read_mask(0)
    palette_mask(out / "SegmentationClass" / "v1.png", block(33))
    with pytest.raises(DataError, match=r"v1\.png: unknown ids \[33\]"):
        open_split(config, "val").read_mask(0)


def test_coco_the_whole_way_to_training(published_coco, tmp_path):
    out = prepare_coco(published_coco, tmp_path / "out", any_count=True)
    config = RunConfig(**TINY, data_root=str(out), runs_dir=str(tmp_path / "runs"))
    train, val = open_split(config, "train"), open_split(config, "val")
    assert train.class_names == ("traffic_light", "train", "toothbrush")  # by category id
    assert train.names == ("COCO_train2014_000000000001", "COCO_train2014_000000000002")
    assert train.labels.tolist() == [[True, False, True], [True, True, False]]
    first, second = np.zeros(SIZE[::-1]), np.zeros(SIZE[::-1])
    first[:32, :32] = 3
    first[:4, :8] = 1  # the smaller is in front, though it comes first
    second[:, :10] = 2  # the crowd
    second[:10, 5:20] = 1
    assert np.array_equal(train.read_mask(0), first)
    assert np.array_equal(train.read_mask(1), second)
    assert (val.read_mask(0) == 3).sum() == 100
    results = json.loads((fit(config, progress=False) / "run.json").read_text())["results"]
    assert 0 <= results["raw/branch_s"] <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].update(category_id=12), "annotation 1: category 12 is not among"),
        (lambda c: c["annotations"][0].update(image_id=77), "annotation 1: image 77 is not among"),
        (lambda c: c["annotations"][1].update(segmentation=[[1, 2]]), "annotation 2 of COCO_train2014_000000000001"),
        (lambda c: c.pop("categories"), "lacks 'categories'"),
        (lambda c: c["annotations"][1].pop("area"), "number 1 of annotations lacks 'area'"),
        (lambda c: c["images"][0].pop("height"), "number 0 of images lacks 'height'"),
        (lambda c: c["categories"].pop(), "train and val name different categories"),
        (lambda c: c["images"][1].update(file_name="other.jpg"), r"other\.jpg: missing"),
    ],
)
def test_what_is_wrong_with_coco_is_named(published_coco, tmp_path, change, message):
    edit(published_coco / "annotations" / "instances_train2014.json", change)
    with pytest.raises(DataError, match=message):
        prepare_coco(published_coco, tmp_path / "out", any_count=True)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_every_bad_outline_is_listed_and_the_masks_made_stay(published_coco, tmp_path):
    path, out = published_coco / "annotations" / "instances_train2014.json", tmp_path / "out"
    whole = path.read_text()

    def spoil(content):
        for number in (1, 3):
            content["annotations"][number]["segmentation"] = [[1, 2]]

    edit(path, spoil)
    with pytest.raises(DataError, match=r"(?s)annotation 2 of .*annotation 4 of "):
        prepare_coco(published_coco, out, any_count=True)
    path.write_text(whole)
    with pytest.raises(DataError, match="was begun from other lists or annotations"):
        prepare_coco(published_coco, out, any_count=True)
    shutil.rmtree(out)
    masks = sorted((prepare_coco(published_coco, out, any_count=True) / "SegmentationClass").iterdir())
    kept = masks[1].stat().st_mtime_ns
    masks[0].unlink()
    prepare_coco(published_coco, out, any_count=True)
    assert masks[0].is_file()
    assert masks[1].stat().st_mtime_ns == kept


def test_a_json_cut_short_is_named(published_coco, tmp_path):
    path = published_coco / "annotations" / "instances_val2014.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(DataError, match="cut short"):
        prepare_coco(published_coco, tmp_path / "out", any_count=True)


@pytest.fixture
def archive_server(published_voc, tmp_path, monkeypatch):
    """A web server for a VOC archive, in place of Oxford's."""
    served, archive = tmp_path / "served", tmp_path / "served" / "VOC.tar"
    served.mkdir()
    with tarfile.open(archive, "w") as file:
        file.add(published_voc[0] / "VOCdevkit", "VOCdevkit")
    with tarfile.open(served / "SBD.tgz", "w:gz") as file:
        file.add(published_voc[1], "benchmark_RELEASE/dataset")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        digest = hashlib.md5(archive.read_bytes()).hexdigest()
        url = f"http://127.0.0.1:{server.server_port}/VOC.tar"
        monkeypatch.setitem(voc.DATASET_YEAR_DICT["2012"], "url", url)
        monkeypatch.setitem(voc.DATASET_YEAR_DICT["2012"], "md5", digest)
        monkeypatch.setitem(voc.DATASET_YEAR_DICT["2012"], "filename", "VOC.tar")
        monkeypatch.setattr(SBDataset, "url", url.replace("VOC.tar", "SBD.tgz"))
        monkeypatch.setattr(SBDataset, "md5", hashlib.md5((served / "SBD.tgz").read_bytes()).hexdigest())
        monkeypatch.setattr(SBDataset, "filename", "SBD.tgz")
        yield archive
        server.shutdown()


def test_a_broken_download_is_an_error_and_the_next_call_goes_on(archive_server, tmp_path):
    whole, target, sbd = archive_server.read_bytes(), tmp_path / "fetched", tmp_path / "fetched_sbd"
    archive_server.write_bytes(whole[: len(whole) // 2])  # what an interrupted transfer leaves: the checksum is wrong
    digest = hashlib.md5(whole).hexdigest()
    with pytest.raises(DataError, match=rf"(?s)VOC\.tar .MD5 {digest}.*run the same command again"):
        prepare_voc(target, tmp_path / "out", sbd, download=True, any_count=True)
    archive_server.write_bytes(whole)
    out = prepare_voc(target, tmp_path / "out", sbd, download=True, any_count=True)
    assert json.loads((out / "manifest.json").read_text())["images"]["train_aug"] == 5
    assert len(VOCSegmentation(target, "2012", "train")) == 2  # torchvision reads what it fetched
    lost = target / "VOCdevkit" / "VOC2012" / "JPEGImages" / "v1.jpg"
    lost.unlink()
    (target / "VOC.tar.unpacked").unlink()  # as if stopped while unpacking
    archive_server.unlink()  # what was fetched need not be fetched again
    prepare_voc(target, tmp_path / "out", sbd, download=True, any_count=True)
    assert lost.is_file()
    for archive in (target / "VOC.tar", sbd / "SBD.tgz"):
        archive.unlink()
        archive.with_name(f"{archive.name}.unpacked").unlink()
    prepare_voc(target, tmp_path / "out", sbd, download=True, any_count=True)  # one's own copies, unpacked


def test_the_commands(published_voc, tmp_path):
    source, sbd = published_voc
    run, out = CliRunner().invoke, tmp_path / "out"
    result = run(app, ["prepare", "voc", str(source), str(out), "--sbd", str(sbd), "--any-count"])
    assert result.exit_code == 0, result.output
    told = run(app, ["check-data", "-p", "dataset=voc", "-p", f"data_root={out}", "-p", "train_list=train_aug"]).output
    assert "train: 5 images with masks, height 48/48/48 width 64/64/64 px" in told
    assert "dog      3 images  60.0%" in told
    assert "aeroplane      0 images   0.0%  <- none" in told


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of papermill
def test_the_notebook(published_voc, published_coco, tmp_path):
    source, sbd = published_voc
    given = {"source": str(source), "sbd": str(sbd), "out": str(tmp_path / "voc"), "any_count": True}
    run_notebook("01_prepare_data", given, tmp_path / "voc.ipynb")
    given = {"dataset": "coco", "source": str(published_coco), "out": str(tmp_path / "coco_out"), "any_count": True}
    run_notebook("01_prepare_data", given, tmp_path / "coco.ipynb")
    for kind, counts in (("voc", {"train": 2, "val": 2, "test": 1, "train_aug": 5}), ("coco", {"train": 2, "val": 1})):
        folder = tmp_path / ("voc" if kind == "voc" else "coco_out")
        assert json.loads((folder / "manifest.json").read_text())["images"] == counts
        outputs = [o for cell in nbformat.read(tmp_path / f"{kind}.ipynb", 4).cells for o in cell.get("outputs", [])]
        assert sum("image/png" in o.get("data", {}) for o in outputs) == 2
