"""A notebook's parameters: the cell that lists them, what each means, and a check that none was misspelt."""

from __future__ import annotations

import json
from typing import Any, Literal, get_args, get_origin

from bidir.config import FIELDS, GROUPS, RunConfig, unknown_name

LITERALS = (str, int, float, list, tuple, dict, type(None))


def meaning(name: str) -> str:
    """What a field means, its choices first."""
    field = FIELDS[name]
    choices = " | ".join(get_args(field.annotation)) + ": " if get_origin(field.annotation) is Literal else ""
    return choices + field.description


def parameters_cell() -> str:
    """The parameters cell of ``10_train``: every field with a plain type, its default and its meaning, by group."""
    blocks = []
    for group in GROUPS:
        lines = [f"# --- {group.__doc__}"]
        for name, field in group.__pydantic_fields__.items():
            kind = type(field.default)  # papermill's help reads no `tuple[float, ...]`
            value = json.dumps(field.default) if kind is str else repr(field.default)
            lines.append(f"{name}: {kind.__name__} = {value}  # {meaning(name)}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def reject_unknown(namespace: dict[str, Any], names_before: set[str], parameters: list[str]) -> None:
    """Raise ``ConfigError`` if a literal has appeared in a notebook that is none of its ``parameters``.

    A misspelt papermill parameter is then an error, not a default in use. Objects (figures, tables)
    are left alone, so cells may be run again by hand.
    """
    known = {*names_before, *parameters}
    for name, value in namespace.items():
        if name not in known and not name.startswith("_") and isinstance(value, LITERALS):
            raise unknown_name(name, parameters)


def config_of(namespace: dict[str, Any], names_before: set[str]) -> RunConfig:
    """The configuration that a notebook's parameters cells have defined.

    ``names_before`` are the names known before those cells. Errors: ``ConfigError``.
    """
    reject_unknown(namespace, names_before, list(FIELDS))
    return RunConfig.from_parameters({name: namespace[name] for name in FIELDS if name in namespace})
