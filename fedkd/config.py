"""Loading of recipes: a TOML file, what it extends, and ``key=value`` overrides, into a model.

The models themselves (:class:`Section` subclasses) live with what they describe; the recipe of a
federation is :class:`fedkd.recipe.Recipe`. Defaults stand in the models only.
"""

import difflib
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from fedkd.errors import ConfigError
from fedkd.files import is_special

_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]+@")


class Section(BaseModel):
    """Base of every config model: frozen, no unknown keys, a docstring under each field."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
    )


_NUM_SHOWN = 20
_LONGEST = 1500
"""Characters of a model's own text; those that quote a value may quote a long one."""
_DEEPEST = 20
"""Parts of a dotted key on the command line; no key of a recipe has more than five."""

Model = TypeVar("Model", bound=Section)


def load(model: type[Model], path: Path | str | None, overrides: Sequence[str] = ()) -> Model:
    """Read a recipe, apply overrides and validate.

    Args:
        model: The model to fill.
        path: TOML file. Its key ``extends`` names another recipe, relative to this one, whose
            values it changes; tables are merged key by key. None: nothing but the overrides.
        overrides: ``key=value`` texts with dotted keys, later ones win. Values are TOML
            (``0.5``, ``true``, ``[1, 2]``, ``"text"``); a bare word counts as text.

    Raises:
        ConfigError: Unreadable file, unknown key (with the nearest known one), value out of range.
    """
    values = {} if path is None else _read(Path(path), model, seen=())
    changes, faults = [], []
    for text in overrides:
        try:
            changes.append(_parse_override(text))
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(faults))
    for change in changes:
        merge(values, change, model)
    return build(model, values, where=str(path or "the command line"), overrides=overrides)


def build(
    model: type[Model],
    values: Mapping[str, Any],
    where: str = "the given config",
    overrides: Sequence[str] = (),
) -> Model:
    """Validate plain values into a model; a ConfigError has one line for each thing wrong."""
    try:
        if secrets := list(_with_password(values)):
            raise ConfigError(
                "\n".join(
                    f"{key} in {where} is an address with a password; configs are saved with every "
                    "run, so take it out, and give it to the program that asks for it otherwise"
                    for key in secrets
                )
            )
        return model.model_validate(dict(values))
    except RecursionError:
        raise ConfigError(f"tables or lists nest too deeply in {where}") from None
    except ValidationError as error:
        changed = [text.partition("=")[0].strip() for text in overrides]
        lines = [_explain(item, model, where, changed) for item in error.errors()]
        if len(lines) > _NUM_SHOWN:
            lines[_NUM_SHOWN:] = [f"and {len(lines) - _NUM_SHOWN} more like these in {where}"]
        raise ConfigError("\n".join(lines)) from None


def _with_password(values: Any, key: str = "") -> Iterator[str]:
    """Keys of texts like ``https://user:password@host``."""
    if isinstance(values, str) and _PASSWORD.search(values):
        yield key
    elif isinstance(values, Mapping):
        for name, value in values.items():
            yield from _with_password(value, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _with_password(value, key)


def dump(config: Section) -> str:
    """The resolved config as TOML; keys that are None are left out, as None is their default."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def explain(config: Section, table: str = "") -> str:
    """The config as TOML in which every key has its description as a comment.

    Keys that are None, as their default is, stand commented out.
    """
    lines, tables = [], []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        comment = textwrap.indent(textwrap.fill(" ".join(str(field.description).split()), 96), "# ")
        if isinstance(value, Section):
            inner = f"{table}{name}"
            tables.append(f"\n{comment}\n[{inner}]\n{explain(value, inner + '.')}")
        elif value is None:
            lines.append(f"{comment}\n# {name} =\n")
        else:
            plain = config.model_dump(mode="json", include={name}, exclude_none=True)
            inner_values = value if isinstance(value, tuple) else ()
            if isinstance(value, dict) or any(isinstance(v, Section) for v in inner_values):
                # Tables come after all plain keys, under their full name.
                for part in reversed(table.split(".")[:-1]):
                    plain = {part: plain}
                tables.append(f"\n{comment}\n{tomli_w.dumps(plain)}")
            else:
                lines.append(f"{comment}\n{tomli_w.dumps(plain)}")
    return "".join(lines + tables)


def _read(path: Path, model: type[Section], seen: tuple[Path, ...]) -> dict[str, Any]:
    try:
        whole = path.resolve()
        if whole in seen:
            raise ConfigError(f"{path} extends itself through {seen[-1]}; remove one `extends`")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(_missing(path)) from None
    except (OSError, ValueError) as error:  # not UTF-8, or a path that holds a zero byte
        raise ConfigError(f"cannot read the config {str(path)!r}: {error}") from None
    values = _parse(text, str(path))
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(
            f"extends is {_short(repr(base))} in {path}; it must be the path of one recipe"
        )
    if is_special(path.parent / base):
        raise ConfigError(f"extends is {base!r} in {path}, which is no regular file")
    merged = _read(path.parent / base, model, (*seen, whole))
    merge(merged, values, model)
    return merged


def _parse(text: str, where: str) -> dict[str, Any]:
    """TOML as plain values; ConfigError if it is none, or one that only an attacker would write."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{where} is not valid TOML: tables or lists nest too deeply") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is not valid TOML: {_short(str(error), 200)}") from None
    except ValueError as error:  # of Python's int, on thousands of digits
        raise ConfigError(f"{where} is not valid TOML: {str(error).partition(';')[0]}") from None


