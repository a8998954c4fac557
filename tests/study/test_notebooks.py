"""The notebooks as a user runs them: papermill, end to end on a small generated dataset."""

import base64
import json
import re
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

from bidir.cli import main
from bidir.config import ConfigError
from bidir.study.grid import read_grid
from bidir.study.mechanism import GROUPS
from bidir.study.notebooks import (
    NotebookError,
    OwnKernel,
    make_figures,
    notebooks_folder,
    run_notebook,
    run_training,
    write_report,
)
from bidir.study.registry import read_registry, write_registry

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of papermill


BASELINE = {"supervision": "c2s", "propagation": "par", "object_aware_decoding": False}


@pytest.fixture(scope="module")
def batch(quick, workspace):
    """A small batch through 20_run_ablations: its grid file, its jobs and its registry."""
    grid, out = workspace / "grid.yaml", workspace / "registry"
    grids = {
        "directions": {"axes": {"supervision": ["c2s", "both"]}, "seeds": [0, 1]},
        "interaction": {"axes": {"propagation": ["par", "bsp"]}},
        "first_look": {"cases": [BASELINE, {"supervision": "both"}, {"supervision": "full"}]},
    }
    grid.write_text(yaml.safe_dump({"preset": "quick", "grids": grids}))
    folders = {"data_root": quick.data_root, "runs_dir": str(workspace / "batch"), "device": "cpu"}
    run_notebook(
        "20_run_ablations", {"grid": str(grid), "out": str(out), "parameters": folders}, workspace / "20.ipynb"
    )
    return grid, folders, read_grid(grid, **folders), out


@pytest.fixture(scope="module")
def full_method(batch):
    return next(job.folder.path for job in batch[2] if job.case == {"supervision": "both"})


def test_pseudo_labels_beat_raw_cams(full_method):
    results = json.loads((full_method / "run.json").read_text())["results"]
    assert results["ms/seed"] > results["ms/cam"] + 0.02
    assert results["ms/y_c"] > results["ms/cam"] + 0.02


def test_the_executed_notebook_is_kept_and_shows_its_figures(full_method):
    book = nbformat.read(full_method / "notebook.ipynb", 4)
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    pictures = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 3
    assert all(len(base64.b64decode(picture)) > 10_000 for picture in pictures)
    assert not [o for o in outputs if o.output_type == "error"]
    assert not list(full_method.glob("*.failed.ipynb"))


def test_evaluating_and_exporting(full_method, workspace, tmp_path):
    checkpoint = {"checkpoint": str(full_method / "checkpoint.pt")}
    run_notebook(
        "11_evaluate", {**checkpoint, "protocols": ["raw", "crf"], "out": str(tmp_path)}, tmp_path / "11.ipynb"
    )
    found = pd.read_csv(tmp_path / "per_class.csv").set_index(["protocol", "map", "class"])["iou"]
    results = json.loads((full_method / "run.json").read_text())["results"]
    assert found["raw", "branch_s", "mean"] == pytest.approx(results["raw/branch_s"], abs=1e-4)
    assert 0 < found["crf", "branch_s", "mean"] < 1
    run_notebook("50_export_model", {**checkpoint, "out": str(tmp_path / "export")}, tmp_path / "50.ipynb")
    assert {path.name for path in (tmp_path / "export").iterdir()} == {"README.md", "config.json", "model.safetensors"}


def test_a_finished_run_is_not_executed_again(batch, full_method):
    notebook = full_method / "notebook.ipynb"
    before = notebook.stat().st_mtime_ns
    assert run_training(batch[1], "quick") == full_method
    assert notebook.stat().st_mtime_ns == before


def test_kernels_that_start_at_once_listen_at_addresses_of_their_own():
    """By TCP an address is told before its kernel has it: of 1,500 among 14,000 ports some would be told twice."""
    kernels = [OwnKernel() for _ in range(300)]
    try:
        for kernel in kernels:
            kernel.write_connection_file()
        assert len({kernel._make_url(name) for kernel in kernels for name in ("shell", "iopub", "hb")}) == 900
    finally:
        for kernel in kernels:
            kernel.cleanup_connection_file()


