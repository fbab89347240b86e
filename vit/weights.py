"""Weights: one public folder that starts another run or serves a model. (A checkpoint resumes its own run.)

    FOLDER/
      model.safetensors    the state_dict of the model
      config.json          WeightsHeader: the model's shape, its head, its pixels, its class names, where it comes from

Headers are judged without torch: the tensors' names and shapes stand at the front of a safetensors file, as JSON.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from vit.config import HeadConfig, ViTConfig, explain
from vit.cost import Shape, tensor_shapes

if TYPE_CHECKING:
    from torch import Tensor

    from vit.model import ViT

FORMAT = 1
READER = (
    "vit-at-scale >= 0.1.0"  # what reads FORMAT; every file says so, for the versions that cannot read it to repeat
)
TENSORS_FILE, HEADER_FILE = "model.safetensors", "config.json"
DTYPE_BYTES = {"F32": 4, "BF16": 2, "F16": 2}


class WeightsError(ValueError):
    """A weights folder that cannot be used; the message says what, where and what to do."""


class Normalisation(BaseModel):
    """What the model was shown: (pixel / 255 - mean) / std, a number a channel."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # 0.5 and 0.5: pixels in [-1, 1], as in the paper's code
    std: tuple[float, ...] = (0.5, 0.5, 0.5)


