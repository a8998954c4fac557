"""The command line: its parameters, and each command over what it calls."""

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from bidir import cli
from bidir.cli import app, main, parse_parameters
from bidir.config import ConfigError


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("learning_rate=1e-4", "1e-4"), ("supervision=no", "no"), ("object_aware_decoding=no", False),
        ("classes=blue,red", ["blue", "red"]), ("classes=[blue, traffic light]", ["blue", "traffic light"]),
        ("classes=blue", ["blue"]), ("eval_scales=1.0,0.5", [1.0, 0.5]), ("classes=[]", []), ("data_root=@x", "@x"),
        ("train_list=2012", "2012"), ("data_root=a=b #c", "a=b #c"), ("data_root='a b'", "a b"), ("sigma_c=.5", 0.5),
    ],
)  # fmt: skip
def test_a_parameter_is_read_as_its_field_is(pair, value):
    assert parse_parameters([pair]) == {pair.partition("=")[0]: value}
    assert parse_parameters([pair], known=()) == {pair.partition("=")[0]: value}


def test_a_pair_needs_a_value_and_a_list_has_an_example():
    with pytest.raises(ConfigError, match="name=value"):
        parse_parameters(["iterations"])
    with pytest.raises(ConfigError, match=r"-p classes=\[blue: a list is written classes=a,b or 'classes=\[a, b\]'"):
        parse_parameters(["classes=[blue"])


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
    assert "crop_size = 4000 is larger than every image, set at most 144" in str(wrong.exception)


def test_classes_of_an_import_must_be_there(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        cli.import_(tmp_path / "a.pth", tmp_path / "b.pt", classes=tmp_path / "typo.txt")
