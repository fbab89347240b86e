"""Questions to a schema: which types belong at a key, and which model is a section."""

import types
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from configs.yaml12 import Key


def options(annotation: Any) -> list[Any]:
    """List what may stand there: `Annotated[int, ...] | tuple[int, int] | None` -> int, tuple[int, int]."""
    if get_origin(annotation) is Annotated:
        return options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [option for branch in get_args(annotation) for option in options(branch)]
    return [] if annotation is type(None) else [annotation]


def section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model of a section (`OptimConfig`, `OptimConfig | None`), None for any other type."""
    return next((o for o in options(annotation) if isinstance(o, type) and issubclass(o, BaseModel)), None)


def is_choice(annotation: Any) -> bool:
    """Tell whether one of a few words belongs there, and nothing else."""
    first, *others = options(annotation)
    return not others and (get_origin(first) is Literal or (isinstance(first, type) and issubclass(first, Enum)))


def annotation_at(schema: type[BaseModel], key: Key) -> Any:
    """Return the type declared for a key; for an item of a list, the type of its items."""
    annotation: Any = schema
    for part in key:
        if isinstance(part, int):
            items = next(get_args(o) for o in options(annotation) if get_origin(o) in (tuple, list))
            annotation = items[part] if part < len(items) and items[part] is not ... else items[0]
        else:
            annotation = (section_in(annotation) or schema).model_fields[part].annotation
    return annotation
