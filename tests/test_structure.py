"""The shape of the project: one direction of imports, files of a readable size, clean notebooks."""

import ast
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LAYERS = """config files processes palette data.split data.creatures data.scenes data.voc data.prepare data.coco data
checks data.loader
model.mix_transformer model.weights model.encoders model.network seeds.par seeds.affinity seeds.maps seeds.propagation
losses schedule supervision metrics crf evaluation runs exchange training benchmark overlay prediction
registry executors sweep statistics figures execution tools cli""".split()


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("bidir"):
            module = node.module.removeprefix("bidir").lstrip(".")
            yield from [module] if module else [alias.name for alias in node.names]


def test_each_module_imports_only_what_stands_to_its_left():
    files = {
        str(p.relative_to(ROOT / "bidir").with_suffix("")).replace("/", "."): p for p in ROOT.glob("bidir/**/*.py")
    }
    modules = {name.removesuffix(".__init__"): path for name, path in files.items() if name != "__init__"}
    modules = {name: path for name, path in modules.items() if path.stat().st_size}
    assert sorted(modules) == sorted(LAYERS)
    for name, path in modules.items():
        for imported in imports(path):
            assert LAYERS.index(imported) < LAYERS.index(name), f"{name} imports {imported}"


def test_files_stay_readable():
    for path in ROOT.glob("bidir/**/*.py"):
        assert path.read_text().count("\n") <= 280, path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_clean(path):
    book = nbformat.read(path, 4)
    assert len(book.cells) <= 30
    assert book.metadata.kernelspec.name == "python3"
    assert "papermill" not in book.metadata
    for cell in book.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        if cell.cell_type == "code":
            assert not any(isinstance(n, ast.FunctionDef | ast.ClassDef) for n in ast.walk(ast.parse(cell.source)))


def test_lint():
    for command in (["check"], ["format", "--check"]):
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout
