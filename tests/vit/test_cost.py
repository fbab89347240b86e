"""Parameters and multiplications against the published counts."""

import pytest

from vit.config import HeadConfig, ViTConfig
from vit.cost import forward_macs, macs_by_part, num_params, params_by_part, tensor_shapes

HEADS = (
    None,
    HeadConfig(kind="linear", num_classes=1000),
    HeadConfig(kind="mlp", num_classes=1000),
    HeadConfig(kind="linear", num_classes=21843),
    HeadConfig(kind="mlp", num_classes=21843),
)

# At 224 px, in the order of HEADS. Second column: MODEL_SIZES of vit_jax/models_test.py, num_params of torchvision.
PARAMS = {
    "Ti/16": (5_524_416, 5_717_416, 5_754_472, 9_740_115, 9_777_171),
    "S/32": (22_493_952, 22_878_952, 23_026_792, 30_903_507, 31_051_347),
    "S/16": (21_665_664, 22_050_664, 22_198_504, 30_075_219, 30_223_059),
    "S/8": (21_670_272, 22_055_272, 22_203_112, 30_079_827, 30_227_667),
    "B/32": (87_455_232, 88_224_232, 88_814_824, 104_252_499, 104_843_091),
    "B/16": (85_798_656, 86_567_656, 87_158_248, 102_595_923, 103_186_515),
    "B/8": (85_807_872, 86_576_872, 87_167_464, 102_605_139, 103_195_731),
    "L/32": (305_510_400, 306_535_400, 307_585_000, 327_899_475, 328_949_075),
    "L/16": (303_301_632, 304_326_632, 305_376_232, 325_690_707, 326_740_307),
    "L/14": (303_178_752, 304_203_752, 305_253_352, 325_567_827, 326_617_427),
    "H/14": (630_764_800, 632_045_800, 633_685_480, 658_745_683, 660_385_363),
    "H/16": (630_918_400, 632_199_400, 633_839_080, 658_899_283, 660_538_963),
    "g/14": (1_011_202_432, 1_012_611_432, 1_014_595_304, 1_041_979_219, 1_043_963_091),
    "G/14": (1_842_775_680, 1_844_440_680, 1_847_211_240, 1_879_144_275, 1_881_914_835),
    "e/14": (3_805_421_312, 3_807_214_312, 3_810_427_368, 3_844_585_811, 3_847_798_867),
    "So400m/14": (412_444_656, 413_597_656, 414_925_912, 437_629_635, 438_957_891),
}


@pytest.mark.parametrize("variant", PARAMS)
def test_parameters_of_every_variant_and_head(variant: str) -> None:
    vit = ViTConfig(variant=variant)
    assert tuple(num_params(vit, head) for head in HEADS) == PARAMS[variant]
    assert sum(params_by_part(vit, HEADS[-1]).values()) == PARAMS[variant][-1]


@pytest.mark.parametrize(
    ("vit", "count"),
    [
        (ViTConfig(variant="S/16", pool="gap"), 22_049_896),
        (ViTConfig(variant="S/32", pool="gap"), 22_878_184),
        (ViTConfig(variant="B/16", pool="gap"), 86_566_120),
        (ViTConfig(variant="B/32", pool="gap"), 88_222_696),
        (ViTConfig(variant="B/16", qkv_bias=False), 86_540_008),
        (ViTConfig(variant="B/16", image_px=384), 86_859_496),
        (ViTConfig(variant="B/16", image_px=512), 87_203_560),
        (ViTConfig(variant="L/16", image_px=384), 304_715_752),
        (ViTConfig(variant="L/16", image_px=512), 305_174_504),
        (ViTConfig(variant="L/32", image_px=384), 306_632_680),
        (ViTConfig(variant="S/16", image_px=384), 22_196_584),
        (ViTConfig(variant="Ti/16", image_px=384), 5_790_376),
        (ViTConfig(variant="B/32", image_px=384), 88_297_192),
        (ViTConfig(variant="H/14", image_px=518), 633_470_440),
        (ViTConfig(variant="H/14", image_px=392), 632_721_640),
    ],
)
def test_parameters_without_class_token_without_qkv_bias_and_at_other_resolutions(vit: ViTConfig, count: int) -> None:
    assert num_params(vit, HeadConfig(kind="linear", num_classes=1000)) == count


# With a linear head of 1,000 classes; as timm, torchvision and DeiT print them, in 10^9 multiply-accumulates.
GIGA_MACS = [
    ("Ti/16", 224, "1.254"),
    ("Ti/16", 384, "4.682"),
    ("S/32", 224, "1.143"),
    ("S/32", 384, "3.443"),
    ("S/16", 224, "4.599"),
    ("S/16", 384, "15.490"),
    ("S/8", 224, "22.406"),
    ("S/8", 384, "98.079"),
    ("B/32", 224, "4.409"),
    ("B/32", 384, "13.044"),
    ("B/16", 224, "17.564"),
    ("B/16", 384, "55.484"),
    ("B/16", 512, "107.03"),
    ("B/8", 224, "78.15"),
    ("B/8", 384, "294.045"),  # printed as 294.05, rounded twice
    ("L/32", 224, "15.378"),
    ("L/32", 384, "45.276"),
    ("L/16", 224, "61.555"),
    ("L/16", 384, "191.066"),
    ("L/16", 512, "361.99"),
    ("L/14", 224, "81.01"),
    ("H/14", 224, "167.295"),
    ("H/14", 336, "390.7"),
    ("H/14", 392, "545.0"),
    ("H/14", 518, "1016.7"),
    ("H/16", 224, "127.3"),
    ("H/16", 384, "390.9"),
    ("g/14", 224, "267.0"),
    ("G/14", 224, "483.7"),
    ("e/14", 224, "990.7"),
    ("So400m/14", 224, "109.9"),
]


@pytest.mark.parametrize(("variant", "image_px", "published"), GIGA_MACS)
def test_multiplications_to_the_last_published_digit(variant: str, image_px: int, published: str) -> None:
    macs = forward_macs(ViTConfig(variant=variant, image_px=image_px), HEADS[1])
    decimals = len(published.split(".")[1])
    assert f"{macs / 1e9:.{decimals}f}" == published


def test_grey_images_cost_a_third_to_embed() -> None:
    grey, colour = (macs_by_part(ViTConfig(variant="Ti/16", channels=channels), None) for channels in (1, 3))
    assert colour == {**grey, "patch embedding": 3 * grey["patch embedding"]}


def test_only_the_head_costs_more_with_a_hidden_layer() -> None:
    vit = ViTConfig(variant="Ti/16")
    extra = forward_macs(vit, HEADS[2]) - forward_macs(vit, HEADS[1])
    assert extra == vit.width**2
    assert "head" not in macs_by_part(vit, None)


def test_a_head_without_its_number_of_classes_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="counted before anything is built"):
        tensor_shapes(ViTConfig(variant="Ti/16"), HeadConfig())
