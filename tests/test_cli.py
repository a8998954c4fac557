"""The command line: its parameters, and each command over what it calls."""

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from bidir import cli
from bidir.cli import app, main, parse_parameters
from bidir.config import ConfigError


def test_yaml_traps_reach_the_error():
    assert parse_parameters(["learning_rate=1e-4"]) == {"learning_rate": "1e-4"}
    assert parse_parameters(["supervision=no"]) == {"supervision": False}
    with pytest.raises(ConfigError, match="name=value"):
        parse_parameters(["iterations"])


def test_commands(short, photos, capsys, monkeypatch):
    _, path = short
    out = str(photos / "out")
    for arguments in (["predict", path / "checkpoint.pt", photos, out, "--labels", "lion,ram", "--map", "cam"],):
        monkeypatch.setattr("sys.argv", ["bidir", *map(str, arguments)])
        with pytest.raises(SystemExit) as leave:
            main()
        assert leave.value.code == 0
    assert "given" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["bidir", "train", "-p", "seeds=3"])
    with pytest.raises(SystemExit, match="did you mean 'seed'"):
        main()


def test_a_published_dataset_is_prepared_and_checked(published_voc, tmp_path):
    source, sbd = published_voc
    run, out = CliRunner().invoke, tmp_path / "out"
    result = run(app, ["prepare", "voc", str(source), str(out), "--sbd", str(sbd), "--any-count"])
    assert result.exit_code == 0, result.output
    told = run(app, ["check-data", "-p", "dataset=voc", "-p", f"data_root={out}", "-p", "train_list=train_aug"]).output
    assert "train: 5 images with masks, height 48/48/48 width 64/64/64 px" in told
    assert "dog      3 images  60.0%" in told
    assert "aeroplane      0 images   0.0%  <- none" in told


def test_dry_run_and_status_start_nothing(tmp_path, workspace):
    folders = {"data_root": str(workspace / "data"), "runs_dir": str(tmp_path / "runs")}
    small = {"iterations": 40, "scenes_train": 16, "scenes_val": 4, "eval_every": 0, "device": "cpu"}
    grid = tmp_path / "grid.yaml"
    grid.write_text(yaml.safe_dump({"preset": "quick", "fixed": small, "seeds": [0, 1], "grids": {"a": {}}}))
    given = [f"-p{name}={value}" for name, value in folders.items()]
    for flag in ("--dry-run", "--status"):
        result = CliRunner().invoke(app, ["sweep", str(grid), flag, *given])
        assert result.exit_code == 0, result.output
        assert "2 waiting" in result.output
        assert len(re.findall(r"^a, all as fixed, seed [01] +waiting +0 of 40 .*-seed[01]-", result.output, re.M)) == 2
    assert not Path(folders["runs_dir"]).exists()
    wrong = CliRunner().invoke(app, ["sweep", str(grid), "--dry-run", *given, "-p", "crop_size=4000"])
    assert "crop_size = 4000 is larger than every image" in str(wrong.exception)


def test_classes_of_an_import_must_be_there(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        cli.import_(tmp_path / "a.pth", tmp_path / "b.pt", classes=tmp_path / "typo.txt")
