"""Configuration: strict parsing, presets, the run's name, and the files that must agree with it."""

import re
import tomllib
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml

from bidir.config import ConfigError, RunConfig, resolve
from bidir.parameters import config_of, parameters_cell
from bidir.presets import PRESETS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid(preset):
    assert isinstance(RunConfig.from_parameters({}, preset), RunConfig)


def test_the_paper_scale_presets_are_the_references_settings():
    """Of its script for VOC 2012 and, where that is silent, of its defaults; COCO's are unknown but for the data."""
    reference = dict(
        encoder="mit_b1", crop_size=512, scale_min=0.5, scale_max=2.0, batch_size=4, iterations=20_000,
        learning_rate=6e-5, head_lr_factor=10.0, weight_decay=0.01, encoder_norm="frozen", warmup_iterations=1500,
        warmup_lr=1e-6, lambda_c2s=0.7, lambda_s2c=0.1, lambda_aff=0.1, sigma_c=0.5, sigma_s=0.75, confidence="logit",
        c2s_start=2000, s2c_start=2000, propagation_start=4000, c2s_loss="bce", s2c_loss="ce", threshold_high=0.55,
        threshold_low=0.35, threshold_cam=0.45, seed_scales=(1.0, 0.5, 1.5), eval_scales=(1.0, 0.5, 0.75),
        eval_size=512, supervision="both", propagation="bsp", object_aware_decoding=True,
    )  # fmt: skip
    for preset in ("voc", "coco"):
        config = RunConfig.from_parameters({}, preset)
        assert {name: getattr(config, name) for name in reference} == reference


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("learning_rate", "1e-4", "without quotes"),
        ("object_aware_decoding", "true", "is a str, needs a bool"),
        ("object_aware_decoding", 1, "is a int, needs a bool"),
        ("iterations", True, "is a bool, needs a int"),
        ("iterations", 1.0, "is a float, needs a int"),
        ("iterations", 0, "at least 1"),
        ("supervision", False, "supervision = False: choose 'none', 'c2s', 's2c', 'both' or 'full'"),
        ("supervision", "c2c", "supervision = 'c2c': choose 'none', 'c2s', 's2c', 'both' or 'full'"),
        ("propagation", "afa", "lambda_aff = 0 leaves untrained; set 0.1"),
        ("lambda_aff", -0.1, "lambda_aff = -0.1: needs to be at least 0"),
        ("learning_rate", float("nan"), "learning_rate = nan: needs to be a finite number"),
        ("holdout", 1.5, "holdout = 1.5: needs to be at most 1"),
        ("holdout", -0.5, "holdout = -0.5: needs to be at least 0"),
        ("scale_max", 0.2, "below scale_min"),
        ("threshold_low", 0.9, "above threshold_high"),
        ("seed_scales", [0.5], "seed_scales = (0.5,): needs 1.0 among the scales"),
        ("color_jitter", 1.5, "color_jitter = 1.5: needs to be at most 1"),
        ("color_jitter", -0.5, "color_jitter = -0.5: needs to be at least 0"),
        ("eval_scales", [1.0, 0.0], "eval_scales[1] = 0.0: needs to be above 0"),
        ("classes", "cat", "classes = 'cat' is a str, needs a tuple"),
        ("classes", [1], "classes[0] = 1 is a int, needs a str"),
        ("lamda_c2s", 0.5, "did you mean 'lambda_c2s'"),
    ],
)
def test_bad_parameters_are_errors(name, value, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        RunConfig.from_parameters({name: value})
    assert name in str(error.value)


def test_unknown_preset():
    with pytest.raises(ConfigError, match="study, quick, photos, voc"):
        RunConfig.from_parameters({}, "imagenet")


def test_transformers_need_a_trained_affinity():
    with pytest.raises(ConfigError, match="lambda_aff = 0 leaves untrained"):
        RunConfig(encoder="mit_b0", propagation="afa")


def test_paths_resolve_below_the_project_and_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT / "notebooks")
    assert resolve("results/runs") == ROOT / "results" / "runs"
    assert resolve("~/VOC") == tmp_path / "VOC"
    assert resolve("/data") == Path("/data")


def test_int_passes_for_float_and_list_for_tuple():
    config = RunConfig.from_parameters({"learning_rate": 1, "seed_scales": [1, 2.0]})
    assert config.learning_rate == 1.0
    assert config.seed_scales == (1.0, 2.0)


def test_namespace_rejects_names_that_are_no_parameter():
    before = {"known"}
    assert config_of({"known": 1, "seed": 3, "_i1": ""}, before).seed == 3
    with pytest.raises(ConfigError, match="did you mean 'seed'"):
        config_of({"known": 1, "sed": 3}, before)
    again = {"known": 1, "seed": 4, "config": RunConfig(), "run": Path()}  # cells run a second time by hand
    assert config_of(again, before).seed == 4


def test_run_id_depends_on_what_is_computed_and_not_on_the_machine():
    config = RunConfig()
    same = config.replace(device="cpu", runs_dir="elsewhere", num_workers=3, data_root="/d")
    assert same.run_id("m") == config.run_id("m")
    assert re.fullmatch(r"scenes-both-bsp-oad-seed0-[0-9a-f]{10}", config.run_id("m"))
    others = {config.replace(seed=1).run_id("m"), config.replace(sigma_c=0.6).run_id("m"), config.run_id("n")}
    assert len(others | {config.run_id("m")}) == 4


def test_notebook_parameters_are_the_configuration_word_for_word():
    book = nbformat.read(ROOT / "notebooks" / "10_train.ipynb", 4)
    (cell,) = [c for c in book.cells if "parameters" in c.metadata.get("tags", [])]
    assert cell.source == parameters_cell()
    fields = vars(RunConfig())
    namespace = {}
    exec(cell.source, namespace)  # literals, so what papermill users see is what the package does
    assert {name: namespace[name] for name in fields} == fields
    assert [name for name in namespace if name in fields] == list(fields)
    shown = papermill.inspect_notebook(ROOT / "notebooks" / "10_train.ipynb")  # what --help-notebook prints
    assert set(shown) == set(fields)
    assert all(parameter["help"] for parameter in shown.values())


def test_environment_is_the_conda_view_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *packages, pip = environment["dependencies"]
    assert f"python{project['requires-python']}" in packages
    (own,) = pip["pip"]  # the package itself, which brings its one list of dependencies
    assert re.fullmatch(r"-e \.\[(\w+)\]", own).group(1) in project["optional-dependencies"]