def test_wrong_parameters_stop_before_papermill(workspace):
    with pytest.raises(ConfigError, match="learning_rate = '1e-4'"):
        run_training({"learning_rate": "1e-4"}, "quick")


def test_a_users_own_kernel_takes_no_part(tmp_path, monkeypatch):
    kernel = tmp_path / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text('{"argv": ["/bin/false"], "display_name": "mine", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    run_notebook("21_watch_runs", {"parameters": {"runs_dir": str(tmp_path)}}, tmp_path / "out.ipynb")
    assert (tmp_path / "out.ipynb").is_file()


def test_without_the_projects_notebooks_nothing_is_done(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").mkdir()  # a user's own
    assert (notebooks_folder() / "10_train.ipynb").is_file()
    monkeypatch.setattr("bidir.study.notebooks.__file__", str(tmp_path / "site-packages" / "bidir" / "a" / "b.py"))
    for work in (lambda: run_training({}, "quick"), lambda: make_figures("out"), lambda: write_report([], tmp_path)):
        with pytest.raises(ConfigError, match="start in the project's folder"):
            work()
    monkeypatch.setattr("sys.argv", ["bidir", "sweep", "grid.yaml"])
    with pytest.raises(SystemExit, match="start in the project's folder"):
        main()
    assert [path.name for path in tmp_path.iterdir()] == ["notebooks"]


@pytest.mark.parametrize(
    ("only", "parameters", "message"),
    [("99", {}, "--only 99: no notebook of figures begins so; there are 30_first_look"),
     ("10", {}, "--only 10: no notebook"), ("", {"colour": "red"}, "no parameter is called 'colour'"),
     ("31", {"run": 1}, "did you mean 'run_id'"), ("", {"results": "x"}, "no parameter is called 'results'")],
)  # fmt: skip
def test_figures_that_are_none_are_an_error(tmp_path, only, parameters, message):
    with pytest.raises(ConfigError, match=message):
        make_figures(tmp_path, only, **parameters)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"learnign_rate": 0.1}, "did you mean 'learning_rate'"), ({"object_aware_decoding": "true"}, "needs a bool")],
)
def test_wrong_parameters_given_to_papermill_itself_stop_the_notebook(tmp_path, parameters, message):
    with pytest.raises(NotebookError, match=re.escape(message)) as error:
        run_notebook("10_train", {**parameters, "runs_dir": str(tmp_path / "runs")}, tmp_path / "out.ipynb")
    assert error.value.kind == "ConfigError"
    assert message in error.value.message
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "out.ipynb").exists()


