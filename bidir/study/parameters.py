"""A notebook's parameters: the cells that set them, what each means, and a check that none was misspelt."""

import ast
import json
from typing import Any, Literal, get_args, get_origin

from bidir.config import FIELDS, GROUPS, ConfigError, RunConfig, unknown_name
from bidir.presets import PRESETS

FIRST = ("dataset", "data_root", "supervision", "object_aware_decoding", "propagation", "iterations", "seed")
MARK = "# Parameters"  # how a cell of parameters begins; papermill's injected one begins so too


def meaning(name: str) -> str:
    """What a field means, its choices first."""
    field = FIELDS[name]
    choices = " | ".join(get_args(field.annotation)) + ": " if get_origin(field.annotation) is Literal else ""
    return choices + field.description


def parameters_cells() -> tuple[str, str]:
    """The two cells of parameters of ``10_train``; every value None (as the preset says), its meaning in a comment."""
    preset = f'preset: str = "study"  # {" | ".join(PRESETS)}: sets what is None below'
    first = [f"{MARK}: what matters first", preset, *map(_line, FIRST)]
    rest = f"{MARK}: the rest; None is what the preset says, in brackets its value in `study`"
    for group in GROUPS:
        rest += f"\n\n# --- {group.__doc__}"
        rest += "".join(f"\n{_line(name)}" for name in group.__pydantic_fields__ if name not in FIRST)
    return "\n".join(first), rest


def _line(name: str) -> str:
    default = FIELDS[name].default
    shown = json.dumps(default) if isinstance(default, str) else repr(default)
    return f"{name}: {type(default).__name__} = None  # {meaning(name)} [{shown}]"


def given_parameters(namespace: dict[str, Any], known: list[str]) -> dict[str, Any]:
    """The parameters that a notebook's cells have set: names assigned in the last execution of each cell that begins
    with ``MARK``, papermill's among them, with their values now.

    ``namespace``: the notebook's ``globals()``, with IPython's history ``In``. What other cells define, and what an
    earlier version of a cell assigned, does not count. Errors: ``ConfigError`` for a name not ``known`` or reset."""
    cells = {source.lstrip().partition("\n")[0]: source for source in namespace["In"]}  # the last of each first line
    given = [pair for first, cell in cells.items() if first.startswith(MARK) for pair in _assigned(cell).items()]
    for name, value in given:
        if name not in known:
            raise unknown_name(name, known)
        if namespace[name] is None and ast.unparse(value) != "None":
            raise ConfigError(f"{name} = {ast.unparse(value)}: a cell below sets it to None; change it there")
    return {name: namespace[name] for name, _ in given}


def config_of(namespace: dict[str, Any]) -> RunConfig:
    """The configuration that ``10_train``'s parameters cells have set; None is what the preset says.
    Errors: ``ConfigError`` for a misspelt name, a wrong type or a wrong value."""
    given = given_parameters(namespace, ["preset", *FIELDS])
    preset = given.pop("preset", "study")
    return RunConfig.from_parameters({name: value for name, value in given.items() if value is not None}, preset)


def _assigned(source: str) -> dict[str, ast.expr]:
    """The names that a cell assigns at its top level, with the expression of each."""
    found = {}
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = [name.id for target in targets if target for name in ast.walk(target) if isinstance(name, ast.Name)]
        found.update(dict.fromkeys(names, getattr(node, "value", None) or ast.Constant(...)))
    return found
