"""What a Vision Transformer is made of: its sizes, its options, its head, and the names people call it by.

Free of torch, so that a mistake in a config is found before torch is loaded.
"""

import difflib
import re
from typing import Any, Literal, NamedTuple, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)


class Size(NamedTuple):
    """The sizes that a letter stands for."""

    width: int
    depth: int
    mlp_width: int
    heads: int


# Base, Large, Huge: Table 1 of the paper. Ti, S: DeiT (arXiv 2012.12877). g, G: Scaling Vision Transformers (arXiv
# 2106.04560), Table 2. e: PaLI (arXiv 2209.06794). So400m: arXiv 2305.13035. All as in big_vision, models/vit.py.
VARIANTS = {
    "Ti": Size(width=192, depth=12, mlp_width=768, heads=3),
    "S": Size(width=384, depth=12, mlp_width=1536, heads=6),
    "B": Size(width=768, depth=12, mlp_width=3072, heads=12),
    "L": Size(width=1024, depth=24, mlp_width=4096, heads=16),
    "So400m": Size(width=1152, depth=27, mlp_width=4304, heads=16),
    "H": Size(width=1280, depth=32, mlp_width=5120, heads=16),
    "g": Size(width=1408, depth=40, mlp_width=6144, heads=16),
    "G": Size(width=1664, depth=48, mlp_width=8192, heads=16),
    "e": Size(width=1792, depth=56, mlp_width=15360, heads=16),
}
DEFAULT_IMAGE_PX = 224

_TIMM = {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "huge": "H", "giant": "g", "gigantic": "G"}
_TORCHVISION = {"b": "B", "l": "L", "h": "H"}
_PATCH = r"([1-9]\d*)"
_PAPER_NAME = re.compile(
    rf"(?:ViT-)?({'|'.join(VARIANTS)})[/_]{_PATCH}"
)  # ViT-L/16, L/16, and ViT-L_16 of the paper's checkpoints
_TIMM_NAME = re.compile(rf"vit_({'|'.join(_TIMM)})_patch{_PATCH}(?:_([1-9]\d*))?")
_TORCHVISION_NAME = re.compile(rf"vit_({'|'.join(_TORCHVISION)})_{_PATCH}")


class Name(NamedTuple):
    """A model's name, taken apart; image_px is None where the name does not speak of it."""

    letter: str
    patch_px: int
    image_px: int | None

    @property
    def variant(self) -> str:
        """The canonical name, the paper's: ViT-L/16."""
        return f"ViT-{self.letter}/{self.patch_px}"


def parse_name(name: str) -> Name:
    """Read a name of the paper (ViT-L/16, L/16, ViT-L_16), of timm (vit_large_patch16_384) or torchvision (vit_l_16).

    Raises ValueError naming the nearest known name.
    """
    if match := _PAPER_NAME.fullmatch(name):
        return Name(match[1], int(match[2]), None)
    if match := _TIMM_NAME.fullmatch(name):
        return Name(_TIMM[match[1]], int(match[2]), int(match[3]) if match[3] else None)
    if match := _TORCHVISION_NAME.fullmatch(name):
        return Name(_TORCHVISION[match[1]], int(match[2]), None)
    raise ValueError(
        f"not a known variant, the nearest is {_nearest_name(name)}; write ViT-LETTER/PATCH with a letter of "
        f"{', '.join(VARIANTS)} and any patch size in pixels, or a plain ViT's name in timm or torchvision"
    )


def _nearest_name(name: str) -> str:
    patches = (8, 14, 16, 32)
    known = [f"ViT-{letter}/{patch}" for letter in VARIANTS for patch in patches]
    known += [f"vit_{word}_patch{patch}_{DEFAULT_IMAGE_PX}" for word in _TIMM for patch in patches]
    known += [f"vit_{letter}_{patch}" for letter in _TORCHVISION for patch in patches]
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    (nearest,) = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.0)
    return by_lower_case[nearest]


_SIZES = ("width", "depth", "mlp_width", "heads", "patch_px")  # what a variant stands for, in the order of the fields


