"""YAML by the 1.2 core rules, with the line of every key.

PyYAML follows YAML 1.1, where `3e-4` is text and `no`, `on` are booleans. Here `3e-4` is a number and `no`, `on` stay
text (https://yaml.org/spec/1.2.2/, section 10.3.2). What a recipe never needs and a reader trips over is refused:
duplicate keys, aliases, tags of other types.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import yaml

Key = tuple[str | int, ...]
"""The way to a value: ("optim", "betas", 0) is the first number of `optim.betas`."""

_TAG = "tag:yaml.org,2002:"
_PLAIN = {  # in the order in which they are tried
    "null": re.compile(r"(~|null|Null|NULL|)\Z"),
    "bool": re.compile(r"(true|True|TRUE|false|False|FALSE)\Z"),
    "int": re.compile(r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"),
    "float": re.compile(
        r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z"
    ),
}


class YamlError(ValueError):
    """The text is not the YAML that we read; `line` counts from 1."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line


class Document(NamedTuple):
    tree: Any
    lines: dict[Key, int]


def read(text: str) -> Document:
    """Read one YAML document and the line (from 1) of each key and list item; raises YamlError."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        rule = f"not readable as YAML: {error.problem or error.context}; check quotes and indentation (spaces, no tabs)"
        raise YamlError(mark.line + 1 if mark else 1, rule) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(line, "not readable as YAML: a control character stands here; remove it") from error
    lines: dict[Key, int] = {}
    return Document(_value(node, (), lines) if node else None, lines)


def write(tree: Any) -> str:
    """Write a tree as YAML that reads back equal by the rules of 1.2 and of 1.1: one key a line, one list a line."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def number(text: str) -> int | float | None:
    """Return the number that this text is when it stands without quotes, or None."""
    return next((_scalar(kind, text) for kind in ("int", "float") if _PLAIN[kind].match(text)), None)


class _Loader(yaml.SafeLoader):
    """SafeLoader that knows the four plain types of YAML 1.2 alone, and no aliases."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = cast(Any, self).get_event()  # the type stubs of PyYAML leave it untyped
            raise YamlError(event.start_mark.line + 1, f"alias *{event.anchor} is not read; write the value out")
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {None: [(_TAG + kind, pattern) for kind, pattern in _PLAIN.items()]}


class _Dumper(yaml.SafeDumper):
    """SafeDumper that also quotes text which YAML 1.2 would read as a number, and writes lists in one line."""

    def represent_list_in_line(self, items: Iterable[Any]) -> yaml.Node:
        return self.represent_sequence(_TAG + "seq", items, flow_style=True)


_Dumper.add_implicit_resolver(_TAG + "float", _PLAIN["float"], None)
_Dumper.add_representer(list, _Dumper.represent_list_in_line)


def _value(node: yaml.Node, key: Key, lines: dict[Key, int]) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(key, line)
    match node.tag.removeprefix(_TAG), node:
        case "map", yaml.MappingNode():
            mapping: dict[str, Any] = {}
            for name, value in node.value:
                name_line = name.start_mark.line + 1
                if not isinstance(name, yaml.ScalarNode):
                    raise YamlError(name_line, "a key is text, not a list or a mapping")
                child = (*key, name.value)
                if name.value in mapping:
                    raise YamlError(name_line, f"key {name.value} stands here and on line {lines[child]}; keep one")
                lines[child] = name_line
                mapping[name.value] = _value(value, child, lines)
            return mapping
        case "seq", yaml.SequenceNode():
            return [_value(item, (*key, i), lines) for i, item in enumerate(node.value)]
        case kind, yaml.ScalarNode() if kind == "str" or (kind in _PLAIN and _PLAIN[kind].match(node.value)):
            return _scalar(kind, node.value)
    raise YamlError(line, f"tag {node.tag} does not fit here; write the value without a tag")


def _scalar(kind: str, text: str) -> Any:
    match kind:
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        case "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text
