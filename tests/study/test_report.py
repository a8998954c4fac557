"""The report's page: names from outside stay text, every figure says where it comes from, nothing is loaded."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from bidir.study.report import figure_html, page, prose, table_html, written_table
from bidir.study.tables import save_table

HOSTILE = (
    "<script>alert(1)</script> ![x](https://example.org/x.png) <img src=//example.org> \"' onload=x",
    "</td></table></figure><svg onload=alert(2)>",
    "<img src=x onerror=alert(3)> | </h2><script src=//example.org/x.js></script>",
    "`</code><iframe srcdoc='<script>alert(4)</script>'>` **<a href=javascript:alert(4)>x</a>** $body",
)
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Parsed(HTMLParser):
    """Every tag with its attributes, and the text between tags, as a browser reads them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def names(self):
        return {tag for tag, _ in self.tags}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_names_stay_text(tmp_path, hostile):
    """A class name, a caption and a registry's name that look like markup."""
    table = pd.DataFrame({"class": [hostile], "value": ["1.0 ± 0.1"]}).set_index("class")
    save_table(table, table, tmp_path / "table7_classes", hostile)
    figure = tmp_path / "fig2_directions.png"
    figure.write_bytes(PNG)
    figure.with_suffix(".md").write_text(hostile)
    figure.with_suffix(".csv").write_text("run_id\na\n")
    runs = pd.DataFrame({"run_id": ["a"], "git_commit": [hostile], "state": ["done"]})
    tables = {"runs": runs, "grids": pd.DataFrame({"run_id": ["a"], "grid": ["directions"]})}
    body = written_table(tmp_path / "table7_classes.md", hostile)
    body += figure_html(figure, hostile, hostile, tables, tmp_path)
    parsed = Parsed(page(body, hostile))
    assert not parsed.names() & {"script", "iframe", "object", "svg"}
    assert [values["src"][:10] for tag, values in parsed.tags if tag == "img"] == ["data:image"]
    said = hostile.replace("`", "").replace("**", "")  # what captions make of Markdown
    text = parsed.text.replace("`", "").replace("**", "")
    assert text.count(said) == 7  # title; table: title, caption, cell; figure: title, caption, notebook
    assert not [values for _, values in parsed.tags if any(name.startswith("on") for name in values)]
    assert {values.get("href", "#")[:1] for tag, values in parsed.tags if tag == "a"} <= {"#", "f"}


def test_a_figure_says_where_it_comes_from(tmp_path):
    """Two of the three runs of the registry were drawn; a third belongs to another grid, with other code."""
    (tmp_path / "figures").mkdir()
    figure = tmp_path / "figures" / "fig7b_size.png"
    figure.write_bytes(PNG)
    figure.with_suffix(".md").write_text("IoU by size & class.\n")
    runs = pd.DataFrame({"run_id": ["a", "b", "c"], "git_commit": ["1" * 40, "1" * 40, "2" * 40], "state": "done"})
    grids = pd.DataFrame({"run_id": ["a", "b", "c"], "grid": ["directions", "directions", "context"]})
    figure.with_suffix(".csv").write_text("run_id\na\nb\n")
    parsed = Parsed(figure_html(figure, "scenes", "37_where", {"runs": runs, "grids": grids}, tmp_path / "page"))
    assert "Notebook 37_where; grid directions, 2 runs, commit 1111111111; numbers (CSV)" in parsed.text
    assert dict(parsed.tags)["a"]["href"] == "../figures/fig7b_size.csv"
    assert dict(parsed.tags)["img"]["alt"] == "Figure 7b (scenes): IoU by size & class."
    figure.with_suffix(".csv").write_text("run_id\nc\n")
    html = figure_html(figure, "scenes", "37_where", {"runs": runs, "grids": grids}, tmp_path)
    assert "grid context, 1 run, commit 2222222222" in html
    figure.with_suffix(".csv").write_text("part,seconds\n")
    html = figure_html(figure, "scenes", "38_cost", {"runs": runs, "grids": grids}, tmp_path)
    assert "Notebook 38_cost; measured by bidir benchmark" in html


def test_a_picture_is_embedded_as_it_is_but_lighter(tmp_path):
    """Blurred grey noise, as heavy as a photograph: the same size, no pixel far off."""
    noise = gaussian_filter(np.random.default_rng(0).uniform(0, 255, (120, 200, 1)), (2, 2, 0))
    image = (127 + 6 * (noise - 127)).clip(0, 255).astype(np.uint8).repeat(3, 2)
    figure = tmp_path / "fig1_qualitative.png"
    Image.fromarray(image).save(figure)
    figure.with_suffix(".md").write_text("Maps.\n")
    figure.with_suffix(".csv").write_text("run_id\na\n")
    tables = {"runs": pd.DataFrame({"run_id": ["a"], "git_commit": ["1" * 40]}),
              "grids": pd.DataFrame({"run_id": ["a"], "grid": ["directions"]})}  # fmt: skip
    source = dict(Parsed(figure_html(figure, "scenes", "31", tables, tmp_path)).tags)["img"]["src"]
    embedded = base64.b64decode(source.partition("base64,")[2])
    assert len(embedded) < figure.stat().st_size / 2
    shown = np.array(Image.open(io.BytesIO(embedded)))
    assert shown.shape == image.shape
    assert np.abs(shown.astype(int) - image).mean() < 4


def test_long_tables_are_folded_and_all_scroll_within_themselves():
    for rows, folded in ((8, False), (9, True)):
        parsed = Parsed(table_html(pd.DataFrame({"name": ["x" * 80] * rows}), "what"))
        assert ("details" in parsed.names()) is folded
        assert ("div", {"class": "scroll", "tabindex": "0"}) in parsed.tags
        assert parsed.text.count("x" * 80) == rows  # not shortened


def test_the_contents_name_every_heading():
    html = page("<h1>All</h1><h2>The answer</h2><h3>Y_c &amp; Y_s (scenes)</h3><p>text</p>", "All")
    parsed = Parsed(html)
    targets = [values["id"] for tag, values in parsed.tags if tag in ("h2", "h3")]
    assert len(set(targets)) == 2
    links = [values["href"] for tag, values in parsed.tags if tag == "a"]
    assert links == [f"#{name}" for name in targets] * 2  # beside the text, and folded above it
    assert "default-src 'none'" in html
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:|//)|@import|url\(", html)
    assert prose("`a` **b** <c>") == "<code>a</code> <b>b</b> &lt;c&gt;"
