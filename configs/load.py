"""The one way into a run: a YAML file and `section.key=value` words become a validated, frozen config or a clear error.

    text --read--> tree --overrides--> tree --$VARIABLES--> tree --strict schema--> config

Whatever is wrong is said at once, one line a fault: `FILE:LINE: section.key = value: rule; remedy`.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from configs import yaml12
from configs.differences import FREE, NUMERIC, Difference, differences, is_of_kind
from configs.faults import Origins, faults
from configs.schema import section_in

__all__ = ["FREE", "NUMERIC", "ConfigError", "Difference", "differences", "dump", "is_of_kind", "load", "read"]

M = TypeVar("M", bound=BaseModel)

_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|(?P<name>[A-Za-z_]\w*)|\{(?P<braced>[A-Za-z_]\w*)\})")


class ConfigError(ValueError):
    """The config cannot be run; the message has one line a fault, each with place, value, rule and remedy."""


def load(path: Path, schema: type[M], overrides: Sequence[str] = ()) -> M:
    """Read a recipe, apply `section.key=value` overrides, and return the config that `schema` describes.

    `$NAME` and `${NAME}` inside text are environment variables, `$$` is a dollar sign. Raises ConfigError.
    """
    tree, origins = _read(path)
    for name, field in schema.model_fields.items():
        if tree.get(name, ...) is None and section_in(field.annotation) is field.annotation:
            tree[name] = {}  # `augment:` with every key commented out means its defaults
    for override in overrides:
        _override(tree, origins, override)
    tree = _expand(tree, origins)
    try:
        return schema.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(faults(error, tree, schema, origins))) from error


def read(path: Path) -> dict[str, Any]:
    """Read the tree of a file that `dump` wrote, without judging it by a schema. Raises ConfigError."""
    tree, origins = _read(path)
    return _expand(tree, origins)


def dump(config: BaseModel) -> str:
    """Write every value of a config as YAML, a blank line between sections; `load` reads it back equal."""
    tree = _escape(config.model_dump(mode="json"))
    return "\n".join(yaml12.write({name: value}) for name, value in tree.items())


def _read(path: Path) -> tuple[dict[str, Any], Origins]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; the recipes lie under configs/pretrain and configs/finetune"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; name a YAML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); name a YAML file") from error
    try:
        tree, lines = yaml12.read(text)
    except yaml12.YamlError as error:
        raise ConfigError(f"{path}:{error.line}: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: a config is a mapping of sections, such as `run:` with `folder: runs/first` under it"
        )
    return tree, Origins(path, lines)


def _override(tree: dict[str, Any], origins: Origins, override: str) -> None:
    name, equals, text = override.partition("=")
    key = tuple(name.split("."))
    if not equals or not all(re.fullmatch(r"\w+", part) for part in key):
        raise ConfigError(f"command line: {override}: an override is section.key=value, such as optim.lr=3e-4")
    try:
        value = yaml12.read(text).tree
    except yaml12.YamlError as error:
        raise ConfigError(f"command line: {override}: {error}") from error
    section: Any = tree
    for depth, part in enumerate(key[:-1], start=1):
        if section.get(part) is None:
            section[part] = {}
            origins.override(key[:depth], override)
        section = section[part]
        if not isinstance(section, dict):
            raise ConfigError(f"command line: {override}: {'.'.join(key[:depth])} is a value, not a section with keys")
    section[key[-1]] = value
    origins.override(key, override)


def _expand(tree: dict[str, Any], origins: Origins) -> dict[str, Any]:
    """Put environment variables into text; refuse the unset ones, and numbers that are not finite."""
    problems: list[str] = []

    def expanded(value: Any, key: yaml12.Key) -> Any:
        match value:
            case dict():
                return {name: expanded(item, (*key, name)) for name, item in value.items()}
            case list():
                return [expanded(item, (*key, i)) for i, item in enumerate(value)]
            case str():
                wanted = [m["name"] or m["braced"] for m in _VARIABLE.finditer(value) if not m["dollar"]]
                unset = [name for name in wanted if name not in os.environ]
                problems.extend(
                    f"{origins.place(key, value)}: the environment variable {name} is not set;"
                    f" `export {name}=...` first, or write $$ for a dollar sign"
                    for name in unset
                )
                return value if unset else _VARIABLE.sub(_replacement, value)
            case float() if not math.isfinite(value):
                problems.append(
                    f"{origins.place(key, value)}: a number must be finite; write it in digits, such as 3e-4"
                )
        return value

    tree = expanded(tree, ())
    if problems:
        raise ConfigError("\n".join(problems))
    return tree


def _replacement(match: re.Match[str]) -> str:
    return match["dollar"] or os.environ[match["name"] or match["braced"]]


def _escape(value: Any) -> Any:
    match value:
        case Mapping():
            return {name: _escape(item) for name, item in value.items()}
        case list():
            return [_escape(item) for item in value]
        case str():
            return value.replace("$", "$$")
    return value
