"""Parameters as people write them: in a notebook's cells, on the command line, in YAML; what each means."""

import ast
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

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


class StrictLoader(yaml.SafeLoader):
    """YAML without code, in which no key stands twice in one dictionary."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """A dictionary's node. Errors: ``yaml.MarkedYAMLError`` that says which key stands there twice, and where."""
        node, seen = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} stands there twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return node


def from_yaml(text: str | bytes, where: str) -> Any:
    """What a YAML text says. Errors: ``ConfigError`` that begins with ``where``."""
    try:
        return yaml.load(text, StrictLoader)
    except Exception as error:  # what YAML takes for a number or a date can raise any kind
        raise ConfigError(f"{where}: not YAML ({' '.join(str(error).split())}); correct it there") from error


def parse_parameters(pairs: list[str] | None, known: Collection[str] = FIELDS) -> dict[str, Any]:
    """``name=value`` strings to values: text as it stands, lists also as ``a,b``, all else as YAML.
    Errors: ``ConfigError`` for what is no such pair, given twice, or none of ``known`` (empty: any)."""
    found = {}
    for pair in pairs or ():
        name, _, text = pair.partition("=")
        if not name or "=" not in pair:
            raise ConfigError(f"-p {pair}: write it as name=value")
        if name in found:
            raise ConfigError(f"-p {pair}: {name} is given twice; take one away")
        if known and name not in known:
            raise unknown_name(name, [*known])
        kind = FIELDS[name].annotation if name in FIELDS else None
        if (kind is str or get_origin(kind) is Literal) and text[:1] not in ("'", '"'):
            found[name] = text
        elif get_origin(kind) is tuple:
            items = text if text[:1] == "[" else f"[{text}]"
            found[name] = from_yaml(items, f"-p {pair}: a list is written {name}=a,b or '{name}=[a, b]'")
        else:
            found[name] = from_yaml(text, f"-p {pair}")
    return found


def check_place(path: Path, name: str) -> None:
    """``ConfigError`` if no folder can be made at ``path``, which ``name`` was given as."""
    there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(f"{name} = {str(path)!r}: {there} is not a folder that can be written to; give another")


def _assigned(source: str) -> dict[str, ast.expr]:
    """The names that a cell assigns at its top level, with the expression of each."""
    found = {}
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = [name.id for target in targets if target for name in ast.walk(target) if isinstance(name, ast.Name)]
        found.update(dict.fromkeys(names, getattr(node, "value", None) or ast.Constant(...)))
    return found