def _short(text: str, longest: int = 120) -> str:
    """A text of which no more than its two ends is shown."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} ... {text[-half:]} ({len(text)} characters)"


def _missing(path: Path) -> str:
    folder = path.parent
    names = sorted(entry.name for entry in folder.glob("*.toml")) if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = f"; did you mean {folder / near[0]}?" if near else "; check the path"
    return f"there is no config file {path}{hint}"


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts) or len(parts) > _DEEPEST:
        raise ConfigError(
            f"override {_short(repr(text))} is not key=value; write for example strategy.name=mas"
        )
    try:
        parsed: Any = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    except (RecursionError, ValueError):
        raise ConfigError(
            f"override {_short(repr(text))} has no value that can be read: it nests too deeply, or "
            "is a number of thousands of digits"
        ) from None
    for part in reversed(parts):
        parsed = {part: parsed}
    return dict(parsed)


def merge(base: dict[str, Any], change: Mapping[str, Any], model: type[Section] | None) -> None:
    """Lay ``change`` over ``base`` in place, table by table.

    Where a table's name chooses between models (the data set), another name starts the table
    afresh: keys of one data set mean nothing to the next. An empty table empties one of free keys
    (class counts), which could not be taken back otherwise.
    """
    for key, value in change.items():
        old = base.get(key)
        field = model.model_fields.get(key) if model else None
        if not isinstance(value, Mapping) or not isinstance(old, dict):
            base[key] = dict(value) if isinstance(value, Mapping) else value
        elif field and (
            _renames(field, old, value) or (not value and get_origin(field.annotation) is dict)
        ):
            base[key] = dict(value)
        else:
            inner = field.annotation if field else None
            merge(old, value, inner if _is_section(inner) else None)


def _renames(field: FieldInfo, old: Mapping[str, Any], change: Mapping[str, Any]) -> bool:
    """Whether a change picks another of several models for this field."""
    if len(list(_sections_in(field.annotation))) < 2:
        return False
    name = old.get("name", getattr(field.default, "name", None))
    return bool(change.get("name", name) != name)


def _is_section(annotation: Any) -> TypeGuard[type[Section]]:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _explain(
    error: ErrorDetails, model: type[Section], where: str, overridden: Sequence[str]
) -> str:
    """One line for one validation error: key, value seen, what is allowed."""
    location = [str(part) for part in error["loc"]]
    sections, location = _walk(model, location)
    where = f"in {where}"
    location = [_short(part) for part in location]
    key = ".".join(location)
    if key in overridden or f"{key}.name" in overridden:
        where = "on the command line"
    if error["type"] == "extra_forbidden":
        known = [
            field.alias or name
            for section in sections
            for name, field in section.model_fields.items()
        ]
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        prefix = "".join(f"{part}." for part in location[:-1])
        hint = f"did you mean {prefix}{near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {key} {where}; {hint}"
    if error["type"] == "union_tag_invalid":
        tag, expected = error["ctx"]["tag"], error["ctx"]["expected_tags"]
        return f"{key}.name is {_short(repr(tag))} {where}; it must be one of {expected}"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    message = _short(message, _LONGEST)
    if error["type"] == "missing":
        return f"{key} is missing {where}; it must be given"
    if error["type"] in ("value_error", "assertion_error"):
        return f"{key + ': ' if key else ''}{message} ({where})"
    return f"{key} is {_short(repr(error['input']))} {where}; it must be {message}"


def _walk(model: type[Section], location: list[str]) -> tuple[list[type[Section]], list[str]]:
    """The models that may hold the last key, and the location without union tags."""
    sections, path = [model], []
    for part in location:
        fields = [
            section.model_fields[part] for section in sections if part in section.model_fields
        ]
        if fields:
            path.append(part)
            inner = list(_sections_in(fields[0].annotation))
            sections = inner or sections
        elif any(_tag(section) == part for section in sections):
            sections = [section for section in sections if _tag(section) == part]
        else:
            path.append(part)
    return sections, path


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    if _is_section(annotation):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections_in(argument)


def _tag(section: type[Section]) -> str | None:
    """The value of ``name`` that selects this model in a union, if it is one of several."""
    field = section.model_fields.get("name")
    values = get_args(field.annotation) if field else ()
    return str(values[0]) if len(values) == 1 else None
