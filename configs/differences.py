"""What changed between the config of an existing run and the one it is continued with.

Each key is of one kind, declared where the key is (`Field(..., json_schema_extra=FREE)`, on the key or on its section):

    free      logging, cadence, workers: changed silently
    numeric   ranks, stage, micro-batch: allowed, recorded as an event
    identity  everything else: another model, other data or another order of it; refused
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from pydantic import BaseModel, JsonValue
from pydantic.fields import FieldInfo

from configs.schema import section_in

Kind = Literal["free", "numeric", "identity"]

FREE: dict[str, JsonValue] = {"on_resume": "free"}
NUMERIC: dict[str, JsonValue] = {"on_resume": "numeric"}

ABSENT = "(absent)"


@dataclass(frozen=True)
class Difference:
    """One key whose value changed; `str()` reads `vit.depth: 12 -> 24`."""

    key: str
    old: Any
    new: Any
    kind: Kind

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


def differences(old: Mapping[str, Any], new: BaseModel) -> list[Difference]:
    """Compare a run's config, as `read` gives it, with the new one, in the order of the keys.

    A key that the old file does not have (an earlier version wrote it) had its default then.
    """
    return list(_walk(old, new.model_dump(mode="json"), type(new), "", "identity"))


def is_of_kind(old: Mapping[str, Any], new: BaseModel) -> bool:
    """Whether `old` could be a config for the command that `new` is for: it has the sections that this one wants, and
    no other."""
    fields = type(new).model_fields
    return old.keys() <= fields.keys() <= old.keys() | {name for name in fields if not fields[name].is_required()}


def _walk(
    old: Mapping[str, Any], new: dict[str, Any], schema: type[BaseModel], prefix: str, above: Kind
) -> Iterator[Difference]:
    for name, field in schema.model_fields.items():
        kind, section = _kind(field, above), section_in(field.annotation)
        was = old[name] if name in old else _default(schema, name)
        if section and isinstance(was, Mapping) and isinstance(new[name], dict):
            yield from _walk(was, new[name], section, f"{prefix}{name}.", kind)
        elif was != new[name]:
            yield Difference(prefix + name, was, new[name], kind)
    for name in (name for name in old if name not in new):
        yield Difference(prefix + name, old[name], ABSENT, "identity")


def _kind(field: FieldInfo, above: Kind) -> Kind:
    declared = field.json_schema_extra
    return cast(Kind, declared.get("on_resume", above)) if isinstance(declared, dict) else above


def _default(schema: type[BaseModel], name: str) -> Any:
    """The default as it would stand in a file: ABSENT for a required key."""
    field = schema.model_fields[name]
    if field.is_required():
        return ABSENT
    stated = schema.model_construct(**{name: field.get_default(call_default_factory=True, validated_data={})})
    return stated.model_dump(mode="json", include={name})[name]
