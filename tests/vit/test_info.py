"""`python -m vit info`, from a name and from a weights folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vit.__main__ import main
from vit.config import HeadConfig, ViTConfig
from vit.model import ViT
from vit.weights import WeightsHeader, save


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vit = ViTConfig(width=24, depth=1, mlp_width=40, heads=3, patch_px=4, image_px=8)
    header = WeightsHeader(
        vit=vit, head=HeadConfig(num_classes=2), classes=("ant", "bee"), provenance={"run": "runs/tiny", "step": 7}
    )
    weights = tmp_path_factory.mktemp("info") / "weights"
    model = ViT(vit, header.head)
    save(weights, {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}, header)
    return weights


def lines(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(["info", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def facts(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    tree: dict[str, object] = json.loads("\n".join(lines(capsys, *arguments, "--json")))
    return tree


def test_the_table_of_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys, "vit_large_patch16_224", "--num-classes", "1000") == [
        "ViT-L/16, images of 224 x 224 px",
        "width 1,024, depth 24, MLP width 4,096, 16 heads of width 64, patch 16 px",
        "197 tokens: 14 x 14 patches, 1 class token",
        "linear head, 1,000 classes",
        "",
        "part                 parameters    share     GFLOPs",
        "class token               1,024     0.0%           ",
        "positions               201,728     0.1%           ",
        "patch embedding         787,456     0.3%      0.308",
        "blocks              302,309,376    99.3%    122.799",
        "final LayerNorm           2,048     0.0%           ",
        "head                  1,025,000     0.3%      0.002",
        "total               304,326,632             123.109",
        "GFLOPs: forward pass of one image, matrix products, 2 x MACs (61.555 GMACs)",
        "",
        "tensor                        shape",
        "cls_token                     1 x 1 x 1024",
        "pos_embed                     1 x 197 x 1024",
        "patch_embed.proj.weight       1024 x 3 x 16 x 16",
        "patch_embed.proj.bias         1024",
        "blocks.0-23.norm1.weight      1024",
        "blocks.0-23.norm1.bias        1024",
        "blocks.0-23.attn.qkv.weight   3072 x 1024",
        "blocks.0-23.attn.qkv.bias     3072",
        "blocks.0-23.attn.proj.weight  1024 x 1024",
        "blocks.0-23.attn.proj.bias    1024",
        "blocks.0-23.norm2.weight      1024",
        "blocks.0-23.norm2.bias        1024",
        "blocks.0-23.mlp.fc1.weight    4096 x 1024",
        "blocks.0-23.mlp.fc1.bias      4096",
        "blocks.0-23.mlp.fc2.weight    1024 x 4096",
        "blocks.0-23.mlp.fc2.bias      1024",
        "norm.weight                   1024",
        "norm.bias                     1024",
        "head.weight                   1000 x 1024",
        "head.bias                     1000",
    ]


def test_the_same_as_json_with_every_tensor(capsys: pytest.CaptureFixture[str]) -> None:
    tree = facts(capsys, "ViT-L/16", "--num-classes", "21843", "--head", "mlp")
    assert tree["name"] == "ViT-L/16"
    assert tree["parameters"] == 326_740_307
    assert tree["tokens"] == 197
    assert tree["grid"] == [14, 14]
    assert tree["head"] == {"kind": "mlp", "num_classes": 21843, "bias_init": 0.0}
    assert tree["weights"] is None
    macs, flops, tensors, vit = tree["forward_macs"], tree["forward_flops"], tree["tensors"], tree["vit"]
    assert isinstance(macs, int)
    assert flops == 2 * macs
    assert isinstance(tensors, dict)
    assert tensors["blocks.23.mlp.fc2.weight"] == [1024, 4096]
    assert len(tensors) == 4 + 24 * 12 + 2 + 4
    assert isinstance(vit, dict)
    assert vit["width"] == 1024


@pytest.mark.parametrize(
    ("arguments", "parameters", "grid"),
    [
        (["ViT-B/16"], 85_798_656, [14, 14]),  # no head without --num-classes
        (["vit_large_patch16_384", "--num-classes", "1000"], 304_715_752, [24, 24]),
        (["vit_large_patch16_384", "--num-classes", "1000", "--image-px", "512"], 305_174_504, [32, 32]),
        (["vit_b_16", "--image-px", "224x448"], 85_798_656 + 196 * 768, [14, 28]),
    ],
)
def test_resolution_and_head(
    arguments: list[str], parameters: int, grid: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    tree = facts(capsys, *arguments)
    assert (tree["parameters"], tree["grid"]) == (parameters, grid)


def test_without_a_head_the_table_says_how_to_add_one(capsys: pytest.CaptureFixture[str]) -> None:
    table = lines(capsys, "ViT-B/16")
    assert table[3] == "no head; --num-classes K adds one"
    assert not any(line.startswith("head") for line in table)


def test_a_weights_folder_says_what_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = lines(capsys, str(folder))
    assert table[:8] == [
        "ViT of width 24, depth 1, patch 4, images of 8 x 8 px",
        "width 24, depth 1, MLP width 40, 3 heads of width 8, patch 4 px",
        "5 tokens: 2 x 2 patches, 1 class token",
        "mlp head, 2 classes",
        "normalisation: mean [0.5, 0.5, 0.5], std [0.5, 0.5, 0.5]",
        "classes: ant, bee",
        "run: runs/tiny",
        "step: 7",
    ]
    assert any(line.split() == ["blocks.0.attn.qkv.weight", "72", "x", "24"] for line in table)
    weights = facts(capsys, str(folder))["weights"]
    assert weights == {
        "format": 1,
        "readable_by": "vit-at-scale >= 0.1.0",
        "normalisation": {"mean": [0.5] * 3, "std": [0.5] * 3},
        "classes": ["ant", "bee"],
        "provenance": {"run": "runs/tiny", "step": 7},
    }


def test_a_weights_folder_as_it_would_be_for_another_task(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = facts(capsys, str(folder), "--num-classes", "9", "--image-px", "16")
    tensors = tree["tensors"]
    assert isinstance(tensors, dict)
    assert tensors["pos_embed"] == [1, 17, 24]
    assert tensors["head.weight"] == [9, 24]
    assert "pre_logits.weight" not in tensors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ViT-X/16"], "ViT-X/16: no such folder, and not a known variant, the nearest is ViT-"),
        (["runs/nothing/weights"], "runs/nothing/weights: no such folder, and not a known variant, the nearest is "),
        (
            ["ViT-H/14", "--image-px", "384"],
            "image_px = 384: 384 px is not a multiple of the patch, 14 px; nearest: 378",
        ),
        (["B/16", "--num-classes", "0"], "argument --num-classes: '0' is not a whole number from 1; see python -m vit"),
        (["B/16", "--image-px", "2x3x4"], "argument --image-px: '2x3x4' is neither P nor HEIGHTxWIDTH; see python -m"),
        (["B/16", "--image-px", "-16"], "argument --image-px: '-16' is not a whole number from 1; see python -m vit"),
        (["B/16", "--head", "map"], "argument --head: invalid choice: 'map'"),
        (["B/16", "--jsn"], "unrecognized arguments: --jsn; see python -m vit --help"),
        ([], "the following arguments are required: NAME_OR_WEIGHTS; see python -m vit info --help"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = main(["info", *arguments])
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert printed.err.startswith(f"error: {message}")
    assert printed.err.count("\n") == 1


def test_broken_weights_are_a_mistake_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/config.json: no such file; a weights folder holds")


def test_neither_torch_nor_deepspeed_is_loaded(folder: Path) -> None:
    script = (
        "import sys; from vit.__main__ import main\n"
        f"main(['info', 'ViT-L/16']); main(['info', {str(folder)!r}]); main(['info', 'ViT-X/16'])\n"
        "print('heavy:', sorted({'torch', 'deepspeed', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_the_command_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "vit", "info"]
    done = subprocess.run([*command, "ViT-X/16"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "NAME_OR_WEIGHTS" in subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