class ViTConfig(BaseModel):
    """The section `vit`: a named variant, or all five sizes. Once validated every size is set."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    variant: str | None = None
    # A size left out is the variant's; None never survives validation.
    width: int = Field(default=None, gt=0, validate_default=True)
    depth: int = Field(default=None, gt=0, validate_default=True)
    mlp_width: int = Field(default=None, gt=0, validate_default=True)
    heads: int = Field(default=None, gt=0, validate_default=True)
    patch_px: int = Field(default=None, gt=0, validate_default=True)
    # One side, or (height, width).
    image_px: int | tuple[int, int] = Field(default=DEFAULT_IMAGE_PX, validate_default=True)
    channels: int = Field(default=3, gt=0)
    pool: Literal["cls", "gap"] = "cls"
    qkv_bias: bool = True
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    attention_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    layer_norm_eps: float = Field(default=1e-6, gt=0.0)
    gelu: Literal["tanh", "erf"] = "tanh"  # the paper's code (Flax's default); erf: timm's and torchvision's weights

    @field_validator("variant")
    @classmethod
    def _canonical(cls, variant: str | None) -> str | None:
        if variant is None:
            return None
        name = parse_name(variant)
        if name.image_px not in (None, DEFAULT_IMAGE_PX):
            # Written as image_px it is seen, and can be overridden; hidden in a name it would be lost with the name.
            raise ValueError(
                f"a resolution is not part of a variant; write variant: {name.variant} and image_px: {name.image_px}"
            )
        return name.variant

    @field_validator(*_SIZES, mode="wrap")
    @classmethod
    def _size_of_variant(cls, value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        if "variant" not in info.data:  # refused already
            return value
        variant, field = info.data["variant"], str(info.field_name)
        if variant is None:
            if value is not None:
                return validate(value)
            if not set(_SIZES[: _SIZES.index(field)]) <= info.data.keys():  # one complaint is enough
                return value
            raise ValueError(f"{field} is missing; name a variant (ViT-B/16), or state all of {', '.join(_SIZES)}")
        name = parse_name(variant)
        expected = name.patch_px if field == "patch_px" else getattr(VARIANTS[name.letter], field)
        if value is not None and validate(value) != expected:
            raise ValueError(
                f"{variant} has {field} {expected}; leave {field} out, or leave variant out and state every size"
            )
        return expected

    @field_validator("heads")
    @classmethod
    def _heads_divide_width(cls, heads: int, info: ValidationInfo) -> int:
        width = info.data.get("width")
        if width and heads and width % heads:
            divisors = [n for n in range(1, width + 1) if width % n == 0]
            near = sorted(sorted(divisors, key=lambda n: abs(n - heads))[:2])
            raise ValueError(f"width {width} is not divisible by {heads} heads; nearest that divide it: {_or(near)}")
        return heads

    @field_validator("image_px", mode="before")
    @classmethod
    def _whole_patches(cls, image_px: Any, info: ValidationInfo) -> int | tuple[int, int]:
        sides = tuple(image_px) if isinstance(image_px, list | tuple) else (image_px, image_px)
        if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
            raise ValueError("must be one positive whole number of pixels, or two: [height, width]")
        patch_px = info.data.get("patch_px")
        for side in sides if patch_px else ():
            if side % patch_px:
                below = side // patch_px * patch_px
                near = [size for size in (below, below + patch_px) if size]
                raise ValueError(f"{side} px is not a multiple of the patch, {patch_px} px; nearest: {_or(near)}")
        return sides if isinstance(image_px, list | tuple) else image_px

    def at(self, image_px: int | tuple[int, int] | list[int]) -> Self:
        """The same model for images of another size in pixels.

        Raises ValueError, in one line, when they do not make whole patches.
        """
        try:
            return type(self).model_validate({**self.model_dump(), "image_px": image_px})
        except ValidationError as error:
            raise ValueError(explain(error)) from None

    @property
    def name(self) -> str:
        """What to call it in print: ViT-L/16, or its sizes."""
        return self.variant or f"ViT of width {self.width}, depth {self.depth}, patch {self.patch_px}"

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.image_px if isinstance(self.image_px, tuple) else (self.image_px, self.image_px)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height_px, width_px = self.image_hw
        return height_px // self.patch_px, width_px // self.patch_px

    @property
    def num_patches(self) -> int:
        """N, patches of one image."""
        rows, columns = self.grid
        return rows * columns

    @property
    def num_class_tokens(self) -> int:
        """1 with the class token, 0 where the patches are averaged instead."""
        return 1 if self.pool == "cls" else 0

    @property
    def num_tokens(self) -> int:
        """T, the length of the sequence."""
        return self.num_class_tokens + self.num_patches


class HeadConfig(BaseModel):
    """The section `head`: the paper's MLP head (one hidden layer, tanh) to pretrain, its linear head to fine-tune."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: Literal["mlp", "linear"] = "mlp"
    num_classes: int | None = Field(default=None, gt=0)  # None: as many as the manifest names
    bias_init: float = 0.0  # of the logits; -10 for the paper's sigmoid loss over many classes


def explain(error: ValidationError) -> str:
    """The first broken rule in one line: `image_px = 225: rule; remedy`."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    rule = first["msg"].removeprefix("Value error, ")
    return f"{field}: {rule}" if first["input"] is None else f"{field} = {first['input']!r}: {rule}"


def _or(numbers: list[int]) -> str:
    return " or ".join(str(number) for number in numbers)
