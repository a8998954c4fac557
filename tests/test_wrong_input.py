"""Wrong inputs, a table: each ends before any work in one line that names what was given and the way out."""

import json
import re
import shlex
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

from bidir import cli
from bidir.config import RunConfig
from bidir.data.folders import VOC_CLASSES
from bidir.method.network import DualBranchNetwork
from bidir.run.checkpoint import save_checkpoint

FIX = re.compile(
    "needs|choose|did you mean|there are|set |give |write|use |lower|raise|refused|no such|not there|lack|take|"
    "not a |known?|missing|does not|no [a-z]+ there|pip install|twice|too many|is none of|maps|correct|Usage"
)
NAN, INF, BIG = float("nan"), float("inf"), 10**12

# a parameter of a run with its value; the message holds both, and a fix
SETTINGS = [
    {"dataset": "voc2012"}, {"dataset": 3}, {"dataset": None}, {"dataset": ["voc"]},
    {"classes": ["cat", "cat"]}, {"classes": [""]}, {"classes": ["  "]}, {"classes": [1]},
    {"classes": {"cat": 1}}, {"classes": [["cat"]]}, {"classes": [f"c{i}" for i in range(1000)]},
    {"classes": ["a\nb"]}, {"classes": [None]},
    {"train_list": ""}, {"train_list": "a\0b"}, {"val_list": " "}, {"labels_file": ""},
    {"label_source": "csv"}, {"label_source": True},
    {"holdout": 1}, {"holdout": 1.5}, {"holdout": NAN}, {"holdout": "half"}, {"holdout": -0.1},
    {"supervision": "c2c"}, {"supervision": False}, {"supervision": "Both"}, {"supervision": ["c2s", "both"]},
    {"object_aware_decoding": 1}, {"object_aware_decoding": "yes please"}, {"object_aware_decoding": None},
    {"propagation": "bps"}, {"propagation": 0}, {"propagation": "afa"}, {"c2s_loss": "mse"}, {"s2c_loss": None},
    {"lambda_c2s": -1}, {"lambda_c2s": INF}, {"lambda_c2s": 1e9}, {"lambda_s2c": NAN}, {"lambda_s2c": "0.1.2"},
    {"lambda_aff": 0.1}, {"lambda_aff": -0.5},
    {"c2s_start": BIG}, {"c2s_start": 40}, {"c2s_start": 1e3}, {"c2s_start": -1}, {"s2c_start": 5000},
    {"propagation_start": 5000}, {"propagation_start": -3},
    {"sigma_c": 5}, {"sigma_c": -0.5}, {"sigma_c": NAN}, {"sigma_s": INF}, {"sigma_s": 1000}, {"sigma_s": "0,75"},
    {"sigma_s": 1.5, "confidence": "probability"}, {"confidence": "prob"}, {"mask_s2c_by_labels": 0},
    {"par_normalized": "no way"}, {"threshold_high": 5}, {"threshold_high": -1}, {"threshold_low": -0.2},
    {"threshold_low": 0.9}, {"threshold_cam": 5}, {"threshold_cam": INF},
    {"teacher_scales": []}, {"teacher_scales": [0.5]}, {"teacher_scales": [1.0, 1.0]}, {"teacher_scales": [1.0, 100]},
    {"teacher_scales": [1.0, 0.001]}, {"teacher_scales": "all"}, {"teacher_flip": 2}, {"warm_branch_s": "on time"},
    {"seed_scales": [1.0, -0.5]}, {"seed_scales": [1.0, NAN]}, {"eval_scales": [1.0, "half"]}, {"eval_scales": 2.0},
    {"iterations": 0}, {"iterations": BIG}, {"iterations": 1.5}, {"iterations": True}, {"iterations": -10},
    {"iterations": "many"}, {"iterations": None}, {"iterations": NAN}, {"iterations": 10},
    {"seed": -1}, {"seed": 0.5}, {"seed": 10**30}, {"seed": "zero"}, {"seed": [0, 1]},
    {"batch_size": 0}, {"batch_size": 10**7}, {"batch_size": 2.5}, {"batch_size": 4, "processes": 3},
    {"learning_rate": "1e-4x"}, {"learning_rate": -1e-4}, {"learning_rate": 100}, {"learning_rate": INF},
    {"head_lr_factor": 1e9}, {"head_lr_factor": -1}, {"weight_decay": 50}, {"weight_decay": -0.01},
    {"warmup_iterations": BIG}, {"warmup_iterations": -1}, {"warmup_lr": 10},
    {"warmup_lr": NAN}, {"grad_clip": -1}, {"grad_clip": NAN}, {"mixed_precision": "fp8"}, {"mixed_precision": 16},
    {"encoder": ""}, {"encoder": "mit_b9"}, {"encoder": "resnet5000"}, {"encoder": "hf-hub:someone/model"},
    {"encoder": "local-dir:/etc"}, {"encoder": "/etc/passwd"}, {"encoder": "vit_tiny_patch16_224"}, {"encoder": 50},
    {"encoder": "https://example.org/model"}, {"encoder": "resnet50"},
    {"encoder_weights": ""}, {"encoder_weights": "imagnet"}, {"encoder_weights": "/nowhere/weights.pth"},
    {"encoder_weights": "notes.txt"}, {"encoder_weights": "."}, {"encoder_norm": "thawed"},
    {"crop_size": 10**7}, {"crop_size": 0}, {"crop_size": 31}, {"crop_size": 96.5}, {"crop_size": 2000},
    {"crop_size": 48, "encoder": "mit_b0", "teacher_scales": [1.0, 0.5]},
    {"scale_min": 0}, {"scale_min": 3}, {"scale_min": NAN}, {"scale_max": 1e6}, {"scale_max": 0.1},
    {"padding": "white"}, {"color_jitter": 3}, {"color_jitter": -1},
    {"eval_every": -5}, {"eval_every": "never"}, {"eval_images": -1}, {"eval_images": 1.0}, {"eval_size": 10**9},
    {"eval_size": 3}, {"eval_size": -256}, {"crf_probabilities": "max"}, {"log_every": 0}, {"log_every": BIG},
    {"scenes_train": 0}, {"scenes_train": BIG}, {"scenes_val": -1}, {"scenes_size": 10**6}, {"scenes_size": 8},
    {"scenes_part_size": 0}, {"scenes_part_size": 1e4}, {"scenes_similarity": 1.01}, {"scenes_context": -1},
    {"scenes_seed": -1}, {"scenes_seed": 10**30},
    {"data_root": ""}, {"data_root": "a\0b"}, {"data_root": "notes.txt"},
    {"runs_dir": ""}, {"runs_dir": "notes.txt"}, {"runs_dir": "notes.txt/runs"},
    {"device": "gpu"}, {"device": "cuda"}, {"device": 0}, {"processes": 0}, {"processes": 10**6}, {"processes": 2.0},
    {"images_per_pass": -1}, {"images_per_pass": BIG}, {"num_workers": -1}, {"num_workers": 10**6},
    {"checkpoint_every": 0}, {"checkpoint_every": BIG}, {"compile": "maybe"}, {"trackers": ["abacus"]},
    {"trackers": ["abacus", "abacus"]}, {"trackers": [""]},
    {"lamda_c2s": 0.5}, {"seeds": 3}, {"sigma": 0.5}, {"": 1}, {"preset": "quick"},
]  # fmt: skip

