"""Values and types in the words of a message: `text where a number or a list of 2 numbers belongs`."""

import json
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from configs import yaml12
from configs.schema import options

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
_PLURALS = {"a whole number": "whole numbers", "a number": "numbers", "text": "texts", "a path": "paths"}
_SECTION = "a section of keys"


def misplaced(value: Any, wanted: Any) -> str:
    """Say that a value is of another kind than the type wanted, and what to write where that can be told."""
    what_to_write = _remedy(value, options(wanted))
    return f"{_kind(value)} where {type_in_words(wanted)} belongs" + (what_to_write and f"; {what_to_write}")


def type_in_words(annotation: Any) -> str:
    """Say what belongs at a key: `a whole number or a list of 2 whole numbers`."""
    return " or ".join(map(_option_in_words, options(annotation)))


def shown(value: Any) -> str:
    """Write a value as it would stand in the file, text in quotes, cut after 80 characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _option_in_words(option: Any) -> str:
    items = get_args(option)
    if get_origin(option) is Literal:
        return " or ".join(map(str, items))
    if isinstance(option, type) and issubclass(option, Enum):
        return " or ".join(str(member.value) for member in option)
    if get_origin(option) in (tuple, list):
        count = "" if items[-1] is ... or get_origin(option) is list else f"{len(items)} "
        item = type_in_words(items[0])
        return f"a list of {count}{_PLURALS.get(item, item)}"
    return _WORDS.get(option, _SECTION)


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case list():
            return f"a list of {len(value)}"
    return _WORDS.get(type(value), _SECTION)


def _remedy(value: Any, wanted: list[Any]) -> str:
    if isinstance(value, list | dict):
        return ""
    if bool in wanted:
        return {"yes": "write true", "on": "write true", "no": "write false", "off": "write false"}.get(value, "")
    if int in wanted or float in wanted:
        number = yaml12.number(value) if isinstance(value, str) else value if isinstance(value, float) else None
        unquoted = ", without quotes" if isinstance(value, str) else ""
        if isinstance(number, float) and number.is_integer() and float not in wanted:
            return f"write {int(number)}{unquoted}"
        if isinstance(number, int) or (number is not None and float in wanted):
            return f"write {value}{unquoted}"
        return f"write it in digits, such as {'3e-4' if float in wanted else '100'}"
    if isinstance(value, int | float) and (str in wanted or Path in wanted):
        return f'write "{shown(value)}", in quotes'
    return ""
