"""How a group of settings is checked: a frozen dataclass of strict fields, and one clear error for what is wrong."""

import dataclasses
import difflib
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass


class InputError(ValueError):
    """A mistake in what was given: its message says all, so a notebook shows that alone."""

    def _render_traceback_(self) -> list[str]:  # what IPython shows
        return [f"{type(self).__name__}: {self}"]


class ConfigError(InputError):
    """A parameter that does not exist, has the wrong type, or has a value that cannot work."""


class DataError(InputError):
    """Something in a dataset that cannot be used; the message names it and the fix."""


class WeightsError(InputError):
    """Weights that cannot be had or do not fit; the message says which keys and shapes."""


Group = TypeVar("Group", bound=type)
AS_TUPLE = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)  # papermill gives lists
Names = Annotated[tuple[str, ...], AS_TUPLE]
Scales = Annotated[tuple[Annotated[float, Field(gt=0)], ...], AS_TUPLE]


def settings(cls: Group) -> Group:
    """``cls`` as a frozen dataclass of checked values: strict types, no unknown names, no NaN; else ``ConfigError``."""
    rules = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    made = dataclass(frozen=True, kw_only=True, config=rules)(cls)
    checked = made.__init__

    def check(self: Any, **values: Any) -> None:
        try:
            checked(self, **values)
        except ValidationError as error:
            raise _config_error(error, [field.name for field in dataclasses.fields(made)]) from None

    made.__init__ = check
    return made


def at(default: Any, meaning: str, **bounds: float) -> Any:
    """A field: its default, what it means, and its bounds (``ge``, ``le``, ``gt``)."""
    return Field(default, description=meaning, **bounds)


def unknown_name(name: str, names: list[str]) -> ConfigError:
    """The error for a name that is none of ``names``, with the likeliest of them."""
    match = difflib.get_close_matches(name, names, 1)
    hint = f"; did you mean {match[0]!r}?" if match else f"; there are {', '.join(names)}"
    return ConfigError(f"no parameter is called {name!r}{hint}")


def _config_error(error: ValidationError, names: list[str]) -> ConfigError:
    """The first mistake that pydantic found, as one line that names the value and the fix."""
    first = error.errors(include_url=False)[0]
    kind, value, context = first["type"], first["input"], first.get("ctx", {})
    where = "".join(str(part) if not i else f"[{part}]" for i, part in enumerate(first["loc"]))
    if kind == "value_error":  # raised by a check across fields
        return context["error"]
    if kind == "unexpected_keyword_argument":
        return unknown_name(where, names)
    if kind.endswith("_type"):
        hint = ""
        if isinstance(value, str) and kind in ("int_type", "float_type", "bool_type"):
            hint = "; write it without quotes, and 1e-4 as 1.0e-4 (YAML reads the first as a string)"
        needs = kind.removesuffix("_type")
        return ConfigError(f"{where} = {value!r} is a {type(value).__name__}, needs a {needs}{hint}")
    needs = {
        "literal_error": "choose {expected}", "greater_than_equal": "needs to be at least {ge}",
        "less_than_equal": "needs to be at most {le}", "greater_than": "needs to be above {gt}",
        "finite_number": "needs to be a finite number",
    }.get(kind, first["msg"].replace("{", "{{").replace("}", "}}"))  # fmt: skip
    return ConfigError(f"{where} = {value!r}: {needs.format(**context)}")