FILES = {  # what the cases below read, in the folder that they start in
    "notes.txt": b"remember the milk\n", "empty.txt": b"", "binary.yaml": bytes(range(256)), "empty.yaml": b"",
    "latin.yaml": "grids: {a: {cases: [{val_list: Prüfung}]}}".encode("latin-1"), "list.yaml": b"- a\n- b\n",
    "broken.yaml": b"grids: {a: [", "tab.yaml": b"grids:\n\ta: {}\n",
    "twice.yaml": b"seeds: [0]\ngrids: {a: {}}\nseeds: [1]\n",
    "inner.yaml": b"grids: {a: {axes: {seed: [0], sigma_c: [0.3], sigma_c: [0.4]}}}\n",
    "samegrid.yaml": b"grids:\n  a: {}\n  a: {seeds: [1]}\n", "two.yaml": b"grids: {a: {}}\n---\ngrids: {b: {}}\n",
    "code.yaml": b"grids: !!python/object/apply:os.system ['true']\n",
    "date.yaml": b"seeds: [2024-13-45]\ngrids: {a: {}}\n",
    "deep.yaml": b"grids: " + b"[" * 1500, "alias.yaml": b"grids: {a: *b}\n", "loop.yaml": b"grids: &a {b: *a}\n",
    "digits.yaml": b"seeds: [" + b"9" * 5000 + b"]\ngrids: {a: {}}\n",
    "keys.yaml": b"{1: 2, null: 3, grids: {a: {}}}\n",
    "laughs.yaml": b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (i, i, i - 1, i - 1) for i in range(98, 122))
    + b"grids: {a: {axes: {sigma_c: *y}}}\n",
}  # fmt: skip

