"""Settings: dataclass fields with a help text, a type and limits, checked alike on every way in.

A setting is declared once, as a field of `Recipe`, `Setup` or `Plan`. Notebooks, the command line, params.json and
searches read it through `typed` (a Python value) or `read_text` (text of a command line).
"""

import math
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, field, fields
from typing import Any, Union, get_args, get_origin

import yaml

from reidlib.errors import unknown_name


def setting(
    default: Any,
    help: str,
    *,
    least: float | None = 0,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    choices: Sequence[str] = (),
    may_change: bool = False,
) -> Any:
    """Declare a dataclass field with what a user must know of it.

    Args:
        default: Its default; for a new setting the value that changes nothing, so that older checkpoints resume.
        help: One line for the parameter's table.
        least, above, most, below: Limits of a number: >=, >, <= and <. Numbers are always finite.
        choices: The values that a text may have.
        may_change: Whether a run resumes when the setting has changed.
    """
    limits = {"least": None if above is not None else least, "above": above, "most": most, "below": below}
    about = {"help": help, "choices": tuple(choices), "may_change": may_change, **limits}
    return field(default=default, metadata=about)


def check_limits(settings: Any) -> None:
    """Check the fields of a dataclass of settings; tuples are made of lists in place.

    Raises:
        ValueError: A value is of another type, outside its limits, or none of its choices.
    """
    for f in fields(settings):
        value = typed(f.name, getattr(settings, f.name), f.type)
        object.__setattr__(settings, f.name, value)
        about = f.metadata
        if choices := about.get("choices"):
            if value not in choices:
                raise unknown_name(f.name, value, choices)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            _check_number(f.name, value, about)


_LIMITS = {
    "least": ("at least", lambda value, limit: value >= limit),
    "above": ("above", lambda value, limit: value > limit),
    "most": ("at most", lambda value, limit: value <= limit),
    "below": ("below", lambda value, limit: value < limit),
}


def _check_number(name: str, value: float, about: Mapping[str, Any]) -> None:
    limits = {key: about[key] for key in _LIMITS if about.get(key) is not None}
    if not math.isfinite(value) or not all(_LIMITS[key][1](value, limit) for key, limit in limits.items()):
        words = " and ".join(f"{_LIMITS[key][0]} {limit}" for key, limit in limits.items()) or "finite"
        raise ValueError(f"{name} must be {words}, got {value}")


def help_of(f: Field) -> str:
    """The help of a field, with its choices."""
    choices = f.metadata.get("choices")
    return f.metadata.get("help", "") + (f" ({', '.join(choices)})" if choices else "")


def default_of(f: Field) -> Any:
    """The default of a field."""
    return f.default_factory() if f.default is MISSING else f.default


# Types


def type_name(kind: Any) -> str:
    """A type as a notebook declares it: `tuple[int, ...]` is a list[int], `bool | None` a bool."""
    kind, _ = _optional(kind)
    origin, args = get_origin(kind), [a for a in get_args(kind) if a is not Ellipsis]
    if origin in (tuple, list):
        return f"list[{args[0].__name__}]"
    return {tuple: "list"}.get(kind, kind).__name__


def _optional(kind: Any) -> tuple[Any, bool]:
    """The type without None, and whether None is allowed."""
    if get_origin(kind) in (Union, types.UnionType):
        (rest,) = (a for a in get_args(kind) if a is not types.NoneType)
        return rest, True
    return kind, False


def typed(name: str, value: Any, kind: Any) -> Any:
    """Give `value` as the type `kind`: an int as a float, a list as a tuple, and anything else as it is.

    Raises:
        ValueError: It is of another type.
    """
    rest, optional = _optional(kind)
    if value is None and optional:
        return None
    origin, args = get_origin(rest) or rest, [a for a in get_args(rest) if a is not Ellipsis]
    if origin in (tuple, list) and isinstance(value, list | tuple):
        if args and not all(_is(item, args[0]) for item in value):
            raise _wrong(name, value, kind)
        return origin(float(item) if args and args[0] is float else item for item in value)
    if not _is(value, origin):
        raise _wrong(name, value, kind)
    return float(value) if origin is float else value


def _is(value: Any, kind: type) -> bool:
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)


def _wrong(name: str, value: Any, kind: Any) -> ValueError:
    return ValueError(f"parameter {name!r} is {type_name(kind)}, got {value!r}")


# Text of a command line

_WORDS = {"true": True, "false": False, "null": None, "none": None}


def read_text(name: str, text: str, kind: Any, *, optional: bool = False) -> Any:
    """Read `text` from a command line as the type `kind`.

    Numbers are decimal: "010" is 10, and "1:30" is none (YAML has octal and sexagesimal ones). A list is written with
    commas, or as in YAML; its entries have the list's own type, else the type that they look like.

    Args:
        name: The parameter, for messages.
        text: What was typed.
        kind: int, float, str, bool, dict, list, tuple, `list[int]` and so on, or one of them `| None`.
        optional: Whether "None" is None.

    Raises:
        ValueError: The text is no value of that type.
    """
    rest, allowed = _optional(kind)
    if text == "None" and (optional or allowed):
        return None
    origin, args = get_origin(rest) or rest, [a for a in get_args(rest) if a is not Ellipsis]
    if origin is str:
        return text
    if origin in (list, tuple):
        if text.lstrip().startswith("["):
            value = _yaml(name, text)
        else:
            value = [_scalar(part.strip()) for part in text.split(",")] if text.strip() else []
        if args and args[0] is str and isinstance(value, list):
            value = [item if isinstance(item, str) else str(item) for item in value]
    else:
        value = _yaml(name, text) if origin is dict else _scalar(text)
    try:
        return typed(name, value, rest)
    except ValueError:
        raise _wrong(name, text, kind) from None


def _scalar(text: str) -> Any:
    """Text as the plain value that it looks like."""
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|nan)", text, re.IGNORECASE):
        return float(text)
    return _WORDS.get(text.lower(), text)


def _yaml(name: str, text: str) -> Any:
    if "&" in text and any(isinstance(token, yaml.AnchorToken) for token in _tokens(text)):
        raise ValueError(f"parameter {name!r}: {text!r} has an anchor (&), which is not read: write the value out")
    try:
        return _from_node(name, yaml.compose(text, Loader=yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ValueError(f"parameter {name!r}: {text!r} is not valid YAML ({reason})") from None


def _tokens(text: str) -> Iterator[Any]:
    """The tokens of a YAML text up to the first that is none."""
    with suppress(yaml.YAMLError):
        yield from yaml.scan(text, Loader=yaml.SafeLoader)


def _from_node(name: str, node: Any) -> Any:
    if node is None:  # an empty text
        return None
    if isinstance(node, yaml.SequenceNode):
        return [_from_node(name, item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        content: dict[str, Any] = {}
        for key, value in node.value:
            if str(key.value) in content:
                raise ValueError(f"parameter {name!r}: {key.value!r} is given twice")
            content[str(key.value)] = _from_node(name, value)
        return content
    return node.value if node.style else _scalar(node.value)
