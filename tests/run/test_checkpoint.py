"""Checkpoints: written whole, and what is none refused."""

import errno
import os

import pytest
import torch

from bidir.config import WeightsError
from bidir.run.checkpoint import load_checkpoint, load_network, save_checkpoint


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
    with pytest.raises(WeightsError, match="refused"):
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
