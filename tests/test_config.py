"""Configuration: strict parsing, presets, the run's name, and the files that must agree with it."""

import re
import tomllib
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml

from bidir.config import FIELDS, ConfigError, RunConfig, resolve
from bidir.presets import PRESETS
from bidir.study import parameters
from bidir.study.parameters import config_of, given_parameters, parameters_cells

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
        threshold_low=0.35, threshold_cam=0.45, teacher_scales=(1.0, 0.5, 1.5), teacher_flip=True,
        seed_scales=(1.0, 0.5, 0.75), eval_scales=(1.0, 0.5, 0.75), padding="black", crf_probabilities="softmax",
        warm_branch_s=True,
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
        ("holdout", 1.5, "holdout = 1.5: needs to be below 1"),
        ("holdout", -0.5, "holdout = -0.5: needs to be at least 0"),
        ("scale_max", 0.2, "below scale_min"),
        ("c2s_start", 350, "c2s_start = 350: never reached in iterations = 350"),
        ("sigma_c", 5, "sigma_c = 5: needs to be at most 1"),
        ("classes", ["cat", "dog", "cat"], "'cat' stands there twice"),
        ("classes", [f"class {i}" for i in range(10**6)], "needs at most 254 entries"),
        ("data_root", "", "data_root = '': needs to be text that is not empty"),
        ("threshold_low", 0.9, "above threshold_high"),
        ("seed_scales", [0.5], "seed_scales = (0.5,): needs 1.0 among the scales"),
        ("color_jitter", 1.5, "color_jitter = 1.5: needs to be at most 1"),
        ("color_jitter", -0.5, "color_jitter = -0.5: needs to be at least 0"),
        ("eval_scales", [1.0, 0.0], "eval_scales[1] = 0.0: needs to be at least 0.1"),
        ("classes", "cat", "classes = 'cat' is a str, needs a tuple"),
        ("classes", [1], "classes[0] = 1 is a int, needs a str"),
        ("lamda_c2s", 0.5, "did you mean 'lambda_c2s'"),
    ],
)
def test_bad_parameters_are_errors(name, value, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        RunConfig.from_parameters({name: value})
    assert name in str(error.value)


def test_terms_that_a_run_does_not_use_may_start_when_they_like():
    late = {"c2s_start": 350, "s2c_start": 350, "propagation_start": 350}
    for supervision, unused in (("none", late), ("full", late), ("s2c", {"c2s_start": 350, "propagation_start": 350})):
        RunConfig.from_parameters({"supervision": supervision, **unused})
    for used in ({"s2c_start": 350}, {"propagation_start": 350, "c2s_start": 350}):
        with pytest.raises(ConfigError, match=" = 350, ".join(sorted(used)) + " = 350: never reached"):
            RunConfig.from_parameters(used)
    RunConfig.from_parameters({"propagation": "par", "propagation_start": 350, "lambda_s2c": 0.0, "s2c_start": 350})


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


class Notebook:
    """Cells run by hand in one kernel, as IPython keeps them: their names, and the history ``In``."""

    def __init__(self):
        self.names = {"In": [""]}

    def run(self, *cells):
        for cell in cells:
            self.names["In"].append(cell)
            exec(cell, self.names)
        return self.names


FIRST, REST = "# Parameters: first\n", "# Parameters: the rest\n"


def test_what_the_parameters_cells_assign_is_the_configuration():
    book = Notebook()
    names = book.run("x = 3", FIRST + 'preset = "quick"\nseed: int = None', REST + "sigma_c: float = None")
    assert config_of(names) == RunConfig.from_parameters({}, "quick")
    names = book.run(FIRST + 'preset = "quick"\nseed: int = 7', REST + "sigma_c: float = 0.25", "iterations = 3")
    assert config_of(names) == RunConfig.from_parameters({"seed": 7, "sigma_c": 0.25}, "quick")  # not the reader's own


def test_a_misspelt_parameter_stops_every_run_until_it_is_corrected():
    book, typo, right = Notebook(), FIRST + "seed = 3\nlambda_s2 = 0.3", FIRST + "seed = 3\nlambda_s2c = 0.3"
    for _ in range(2):
        with pytest.raises(ConfigError, match="no parameter is called 'lambda_s2'; did you mean 'lambda_s2c'"):
            config_of(book.run("import os", typo, REST, "lambda_s2 = 1"))
    for _ in range(2):
        assert config_of(book.run(right, REST)).lambda_s2c == 0.3
    with pytest.raises(ConfigError, match="lambda_s2"):
        config_of(book.run("# Parameters\nlambda_s2 = 0.3"))  # as papermill injects it
    with pytest.raises(ConfigError, match="no parameter is called 'resluts'; did you mean 'results'"):
        given_parameters(Notebook().run("# Parameters\nresluts: str = 'x'"), ["results"])


def test_a_value_left_over_from_an_earlier_version_of_a_cell_does_not_count():
    book = Notebook()
    book.run(FIRST + "seed = 5")
    assert config_of(book.run(FIRST + "iterations = 900")).seed == 0


def test_a_value_that_a_later_cell_sets_to_none_again_is_an_error():
    book, rest = Notebook(), REST + "lambda_s2c: float = None"
    with pytest.raises(ConfigError, match=r"lambda_s2c = 0.3: a cell below sets it to None"):
        config_of(book.run(FIRST + "lambda_s2c = 0.3", rest))
    assert config_of(book.run(FIRST, rest)).lambda_s2c == RunConfig().lambda_s2c
    assert config_of(book.run("# Parameters\nlambda_s2c = 0.3")).lambda_s2c == 0.3  # as papermill injects it


def test_run_id_depends_on_what_is_computed_and_not_on_the_machine():
    config = RunConfig()
    same = config.replace(device="cpu", runs_dir="elsewhere", num_workers=3, data_root="/d")
    assert same.run_id("m") == config.run_id("m")
    assert re.fullmatch(r"scenes-both-bsp-oad-seed0-[0-9a-f]{10}", config.run_id("m"))
    others = {config.replace(seed=1).run_id("m"), config.replace(sigma_c=0.6).run_id("m"), config.run_id("n")}
    assert len(others | {config.run_id("m")}) == 4


def test_notebook_parameters_are_the_configuration_word_for_word():
    book = nbformat.read(ROOT / "notebooks" / "10_train.ipynb", 4)
    first, rest = (cell for cell in book.cells if cell.source.startswith("# Parameters"))
    assert (first.source, rest.source) == parameters_cells()
    assert "tags" not in first.metadata  # it stands open, and papermill injects below the other
    assert rest.metadata["tags"] == ["parameters"]
    names = Notebook().run(first.source, rest.source)
    assert {name for name in names if name in FIELDS} == set(FIELDS)
    assert config_of(names) == RunConfig()
    shown = papermill.inspect_notebook(ROOT / "notebooks" / "10_train.ipynb")  # what --help-notebook prints
    assert set(shown) == set(FIELDS) - set(parameters.FIRST)
    assert all(parameter["help"] for parameter in shown.values())


def test_environment_is_the_conda_view_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *packages, pip = environment["dependencies"]
    assert f"python{project['requires-python']}" in packages
    (own,) = pip["pip"]  # the package itself, which brings its one list of dependencies
    assert re.fullmatch(r"-e \.\[(\w+)\]", own).group(1) in project["optional-dependencies"]
