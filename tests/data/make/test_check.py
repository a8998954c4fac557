"""A dataset described: counts, sizes, class balance, and all that is wrong with it."""

import pytest
from PIL import Image

from bidir.config import DataError, RunConfig
from bidir.data.make.check import describe, describe_dataset
from bidir.data.open import open_split


def test_a_description_counts_what_is_there(voc):
    told = describe(open_split(voc, "train").check(masks=True, progress=False))
    assert told.startswith("3 images with masks, height 40/40/40 width 50/50/50 px (least/median/most), 1.33 classes")
    assert " cat      2 images  66.7%\n" in told
    assert " bus      0 images   0.0%  <- none" in told


def test_both_parts_are_described_or_what_is_wrong_with_either(voc, tmp_path, capsys):
    describe_dataset(voc)
    assert "train: 3 images with masks" in (told := capsys.readouterr().out)
    assert "val: 2 images with masks" in told
    for name in ("a", "d"):
        (tmp_path / "JPEGImages" / f"{name}.jpg").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"(?s)train: .*a\.jpg.*val: .*d\.jpg"):
        describe_dataset(voc)


def test_rows_of_other_splits_are_said_to_be_left_out(tmp_path, capsys):
    for i in range(6):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{i}.png")
    cells = ("cat", "dog", "cat", "dog", "cat", "")
    rows = [f"{i}.png,{cell},{('Train', 'val', 'trian')[i // 2]}\n" for i, cell in enumerate(cells)]
    (tmp_path / "labels.csv").write_text("file,labels,split\n" + "".join(rows))
    describe_dataset(RunConfig(dataset="folder", data_root=str(tmp_path), crop_size=64))
    assert capsys.readouterr().out.count("left out: 2 of split 'trian'\n") == 2
