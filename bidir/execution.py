"""Notebooks run by papermill: parameters checked first, output moved into place whole."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import papermill
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from bidir.config import RunConfig, resolve
from bidir.data import dataset_manifest, open_split
from bidir.figures import forget
from bidir.files import write_text
from bidir.runs import RunFolder
from bidir.sweep import read_grid, run_batch, write_tables

# glibc gives large blocks back to the system after every use; a kernel that keeps them trains a third faster on a CPU
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184"}


def run_training(parameters: dict[str, Any], preset: str = "study") -> Path:
    """One run: ``10_train`` executed by papermill, the executed notebook kept in the run's folder.

    Errors: ``ConfigError`` and ``DataError`` before the notebook starts; papermill's
    ``PapermillExecutionError`` if a cell fails. A finished run returns at once.
    """
    config = RunConfig.from_parameters(parameters, preset)
    folder = RunFolder(config, dataset_manifest(open_split(config, "train"), open_split(config, "val")))
    executed = folder.path / "notebook.ipynb"
    if not (folder.done.is_file() and executed.is_file()):
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(config).items()}
        run_notebook("10_train", values, executed)
    return folder.path


def run_notebook(name: str, parameters: dict[str, Any], output: Path) -> None:
    """Execute ``notebooks/<name>.ipynb`` with ``parameters``; its progress bars go to standard error.

    Errors: ``PapermillExecutionError`` if a cell fails; the notebook up to there is kept beside
    ``output`` under the name ``*.failed.ipynb``.
    """
    for setting, value in KEEP_MEMORY.items():
        os.environ.setdefault(setting, value)
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.with_suffix(".failed.ipynb")
    source = resolve("notebooks") / f"{name}.ipynb"
    papermill.execute_notebook(
        source, draft, parameters, kernel_name="python3", cwd=source.parent, progress_bar=False, stderr_file=sys.stderr
    )
    draft.replace(output)


def make_figures(results: str | Path, only: str = "", **parameters: Any) -> dict[str, str]:
    """Execute the figure notebooks (those whose name starts with ``only``) on a registry; says what became of each.

    Figures and tables are written into the registry's folder. A figure whose runs are lacking is "not run", and what
    was drawn of it before is removed. Each notebook takes those of ``parameters`` that it declares.
    """
    said = {}
    for source in sorted(resolve("notebooks").glob(f"{only or '3'}*.ipynb")):
        name, known = source.stem, papermill.inspect_notebook(source)
        given = {"results": str(results), **{key: value for key, value in parameters.items() if key in known}}
        with TemporaryDirectory() as folder:
            try:
                run_notebook(name, given, Path(folder) / "out.ipynb")
                said[name] = "written"
            except PapermillExecutionError as error:
                said[name] = f"failed: {error.ename}: {error.evalue}"
                if error.ename == "LookupError":
                    said[name] = f"not run: {error.evalue}"
                    for kind in ("figures/fig", "tables/table"):
                        forget(resolve(results) / f"{kind}{name[1]}[_a-z]*")
    return said


def run_study(folder: Path) -> Path:
    """The quick grid, its registry, figures and report, all in ``folder``; what is finished is not repeated.

    Returns the report. Errors: ``ChildProcessError`` naming a run that failed.
    """
    jobs, report = read_grid("notebooks/grids/quick.yaml", runs_dir=str(folder / "runs")), folder / "report.html"
    table = run_batch(jobs, retry_failed=True)
    lacking = table[table["state"] != "done"]
    if len(lacking):
        first = lacking.iloc[0]
        raise ChildProcessError(f"{first['run_id']} is {first['state']}: {first['reason']}")
    newest = max(job.folder.done.stat().st_mtime for job in jobs)
    if not report.is_file() or report.stat().st_mtime < newest:
        write_tables(jobs, folder)
        for name, said in make_figures(folder).items():
            print(f"{name}: {said}", flush=True)
        write_report([folder], report)
    return report.relative_to(Path.cwd()) if report.is_relative_to(Path.cwd()) else report


def write_report(results: list[str | Path], html: Path) -> None:
    """``40_report`` over one or more registries with their figures, as one HTML file."""
    with TemporaryDirectory() as folder:
        run_notebook("40_report", {"results": [str(path) for path in results]}, Path(folder) / "report.ipynb")
        write_html(Path(folder) / "report.ipynb", html)


def write_html(notebook: Path, html: Path) -> None:
    """An executed notebook as one HTML file that loads nothing: figures embedded, code left out."""
    settings = Config()
    settings.HTMLExporter.exclude_input = True
    settings.HTMLExporter.exclude_input_prompt = settings.HTMLExporter.exclude_output_prompt = True
    settings.HTMLExporter.mathjax_url = settings.HTMLExporter.require_js_url = ""
    settings.HTMLExporter.jquery_url = settings.HTMLExporter.mermaid_js_url = ""
    settings.TagRemovePreprocessor.enabled = True
    settings.TagRemovePreprocessor.remove_cell_tags = ("parameters", "injected-parameters")
    body, _ = HTMLExporter(config=settings).from_filename(str(notebook))
    write_text(html, body)
