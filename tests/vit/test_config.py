"""Names, sizes and rules of the sections `vit` and `head`."""

import json

import pytest
from pydantic import ValidationError

from vit.config import VARIANTS, HeadConfig, ViTConfig, explain, parse_name


def refusal(**section: object) -> str:
    with pytest.raises(ValidationError) as caught:
        ViTConfig.model_validate_json(json.dumps(section))
    return explain(caught.value)


@pytest.mark.parametrize(
    ("name", "variant", "image_px"),
    [
        ("ViT-L/16", "ViT-L/16", None),
        ("L/16", "ViT-L/16", None),
        ("ViT-L_16", "ViT-L/16", None),
        ("ViT-g/14", "ViT-g/14", None),
        ("G/14", "ViT-G/14", None),
        ("ViT-So400m/14", "ViT-So400m/14", None),
        ("S/7", "ViT-S/7", None),
        ("vit_tiny_patch16_224", "ViT-Ti/16", 224),
        ("vit_large_patch16_384", "ViT-L/16", 384),
        ("vit_base_patch8", "ViT-B/8", None),
        ("vit_giant_patch14_224", "ViT-g/14", 224),
        ("vit_gigantic_patch14_224", "ViT-G/14", 224),
        ("vit_l_16", "ViT-L/16", None),
        ("vit_h_14", "ViT-H/14", None),
    ],
)
def test_names_of_the_paper_timm_and_torchvision_are_one_model(name: str, variant: str, image_px: int | None) -> None:
    parsed = parse_name(name)
    assert (parsed.variant, parsed.image_px) == (variant, image_px)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("vit-l/16", "ViT-L/16"),
        ("ViT-L16", "ViT-L/16"),
        ("vit_larg_patch16_224", "vit_large_patch16_224"),
        ("vit_base_patch16_224.augreg_in21k", "vit_base_patch16_224"),
        ("vit_g_14", "vit_l_14"),
        ("ViT-B/0", "ViT-B/8"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"not a known variant, the nearest is {nearest}; write ViT-LETTER/PATCH"):
        parse_name(name)
    assert refusal(variant=name).startswith(f"variant = '{name}': not a known variant, the nearest is {nearest}")


@pytest.mark.parametrize("letter", VARIANTS)
def test_a_variant_fills_every_size_and_the_dump_loads_again(letter: str) -> None:
    vit = ViTConfig(variant=f"{letter}/14")
    assert (vit.width, vit.depth, vit.mlp_width, vit.heads) == VARIANTS[letter]
    assert vit.patch_px == 14
    assert ViTConfig.model_validate_json(vit.model_dump_json(), strict=True) == vit


def test_sizes_can_be_stated_instead_of_a_variant() -> None:
    vit = ViTConfig(width=64, depth=2, mlp_width=96, heads=4, patch_px=4, image_px=(8, 12))
    assert (vit.grid, vit.num_patches, vit.num_tokens, vit.image_hw) == ((2, 3), 6, 7, (8, 12))
    assert vit.name == "ViT of width 64, depth 2, patch 4"
    assert ViTConfig.model_validate_json(vit.model_dump_json(), strict=True) == vit
    assert vit.at(16) == ViTConfig(width=64, depth=2, mlp_width=96, heads=4, patch_px=4, image_px=16)
    assert ViTConfig(variant="B/16", pool="gap").num_tokens == 196


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {},
            "width: width is missing; name a variant (ViT-B/16), "
            "or state all of width, depth, mlp_width, heads, patch_px",
        ),
        ({"width": 64, "heads": 4}, "depth: depth is missing; name a variant"),
        (
            {"variant": "L/16", "width": 768},
            "width = 768: ViT-L/16 has width 1024; leave width out, or leave variant out and state every size",
        ),
        (
            {"variant": "L/16", "patch_px": 14},
            "patch_px = 14: ViT-L/16 has patch_px 16; leave patch_px out, or leave variant out and state every size",
        ),
        (
            {"variant": "vit_large_patch16_384"},
            "variant = 'vit_large_patch16_384': a resolution is not part of a variant; "
            "write variant: ViT-L/16 and image_px: 384",
        ),
        (
            {"width": 100, "depth": 1, "mlp_width": 8, "heads": 3, "patch_px": 4},
            "heads = 3: width 100 is not divisible by 3 heads; nearest that divide it: 2 or 4",
        ),
        (
            {"variant": "H/14", "image_px": 384},
            "image_px = 384: 384 px is not a multiple of the patch, 14 px; nearest: 378 or 392",
        ),
        (
            {"variant": "B/16", "image_px": [224, 7]},
            "image_px = [224, 7]: 7 px is not a multiple of the patch, 16 px; nearest: 16",
        ),
        (
            {"variant": "B/13"},
            "image_px = 224: 224 px is not a multiple of the patch, 13 px; nearest: 221 or 234",
        ),
        (
            {"variant": "B/16", "image_px": "224"},
            "image_px = '224': must be one positive whole number of pixels, or two: [height, width]",
        ),
        (
            {"variant": "B/16", "image_px": [16, 16, 16]},
            "image_px = [16, 16, 16]: must be one positive whole number of pixels, or two: [height, width]",
        ),
        ({"variant": "B/16", "depth": "12"}, "depth = '12': Input should be a valid integer"),
        ({"variant": "B/16", "dropout": 1.0}, "dropout = 1.0: Input should be less than 1"),
        ({"variant": "B/16", "pool": "map"}, "pool = 'map': Input should be 'cls' or 'gap'"),
        ({"variant": "B/16", "droput": 0.1}, "droput = 0.1: Extra inputs are not permitted"),
        ({"width": -64, "depth": 1, "mlp_width": 8, "heads": 3, "patch_px": 4}, "width = -64: Input should be greater"),
    ],
)
def test_a_broken_rule_says_field_value_rule_and_remedy(section: dict[str, object], message: str) -> None:
    assert refusal(**section).startswith(message)


@pytest.mark.parametrize("section", [{}, {"heads": 4}, {"variant": "ViT-X/16"}, {"variant": "ViT-X/16", "width": 64}])
def test_one_mistake_is_one_complaint(section: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        ViTConfig.model_validate_json(json.dumps(section))
    assert caught.value.error_count() == 1


def test_another_image_size_obeys_the_same_rule() -> None:
    with pytest.raises(
        ValueError, match="image_px = 225: 225 px is not a multiple of the patch, 16 px; nearest: 224 or"
    ):
        ViTConfig(variant="B/16").at(225)


@pytest.mark.parametrize("section", [{"num_classes": 0}, {"num_classes": "10"}, {"kind": "map"}, {"bias": 1.0}])
def test_a_head_is_strict_too(section: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        HeadConfig.model_validate_json(json.dumps(section))


def test_values_of_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ViTConfig(variant="B/16").width = 3  # type: ignore[misc]  # the point of the test
