"""How a group of settings is checked: a frozen dataclass of strict fields, and one clear error for what is wrong."""

import dataclasses
import difflib
import reprlib
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
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


def _once(values: tuple) -> tuple:
    if twice := [value for i, value in enumerate(values) if value in values[:i]]:
        raise ConfigError(f"{twice[0]!r} stands there twice; take one away")
    return values


Group = TypeVar("Group", bound=type)
AS_TUPLE = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)  # papermill gives lists
ONCE = AfterValidator(_once)
CLASSES = 254  # most that there can be: a mask has 8 bits, of which 0 is the background, 255 what is not counted
Text = Annotated[str, Field(pattern=r"^[^\s\pC]([^\pC]*[^\s\pC])?$")]
Names = Annotated[tuple[Text, ...], Field(max_length=CLASSES), AS_TUPLE, ONCE]
Scales = Annotated[tuple[Annotated[float, Field(ge=0.1, le=4)], ...], Field(max_length=16), AS_TUPLE, ONCE]
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 120
shown = SHORT.repr  # what is given may be of any size


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
    """A field: its default, what it means, and its bounds (``ge``, ``le``, ``lt``)."""
    return Field(default, description=meaning, **bounds)


def unknown_name(name: Any, names: list[str]) -> ConfigError:
    """The error for a name that is none of ``names``, with the likeliest of them."""
    match = difflib.get_close_matches(str(name), names, 1)
    hint = f"; did you mean {match[0]!r}?" if match else f"; there are {', '.join(names)}"
    return ConfigError(f"no parameter is called {shown(name)}{hint}")


def _config_error(error: ValidationError, names: list[str]) -> ConfigError:
    """The first mistake that pydantic found, as one line that names the value and the fix."""
    first = error.errors(include_url=False)[0]
    kind, value, context = first["type"], first["input"], first.get("ctx", {})
    where = "".join(str(part) if not i else f"[{part}]" for i, part in enumerate(first["loc"]))
    if kind == "value_error":  # raised by a check of ours, of one field or across them
        return ConfigError(f"{where} = {shown(value)}: {context['error']}") if where else context["error"]
    if kind == "unexpected_keyword_argument":
        return unknown_name(where, names)
    if kind.endswith("_type"):
        hint = ""
        if isinstance(value, str) and kind in ("int_type", "float_type", "bool_type"):
            hint = "; write it without quotes, and 1e-4 as 1.0e-4 (YAML reads the first as a string)"
        needs = kind.removesuffix("_type")
        return ConfigError(f"{where} = {shown(value)} is a {type(value).__name__}, needs a {needs}{hint}")
    needs = {
        "literal_error": "choose {expected}", "greater_than_equal": "needs to be at least {ge}",
        "less_than_equal": "needs to be at most {le}", "less_than": "needs to be below {lt}",
        "finite_number": "needs to be a finite number", "too_long": "needs at most {max_length} entries",
        "string_pattern_mismatch": "needs to be text that is not empty, without blanks around it or line breaks",
    }.get(kind, first["msg"].replace("{", "{{").replace("}", "}}"))  # fmt: skip
    return ConfigError(f"{where} = {shown(value)}: {needs.format(**context)}")
