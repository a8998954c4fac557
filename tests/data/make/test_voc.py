"""Preparation of VOC with SBD: a miniature in the published formats, the whole way to training."""

import functools
import hashlib
import http.server
import json
import shutil
import tarfile
import threading

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import SBDataset, VOCSegmentation, voc

from bidir.config import DataError, RunConfig
from bidir.data.folders import VOC_CLASSES
from bidir.data.make.voc import PUBLISHED, prepare_voc
from bidir.data.open import open_split
from bidir.run.checkpoint import load_checkpoint
from bidir.run.training import fit


def test_counts_of_the_published_need_no_leave(published_voc, tmp_path, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "voc", {"train": 2, "val": 2, "test": 1, "train_aug": 5})
    shutil.rmtree(published_voc[0] / "VOCdevkit" / "VOC2012" / "SegmentationClass")  # training needs none
    out = prepare_voc(published_voc[0], tmp_path / "voc", published_voc[1])
    assert json.loads((out / "manifest.json").read_text())["published"]


def test_voc_with_sbd_the_whole_way_to_training(published_voc, voc_labels, tiny, block, tmp_path):
    source, sbd = published_voc
    out = prepare_voc(source, tmp_path / "out", sbd, any_count=True)
    assert (out / "ImageSets/Segmentation/train_aug.txt").read_text().split() == ["s1", "s2", "s3", "t1", "t2"]
    config = RunConfig(**tiny, data_root=str(out), train_list="train_aug", runs_dir=str(tmp_path / "runs"))
    train = open_split(config, "train")
    found = {name: {c for c, there in zip(VOC_CLASSES, row, strict=True) if there}
             for name, row in zip(train.names, train.labels, strict=True)}  # fmt: skip
    assert found == {name: {*voc_labels[name]} for name in train.names}
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


def test_preparing_goes_on_and_notices_what_changed(published_voc, palette_mask, block, tmp_path):
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


def unknown_id(source, sbd):
    savemat(sbd / "cls" / "s1.mat", {"GTcls": {"Segmentation": np.full((48, 64), 21, np.uint8)}})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s, d: remove(d / "cls" / "s2.mat"), r"s2\.mat: missing, SBD's masks"),
        (lambda s, d: remove(s / "JPEGImages" / "s3.jpg"), r"s3\.jpg: missing"),
        (lambda s, d: remove(s / "Annotations" / "v2.xml"), r"v2\.xml: missing"),
        (lambda s, d: (s / "ImageSets/Segmentation/train.txt").write_text("t1 v2"), "v2 .1 in all. is in train and in"),
        (unknown_id, r"s1\.mat: .*id 21"),
        (lambda s, d: savemat(d / "cls" / "s1.mat", {"GTinst": 1}), r"s1\.mat: no mask of SBD"),
        (lambda s, d: (d / "cls").rename(d / "masks"), "no folder cls"),
        (lambda s, d: (d / "cls" / "s1.mat").write_bytes(b""), r"s1\.mat: no mask of SBD"),
        (
            lambda s, d: (s / "ImageSets/Segmentation/test.txt").write_text("s1"),
            "s1 .1 in all. is in test and in train_aug",
        ),
        (lambda s, d: (s / "ImageSets/Segmentation/val.txt").write_text("v1\nv1"), "list val names v1 twice"),
    ],
)
def test_what_is_wrong_with_voc_is_named(published_voc, tmp_path, spoil, message):
    source, sbd = published_voc
    spoil(source / "VOCdevkit" / "VOC2012", sbd)
    with pytest.raises(DataError, match=message):
        prepare_voc(source, tmp_path / "out", sbd, any_count=True)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_counts_are_the_published_ones_unless_told_otherwise(published_voc, tmp_path):
    with pytest.raises(DataError, match=r"list train holds 2 images, the published one 1464.*--any-count"):
        prepare_voc(published_voc[0], tmp_path / "out", published_voc[1])
    assert not (tmp_path / "out").exists()


def test_a_folder_is_not_made_from_two_sources(published_voc, tmp_path):
    source, sbd = published_voc
    prepare_voc(source, tmp_path / "out", any_count=True)
    with pytest.raises(DataError, match="was begun from other lists"):
        prepare_voc(source, tmp_path / "out", sbd, any_count=True)


def test_truncated_images_are_all_listed(published_voc, tmp_path):
    source, sbd = published_voc
    for name in ("t1", "s2", "x1"):
        path = source / "VOCdevkit" / "VOC2012" / "JPEGImages" / f"{name}.jpg"
        path.write_bytes(path.read_bytes()[:200])
    unread = ": the image cannot be read.*"
    with pytest.raises(DataError, match=rf"(?s)s2\.jpg{unread}t1\.jpg{unread}x1\.jpg{unread}"):
        prepare_voc(source, tmp_path / "out", sbd, any_count=True)


def test_a_hidden_test_list_needs_no_masks_and_other_masks_must_fit(published_voc, tiny, palette_mask, block, tmp_path):
    out = prepare_voc(published_voc[0], tmp_path / "out", any_count=True)
    config = RunConfig(**tiny, data_root=str(out), runs_dir=str(tmp_path / "runs"))
    for mask in (out / "SegmentationClass").iterdir():
        mask.unlink()
    assert open_split(config, "val").masks is None
    assert (fit(config, progress=False) / "DONE").is_file()  # trained; nothing to score
    Image.new("RGBA", (64, 48)).save(out / "SegmentationClass" / "v1.png")
    with pytest.raises(DataError, match=r"v1\.png: .*a mask needs one channel"):
        open_split(config, "val").read_mask(0)
    palette_mask(out / "SegmentationClass" / "v1.png", block(33))
    with pytest.raises(DataError, match=r"v1\.png: unknown ids \[33\]"):
        open_split(config, "val").read_mask(0)


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
