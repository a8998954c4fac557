"""What people's data look like: each row writes a small dataset, and says what must come of it.

To add one: a function that changes the dataset of discs in ``root``, then what is taken or how it is refused."""

import io
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bidir.config import DataError, RunConfig
from bidir.data.make.check import describe_dataset
from bidir.data.open import open_split
from bidir.run.folder import RunFolder
from bidir.run.preflight import check_files
from bidir.run.training import fit
from bidir.study.registry import collect, read_registry, write_registry

NAMES = [f"p{i:02d}" for i in range(12)]  # the first eight are for training
SHOWS = {name: (("blue",), ("red",), ("blue", "red"))[i % 3] for i, name in enumerate(NAMES)}
COLOURS = {"blue": (40, 60, 220), "red": (220, 50, 40)}


def disc(name):
    """A picture of 64 px with a disc on the left of each class in it, and its mask."""
    rows, columns = np.indices((64, 64))
    pixels = np.random.default_rng(int(name[1:])).integers(90, 150, (64, 64, 3)).astype(np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    for i, kind in enumerate(("blue", "red"), 1):
        if kind in SHOWS[name]:
            inside = (rows - 16 - 30 * (i - 1)) ** 2 + (columns - 18) ** 2 < 144
            pixels[inside], mask[inside] = COLOURS[kind], i
    return pixels, mask


def write(layout, root):
    """The dataset of discs, as ``folder`` or in ``voc`` layout."""
    images, masks = ("", "masks") if layout == "folder" else ("JPEGImages", "SegmentationClass")
    for folder in (images, masks):
        (root / folder).mkdir(exist_ok=True)
    for name in NAMES:
        pixels, mask = disc(name)
        Image.fromarray(pixels).save(root / images / f"{name}.jpg", quality=95)
        Image.fromarray(mask).save(root / masks / f"{name}.png")
    if layout == "folder":
        table(root)
    else:
        (root / "ImageSets/Segmentation").mkdir(parents=True)
        (root / "classes.txt").write_text("background\nblue\nred\n")
        lists(root, lambda name: name)
        (root / "image_labels.txt").write_text("".join(f"{name} {' '.join(SHOWS[name])}\n" for name in NAMES))


def table(root, cell=" ".join, sep=",", head="file,labels,split", encoding="utf-8", names=None, part=None):
    """``labels.csv``, with the labels of an image as ``cell`` writes them."""
    names, text = names or {}, io.StringIO()
    rows = [(f"{name}.jpg", cell([names.get(c, c) for c in SHOWS[name]]), (part or "train val".split())[i > 7])
            for i, name in enumerate(NAMES)]  # fmt: skip
    pd.DataFrame(rows, columns=head.split(",")).to_csv(text, index=False, sep=sep)
    (root / "labels.csv").write_bytes(text.getvalue().encode(encoding))


def lists(root, line, **how):
    for part, names in (("train", NAMES[:8]), ("val", NAMES[8:])):
        text = "".join(f"{line(name)}\n" for name in names)
        (root / f"ImageSets/Segmentation/{part}.txt").write_text(text, **how)


def edit(root, name, old, new):
    path = root / name
    path.write_text(path.read_text().replace(old, new))


def relabel(root, **cells):
    """Other labels of some images of ``labels.csv``."""
    rows = pd.read_csv(root / "labels.csv", dtype=str, keep_default_na=False).set_index("file")
    for name, cell in cells.items():
        rows.loc[f"{name}.jpg", "labels"] = cell
    rows.to_csv(root / "labels.csv")


def remask(root, change, folder="masks"):
    for path in (root / folder).iterdir():
        with Image.open(path) as image:
            mask = change(np.array(image))
        Image.fromarray(mask).save(path)


def suffixes(root):
    for i, name in enumerate(NAMES):
        path = root / f"JPEGImages/{name}.jpg"
        if i % 4 == 1:
            path.rename(path.with_suffix(".JPG"))
        elif i % 4 == 2:
            path.rename(path.with_suffix(".jpeg"))
        elif i % 4 == 3:
            with Image.open(path) as image:
                image.save(path.with_suffix((".png", ".tif", ".webp")[i // 4]))
            path.unlink()


def strip(root):
    Image.new("RGB", (600, 2)).save(root / "p09.jpg")
    Image.new("L", (600, 2), 2).save(root / "masks/p09.png")
    relabel(root, p09="red")


def one_class(root, value=1, without=False):
    """Only blue, whose masks have ``value``; some images without it, if so."""
    for i, name in enumerate(NAMES):
        relabel(root, **{name: "" if without and i % 3 else "blue"})
        mask = disc(NAMES[0])[1] * (0 if without and i % 3 else value)
        Image.fromarray(mask.astype(np.uint8)).save(root / f"masks/{name}.png")


def multi_hot(root):
    arrays = {name: np.array([kind in SHOWS[name] for kind in ("blue", "red")], np.float32) for name in NAMES}
    np.save(root / "cls_labels.npy", arrays, allow_pickle=True)


class Evil:
    """Makes a file when it is read by a trusting reader."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def hot(root, head="image,blue,red,split"):
    rows = [f"{n}.jpg,{int('blue' in SHOWS[n])},{int('red' in SHOWS[n])},{'train' if i < 8 else 'val'}"
            for i, n in enumerate(NAMES)]  # fmt: skip
    (root / "labels.csv").write_text("\n".join([head, *rows]) + "\n")


def by_folders(root, parts=True):
    """One folder per class; images of both are taken for those that show none."""
    for i, name in enumerate(NAMES):
        folder = root / (("train", "val")[i > 7] if parts else "") / (SHOWS[name][0] if len(SHOWS[name]) == 1 else "")
        folder.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.jpg").rename(folder / f"{name}.jpg")
    shutil.rmtree(root / "masks")
    (root / "labels.csv").unlink()


def xml(root, objects):
    (root / "Annotations").mkdir()
    for name in NAMES:
        inside = "".join(f"<object><name>{objects(kind)}</name></object>" for kind in SHOWS[name])
        (root / f"Annotations/{name}.xml").write_text(f"<annotation>{inside}</annotation>")


def no_table(root):
    (root / "labels.csv").unlink()
    (root / "classes.txt").write_text("background\nblue\nred\n")


def drop(root, *names):
    for name in names:
        (root / name).unlink()


def numbered(root, layout="folder"):
    """Pictures called 0000.jpg and so on."""
    for i, name in enumerate(NAMES):
        (root / f"{name}.jpg").rename(root / f"{i:04d}.jpg")
        (root / f"masks/{name}.png").rename(root / f"masks/{i:04d}.png")
        edit(root, "labels.csv", name, f"{i:04d}")


LIGHT = {"red": "traffic light"}
ROWS = {  # kind: layout, change, settings, what comes: the classes, or words of the error
    "picture: suffixes in any case": ("voc", suffixes, {}, ("blue", "red")),
    "picture: a strip": (
        "folder",
        strip,
        {"eval_size": 256},
        "p09.jpg: 600 x 2 px, too narrow to be evaluated at eval_size = 256",
    ),
    "picture: a text": ("folder", lambda r: (r / "p03.jpg").write_text("no"), {}, "p03.jpg: the image cannot be read"),
    "picture: two in one file": (
        "folder",
        lambda r: Image.new("L", (64, 64)).save(
            r / "p03.jpg", "TIFF", save_all=True, append_images=[Image.new("L", (64, 64))]
        ),
        {},
        "p03.jpg: the image cannot be read",
    ),
    "ids: 0 and 255": ("folder", lambda r: one_class(r, 255, True), {}, "masks and labels differ in 1 images"),
    "ids: 0 and 255, two classes": (
        "folder",
        lambda r: remask(r, lambda m: 255 * (m > 0).astype(np.uint8)),
        {},
        "blue labelled without a pixel in 3",
    ),
    "ids: other order": (
        "folder",
        lambda r: remask(r, lambda m: np.array([0, 2, 1], np.uint8)[m]),
        {},
        "masks have ids of another order",
    ),
    "ids: shifted": ("folder", lambda r: remask(r, lambda m: m + (m > 0).astype(np.uint8)), {}, "unknown ids [3]"),
    "ids: shifted, voc": (
        "voc",
        lambda r: remask(r, lambda m: m // 2, "SegmentationClass"),
        {},
        "masks and labels differ",
    ),
    "ids: background in labels.csv": (
        "folder",
        lambda r: relabel(r, p03="background blue"),
        {},
        "'background' is no class",
    ),
    "ids: background as a label, listed": (
        "folder",
        lambda r: relabel(r, p03="background"),
        {"classes": ["blue", "red"]},
        "label 'background'",
    ),
    "ids: background as a label of voc": (
        "voc",
        lambda r: edit(r, "image_labels.txt", "p03 ", "p03 background "),
        {},
        "label 'background'; leave",
    ),
    "ids: classes.txt without background": (
        "voc",
        lambda r: (r / "classes.txt").write_text("blue\nred\n"),
        {},
        "begins with 'blue'",
    ),
    "ids: classes.txt with a name twice": (
        "voc",
        lambda r: (r / "classes.txt").write_text("background\nblue\nblue\nred\n"),
        {},
        "class 'blue' is there twice",
    ),
    "ids: background twice": (
        "voc",
        lambda r: (r / "classes.txt").write_text("background\nbackground\nblue\nred\n"),
        {},
        "'background' is no class",
    ),
    "ids: JPEG masks": (
        "folder",
        lambda r: [
            p.rename(p.with_suffix(".jpg")) and Image.fromarray(disc(p.stem)[1]).save(p.with_suffix(".jpg"))
            for p in (r / "masks").glob("*.png")
        ],
        {},
        "no JPEG",
    ),
    "ids: masks of 16 bits": ("folder", lambda r: remask(r, lambda m: m.astype(np.uint16)), {}, ("blue", "red")),
    "ids: masks of one bit": ("folder", lambda r: (one_class(r, 1, True), remask(r, lambda m: m > 0)), {}, ("blue",)),
    "labels: commas": ("folder", lambda r: table(r, ",".join), {}, ("blue", "red")),
    "labels: semicolons": ("folder", lambda r: table(r, ";".join), {}, ("blue", "red")),
    "labels: bars": ("folder", lambda r: table(r, "|".join), {}, ("blue", "red")),
    "labels: strokes": ("folder", lambda r: table(r, " / ".join), {}, ("blue", "red")),
    "labels: a list in Python": ("folder", lambda r: table(r, str), {}, ("blue", "red")),
    "labels: a class with a stroke": (
        "folder",
        lambda r: table(r, ",".join, names={"red": "red/pink"}),
        {"classes": ["blue", "red/pink"]},
        ("blue", "red/pink"),
    ),
    "labels: columns by semicolons": ("folder", lambda r: table(r, ",".join, sep=";"), {}, ("blue", "red")),
    "labels: a comma without quotes": ("folder", lambda r: edit(r, "labels.csv", "blue red", "blue,red"), {}, "line 4"),
    "labels: a blank in a name, commas": (
        "folder",
        lambda r: table(r, ",".join, names=LIGHT),
        {},
        ("blue", "traffic light"),
    ),
    "labels: a blank in a name": ("folder", lambda r: table(r, names=LIGHT), {}, "one class or several"),
    "labels: a blank in a name, listed": (
        "folder",
        lambda r: table(r, names=LIGHT),
        {"classes": ["blue", "traffic light"]},
        ("blue", "traffic light"),
    ),
    "labels: now by commas, now by blanks": (
        "folder",
        lambda r: (table(r, ",".join), relabel(r, p02="blue red")),
        {},
        "one class or several: 'blue red'",
    ),
    "labels: a blank in classes.txt": (
        "voc",
        lambda r: [edit(r, f, "red", "traffic light") for f in ("classes.txt", "image_labels.txt")],
        {},
        ("blue", "traffic light"),
    ),
    "labels: byte-order mark": ("folder", lambda r: table(r, encoding="utf-8-sig"), {}, ("blue", "red")),
    "labels: Windows-1252": (
        "folder",
        lambda r: table(r, encoding="cp1252", names={"red": "rouge-é"}),
        {},
        ("blue", "rouge-é"),
    ),
    "labels: UTF-16": ("folder", lambda r: table(r, encoding="utf-16"), {}, ("blue", "red")),
    "labels: a spreadsheet": (
        "folder",
        lambda r: (r / "labels.csv").write_bytes(b"PK\x03\x04\0\0\x08\0"),
        {},
        "labels.csv: no text",
    ),
    "labels: byte-order mark in voc": (
        "voc",
        lambda r: edit(r, "image_labels.txt", "p00", "\ufeffp00"),
        {},
        ("blue", "red"),
    ),
    "labels: Train, validation": ("folder", lambda r: table(r, part=["Train", " validation"]), {}, ("blue", "red")),
    "labels: no such split": ("folder", lambda r: table(r, part=["a", "b"]), {}, "of split 'a'"),
    "labels: an empty name in XML": (
        "voc",
        lambda r: xml(r, lambda k: k.replace("red", "")),
        {"label_source": "xml"},
        "p01.xml: an object without a name",
    ),
    "labels: blanks in XML": ("voc", lambda r: xml(r, lambda k: f"\n {k} "), {"label_source": "xml"}, ("blue", "red")),
    "labels: dictionary of arrays, voc": ("voc", multi_hot, {"labels_file": "cls_labels.npy"}, ("blue", "red")),
    "labels: dictionary of arrays, other classes": (
        "voc",
        lambda r: (multi_hot(r), (r / "classes.txt").write_text("background\nblue\n")),
        {"labels_file": "cls_labels.npy"},
        "one for each class known",
    ),
    "labels: one column per class": ("folder", hot, {}, ("blue", "red")),
    "labels: one column per class, true or empty": (
        "folder",
        lambda r: (hot(r), edit(r, "labels.csv", ",1", ",True"), edit(r, "labels.csv", ",0", ",")),
        {},
        ("blue", "red"),
    ),
    "labels: one class in two cases": (
        "folder",
        lambda r: relabel(r, p01="Red"),
        {},
        "class 'Red' is there twice",
    ),
    "ids: background as 255": (
        "folder",
        lambda r: remask(r, lambda m: np.where(m, m, 255).astype(np.uint8)),
        {},
        ("blue", "red"),
    ),
    "labels: a column of background": (
        "folder",
        lambda r: hot(r, "image,background,red,split"),
        {},
        "'background' is no class",
    ),
    "labels: one folder per class": ("folder", by_folders, {}, ("blue", "red")),
    "labels: one folder per class, no splits": (
        "folder",
        lambda r: by_folders(r, False),
        {"holdout": 0.3},
        ("blue", "red"),
    ),
    "labels: from masks of a folder": ("folder", no_table, {"label_source": "masks", "holdout": 0.3}, ("blue", "red")),
    "labels: none at all": ("folder", lambda r: (r / "labels.csv").unlink(), {}, "no labels there"),
    "labels: images without a class": (
        "folder",
        lambda r: (
            relabel(r, p02="", p08=""),
            [Image.new("L", (64, 64)).save(r / f"masks/{n}.png") for n in ("p02", "p08")],
        ),
        {},
        ("blue", "red"),
    ),
    "labels: a line of the name alone": (
        "voc",
        lambda r: edit(r, "image_labels.txt", "p02 blue red", "p02"),
        {},
        ("blue", "red"),
    ),
    "labels: XML without an object": (
        "voc",
        lambda r: (xml(r, str), (r / "Annotations/p02.xml").write_text("<annotation/>")),
        {"label_source": "xml"},
        ("blue", "red"),
    ),
    "labels: one class, images without it": ("folder", lambda r: one_class(r, 1, True), {}, ("blue",)),
    "labels: one class everywhere": ("folder", one_class, {}, "every training image shows blue"),
    "labels: no class anywhere": (
        "folder",
        lambda r: relabel(r, **dict.fromkeys(NAMES, "")),
        {"classes": ["blue"]},
        "no labels there",
    ),
    "lists: suffix": ("voc", lambda r: lists(r, "{}.jpg".format), {}, ("blue", "red")),
    "lists: two columns": (
        "voc",
        lambda r: lists(r, "/JPEGImages/{0}.jpg /SegmentationClass/{0}.png".format),
        {},
        ("blue", "red"),
    ),
    "lists: a flag": ("voc", lambda r: lists(r, "{} -1".format), {}, ("blue", "red")),
    "lists: byte-order mark": ("voc", lambda r: lists(r, str, encoding="utf-8-sig"), {}, ("blue", "red")),
    "lists: another machine's paths": (
        "voc",
        lambda r: lists(r, "D:\\VOC\\JPEGImages\\{}.jpg".format),
        {},
        ("blue", "red"),
    ),
    "lists: out of the dataset": ("voc", lambda r: lists(r, "../{}".format), {}, "leads out of JPEGImages"),
    "lists: an image twice": ("voc", lambda r: lists(r, "{0}\n{0}".format), {}, "a second image is called 'p00'"),
    "check: masks for validation only": (
        "folder",
        lambda r: drop(r, *(f"masks/{n}.png" for n in NAMES[:8])),
        {},
        ("blue", "red"),
    ),
    "check: masks for validation only, voc": (
        "voc",
        lambda r: drop(r, *(f"SegmentationClass/{n}.png" for n in NAMES[:8])),
        {},
        ("blue", "red"),
    ),
    "check: one mask is lacking": (
        "folder",
        lambda r: drop(r, "masks/p09.png"),
        {},
        "p09.png: the mask cannot be read",
    ),
    "check: train is val": ("folder", lambda r: None, {"val_list": "train"}, "is to be trained on and scored on"),
    "check: crop too large": (
        "folder",
        lambda r: None,
        {"crop_size": 640},
        "crop_size = 640 is larger than every image",
    ),
    "names: numbers": ("folder", numbered, {}, ("blue", "red")),
    "names: a class called NA": (
        "folder",
        lambda r: (table(r, names={"red": "NA"}), remask(r, lambda m: np.array([0, 2, 1], np.uint8)[m])),
        {},
        ("NA", "blue"),
    ),
    "names: with a blank": (
        "voc",
        lambda r: (
            [(r / f"{d}/p00.{s}").rename(r / f"{d}/a photo.{s}") for d, s in PLACES]
            and [edit(r, f, "p00", "a photo") for f in ("image_labels.txt", "ImageSets/Segmentation/train.txt")]
        ),
        {},
        ("blue", "red"),
    ),
    "names: with a blank, one the beginning of another": (
        "voc",
        lambda r: [
            (
                [(r / f"{d}/{old}.{s}").rename(r / f"{d}/{new}.{s}") for d, s in PLACES],
                edit(r, "ImageSets/Segmentation/train.txt", old, new),
                edit(r, "image_labels.txt", old, f"{new}.jpg" if old == "p02" else new),
            )
            for old, new in (("p00", "a photo"), ("p02", "a photograph"))
        ],
        {},
        ("blue", "red"),
    ),
}
PLACES = (("JPEGImages", "jpg"), ("SegmentationClass", "png"))  # of pictures and masks


@pytest.mark.parametrize("row", ROWS)
def test_what_people_have_is_taken_or_refused_by_check_and_training_alike(row, tmp_path, capsys):
    layout, change, settings, expected = ROWS[row]
    write(layout, tmp_path)
    change(tmp_path)
    chosen = {"crop_size": 64, "eval_size": 0, **settings}
    config = RunConfig(dataset=layout, data_root=str(tmp_path), **chosen)
    if isinstance(expected, tuple):
        describe_dataset(config)
        told = capsys.readouterr().out
        train, val = open_split(config, "train"), open_split(config, "val")
        check_files(train, val, config, progress=False)
        assert train.class_names == val.class_names == expected
        assert all(re.search(rf"^ +{i} +{re.escape(name)} ", told, re.M) for i, name in enumerate(expected, 1))
        labels = {name: row for split in (train, val) for name, row in zip(split.names, split.labels, strict=True)}
        assert len(labels) == 12
        assert labels["p01" if "p01" in labels else "0001"].tolist() == [name != "blue" for name in expected]
        return
    with pytest.raises(DataError, match=re.escape(expected)):
        describe_dataset(config)
    with pytest.raises(DataError, match=re.escape(expected)):
        check_files(open_split(config, "train"), open_split(config, "val"), config, progress=False)


def test_one_class_is_learnt_against_images_that_do_not_show_it(tmp_path):
    """From pictures called by numbers; their names are text from the run to its registry."""
    write("folder", tmp_path)
    one_class(tmp_path, without=True)
    numbered(tmp_path)
    edit(tmp_path, "labels.csv", "blue", "NA")
    short = {"iterations": 2, "c2s_start": 0, "s2c_start": 0, "propagation_start": 1, "crop_size": 64, "device": "cpu"}
    folders = {"dataset": "folder", "data_root": str(tmp_path), "runs_dir": str(tmp_path / "runs"), "eval_every": 1}
    config = RunConfig.from_parameters({**folders, **short, "encoder_weights": "random"}, "quick")
    describe_dataset(config)
    folder = RunFolder(fit(config, progress=False))
    rows = folder.scores().per_image.query("protocol == 'ms' and map == 'seed'")
    empty = ["0008", "0010", "0011"]  # without the class: their seeds are background
    assert rows.loc[rows["image"].isin(empty), "class"].eq("background").all()
    assert set(rows["image"]) == {*empty, "0009"}
    grids = pd.DataFrame(columns=["grid", "case", "seed", "run_id", "state"])
    write_registry({**collect([folder.path]), "grids": grids}, tmp_path / "registry")
    tables = read_registry(tmp_path / "registry")
    assert set(tables["per_image"]["image"]) == {*empty, "0009"}
    assert set(tables["per_class"]["class"]) == {"background", "NA", "mean"}


def test_arrays_that_would_run_code_do_not(tmp_path):
    write("voc", tmp_path)
    np.save(tmp_path / "x.npy", Evil(str(tmp_path / "ran")), allow_pickle=True)
    with pytest.raises(DataError, match="no dictionary"):
        open_split(RunConfig(dataset="voc", data_root=str(tmp_path), labels_file="x.npy"), "train")
    assert not (tmp_path / "ran").exists()
