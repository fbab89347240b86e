"""What `python -m vit info` says about a model: as a table for people, as a dictionary for programs. Free of torch."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from vit import cost
from vit.config import DEFAULT_IMAGE_PX, HeadConfig, ViTConfig, explain, parse_name
from vit.weights import WeightsHeader, read_header


class Model(NamedTuple):
    """What is described: a model by name, or the one in a weights folder (then with its header)."""

    vit: ViTConfig
    head: HeadConfig | None
    header: WeightsHeader | None


def find(source: str, head: HeadConfig | None, image_px: int | tuple[int, int] | None) -> Model:
    """The model of that name or weights folder, with this head and image size where they are given.

    Raises ValueError, in one line, for an unknown name, unusable weights, or images that do not make whole patches.
    """
    if Path(source).is_dir():
        header = read_header(Path(source))
        return Model(header.vit if image_px is None else header.vit.at(image_px), head or header.head, header)
    try:
        name = parse_name(source)
    except ValueError as error:
        raise ValueError(f"{source}: no such folder, and {error}") from None
    try:
        vit = ViTConfig(variant=name.variant, image_px=image_px or name.image_px or DEFAULT_IMAGE_PX)
    except ValidationError as error:
        raise ValueError(explain(error)) from None
    return Model(vit, head, None)


def facts(model: Model) -> dict[str, Any]:
    """Everything the table says, with full tensor names, ready for JSON."""
    vit, head, header = model
    macs = cost.forward_macs(vit, head)
    return {
        "name": vit.name,
        "vit": vit.model_dump(),
        "head": head.model_dump() if head else None,
        "grid": vit.grid,
        "tokens": vit.num_tokens,
        "parameters": cost.num_params(vit, head),
        "parameters_by_part": cost.params_by_part(vit, head),
        "forward_macs": macs,
        "forward_macs_by_part": cost.macs_by_part(vit, head),
        "forward_flops": 2 * macs,
        "tensors": cost.tensor_shapes(vit, head),
        "weights": header.model_dump(exclude={"vit", "head"}) if header else None,
    }


def table(model: Model) -> str:
    """The same for people, the tensors of equal blocks on one line each."""
    return "\n".join([*_sizes(model), "", *_costs(model), "", *_tensors(model)])


def _sizes(model: Model) -> Iterator[str]:
    vit, head, header = model
    yield f"{vit.name}, images of {_x(vit.image_hw)} px"
    yield (
        f"width {vit.width:,}, depth {vit.depth}, MLP width {vit.mlp_width:,}, "
        f"{vit.heads} heads of width {vit.width // vit.heads}, patch {vit.patch_px} px"
    )
    class_token = "1 class token" if vit.num_class_tokens else "no class token (average of the patches)"
    yield f"{vit.num_tokens:,} tokens: {_x(vit.grid)} patches, {class_token}"
    yield f"{head.kind} head, {head.num_classes:,} classes" if head else "no head; --num-classes K adds one"
    if header:
        yield f"normalisation: mean {list(header.normalisation.mean)}, std {list(header.normalisation.std)}"
        if header.classes:
            yield f"classes: {', '.join(header.classes[:10])}{', ...' if len(header.classes) > 10 else ''}"
        for key, value in header.provenance.items():
            yield f"{key}: {value}"


def _costs(model: Model) -> Iterator[str]:
    vit, head, _ = model
    params, macs = cost.params_by_part(vit, head), cost.macs_by_part(vit, head)
    total_params, total_macs = sum(params.values()), sum(macs.values())
    yield f"{'part':<16}{'parameters':>15}{'share':>9}{'GFLOPs':>11}"
    for part, count in params.items():
        flops = f"{2 * macs[part] / 1e9:,.3f}" if part in macs else ""
        yield f"{part:<16}{count:>15,}{count / total_params:>9.1%}{flops:>11}"
    yield f"{'total':<16}{total_params:>15,}{'':>9}{2 * total_macs / 1e9:>11,.3f}"
    yield f"GFLOPs: forward pass of one image, matrix products, 2 x MACs ({total_macs / 1e9:,.3f} GMACs)"


def _tensors(model: Model) -> Iterator[str]:
    vit, head, _ = model
    every_block = f"blocks.0-{vit.depth - 1}." if vit.depth > 1 else "blocks.0."
    rows = [
        (re.sub(r"^blocks\.0\.", every_block, name), _x(shape))
        for name, shape in cost.tensor_shapes(vit, head).items()
        if not re.match(r"blocks\.[1-9]", name)
    ]
    widest = max(len(name) for name, _ in rows)
    yield f"{'tensor':<{widest}}  shape"
    for name, shape in rows:
        yield f"{name:<{widest}}  {shape}"


def _x(sizes: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in sizes)
