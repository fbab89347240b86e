"""What a Vision Transformer costs, by arithmetic alone: tensors, parameters, multiplications. Free of torch.

`tensor_shapes` has the names and the order of the real model's state_dict (a test holds the two together), so that a
weights folder can be judged before torch is loaded.

D width, M width of the MLP, T tokens.
"""

import math

from vit.config import HeadConfig, ViTConfig

Shape = tuple[int, ...]


def tensor_shapes(vit: ViTConfig, head: HeadConfig | None) -> dict[str, Shape]:
    """Name and shape of every tensor in the order of the state_dict; without a head, of everything before it."""
    D, M = vit.width, vit.mlp_width
    shapes: dict[str, Shape] = {}
    if vit.num_class_tokens:
        shapes["cls_token"] = (1, 1, D)
    shapes["pos_embed"] = (1, vit.num_tokens, D)
    shapes["patch_embed.proj.weight"] = (D, vit.channels, vit.patch_px, vit.patch_px)
    shapes["patch_embed.proj.bias"] = (D,)
    for index in range(vit.depth):
        block: dict[str, Shape] = {
            "norm1.weight": (D,),
            "norm1.bias": (D,),
            "attn.qkv.weight": (3 * D, D),
            "attn.qkv.bias": (3 * D,),
            "attn.proj.weight": (D, D),
            "attn.proj.bias": (D,),
            "norm2.weight": (D,),
            "norm2.bias": (D,),
            "mlp.fc1.weight": (M, D),
            "mlp.fc1.bias": (M,),
            "mlp.fc2.weight": (D, M),
            "mlp.fc2.bias": (D,),
        }
        if not vit.qkv_bias:
            del block["attn.qkv.bias"]
        shapes |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}
    shapes["norm.weight"] = (D,)
    shapes["norm.bias"] = (D,)
    if head is not None:
        assert head.num_classes is not None, "the manifest's classes are counted before anything is built"
        if head.kind == "mlp":
            shapes["pre_logits.weight"] = (D, D)
            shapes["pre_logits.bias"] = (D,)
        shapes["head.weight"] = (head.num_classes, D)
        shapes["head.bias"] = (head.num_classes,)
    return shapes


# The parts a reader thinks in, and the first piece of the names of their tensors.
_PARTS = {
    "class token": ("cls_token",),
    "positions": ("pos_embed",),
    "patch embedding": ("patch_embed",),
    "blocks": ("blocks",),
    "final LayerNorm": ("norm",),
    "head": ("pre_logits", "head"),
}


def params_by_part(vit: ViTConfig, head: HeadConfig | None) -> dict[str, int]:
    """Trainable numbers of each part of the model, parts that it lacks left out."""
    shapes = tensor_shapes(vit, head)
    counts = {
        part: sum(math.prod(shape) for name, shape in shapes.items() if name.split(".")[0] in roots)
        for part, roots in _PARTS.items()
    }
    return {part: count for part, count in counts.items() if count}


def num_params(vit: ViTConfig, head: HeadConfig | None) -> int:
    """Trainable numbers of the whole model."""
    return sum(params_by_part(vit, head).values())


def macs_by_part(vit: ViTConfig, head: HeadConfig | None) -> dict[str, int]:
    """Multiply-accumulates of one image's forward pass, of the matrix products alone, as the published counts are."""
    D, M, T = vit.width, vit.mlp_width, vit.num_tokens
    qkv_and_out, attention, mlp = 4 * T * D * D, 2 * T * T * D, 2 * T * D * M
    macs = {
        "patch embedding": vit.num_patches * vit.patch_px**2 * vit.channels * D,
        "blocks": vit.depth * (qkv_and_out + attention + mlp),
    }
    if head is not None:
        assert head.num_classes is not None
        macs["head"] = (D * D if head.kind == "mlp" else 0) + D * head.num_classes
    return macs


def forward_macs(vit: ViTConfig, head: HeadConfig | None) -> int:
    """Multiply-accumulates of one image's forward pass; twice as many floating-point operations."""
    return sum(macs_by_part(vit, head).values())
