"""What pydantic found, said to a person: `FILE:LINE: section.key = value: rule; remedy`, one line a fault."""

import difflib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from configs.schema import annotation_at, is_choice, section_in
from configs.words import misplaced, shown, type_in_words
from configs.yaml12 import Key


class Origins:
    """Where each value was written: a line of the file, or a word of the command line."""

    def __init__(self, path: Path, lines: dict[Key, int]) -> None:
        self._path = path
        self._lines = lines
        self._overrides: dict[Key, str] = {}

    def override(self, key: Key, word: str) -> None:
        """Note that a value now comes from the command line."""
        self._overrides[key] = word

    def place(self, key: Key, value: Any) -> str:
        """Say where a value was written, and the value; of a section its name alone."""
        for end in range(len(key), 0, -1):
            if key[:end] in self._overrides:
                return f"command line: {self._overrides[key[:end]]}"
        if not key:
            return self.line(key)
        return f"{self.line(key)}: {name_of(key)}" + ("" if isinstance(value, dict) else f" = {shown(value)}")

    def line(self, key: Key) -> str:
        """Say on which line of the file a key stands; the file alone for a key that is not in it, and for the whole."""
        return f"{self._path}:{self._lines[key]}" if key and key in self._lines else str(self._path)


def name_of(key: Key) -> str:
    """`("optim", "betas", 0)` -> `optim.betas[0]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).removeprefix(".")


def faults(error: ValidationError, tree: dict[str, Any], schema: type[BaseModel], origins: Origins) -> list[str]:
    """Word every error of a validation against the tree that was read."""
    by_field: dict[Key, list[tuple[Key, ErrorDetails]]] = {}
    for detail in error.errors(include_url=False):
        key = _key_in_tree(detail["loc"], tree)
        if detail["type"] == "missing" and isinstance(detail["loc"][-1], str):
            key = (*key, detail["loc"][-1])
        field = key
        while field and isinstance(field[-1], int):
            field = field[:-1]
        by_field.setdefault(field, []).append((key, detail))

    lines: list[str] = []
    for field, found in by_field.items():
        # A union reports every option that did not fit. What it says deeper in the value, or about its size, is about
        # the option that was meant; if there is no such thing, one line names all the options.
        apart = [(key, detail) for key, detail in found if not (key == field and _is_wrong_kind(detail))]
        lines += [_line(key, detail, tree, schema, origins) for key, detail in apart or found[:1]]
    return lines


def _line(key: Key, detail: ErrorDetails, tree: dict[str, Any], schema: type[BaseModel], origins: Origins) -> str:
    if detail["type"] == "missing" and isinstance(detail["loc"][-1], str):
        return f"{origins.line(key[:-1])}: {_missing(key, schema)}"
    if detail["type"] == "extra_forbidden":
        return f"{origins.place(key, {})}: {_unknown(key, schema)}"
    value: Any = tree
    for part in key:
        value = value[part]
    return f"{origins.place(key, value)}: {_rule(value, detail, annotation_at(schema, key))}"


def _rule(value: Any, detail: ErrorDetails, annotation: Any) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "value_error" | "assertion_error":
            return str(context["error"])
        case "too_long":
            return f"at most {context['max_length']} values belong here"
        case "too_short":
            return f"at least {context['min_length']} values belong here"
        case "missing":  # the second of two numbers, say
            return misplaced(value, annotation)
    if _is_wrong_kind(detail) and not is_choice(annotation):
        return misplaced(value, annotation)
    return detail["msg"].replace("Input should", "must")


def _missing(key: Key, schema: type[BaseModel]) -> str:
    annotation, name = annotation_at(schema, key), key[-1]
    under = f" under `{name_of(key[:-1])}:`" if key[:-1] else ""
    if section := section_in(annotation):
        return (
            f"section {name_of(key)} is missing; write `{name}:`{under}, and below it {', '.join(section.model_fields)}"
        )
    return f"{name_of(key)} is missing; write `{name}: ...`{under}, {type_in_words(annotation)}"


def _unknown(key: Key, schema: type[BaseModel]) -> str:
    name, above = str(key[-1]), name_of(key[:-1])
    siblings = list((section_in(annotation_at(schema, key[:-1])) or schema).model_fields)
    hints = [name_of((*key[:-1], near)) for near in difflib.get_close_matches(name, siblings, n=1)]
    for other, field in schema.model_fields.items():
        section = section_in(field.annotation)
        if section and name in section.model_fields:
            hints.append(f"{other}.{name}")
    remedy = f"did you mean {' or '.join(hints)}?" if hints else f"{above or 'a config'} has {', '.join(siblings)}"
    return f"unknown {'key' if above else 'section'}; {remedy}"


def _is_wrong_kind(detail: ErrorDetails) -> bool:
    return detail["type"].endswith("_type") or detail["type"] in ("literal_error", "enum")


def _key_in_tree(location: tuple[str | int, ...], tree: Any) -> Key:
    """Return the part of a pydantic location that exists in the file: it also names the options of unions."""
    key: Key = ()
    for part in location:
        here = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
        if part in here:
            tree, key = tree[part], (*key, part)
    return key
