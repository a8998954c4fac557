"""The parts of the report as HTML, every text from outside escaped, and the page around them."""

import re
from base64 import b64encode
from html import escape
from io import BytesIO
from os.path import relpath
from pathlib import Path
from string import Template

import pandas as pd
from PIL import Image

from bidir.study.tables import DRAWS, Tables, drawn_runs


def page(body: str, title: str) -> str:
    """A whole HTML file that loads nothing and runs nothing: ``body`` with a table of contents of its h2 and h3."""
    parts = re.split(r"(<h[23]>.+?</h[23]>)", body)
    heads = [(f"section-{i}", part[2:3], part[4:-5]) for i, part in enumerate(parts) if i % 2]
    parts[1::2] = [f'<h{level} id="{name}">{text}</h{level}>' for name, level, text in heads]
    contents = "".join(f'<a class="h{level}" href="#{name}">{text}</a>' for name, level, text in heads)
    frame = Template(Path(__file__).with_name("report.html").read_text())
    return frame.substitute(title=escape(title), contents=contents, body="".join(parts))


def prose(text: str) -> str:
    """A caption, escaped; of Markdown it keeps `code` and **bold**."""
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", re.sub("`(.+?)`", r"<code>\1</code>", escape(text)))


def table_html(table: pd.DataFrame, caption: str) -> str:
    """A table that scrolls within itself, its caption above it; folded where it is long."""
    with pd.option_context("display.max_colwidth", None):
        cells = table.rename_axis(columns=None).to_html(index=False, border=0)
    rows = f'<div class="scroll" tabindex="0">{cells}</div>'
    if len(table) > 8:
        return f"<details><summary>{prose(caption)} ({len(table)} rows)</summary>{rows}</details>"
    return f'<p class="caption">{prose(caption)}</p>{rows}'


def written_table(path: Path, title: str) -> str:
    """``table_html`` of the Markdown that ``save_table`` wrote; number from the file's name, ``title`` of its data."""
    *lines, caption = path.read_text().strip().splitlines()
    head, _, *rows = (line.strip("|") for line in lines if line)
    cells = [row.rsplit(" | ", head.count(" | ")) for row in (head, *rows)]  # a name, which comes first, may hold one
    head, *rows = ([cell.strip() for cell in row] for row in cells)
    return table_html(pd.DataFrame(rows, columns=head), f"**Table {_number(path)} ({title}).** {caption}")


def figure_html(path: Path, title: str, notebook: str, tables: Tables, start: Path) -> str:
    """A figure (PNG) with its caption and where it comes from; its numbers are a link from the folder ``start``."""
    Image.open(path).convert("RGB").save(image := BytesIO(), "webp", quality=90)  # a seventh of a picture's PNG
    source = "data:image/webp;base64," + b64encode(image.getvalue()).decode()
    name, caption = f"Figure {_number(path)} ({title})", path.with_suffix(".md").read_text().strip()
    ids, grids = drawn_runs(path), tables["grids"].set_index("run_id")["grid"]
    own = grids[grids.isin(DRAWS[path.name[:4]].split())]
    of = ", ".join((own if ids <= {*own.index} else grids).loc[lambda grid: grid.index.isin(ids)].unique())
    commits = tables["runs"].set_index("run_id")["git_commit"].reindex(sorted(ids)).str[:10].unique()
    drawn = f"grid {of}, {len(ids)} run{'s'[: len(ids) > 1]}, commit {', '.join(sorted(commits))}"
    made = escape(f"Notebook {notebook}; {drawn if ids else 'measured by bidir benchmark'}")
    return (
        f'<figure><img alt="{escape(f"{name}: {caption}")}" src="{source}"><figcaption>'
        f"<b>{escape(name)}.</b> {prose(caption)}<small>{made}; "
        f'<a href="{escape(relpath(path.with_suffix(".csv"), start))}">numbers (CSV)</a></small></figcaption></figure>'
    )


def _number(path: Path) -> str:
    return re.sub(r"^[a-z]+(\d+[a-z]?)_.*", r"\1", path.name)  # 7a of fig7a_classes
