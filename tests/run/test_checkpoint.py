"""Checkpoints: written whole, and what is none refused."""

import errno
import os
import shutil

import pytest
import torch

from bidir.apply.export import export_model
from bidir.config import WeightsError
from bidir.data.open import open_split
from bidir.method.network import DualBranchNetwork
from bidir.progress import Stopped
from bidir.run.checkpoint import begin_from, load_checkpoint, load_network, resume, save_checkpoint
from bidir.run.folder import RunFolder
from bidir.run.machine import make_accelerator
from bidir.run.step import build
from bidir.run.training import fit


def test_a_full_disk_leaves_the_old_checkpoint_intact(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1})
    old = path.read_bytes()

    def no_space(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match=r"No space left on device; the previous file is intact.*checkpoint\.pt"):
        save_checkpoint(path, {"step": 2, "weight": torch.zeros(1000)})
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_wrong_checkpoints_are_refused(short, tmp_path):
    path = short[1] / "checkpoint.pt"
    whole, content = path.read_bytes(), load_checkpoint(path)
    network, _, classes = load_network(path)
    assert classes[0] == "hare"
    assert not network.training
    broken = {**content, "classes": content["classes"][:4]}
    cases = {
        "missing": (None, "no such checkpoint"),
        "weights": (content["model"], "not a checkpoint of this project"),
        "classes": (broken, r"classification.classifier.weight: \(6, 320, 1, 1\) in the file, \(4, 320, 1, 1\)"),
        "version": ({**content, "config": '{"lambda_9": 1}'}, "another version"),
    }
    for name, (value, message) in cases.items():
        path = tmp_path / f"{name}.pt"
        if value is not None:
            torch.save(value, path)
        with pytest.raises(WeightsError, match=message):
            load_network(path)
    (tmp_path / "cut.pt").write_bytes(whole[:5000])
    with pytest.raises(WeightsError, match=r"refused.*remove it and the run starts anew"):
        load_network(tmp_path / "cut.pt")


def test_a_checkpoint_with_a_pickle_payload_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"model": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match="refused"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_what_is_no_export_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"no config\.json in it"):
        load_network(tmp_path)
    with pytest.raises(WeightsError, match="nobody/nothing could not be fetched from the hub"):
        load_network("nobody/nothing")
    (tmp_path / "config.json").write_text('{"model_type": "segformer"}')
    with pytest.raises(WeightsError, match="not written by bidir export"):
        load_network(tmp_path)


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_every_flipped_bit_of_a_checkpoint_is_found(short, tmp_path):
    whole, path = (short[1] / "checkpoint.pt").read_bytes(), tmp_path / "checkpoint.pt"
    body = whole.rpartition(b"bidir-sha256:")[0]
    torch.load(short[1] / "checkpoint.pt", weights_only=True)  # the digest is in nobody's way
    for place in (0, 100, 5000, len(body) // 3, len(body) // 2, len(body) - 1, len(whole) - 1):
        path.write_bytes(flipped(whole, place))
        with pytest.raises(WeightsError, match=r"checkpoint\.pt: damaged.*remove it and the run starts anew"):
            load_network(path)


WRONG = {
    "a model of other classes": {"model": {"a": torch.zeros(3)}},
    "a word for the model": {"model": "x"},
    "no optimiser": {"optimizer": {}},
    "a number for the optimiser": {"optimizer": 3},
    "random state of another kind": {"rng": [{"cpu": "x"}]},
    "no random state": {"rng": None},
    "a word for the step": {"step": "many"},
}


@pytest.mark.parametrize("name", WRONG)
def test_what_no_run_can_go_on_from_is_an_error_of_weights(short, tmp_path, name):
    learner = build(short[0], 6, make_accelerator(short[0]))
    save_checkpoint(tmp_path / "checkpoint.pt", {**load_checkpoint(short[1] / "checkpoint.pt"), **WRONG[name]})
    with pytest.raises(WeightsError, match=r"no run can go on from it.*remove it and the run starts anew"):
        resume(tmp_path / "checkpoint.pt", learner)


def test_a_checkpoint_of_anything_is_an_error_of_weights(tmp_path):
    path = tmp_path / "checkpoint.pt"
    for content in (b"", b"\x00" * 100, b"PK\x03\x04" + b"x" * 50, b"\x80\x02]q\x00.", bytes(range(256))):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"checkpoint\.pt"):
            load_checkpoint(path)