# content of a grid file, and what the message names
GRIDS = [
    ({}, "needs grids"), ({"grids": {}}, "needs grids"), ({"grids": None}, "needs grids"), ({"grids": ["a"]}, "grids"),
    ({"grid": {"a": {}}}, "'grid'"), ({"grids": {"a": None}}, "'a'"), ({"grids": {"a": [1]}}, "'a'"),
    ({"grids": {"a": {"axis": {}}}}, "'axis'"), ({"grids": {"a": {1: 2}}}, "1"),
    ({"grids": {"a": {"axes": {"sigma_c": 0.3}}}}, "sigma_c = 0.3"),
    ({"grids": {"a": {"axes": {"sigma_c": []}}}}, "sigma_c"),
    ({"grids": {"a": {"axes": ["sigma_c"]}}}, "'sigma_c'"),
    ({"grids": {"a": {"axes": {"sigma_c": "0.3"}}}}, "sigma_c = '0.3'"),
    ({"grids": {"a": {"axes": {"sigma_c": [5]}}}}, "sigma_c = 5"),
    ({"grids": {"a": {"axes": {"sigmac": [0.5]}}}}, "'sigma_c'"),
    ({"grids": {"a": {"axes": {1: [0.5]}}}}, "1"),
    ({"grids": {"a": {"axes": {"supervision": [True]}}}}, "supervision = True"),
    ({"grids": {"a": {"axes": {"sigma_c": [0.3, 0.3]}}}}, "twice"),
    ({"grids": {"a": {"axes": {"seed": [1]}}}}, "seeds"),
    ({"grids": {"a": {"cases": {"sigma_c": 0.3}}}}, "cases"), ({"grids": {"a": {"cases": []}}}, "cases = []"),
    ({"grids": {"a": {"cases": ["sigma_c"]}}}, "'sigma_c'"),
    ({"grids": {"a": {"cases": [{"sigma_c": NAN}]}}}, "sigma_c = nan"),
    ({"grids": {"a": {"cases": [{"lambda_aff": 0.1}]}}}, "lambda_aff = 0.1"),
    ({"grids": {"a": {"seeds": 3}}}, "seeds = 3"),
    ({"grids": {"a": {"seeds": []}}}, "seeds = []"), ({"grids": {"a": {"seeds": [-1]}}}, "seed = -1"),
    ({"grids": {"a": {"seeds": ["one"]}}}, "seed = 'one'"), ({"grids": {"a": {"seeds": [0, 0]}}}, "twice"),
    ({"grids": {"a": {"axes": {"sigma_c": [0.1] * 150, "seed_scales": [1] * 150}}}}, "22500"),
    ({"grids": {"a": {"seeds": {"0": 1}}}}, "seeds"),
    ({"grids": {"a": {}}, "seeds": "0"}, "seeds = '0'"), ({"grids": {"a": {}}, "fixed": None}, "None"),
    ({"grids": {"a": {}}, "fixed": {"sigma": 1}}, "'sigma'"),
    ({"grids": {"a": {}}, "fixed": {"c2s_start": 9999}}, "c2s_start = 9999"),
    ({"grids": {"a": {}}, "fixed": {3: 1}}, "3"),
    ({"grids": {"a": {}}, "fixed": {"encoder": "resnet5000"}}, "resnet5000"),
    ({"grids": {"a": {}}, "fixed": {"val_list": ["val"]}}, "val_list = ['val']"),
    ({"grids": {"a": {}}, "fixed": {"data_root": ["a", "b"]}}, "data_root = ['a', 'b']"),
    ({"grids": {"a": {}}, "fixed": {"runs_dir": None}}, "runs_dir = None"),
    ({"grids": {"a": {}}, "fixed": {"classes": "cat"}}, "classes = 'cat'"),
    ({"grids": {"a": {}}, "fixed": {"runs_dir": "notes.txt"}}, "notes.txt"),
    ({"grids": {"a": {}}, "preset": "huge"}, "'huge'"),
    ({"grids": {"a": {}}, "preset": ["quick"]}, "['quick']"), ({"grids": {"a": {}}, "preset": None}, "None"),
]  # fmt: skip
CLUSTERS = [
    ({}, "address"), ({"address": "tcp://127.0.0.1:1", "cluster": "slurm"}, "address"), ({"address": None}, "None"),
    ({"address": 8786}, "8786"), ({"address": ""}, "''"), ({"address": "tcp:///"}, "tcp:///"),
    ({"address": "host"}, "'host'"), ({"address": "tcp://two hosts:8786"}, "two hosts"),
    ({"cluster": "abacus"}, "'abacus'"), ({"cluster": ["slurm"]}, "['slurm']"), ({"scheduler": "x"}, "'scheduler'"),
    ({"cluster": "slurm", "jobs": 0}, "jobs = 0"), ({"cluster": "slurm", "jobs": "many"}, "jobs = 'many'"),
    ({"cluster": "slurm", "threads": -1}, "threads = -1"), ({"cluster": "slurm", "threads": 1.5}, "threads = 1.5"),
    ({"cluster": "slurm", "options": [1]}, "options = [1]"),
    ("[", "not YAML"), ("a: 1\na: 2", "'a'"),
]  # fmt: skip

