"""Whatever is given ends in a configuration, the runs of a grid or a dataset, or in one of our errors that names it."""

from typing import Literal, get_args, get_origin

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bidir.checked import InputError, shown
from bidir.config import FIELDS, RunConfig
from bidir.data.open import open_split
from bidir.presets import PRESETS
from bidir.study.grid import read_grid
from bidir.study.parameters import parse_parameters

drawn = settings(derandomize=True, database=None, deadline=None, max_examples=200,
                 suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])  # fmt: skip
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([10**30, "1e-4"])
)
values = st.recursive(
    scalars, lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=3), one, max_size=2)
)
near = {
    name: get_args(field.annotation) if get_origin(field.annotation) is Literal else (field.default,)
    for name, field in FIELDS.items()
}
fields = st.sampled_from([*FIELDS]).flatmap(lambda name: st.tuples(st.just(name), values | st.sampled_from(near[name])))
others = st.tuples(st.text(max_size=8) | st.integers(), values)


def attempt(act, *given, **named):
    """What ``act`` returns and "", or None and the message of an error of ours; any other error is the test's."""
    try:
        return act(*given, **named), ""
    except InputError as error:
        return None, str(error)


@drawn
@given(st.lists(fields | fields | fields | others, max_size=4).map(dict), st.sampled_from([*PRESETS]) | values)
def test_settings(parameters, preset):
    config, message = attempt(RunConfig.from_parameters, parameters, preset)
    if config is None:
        named = [name for name in parameters if shown(name).strip("'\"") in message]
        assert named or message.startswith(f"preset = {shown(preset)}")
    else:
        assert RunConfig.from_stored(config.as_parameters()) == config


@drawn
@given(st.lists(st.text(max_size=12) | st.builds("{}={}".format, st.sampled_from([*FIELDS]), st.text(max_size=8))))
def test_pairs_of_the_command_line(pairs):
    config, message = attempt(lambda: RunConfig.from_parameters(parse_parameters(pairs)))
    assert config or [
        pair for pair in pairs if pair in message or shown(pair.partition("=")[0]).strip("'\"") in message
    ]


@pytest.fixture
def folder(tmp_path):
    """Four small images, to be named by what is drawn."""
    for i in range(4):
        Image.fromarray(np.full((40, 40, 3), 50 * i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "labels.csv").write_text("file,labels,split\n0.png,cat,train\n1.png,dog,train\n2.png,cat,val\n")
    return tmp_path


keys = st.sampled_from(["preset", "fixed", "seeds", "grids", "axes", "cases", "a", "sigma_c", "iterations", "seed"])
trees = st.recursive(
    scalars,
    lambda one: st.lists(one, max_size=3) | st.dictionaries(keys | st.integers(), one, max_size=3),
    max_leaves=8,
)
grids = st.fixed_dictionaries(
    {"grids": st.fixed_dictionaries({"a": st.fixed_dictionaries({}, optional={
        "axes": st.dictionaries(st.sampled_from(["sigma_c", "supervision", "sigma"]), st.lists(scalars, max_size=3)),
        "cases": st.lists(st.lists(fields, max_size=2).map(dict), max_size=2), "seeds": st.lists(st.integers(0, 9)),
    })})},
    optional={"seeds": trees, "preset": scalars},
)  # fmt: skip
texts = st.one_of(
    st.binary(max_size=40), st.text(max_size=40).map(str.encode),
    (trees | grids).map(lambda tree: yaml.safe_dump(tree).encode()),
)  # fmt: skip


@drawn
@given(texts)
def test_grid_files(folder, content):
    (folder / "grid.yaml").write_bytes(content)
    own = {"dataset": "folder", "data_root": str(folder), "runs_dir": str(folder / "runs")}
    jobs, message = attempt(read_grid, folder / "grid.yaml", **own)
    assert len({(job.grid, job.folder.run_id) for job in jobs}) == len(jobs) if jobs else "grid.yaml" in message


words = st.sampled_from(["0.png", "1.png", "3.png", "cat", "dog", "train", "val", "file", "labels", "split", "é", ""])
rows = st.lists(words | st.text(max_size=6), max_size=4).map(",".join)
tables = st.lists(rows, max_size=5).map(lambda lines: "\n".join(["file,labels,split", *lines]).encode())


@drawn
@given(tables | texts)
def test_tables_of_labels(folder, content):
    (folder / "labels.csv").write_bytes(content)
    config = RunConfig(dataset="folder", data_root=str(folder))
    split, message = attempt(open_split, config, "train")
    assert len(split.labels) == len(split.images) > 0 if split else "labels.csv" in message