def test_a_checkpoint_holds_the_rows_that_it_vouches_for(short):
    folder = RunFolder(short[1])
    assert load_checkpoint(folder.checkpoint)["rows"] == folder.rows()
    assert folder.last_step() == 24


def test_a_run_starts_from_a_model_by_the_names_of_its_classes(short, tmp_path):
    """Rows of both heads by hand: Branch-C has one per class, Branch-S one more, the background, before them."""
    config, path = short
    network, _, theirs = load_network(path / "checkpoint.pt")
    state = network.state_dict()
    classes = (theirs[3], "unicorn", theirs[1])
    for source in (path / "checkpoint.pt", export_model(path / "checkpoint.pt", tmp_path / "exported")):
        mine = config.replace(initial=str(source), encoder_weights="random")
        network = DualBranchNetwork(mine, 3)
        fresh = {name: value.clone() for name, value in network.state_dict().items()}
        assert begin_from(network, mine, classes) == {
            "kept": [theirs[3], theirs[1]],
            "fresh": ["unicorn"],
        }
        own = network.state_dict()
        for name in ("classification.classifier.weight", "segmentation.predict.weight", "segmentation.predict.bias"):
            first = 0 if name.startswith("classification") else 1
            assert torch.equal(own[name][:first], state[name][:first])
            assert torch.equal(own[name][first], state[name][first + 3])
            assert torch.equal(own[name][first + 1], fresh[name][first + 1])
            assert torch.equal(own[name][first + 2], state[name][first + 1])
        assert torch.equal(own["segmentation.fuse.weight"], state["segmentation.fuse.weight"])
        assert all(torch.equal(value, state[name]) for name, value in own.items() if name.startswith("encoder."))
    with pytest.raises(WeightsError, match="holds tf_efficientnet_lite0, encoder = 'mit_b0' is another"):
        begin_from(network, mine.replace(encoder="mit_b0"), classes)


def test_the_average_begins_where_the_run_begins(short, tmp_path, monkeypatch):
    """Else the first teacher would be a network of random weights."""
    config, path = short
    known, first = load_network(path / "checkpoint.pt")[0].state_dict(), {}

    def stop(learner, *_):
        first.update(learner.average.module.state_dict())
        raise KeyboardInterrupt

    monkeypatch.setattr("bidir.run.training.train_step", stop)
    mine = config.replace(initial=str(path / "checkpoint.pt"), ema_decay=0.9, runs_dir=str(tmp_path))
    with pytest.raises(Stopped, match="stopped at iteration 0"):
        fit(mine, progress=False)
    assert all(torch.equal(value, first[name]) for name, value in known.items())


def test_the_model_to_start_from_is_part_of_the_run_by_its_content(short, tmp_path, folder_of):
    config, path = short
    one = config.replace(initial=str(path / "checkpoint.pt"), runs_dir=str(tmp_path), iterations=2)
    shutil.copy(path / "checkpoint.pt", tmp_path / "copy.pt")
    assert one.run_id("m") == one.replace(initial=str(tmp_path / "copy.pt")).run_id("m")
    assert one.run_id("m") != one.replace(initial="").run_id("m")
    (tmp_path / "copy.pt").write_bytes(b"other")
    assert one.run_id("m") != one.replace(initial=str(tmp_path / "copy.pt")).run_id("m")
    with pytest.raises(WeightsError, match=r"damaged|refused"):
        fit(one.replace(initial=str(tmp_path / "copy.pt")), progress=False)
    with pytest.raises(WeightsError, match=r"initial = .*nowhere\.pt: no checkpoint"):
        fit(one.replace(initial=str(tmp_path / "nowhere.pt")), progress=False)
    fit(one, progress=False)
    assert folder_of(one).facts()["began_from"] == {"kept": list(open_split(one, "train").class_names), "fresh": []}
    first = folder_of(one).rows()[0]["cls"]
    assert first < RunFolder(path).rows()[0]["cls"]  # it has learnt already