# arguments of the command line, and what the message names
COMMANDS = [
    ("train -p iterations", "iterations"), ("train -p =3", "=3"),
    ("train -p iterations=40 -p iterations=50", "iterations"),
    ("train -p classes=[blue", "[blue"), ("train -p 'classes=[blue, red'", "[blue, red"),
    ("train -p classes=blue,blue", "blue"), ("train -p 'sigma_c={a: 1'", "{a: 1"),
    ("train -p data_root=@x -p iterations=0", "iterations"),
    ("train -p sigma_c=@x", "@x"), ("train -p sigma_c=0.3,0.5", "0.3,0.5"), ("train -p iterations=%x", "%x"),
    ("train -p eval_scales=1.0,x", "x"), ("train -p sigma_c=2024-13-45", "2024-13-45"), ("train -p path=x", "path"),
    ("train --preset huge", "huge"), ("train --preset ''", "''"), ("train --prest quick", "--prest"),
    ("train quick", "quick"),
    ("trian", "trian"), ("check-data --preset huge", "huge"),
    ("check-data -p dataset=voc -p data_root=nowhere", "nowhere"),
    ("sweep", "grid"), ("sweep nowhere.yaml", "nowhere.yaml"), ("sweep .", "no such file"),
    ("sweep grid.yaml --slots -1", "--slots"),
    ("sweep grid.yaml --slots two", "--slots"),
    ("sweep grid.yaml --cluster nowhere.yaml", "nowhere.yaml"), ("sweep grid.yaml -p seed=3", "seed"),
    ("sweep grid.yaml -p path=x", "path"), ("sweep grid.yaml -p sigma_c=7", "sigma_c = 7"),
    ("sweep grid.yaml --out notes.txt", "notes.txt"), ("sweep grid.yaml --out notes.txt/sub", "notes.txt"),
    ("sweep grid.yaml --status --out notes.txt", "notes.txt"),
    ("figures nowhere", "nowhere"), ("figures .", "runs.parquet"), ("figures notes.txt", "notes.txt"),
    ("figures registry --only 99", "99"), ("figures registry --only figs", "figs"),
    ("figures registry -p seeds=3", "seeds"),
    ("figures registry -p results=x", "results"), ("report nowhere", "nowhere"), ("report registry nowhere", "nowhere"),
    ("report registry --out .", "."), ("report registry --out notes.txt/report.html", "notes.txt"),
    ("report", "results"),
    ("benchmark --out .", "."), ("benchmark -p sigma_c=9", "sigma_c = 9"),
    ("benchmark --out notes.txt/cost.csv", "notes.txt"),
    ("study --out notes.txt", "notes.txt"), ("prepare", "dataset"), ("prepare imagenet . out", "imagenet"),
    ("prepare coco . out --download", "--download"),
    ("predict nowhere.pt . out", "nowhere.pt"), ("predict notes.txt . out", "notes.txt"),
    ("predict empty.txt . out", "empty.txt"),
    ("predict model.pt nowhere out", "nowhere"), ("predict model.pt nothing out", "nothing"),
    ("predict exported photo.png out", "hf-hub:a/b"), ("predict model.pt photo.png notes.txt", "notes.txt"),
    ("predict model.pt photo.png out --map cams", "cams"), ("predict model.pt photo.png out --protocol mss", "mss"),
    ("predict model.pt photo.png out --map cam --labels lion", "lion"),
    ("predict model.pt photo.png out --labels cat", "branch_s"),
    ("predict model.pt photo.png out --map cam --labels ,", "label"), ("predict . photo.png out", "config.json"),
    ("predict hub.pt photo.png out", "hf-hub:someone/model"), ("predict local.pt photo.png out", "local-dir:/etc"),
    ("predict crowd.pt photo.png out", "300"),
    ("pseudo-masks nowhere.pt train out", "nowhere.pt"), ("pseudo-masks model.pt trainval out", "trainval"),
    ("pseudo-masks model.pt train out -p sigma_c=9", "sigma_c = 9"),
    ("pseudo-masks model.pt train out -p part=val", "part"), ("pseudo-masks model.pt train notes.txt", "notes.txt"),
    ("evaluate model.pt --protocol mss", "mss"), ("evaluate model.pt --part test", "test"),
    ("evaluate nowhere.pt", "nowhere.pt"),
    ("evaluate model.pt -p devise=cpu", "device"), ("evaluate model.pt --out notes.txt", "notes.txt"),
    ("voc-archive voc20.pt out.tgz --list ../../x", "../../x"), ("voc-archive voc20.pt out.zip", "out.zip"),
    ("voc-archive model.pt out.tgz", "cat"), ("voc-archive voc20.pt out.tgz --list nowhere -p data_root=.", "nowhere"),
    ("import nowhere.pth out.pt", "nowhere.pth"), ("import notes.txt out.pt", "notes.txt"),
    ("import notes.txt out.pt --classes nowhere.txt", "nowhere.txt"), ("import notes.txt out.pt --preset huge", "huge"),
    ("import weights.pth out.pt -p encoder=hf-hub:a/b", "hf-hub:a/b"),
    ("export nowhere.pt out", "nowhere.pt"), ("export notes.txt out", "notes.txt"),
    ("export model.pt notes.txt", "notes.txt"),
    ("export model.pt out --push-to ../x", "../x"),
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with every file that the cases name: checkpoints of untrained networks, a photograph, broken texts."""
    folder = tmp_path_factory.mktemp("place")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    (folder / "grid.yaml").write_text("preset: quick\ngrids: {a: {}}\n")
    config = RunConfig.from_parameters({"encoder_weights": "random", "device": "cpu"}, "quick")
    stored = config.as_parameters()
    two, twenty = (DualBranchNetwork(config, count).state_dict() for count in (2, 20))
    for name, classes, model, changes in (
        ("model", ["cat", "dog"], two, {}),
        ("voc20", VOC_CLASSES, twenty, {}),
        ("hub", ["cat", "dog"], two, {"encoder": "hf-hub:someone/model"}),
        ("local", ["cat", "dog"], two, {"encoder": "local-dir:/etc"}),
        ("crowd", [f"class {i}" for i in range(300)], two, {}),
    ):
        held = {"config": json.dumps({**stored, **changes}), "classes": classes, "model": model, "step": 1}
        save_checkpoint(folder / f"{name}.pt", held)
    torch.save(two, folder / "weights.pth")
    for name in ("nothing", "exported"):
        (folder / name).mkdir()
    safetensors.torch.save_file(two, folder / "exported/model.safetensors")
    held = {"config": {**stored, "encoder": "hf-hub:a/b"}, "classes": ["cat", "dog"], "step": 1}
    (folder / "exported/config.json").write_text(json.dumps(held))
    Image.new("RGB", (64, 64)).save(folder / "photo.png")
    (folder / "registry").symlink_to(Path(__file__).parents[1] / "results" / "scenes")
    return folder


class WorkBegunError(Exception):
    """Scenes were to be drawn, a notebook executed, workers started, steps measured, or images segmented."""


WORK = ("data.open.prepare_scenes", "study.notebooks.run_notebook", "study.workers.Slot", "study.cost._apart",
        "study.batch.read_grid", "apply.predict.predict_maps")  # fmt: skip


@pytest.fixture
def said(place, monkeypatch, capfd):
    """Runs a command in that folder: the one line that it says when it is refused, having done and written nothing."""

    def work(*_, **__):
        raise WorkBegunError

    for name in WORK:
        monkeypatch.setattr(f"bidir.{name}", work)
    monkeypatch.chdir(place)

    def run(*arguments):
        before = sorted(place.rglob("*"))
        monkeypatch.setattr("sys.argv", ["bidir", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        err += ended.value.code if isinstance(ended.value.code, str) else ""
        assert ended.value.code not in (0, None), out + err
        assert sorted(place.rglob("*")) == before
        lines = [line for line in err.strip().splitlines() if "Warning" not in line]
        assert len(lines) == 1 or lines[0].startswith(("Usage", "error: train: ")), err
        assert len(err) < 2000, err[:2000]
        assert FIX.search(err), err
        return err

    return run


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda given: str(given)[:50])
def test_settings(settings, said):
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()}
    texts = {name: {"NaN": ".nan", "Infinity": ".inf"}.get(text, text) for name, text in texts.items()}
    message = said("train", "--preset", "quick", *(f"-p{name}={text}" for name, text in texts.items()))
    name, text = next(iter(texts.items()))
    assert name in message or text in message


@pytest.mark.parametrize(("content", "named"), GRIDS, ids=lambda given: str(given)[:50])
def test_grid_files(content, named, said, place):
    (place / "wrong.yaml").write_text(yaml.safe_dump({"preset": "quick", **content}))
    assert named in said("sweep", "wrong.yaml", "--dry-run")


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("yaml")])
def test_broken_files(name, said):
    for message in (said("sweep", name), said("sweep", "grid.yaml", "--cluster", name)):
        assert name in message


@pytest.mark.parametrize(("content", "named"), CLUSTERS, ids=lambda given: str(given)[:50])
def test_cluster_files(content, named, said, place):
    (place / "cluster.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    assert named in said("sweep", "grid.yaml", "--cluster", "cluster.yaml")


@pytest.mark.parametrize(("command", "named"), COMMANDS, ids=lambda given: str(given)[:70])
def test_commands(command, named, said):
    assert named in said(*shlex.split(command))
