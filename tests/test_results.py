"""Every number that README reports is found in the committed tables, and every table belongs to recorded runs."""

import html
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from bidir.study.claims import claims_table, read_claims
from bidir.study.intervals import mean_interval
from bidir.study.registry import SCHEMA, read_registry

ROOT = Path(__file__).parents[1]
TEXTS = [ROOT / "README.md", ROOT / "docs" / "results.md"]
REGISTRIES = sorted(path.parent for path in (ROOT / "results").glob("*/grids.csv") if path.parent.name != "study")
STUDIES = [path for path in REGISTRIES if (path / "tables" / "table2_directions.csv").is_file()]


@pytest.mark.parametrize("folder", REGISTRIES, ids=lambda path: path.name)
def test_registries_hold_recorded_runs(folder):
    tables = read_registry(folder)
    runs = tables["runs"]
    assert runs["git_commit"].notna().all()
    assert not runs["git_dirty"].any()
    assert runs["hardware"].notna().all()
    assert runs["run_id"].is_unique
    for name in ("per_class", "per_step", "per_image"):
        assert set(tables[name]["run_id"]) == set(runs.loc[runs["state"] == "done", "run_id"]), name
    for name in SCHEMA.keys() - {"per_image"}:
        written = pd.read_csv(folder / f"{name}.csv")
        assert len(written) == len(tables[name])
        assert set(written.columns) <= set(tables[name].columns)
    assert not re.search(r"/(home|tmp|root|Users)/", (folder / "runs.csv").read_text())


@pytest.mark.parametrize("folder", STUDIES, ids=lambda path: path.name)
def test_tables_follow_from_the_registry(folder):
    """The means of table 2, computed anew from the runs' scores."""
    tables = read_registry(folder)
    runs = tables["runs"].set_index("run_id")["supervision"]
    cells = tables["grids"].query("grid == 'directions'")["run_id"]
    scores = tables["per_class"][tables["per_class"]["run_id"].isin(cells) & (tables["per_class"]["class"] == "mean")]
    scores = scores[scores["part"] == "val"] if "part" in scores else scores
    scores = scores.assign(supervision=scores["run_id"].map(runs))
    expected = mean_interval(scores, ["supervision", "protocol", "map"], "iou").set_index(
        ["supervision", "protocol", "map"]
    )
    written = pd.read_csv(folder / "tables" / "table2_directions.csv").set_index(["supervision", "protocol", "map"])
    for column in ("mean", "half_width", "seeds"):
        pd.testing.assert_series_equal(
            written[column], expected.loc[written.index, column], check_dtype=False, rtol=1e-4
        )


@pytest.mark.parametrize("folder", REGISTRIES, ids=lambda path: path.name)
def test_every_figure_has_its_caption_and_its_runs(folder):
    runs = set(read_registry(folder)["runs"]["run_id"])
    figures = sorted((folder / "figures").glob("*.png"))
    assert figures
    for figure in figures:
        assert figure.with_suffix(".md").read_text().strip()
        data = pd.read_csv(figure.with_suffix(".csv"))
        if "run_id" in data:
            assert set(data["run_id"]) <= runs, figure


def rows(table):
    lines = [line for line in table.strip().splitlines() if not line.startswith("|--")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_tables_in_the_texts_are_those_in_results():
    """A table below a link to results/.../tables/NAME.md holds that file's rows, all of its columns or some."""
    pattern = r"\((?:\.\./)?(results/\S+/tables/\S+\.md)\)[^\n]*\n(?:[^|\n][^\n]*\n)*\n((?:\|[^\n]*\n)+)"
    linked = [match for text in TEXTS for match in re.findall(pattern, text.read_text())]
    assert len(linked) == 4
    for name, table in linked:
        whole, shown = rows((ROOT / name).read_text().split("\n\n")[0]), rows(table)
        kept = [whole[0].index(column) for column in shown[0]]
        assert shown == [[row[i] for i in kept] for row in whole], name


def numbers_of(registries):
    """All that the tables of some registries say, and the claims made of them."""
    claims = yaml.safe_load((ROOT / "results" / "claims.yaml").read_text())
    said = [claim["sentence"] for claim in claims if (ROOT / claim["registry"]) in registries]
    return " ".join(said + [path.read_text() for folder in registries for path in folder.glob("tables/*.md")])


def test_differences_in_the_texts_are_in_a_table_or_a_claim():
    """Of the data that a chapter is about; of any data where it is about none."""
    chapters = {"Photographs": [ROOT / "results" / "photos"], "Generated scenes": [ROOT / "results" / "scenes"]}
    seen = set()
    for text in TEXTS:
        for chapter in re.split(r"^## ", text.read_text(), flags=re.M):
            title, _, said = chapter.partition("\n")
            tables = numbers_of(chapters.get(title, REGISTRIES))
            differences = re.findall(r"[+-]\d+\.\d\s±\s\d+\.\d", said)
            assert not [found for found in differences if " ".join(found.split()) not in tables], title
            seen |= {title} if differences else set()
    assert seen > {*chapters}


def test_the_report_holds_the_verdict_of_the_readme():
    """Made anew whenever the claims are: each of their sentences stands in it, word for word."""
    report = html.unescape((ROOT / "results" / "report.html").read_text())
    verdict = re.search(r"<!-- verdict -->\n(.*?)<!-- end -->", (ROOT / "README.md").read_text(), flags=re.S)[1]
    sentences = [
        line.removeprefix("- ").replace("**not confirmed**", "<b>not confirmed</b>") for line in verdict.splitlines()
    ]
    assert len(sentences) > 3
    assert not [sentence for sentence in sentences if sentence not in report]


def test_the_report_holds_the_claims_and_the_tables_as_they_are():
    """Cell by cell: those of the claims as they are computed now, and of each table beside the report."""
    report = (ROOT / "results" / "report.html").read_text()
    held = []
    for table in re.findall(r"<table.*?</table>", report, flags=re.S):
        lines = (re.findall(r"<t[hd]>(.*?)</t[hd]>", line, flags=re.S) for line in re.split("</tr>", table))
        held.append([[html.unescape(cell).strip() for cell in line] for line in lines if line])
    claims = claims_table(read_claims(ROOT / "results" / "claims.yaml"))
    assert [[*claims.columns], *claims.astype(str).to_numpy().tolist()] in held
    for folder in REGISTRIES:
        for path in folder.glob("tables/*.md"):
            assert rows(path.read_text().split("\n\n")[0]) in held, path
