"""Notebooks run by papermill: parameters checked first, output moved into place whole; and the report made of them."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory, gettempdir
from threading import Thread
from typing import Any, TextIO

import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from bidir.atomic import write_text
from bidir.config import ConfigError, RunConfig, resolve, unknown_name
from bidir.data.open import dataset_manifest, open_split
from bidir.run.folder import RunFolder
from bidir.study.registry import read_registry
from bidir.study.report import page

PLACES = ("runs_dir", "data_root")
# papermill knows the names in the tagged cell alone; a notebook itself refuses one that none of its cells sets
logging.getLogger("papermill").addFilter(lambda record: not record.getMessage().startswith("Passed unknown parameter"))


class NotebookError(ChildProcessError):
    """A notebook that did not run to its end: ``kind`` of the error, and its ``message``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"error in a notebook, {kind}: {message}")
        self.kind, self.message = kind, message


class OwnKernel(AsyncKernelManager):
    """A kernel of the interpreter that asks for it, whatever others the user has; killed as soon as ``ended`` says."""

    ended: Callable[[], bool] = staticmethod(lambda: False)
    transport = "ipc"  # by TCP, two that start at once can be told the same port: one dies, or its client waits in vain

    def _ip_default(self) -> str:  # short, as a socket's path must be
        return f"{gettempdir()}/bidir-{token_hex(8)}"

    @property
    def kernel_spec(self) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=CRITICAL"]
        return KernelSpec(argv=command, display_name="Python 3", language="python")  # CRITICAL: it ends in silence

    async def start_kernel(self, **options: Any) -> None:
        await super().start_kernel(**options)
        Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while self.has_kernel:
            if self.ended():
                with suppress(ProcessLookupError, AttributeError):
                    os.killpg(self.provisioner.pid, signal.SIGKILL)
                return
            time.sleep(0.3)


def run_notebook(
    name: str, parameters: dict, output: Path, log: TextIO | None = None, ended: Callable[[], bool] = OwnKernel.ended
) -> None:
    """Execute ``notebooks/<name>.ipynb`` with ``parameters``; its progress bars go to ``log`` (standard error).
    Errors: ``NotebookError`` if a cell fails or the kernel dies or is ended; ``*.failed.ipynb`` is then kept."""
    output.parent.mkdir(parents=True, exist_ok=True)
    draft, source = output.with_suffix(".failed.ipynb"), notebooks_folder() / f"{name}.ipynb"
    kernel = type("Kernel", (OwnKernel,), {"ended": staticmethod(ended)})
    try:
        papermill.execute_notebook(source, draft, parameters, kernel_name="python3", kernel_manager_class=kernel,
                                   progress_bar=False, stderr_file=log or sys.stderr, cwd=source.parent)  # fmt: skip
    except PapermillExecutionError as error:
        raise NotebookError(error.ename, error.evalue) from error
    except (DeadKernelError, RuntimeError) as error:  # the latter if it dies while it starts
        raise NotebookError(type(error).__name__, f"its kernel died, or never answered: {error}") from error
    draft.replace(output)


def notebooks_folder() -> Path:
    """The notebooks of the project one stands in, or of the one this package belongs to.
    Errors: ``ConfigError`` if there are none, asked for before any work."""
    for folder in (resolve("notebooks"), Path(__file__).parents[2] / "notebooks"):
        if (folder / "10_train.ipynb").is_file():
            return folder
    raise ConfigError(f"no notebooks of bidir in {Path.cwd()}: start in the project's folder, which holds notebooks/")


def run_training(parameters: dict[str, Any], preset: str = "study") -> Path:
    """One run: ``10_train`` executed by papermill and kept in the run's folder; a finished run returns at once.
    Errors: ``ConfigError`` and ``DataError`` before the notebook starts, ``NotebookError`` if a cell fails."""
    notebooks_folder()
    config = RunConfig.from_parameters(parameters, preset)
    folder = RunFolder.of(config, dataset_manifest(open_split(config, "train"), open_split(config, "val")))
    if not (folder.finished() and folder.notebook.is_file()):
        with folder.lock(name="OWNER"):
            run_notebook("10_train", placed(config), folder.notebook)
    return folder.path


def placed(config: RunConfig) -> dict[str, Any]:
    """The parameters of ``10_train``, its places found from wherever a kernel stands."""
    own = {name: str(resolve(value)) for name in (*PLACES, "initial") if (value := vars(config)[name])}
    return {**config.as_parameters(), **own}


def _seen(path: str | Path) -> str:
    """A path as a kernel in the notebooks' folder finds it, also if one stands outside the project."""
    return str(path if resolve("notebooks") == notebooks_folder() else resolve(path))


def make_figures(results: str | Path, only: str = "", /, **parameters: Any) -> dict[str, str]:
    """Execute the figure notebooks (those whose name starts with ``only``) on a registry; what became of each.
    Figures and tables are written into the registry's folder. A figure whose runs are lacking is "not run", and what
    was drawn of it before is removed. Each notebook takes those of ``parameters`` that it declares.
    Errors: ``ConfigError`` for a parameter that none declares, or no such notebook."""
    outcomes, every = {}, sorted(notebooks_folder().glob("3*.ipynb"))
    declared = {path.stem: papermill.inspect_notebook(path) for path in every if path.stem.startswith(only)}
    if not declared:
        names = ", ".join(path.stem for path in every)
        raise ConfigError(f"--only {only}: no notebook of figures begins so; there are {names}")
    known = sorted(set().union(*declared.values()) - {"results"})
    if unknown := [name for name in parameters if name not in known]:
        raise unknown_name(unknown[0], known)
    read_registry(results)  # before any work
    for name, known in declared.items():
        given = {key: _seen(value) if key in PLACES else value for key, value in parameters.items() if key in known}
        given["results"] = _seen(results)
        with TemporaryDirectory() as folder:
            try:
                run_notebook(name, given, Path(folder) / "out.ipynb")
                outcomes[name] = "written"
            except NotebookError as error:
                lacking = error.kind == "LookupError"
                outcomes[name] = f"not run: {error.message}" if lacking else f"failed: {error.kind}: {error.message}"
                for kind in ("figures/fig", "tables/table") if lacking else ():
                    for old in resolve(results).glob(f"{kind}{name[1]}[_a-z]*.*"):
                        old.unlink()
    return outcomes


def write_report(results: list[str | Path], html: Path) -> None:
    """``40_report`` over one or more registries with their figures, as one HTML file that loads nothing."""
    given = {"results": [_seen(path) for path in results], "folder": str(html.parent)}
    tags = Config(TagRemovePreprocessor={"enabled": True, "remove_cell_tags": ("parameters", "injected-parameters")})
    with TemporaryDirectory() as folder:
        run_notebook("40_report", given, Path(folder) / "report.ipynb")
        exporter = HTMLExporter(tags, template_name="basic", exclude_input=True, exclude_anchor_links=True)
        write_text(html, page(exporter.from_filename(f"{folder}/report.ipynb")[0], "Both branches teach, or one?"))