CELLS = {  # the other grids of the study, as copies of the runs of `directions`: settings, and what mIoU is raised by
    "two_by_two": [({"supervision": who, "propagation": how, "object_aware_decoding": False}, raised)
                   for who, how, raised in (("c2s", "par", 0.0), ("c2s", "bsp", 0.05), ("both", "par", 0.0),
                                            ("both", "bsp", 0.1))],
    "interaction": [({"supervision": "c2s", "propagation": "bsp", "object_aware_decoding": True}, 0.3)],
    "variants": [({"supervision": "c2s", "seed_share": 0.5}, 0.2), ({"supervision": "full"}, 0.4)],
    "teacher": [({"teacher_flip": False}, 0.0), ({"teacher_flip": True}, 0.05)],
    "crops": [({"supervision": who, "object_aware_decoding": False}, raised)
              for who, raised in (("c2s", 0.05), ("both", 0.25))],
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn(batch, workspace):
    """A registry with all grids, and what became of every figure notebook on it."""
    tables, out = read_registry(batch[3]), workspace / "all_grids"
    mine = tables["grids"].query("grid == 'directions'").merge(tables["runs"][["run_id", "supervision"]], on="run_id")
    copies = {name: [table] for name, table in tables.items()}
    for grid, cells in CELLS.items():
        for number, (case, raised) in enumerate(cells):
            source = case.get("supervision", "both").replace("full", "c2s")
            for run in mine[mine["supervision"] == source].itertuples():
                new, text = f"{grid}-{number}-{run.seed}", ", ".join(f"{k}={v}" for k, v in case.items())
                for name in ("runs", "per_class", "per_step", "per_image"):
                    copy = tables[name][tables[name]["run_id"] == run.run_id].assign(run_id=new)
                    if name == "runs":
                        copy = copy.assign(**case)
                    if name == "per_class":
                        copy["iou"] += raised + 0.01 * run.seed if raised else 0
                    copies[name].append(copy)
                row = {"grid": grid, "case": text, "seed": run.seed, "run_id": new, "state": "done"}
                copies["grids"].append(pd.DataFrame([row]))
    write_registry({name: pd.concat(parts, ignore_index=True) for name, parts in copies.items()}, out)
    cost = {"part": ["a", "b"], "setting": "small", "ratio": [1.0, None], "memory_ratio": [1.0, 1.2], "steps": 8,
            "seconds_per_step": [0.5, 0.7], "seconds_least": [0.4, 0.7], "seconds_most": [0.6, 0.9],
            "peak_memory_mib": [900, 1000], "what": "this machine"}  # fmt: skip
    pd.DataFrame(cost).to_csv(out / "cost.csv", index=False)
    counts = {"pixels": 100, "s_wrong": 20, "asks_right": 4, "asks_wrong": 12, "asks_label": -2, "images": 60}
    told = {"says": 80, "right": 60, "only": 10, "corrects": 4, "pupil": 50}
    counts |= {f"{who}_{what}": count for who in "cs" for what, count in told.items()}
    looked = [{"run_id": f"two_by_two-{cell}-{seed}", "step": step, "group": group, **counts}
              for cell in (2, 3) for seed in (0, 1) for step in (20, 40) for group in GROUPS]  # fmt: skip
    looked = pd.DataFrame(looked).assign(y_s="as trained")
    other = looked[looked["step"] == 40].assign(y_s="σ_s = 2", s_right=30, s_wrong=10, asks_right=3, asks_wrong=1)
    pd.concat([looked, other]).to_csv(out / "mechanism.csv", index=False)
    where = {"runs_dir": batch[1]["runs_dir"], "data_root": batch[1]["data_root"]}
    said = {}
    for number in map(str, range(30, 40)):
        said |= make_figures(out, number, **(where if number in ("30", "31") else {}))
    return out, said


FIGURES = (
    "fig0_curves fig0_first_look fig1_qualitative fig2_directions fig2_paired fig3_interaction fig3_paired fig4_forms "
    "fig4_paired fig4_two_by_two fig5_mechanism fig6_dynamics fig7a_classes fig7b_size fig8_cost fig9_settings"
).split()


def test_figures_are_drawn_from_the_registry(batch, drawn):
    out, said = drawn
    assert set(said.values()) == {"written"}, said
    assert {path.stem for path in (out / "figures").iterdir()} == set(FIGURES)
    runs = set(read_registry(out)["runs"]["run_id"])
    for name in FIGURES:
        assert all(
            (out / "figures" / f"{name}.{kind}").stat().st_size > 0 for kind in ("png", "pdf", "svg", "md", "csv")
        )
        data = pd.read_csv(out / "figures" / f"{name}.csv")
        assert set(data.get("run_id", [])) <= runs
        seeds = {
            "fig0_curves": "One seed",
            "fig0_first_look": "one seed",
            "fig1_qualitative": "seed 0",
            "fig3_interaction": "; 1 seed.",
            "fig3_paired": "; 1 seed.",
            "fig8_cost": "8 steps",
        }
        assert seeds.get(name, "2 seeds") in (out / "figures" / f"{name}.md").read_text(), name
    assert "Y_s is not shown" not in (out / "figures" / "fig1_qualitative.md").read_text()
    stored = {name: len([*out.glob(f"maps/*/raw-{name}/*.png")]) for name in ("branch_s", "y_s")}
    assert stored["y_s"] == stored["branch_s"] > 0  # beside the figure, so that drawing it again needs no checkpoint
    assert make_figures(batch[3], "34")["34_two_by_two"].startswith("not run: grid 'two_by_two' holds no finished")


def test_comparisons_pair_the_right_runs(drawn):
    """mIoU raised by 0.05 and 0.06 in a cell: mean 0.055; in another by 0.10, 0.11."""
    out, _ = drawn
    moved = pd.read_csv(out / "tables" / "table4_differences.csv").query("map == 'branch_s'")
    assert moved["half_width"].isna().all()
    assert set(moved["reading"]) == {"two seeds"}
    moved = moved.set_index(["first", "second"])["mean"]
    assert moved["loss off + par", "loss off + bsp"] == pytest.approx(0.055, abs=1e-5)
    assert moved["loss on + par", "loss on + bsp"] == pytest.approx(0.105, abs=1e-5)
    assert moved["loss off + bsp", "S in the CAM + bsp"] == pytest.approx(0.15, abs=1e-5)  # by 0.20, 0.21
    assert moved["loss off + par", "S in the CAM + bsp"] == pytest.approx(0.205, abs=1e-5)
    own = pd.read_csv(out / "per_class.csv").query("protocol == 'raw' and map == 'branch_s' and `class` == 'mean'")
    iou = own.set_index("run_id")["iou"]
    gain = sum(iou[f"two_by_two-2-{seed}"] - iou[f"two_by_two-0-{seed}"] for seed in (0, 1)) / 2
    assert moved["loss off + par", "loss on + par"] == pytest.approx(gain, abs=1e-5)
    numbers = pd.read_csv(out / "tables" / "table4_far.csv").set_index(["cell", "what"])["mean"]
    pairs = [(iou[f"two_by_two-0-{seed}"], iou[f"variants-0-{seed}"], iou[f"variants-1-{seed}"]) for seed in (0, 1)]
    assert numbers["S in the CAM + bsp", "of masks"] == pytest.approx(sum(own / best for _, own, best in pairs) / 2)
    closed = sum((own - base) / (best - base) for base, own, best in pairs) / 2
    assert numbers["S in the CAM + bsp", "of the gap"] == pytest.approx(closed, rel=1e-4)
    assert numbers["S in the CAM + bsp", "gain, first three seeds"] == pytest.approx(0.15, abs=1e-5)
    factors = pd.read_csv(out / "tables" / "table3_factors.csv").query("map == 'branch_s' and second == 'loss on'")
    assert factors["held"].tolist() == ["bsp, object-aware"]
    seed = pd.read_csv(out / "grids.csv").query("grid == 'interaction' and case == 'propagation=bsp'")["run_id"].item()
    assert factors["mean"].item() == pytest.approx(iou[seed] - iou["interaction-0-0"], abs=1e-5)
    taught = pd.read_csv(out / "tables" / "table9_differences.csv").query("map == 'branch_s'")
    assert taught[["form", "first", "second"]].to_numpy().tolist() == [
        ["full method", "training pass", "three scales, flips"]
    ]
    assert taught["mean"].item() == pytest.approx(0.055, abs=1e-5)  # raised by 0.05 and 0.06
    gained = pd.read_csv(out / "tables" / "table9_forms.csv").query("map == 'branch_s'").set_index("second")["mean"]
    runs = [[iou[f"crops-{cell}-{seed}"] for seed in (0, 1)] for cell in (0, 1)]
    assert gained.to_dict() == {"paper's loss, BSP": pytest.approx((sum(runs[1]) - sum(runs[0])) / 2, abs=1e-5)}


def test_what_a_form_finds_is_the_mean_of_its_classes(drawn):
    """Recall of the CAM over the objects' classes, from the registry's own table."""
    per_class = pd.read_csv(drawn[0] / "per_class.csv").query("protocol == 'ms' and map == 'cam' and part == 'val'")
    objects = per_class[~per_class["class"].isin(["mean", "background"])]
    recalls = [objects.loc[objects["run_id"] == f"variants-0-{seed}", "recall"].mean() for seed in (0, 1)]
    found = pd.read_csv(drawn[0] / "tables" / "table7_found.csv").set_index(["cell", "kind", "what"])["mean"]
    assert found["S in the CAM + bsp", "CAM, objects", "recall"] == pytest.approx(sum(recalls) / 2, abs=1e-5)


def test_what_teachers_know_is_a_share_of_the_pixels(drawn):
    """Right on 60 of 80 labelled of 100 pixels, on 10 where the other is not, on 4 of these where it is wrong, in each
    of three groups; the pupil is right on 50 of the 80."""
    lead = pd.read_csv(drawn[0] / "tables" / "table5_lead.csv").groupby("what")["mean"].unique().explode()
    assert lead.to_dict() == pytest.approx(
        {
            "labelled": 0.8,
            "teacher right": 0.75,
            "pupil right": 0.625,
            "lead": 0.125,
            "other wrong": 0.04,
            "other silent": 0.06,
        }
    )
    caption = (drawn[0] / "figures" / "fig5_mechanism.md").read_text()
    assert "par: alone right S 10.0 %, C 10.0 %, 25 % of what S → C asks is for the right class" in caption
    numbers = pd.read_csv(drawn[0] / "tables" / "table5_mechanism.csv").groupby("what")["mean"].unique()
    assert {name: values.tolist() for name, values in numbers.items()} == {
        "Y_c right": [0.6], "Y_s right": [0.6], "only Y_c": [0.1], "only Y_s": [0.1],
        "Y_s names another class": [0.2], "Y_s ignores": [0.2],
        "asked for the right class": [0.04], "for a wrong class": [0.12]}  # fmt: skip
    ruled = pd.read_csv(drawn[0] / "tables" / "table5_rules.csv").groupby(["y_s", "what"])["mean"].unique()
    for rule, shares in {"as trained": [0.6, 0.2, 0.04, 0.12, 0.25], "σ_s = 2": [0.3, 0.1, 0.03, 0.01, 0.75]}.items():
        assert sorted(ruled[rule].explode()) == sorted(shares)


def test_a_tables_numbers_are_in_its_csv_and_in_the_runs(batch, drawn):
    """mIoU of Branch-S under supervision both: mean of what the two runs' own files say."""
    jobs, out = batch[2], drawn[0]
    own = [
        json.loads((job.folder.path / "run.json").read_text())["results"]["raw/branch_s"]
        for job in jobs
        if (job.grid, job.case) == ("directions", {"supervision": "both"})
    ]
    numbers = pd.read_csv(out / "tables" / "table2_directions.csv").query("supervision == 'both'")
    row = numbers.query("protocol == 'raw' and map == 'branch_s'").iloc[0]
    assert len(own) == row["seeds"] == 2
    assert row["mean"] == pytest.approx(sum(own) / 2, abs=1e-5)
    table, _, caption = (out / "tables" / "table2_directions.md").read_text().partition("\n\n")
    assert f"{100 * row['mean']:.1f} " in table
    assert "±" in caption
    assert "±" not in table  # two seeds give no interval
    assert "not comparable" in (out / "tables" / "table2_published.md").read_text()


def test_report_is_self_contained(batch, drawn, tmp_path):
    write_report([drawn[0], batch[3]], tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']?(?:https?:)?//", html)
    figures = re.findall(r'<img alt="Figure \d[a-c]? \(all_grids\): [^"]+" src="data:image/webp;base64', html)
    assert len(figures) == len(re.findall("<img ", html)) == len(FIGURES)
    links = re.findall(r'<a href="([^"#]+)">numbers', html)
    assert {(tmp_path / link).resolve() for link in links} == {drawn[0] / "figures" / f"{name}.csv" for name in FIGURES}
    assert html.index("One seed proves nothing") < html.index("<table")  # no claim is made on these registries
    assert "Claims." not in html
    assert html.count("Not run.") == 6  # of the second nothing was drawn; its grids ask for figures 0 to 3, 6 and 7


def outputs_of(notebook):
    return [output for cell in nbformat.read(notebook, 4).cells for output in cell.get("outputs", [])]


def test_a_batch_in_a_notebook_is_one_bar_and_one_table(batch, workspace):
    """Both updated in place; the plan before and the states after are the same table."""
    outputs, runs = outputs_of(workspace / "20.ipynb"), {job.folder.run_id for job in batch[2]}
    assert {output.output_type for output in outputs} == {"display_data"}  # no red box, no bar on a bar
    *made, before, bar, during, after = (output.data for output in outputs)
    assert all(output["text/plain"].startswith("generate scenes: 100%") for output in made)  # where none were there
    assert before["text/html"].count("waiting") == len(runs)
    assert bar["text/plain"].startswith(f"{len(runs)}/{len(runs)} runs: 100%")
    for table in (during, after):
        assert table["text/html"].count("<td>done</td>") == len(re.findall("Branch-S", table["text/html"])) == len(runs)


def test_watching_a_batch(batch, tmp_path):
    grid, folders, jobs, _ = batch
    run_notebook("21_watch_runs", {"grid": str(grid), "parameters": folders, "refreshes": 1}, tmp_path / "21.ipynb")
    outputs = outputs_of(tmp_path / "21.ipynb")
    assert any("image/png" in o.get("data", {}) for o in outputs)
    count = len({job.folder.run_id for job in jobs})
    assert any(o.get("data", {}).get("text/html", "").count("<td>done</td>") == count for o in outputs)


def test_watching_before_a_batch_says_what_to_start_and_makes_nothing(tmp_path, capfd):
    where = {"runs_dir": str(tmp_path / "runs"), "data_root": str(tmp_path / "data")}
    run_notebook("21_watch_runs", {"parameters": where}, tmp_path / "21.ipynb")
    (said,) = outputs_of(tmp_path / "21.ipynb")
    assert "Start the batch first" in said.data["text/markdown"]
    assert [path.name for path in tmp_path.iterdir()] == ["21.ipynb"]
    assert capfd.readouterr().err == ""  # nor does its kernel warn of anything


def test_data_is_prepared_by_a_notebook(published_voc, published_coco, tmp_path):
    source, sbd = published_voc
    given = {"source": str(source), "sbd": str(sbd), "out": str(tmp_path / "voc"), "any_count": True}
    run_notebook("01_prepare_data", given, tmp_path / "voc.ipynb")
    given = {"dataset": "coco", "source": str(published_coco), "out": str(tmp_path / "coco_out"), "any_count": True}
    run_notebook("01_prepare_data", given, tmp_path / "coco.ipynb")
    for kind, counts in (("voc", {"train": 2, "val": 2, "test": 1, "train_aug": 5}), ("coco", {"train": 2, "val": 1})):
        folder = tmp_path / ("voc" if kind == "voc" else "coco_out")
        assert json.loads((folder / "manifest.json").read_text())["images"] == counts
        outputs = [o for cell in nbformat.read(tmp_path / f"{kind}.ipynb", 4).cells for o in cell.get("outputs", [])]
        assert sum("image/png" in o.get("data", {}) for o in outputs) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["photos", "scenes"])
def test_committed_tables_come_out_of_their_registry_to_the_letter(name, tmp_path):
    """Drawn anew from its numbers alone: no table is of other runs, or made by an older notebook."""
    folder = Path(__file__).parents[2] / "results" / name
    committed = {path.name: path.read_text() for path in folder.glob("tables/*.md")}
    copy = shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("tables"))
    for number in sorted({table[len("table")] for table in committed}):
        assert [*make_figures(copy, f"3{number}").values()] == ["written"]
    assert {path.name: path.read_text() for path in copy.glob("tables/*.md")} == committed