class WeightsHeader(BaseModel):
    """`config.json` of a weights folder: everything but the numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    readable_by: str = READER
    vit: ViTConfig
    head: HeadConfig
    normalisation: Normalisation = Normalisation()
    classes: tuple[str, ...] = ()  # in the order of the logits; empty: nobody named them
    provenance: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.head.num_classes is None:
            raise ValueError("head.num_classes must be stated")
        if self.classes and len(self.classes) != self.head.num_classes:
            raise ValueError(f"{len(self.classes)} class names for a head of {self.head.num_classes} classes")
        if {len(self.normalisation.mean), len(self.normalisation.std)} != {self.vit.channels}:
            raise ValueError(f"normalisation needs one mean and one std for each of the {self.vit.channels} channels")
        return self


def read_header(folder: Path) -> WeightsHeader:
    """Read and judge a weights folder without torch: format, config, and every tensor's name and shape.

    Raises WeightsError naming what is missing, left over, or of another shape.
    """
    for path in (folder / HEADER_FILE, folder / TENSORS_FILE):
        if not path.is_file():
            raise WeightsError(f"{path}: no such file; a weights folder holds {HEADER_FILE} and {TENSORS_FILE}")
    header = _read_config(folder / HEADER_FILE)
    _compare(_read_shapes(folder / TENSORS_FILE), tensor_shapes(header.vit, header.head), folder / TENSORS_FILE)
    return header


def save(folder: Path, state: Mapping[str, Tensor], header: WeightsHeader) -> None:
    """Write a weights folder, complete or not at all; an older one of the same name is replaced.

    Raises WeightsError when the tensors are not those of the header's model.
    """
    from safetensors.torch import save_file

    expected = tensor_shapes(header.vit, header.head)
    _compare({name: tuple(tensor.shape) for name, tensor in state.items()}, expected, folder)
    tensors = {name: state[name].detach().cpu().contiguous() for name in expected}

    partial, replaced = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "replaced"))
    for leftover in (partial, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(tensors, partial / TENSORS_FILE, metadata={"format": "pt"})
    (partial / HEADER_FILE).write_text(header.model_dump_json(indent=2) + "\n", encoding="utf-8")
    for path in (partial / TENSORS_FILE, partial / HEADER_FILE, partial):
        _flush_to_disk(path)
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    _flush_to_disk(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def load(folder: Path) -> dict[str, Tensor]:
    """The tensors of a weights folder, on the CPU and as precise as they were saved.

    Raises WeightsError as `read_header` does.
    """
    from safetensors.torch import load_file

    read_header(folder)
    return load_file(folder / TENSORS_FILE)


def load_model(
    folder: Path,
    num_classes: int | None = None,
    image_px: int | tuple[int, int] | None = None,
    dropout: float | None = None,
) -> tuple[ViT, list[str]]:
    """The model of a weights folder in float32 on the CPU, and a note on each thing that was changed to fit.

    With `num_classes` the head makes way for a zero-initialised linear one; with `image_px` the positions are resized;
    `dropout` replaces the rate it was trained with.
    Raises WeightsError as `read_header` does, and ValueError when `image_px` does not make whole patches.
    """
    import torch

    from vit.heads import swap_head
    from vit.model import ViT
    from vit.positions import resize_positions

    header = read_header(folder)
    vit = header.vit if image_px is None else header.vit.at(image_px)
    vit = vit if dropout is None else vit.model_copy(update={"dropout": dropout})
    state = load(folder)
    notes = []
    if vit.grid != header.vit.grid:
        state["pos_embed"] = resize_positions(state["pos_embed"], header.vit.grid, vit.grid, vit.num_class_tokens)
        notes.append(f"positions {_x(header.vit.grid)} -> {_x(vit.grid)}, bilinear (JAX)")
    with torch.device("meta"):
        model = ViT(vit, header.head)
    model.to_empty(device="cpu")
    model.load_state_dict(state)
    if num_classes is not None:
        swap_head(model, num_classes)
        notes.append(f"head {header.head.kind} of {header.head.num_classes} classes -> linear of {num_classes}, zero")
    return model, notes


def _read_config(path: Path) -> WeightsHeader:
    try:
        tree = json.loads(path.read_bytes())
    except ValueError as error:
        raise WeightsError(f"{path}: not JSON ({error})") from None
    if not isinstance(tree, dict) or "format" not in tree:
        raise WeightsError(f"{path}: no format number; this is not the config of a weights folder")
    if tree["format"] != FORMAT:
        reader = tree.get("readable_by", "a later version of vit-at-scale")
        raise WeightsError(f"{path}: format {tree['format']} is read by {reader}; this version reads format {FORMAT}")
    try:
        return WeightsHeader.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise WeightsError(f"{path}: {explain(error)}") from None


def _read_shapes(path: Path) -> dict[str, Shape]:
    """Names and shapes from the front of a safetensors file: 8 bytes of length, that much JSON, then numbers."""
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        header_bytes = int.from_bytes(start, "little")
        text = file.read(header_bytes) if header_bytes <= file_bytes - 8 else b""
    try:
        entries: dict[str, Any] = json.loads(text)
        entries.pop("__metadata__", None)
        shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
        tensor_bytes = sum(math.prod(shapes[name]) * DTYPE_BYTES[entry["dtype"]] for name, entry in entries.items())
    except (ValueError, TypeError, KeyError, AttributeError):
        if start.startswith((b"PK", b"\x80")):
            raise WeightsError(
                f"{path}: a pickle, not safetensors; a pickle runs code when loaded, so save with safetensors instead"
            ) from None
        raise WeightsError(f"{path}: not a safetensors file, or only the beginning of one; copy it again") from None
    if 8 + header_bytes + tensor_bytes != file_bytes:
        raise WeightsError(
            f"{path}: {file_bytes} bytes, where its header promises {8 + header_bytes + tensor_bytes}; copy it again"
        )
    return shapes


def _compare(found: Mapping[str, Shape], expected: Mapping[str, Shape], where: Path) -> None:
    differences = [f"missing {name} {_x(expected[name])}" for name in expected if name not in found]
    differences += [f"extra {name} {_x(found[name])}" for name in found if name not in expected]
    differences += [
        f"{name} is {_x(found[name])}, not {_x(expected[name])}"
        for name in expected
        if name in found and found[name] != expected[name]
    ]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise WeightsError(f"{where}: tensors are not those of {HEADER_FILE}: {'; '.join(differences[:3])}{more}")


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _x(sizes: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in sizes)
