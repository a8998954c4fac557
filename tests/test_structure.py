"""The shape of the project: one direction of imports, code of a readable size, shapes on tensors, clean notebooks."""

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from statistics import median

import nbformat
import pytest

import bidir

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FILES = sorted((ROOT / "bidir").rglob("*.py"))
# imports go to the left
ROOMS = "config/checked/presets/atomic/progress -> method -> data -> run -> study, apply, teach -> cli"
# most lines, of what trains and evaluates a run (without data/make), and of the whole package: 3000 and 5900 before
# feedback beyond the paper and claims (+300), files as people have them (+290), accidents to runs (+250), inputs
# (+150), what each teacher knows (+90)
CORE, ALL = 3511, 6940
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def tree(path):
    return ast.parse(path.read_text())


def functions(path):
    return [node for node in ast.walk(tree(path)) if isinstance(node, FUNCTIONS)]


def imports(path):
    """The rooms that a file imports from; "" for the package itself, which holds every name."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "bidir":
            modules = [node.module] if "." in node.module else [f"bidir.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names if alias.name.split(".")[0] == "bidir"]
        else:
            modules = []
        yield from ([*module.split("."), ""][1] for module in modules)


def test_each_room_imports_only_what_stands_to_its_left():
    levels = enumerate(ROOMS.split(" -> "))
    place = {name: (depth, room) for depth, level in levels for room in level.split(", ") for name in room.split("/")}
    assert {path.relative_to(ROOT / "bidir").with_suffix("").parts[0] for path in FILES} == {*place, "__init__"}
    for path in FILES:
        name = path.relative_to(ROOT / "bidir").with_suffix("").parts[0]
        if name == "__init__":
            assert not list(imports(path))  # what it offers is loaded when asked for
            continue
        depth, room = place[name]
        for imported in imports(path):
            there, other = place.get(imported, (depth - 1 if name == "cli" else depth, None))
            assert there < depth or other == room, f"{path.relative_to(ROOT)} imports {imported or 'bidir'}"


def test_code_stays_readable():
    for path in FILES:
        assert path.read_text().count("\n") <= 250, path
    lengths = {
        f"{path.relative_to(ROOT)}: {node.name}": node.end_lineno - node.lineno + 1
        for path in FILES
        for node in functions(path)
    }
    assert {name: length for name, length in lengths.items() if length > 50} == {}
    assert median(lengths.values()) <= 10


def test_the_package_stays_small():
    lines = {path.relative_to(ROOT / "bidir").with_suffix("").parts: path.read_text().count("\n") for path in FILES}
    rooms = {*ROOMS.split(" -> ")[0].split("/"), "method", "data", "run"}
    assert sum(count for parts, count in lines.items() if parts[0] in rooms and parts[:2] != ("data", "make")) <= CORE
    assert sum(lines.values()) <= ALL


def bare_tensors(annotation):
    """The tensors in an annotation that are not within ``Float[Tensor, "shape"]`` or the like."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Tuple):
        first, *rest = annotation.slice.elts
        if getattr(first, "id", "") == "Tensor" and len(rest) == 1 and isinstance(rest[0], ast.Constant):
            return []
    if getattr(annotation, "id", getattr(annotation, "attr", "")) == "Tensor":
        return [annotation]
    return [found for child in ast.iter_child_nodes(annotation) for found in bare_tensors(child)]


@pytest.mark.parametrize(
    ("annotation", "count"),
    [
        ('Float[Tensor, "B C"]', 0),
        ('tuple[list[Float[Tensor, "B C"]], Float[torch.Tensor, "B"] | None]', 1),
        ("Tensor", 1),
        ("'Tensor | None'", 1),
        ("dict[str, Tensor]", 1),
        ("tuple[Tensor, torch.Tensor]", 2),
        ("list[TensorDataset]", 0),
    ],
)
def test_bare_tensors_are_found(annotation, count):
    assert len(bare_tensors(ast.parse(annotation, mode="eval").body)) == count


def test_every_tensor_in_a_signature_of_the_method_has_a_shape():
    for path in sorted((ROOT / "bidir" / "method").glob("*.py")):
        for node in functions(path):
            signature = [
                *node.args.posonlyargs,
                *node.args.args,
                *node.args.kwonlyargs,
                node.args.vararg,
                node.args.kwarg,
            ]
            annotations = [argument.annotation for argument in signature if argument] + [node.returns]
            assert not [a for a in annotations if a and bare_tensors(a)], f"{path.name}: {node.name}"
        fields = [node for node in ast.walk(tree(path)) if isinstance(node, ast.AnnAssign)]
        assert not [node for node in fields if bare_tensors(node.annotation)], path.name


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
            assert "parameters" in cell.metadata.get("tags", []) or cell.source.count("\n") < 15, cell.source


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem[0] == "9"], ids=lambda p: p.stem)
def test_walkthroughs_are_read_cell_by_cell(path):
    cells = nbformat.read(path, 4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    for cell in code:
        assert cell.source.count("\n") < 12 or cell.metadata.get("jupyter", {}).get("source_hidden"), cell.source
    tags = [tag for cell in cells for tag in cell.metadata.get("tags", []) if tag.startswith("exercise-")]
    assert tags == [f"exercise-{k}" for k in range(1, len(tags) + 1)]
    assert len(tags) >= 3
    assert sum("check(" in cell.source for cell in code) >= len(tags)
    assert any("slider(" in cell.source for cell in code)
    assert "Read next in the code" in cells[-1].source
    named = [word.strip("`,.;:") for word in cells[-1].source.split() if "bidir/" in word]
    assert named
    assert all((ROOT / name).is_file() for name in named), named


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        ("bidir", {"torch", "pandas"}),
        ("bidir.cli", {"torch", "pandas"}),
        ("bidir.study.figures, bidir.study.pictures, bidir.study.registry, bidir.study.tables", {"torch"}),
    ],
)
def test_nothing_large_is_imported_for_nothing(modules, unwanted):
    code = f"import json, sys, {modules}\nprint(json.dumps([*sys.modules]))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not unwanted & {*json.loads(result.stdout)}


@pytest.mark.parametrize("name", bidir.__all__)
def test_every_name_that_the_package_offers_is_there(name):
    assert getattr(bidir, name) is not None
    assert name in dir(bidir)


def test_a_name_that_the_package_does_not_offer_is_an_error():
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        bidir.fitt  # noqa: B018


def test_lint():
    for command in (["check"], ["format", "--check"]):
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout
