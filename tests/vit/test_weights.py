"""Weights folders: to the bit and back, and what is refused."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vit.config import HeadConfig, ViTConfig
from vit.model import ViT
from vit.positions import resize_positions
from vit.weights import Normalisation, WeightsError, WeightsHeader, load, load_model, read_header, save

VIT = ViTConfig(width=24, depth=2, mlp_width=40, heads=3, patch_px=4, image_px=(24, 16))
HEADER = WeightsHeader(
    vit=VIT,
    head=HeadConfig(kind="mlp", num_classes=3),
    classes=("ant", "bee", "cow"),
    provenance={"run": "runs/tiny", "step": 7},
)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    model = ViT(VIT, HEADER.head)
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(tensor.shape, generator=draw) for name, tensor in model.state_dict().items()}


@pytest.fixture
def folder(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    save(tmp_path / "weights", state, HEADER)
    return tmp_path / "weights"


def rewrite_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors")


def rewrite_config(folder: Path, **changes: object) -> None:
    tree = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**tree, **changes}))


# ---- there and back ----


def test_what_is_saved_comes_back_to_the_bit(folder: Path, state: dict[str, Tensor]) -> None:
    assert read_header(folder) == HEADER
    assert list(load(folder)) == sorted(state)
    torch.testing.assert_close(load(folder), state, rtol=0, atol=0)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["weights"]

    model, notes = load_model(folder)
    torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)
    assert (model.config, model.head_config, notes) == (VIT, HEADER.head, [])


def test_half_precision_is_kept_on_disk_and_widened_in_the_model(tmp_path: Path, state: dict[str, Tensor]) -> None:
    half = {name: tensor.bfloat16() for name, tensor in state.items()}
    save(tmp_path / "weights", half, HEADER)
    torch.testing.assert_close(load(tmp_path / "weights"), half, rtol=0, atol=0)
    model, _ = load_model(tmp_path / "weights")
    torch.testing.assert_close(
        dict(model.state_dict()), {name: tensor.float() for name, tensor in half.items()}, rtol=0, atol=0
    )


def test_views_of_one_buffer_are_saved_as_their_own(tmp_path: Path, state: dict[str, Tensor]) -> None:
    flat = torch.cat([tensor.flatten() for tensor in state.values()])
    pieces = flat.split([tensor.numel() for tensor in state.values()])
    views = {name: piece.view_as(state[name]) for name, piece in zip(state, pieces, strict=True)}
    views["head.weight"] = state["head.weight"].T.contiguous().T
    save(tmp_path / "weights", views, HEADER)
    torch.testing.assert_close(load(tmp_path / "weights"), state, rtol=0, atol=0)


def test_saving_again_replaces_and_a_leftover_of_a_killed_save_does_not_matter(
    folder: Path, state: dict[str, Tensor]
) -> None:
    for leftover in (".weights.partial", ".weights.replaced"):
        (folder.parent / leftover).mkdir()
        (folder.parent / leftover / "model.safetensors").write_bytes(b"half")
    changed = {**state, "head.bias": torch.zeros(3)}
    save(folder, changed, HEADER)
    torch.testing.assert_close(load(folder), changed, rtol=0, atol=0)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["weights"]


def test_a_save_that_dies_leaves_the_old_weights(
    folder: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(folder, {**state, "head.bias": torch.zeros(3)}, HEADER)
    torch.testing.assert_close(load(folder), state, rtol=0, atol=0)


def test_tensors_of_another_model_are_not_saved(tmp_path: Path, state: dict[str, Tensor]) -> None:
    with pytest.raises(WeightsError, match=r"head\.bias is 4, not 3"):
        save(tmp_path / "weights", {**state, "head.bias": torch.zeros(4)}, HEADER)
    assert not list(tmp_path.iterdir())


# ---- for another task ----


def test_another_resolution_resizes_the_positions_and_nothing_else(folder: Path, state: dict[str, Tensor]) -> None:
    model, notes = load_model(folder, image_px=32)
    assert notes == ["positions 6x4 -> 8x8, bilinear (JAX)"]
    expected = {**state, "pos_embed": resize_positions(state["pos_embed"], (6, 4), (8, 8), 1)}
    torch.testing.assert_close(dict(model.state_dict()), expected, rtol=0, atol=0)
    assert torch.equal(model.pos_embed[:, 0], state["pos_embed"][:, 0])
    assert model.config == VIT.at(32)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_another_task_gets_a_linear_head_of_zeros(folder: Path, state: dict[str, Tensor]) -> None:
    model, notes = load_model(folder, num_classes=5)
    assert notes == ["head mlp of 3 classes -> linear of 5, zero"]
    kept = {name: tensor for name, tensor in state.items() if name.split(".")[0] not in ("head", "pre_logits")}
    expected = {**kept, "head.weight": torch.zeros(5, 24), "head.bias": torch.zeros(5)}
    torch.testing.assert_close(dict(model.state_dict()), expected, rtol=0, atol=0)


def test_an_image_size_of_broken_patches_is_refused(folder: Path) -> None:
    with pytest.raises(
        ValueError, match="image_px = 30: 30 px is not a multiple of the patch, 4 px; nearest: 28 or 32"
    ):
        load_model(folder, image_px=30)


# ---- refused ----


def test_a_folder_without_weights_is_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"nowhere/config.json: no such file; a weights folder holds config.json and"
    ):
        read_header(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"weights/model\.safetensors: no such file"):
        read_header(folder)


def test_missing_extra_and_misshapen_tensors_are_named(folder: Path, state: dict[str, Tensor]) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["norm.bias"]
    rewrite_tensors(folder, {**tensors, "dist_token": torch.zeros(1, 1, 24), "pos_embed": torch.zeros(1, 26, 24)})
    with pytest.raises(
        WeightsError,
        match=r"model\.safetensors: tensors are not those of config\.json: "
        r"missing norm\.bias 24; extra dist_token 1x1x24; pos_embed is 1x26x24, not 1x25x24$",
    ):
        load(folder)


def test_a_long_list_of_differences_is_cut(folder: Path) -> None:
    rewrite_tensors(folder, {"weight": torch.zeros(2)})
    with pytest.raises(WeightsError, match=r"missing cls_token 1x1x24; missing pos_embed .* and 32 more$"):
        read_header(folder)


def test_an_unknown_format_names_the_version_that_reads_it(folder: Path) -> None:
    rewrite_config(folder, format=2, readable_by="vit-at-scale >= 3.1.0", novelty=True)
    with pytest.raises(
        WeightsError,
        match=r"config\.json: format 2 is read by vit-at-scale >= 3\.1\.0; this version reads format 1",
    ):
        read_header(folder)
    (folder / "config.json").write_text('{"format": "x"}')
    with pytest.raises(WeightsError, match="format x is read by a later version of vit-at-scale"):
        read_header(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not JSON"), ("[1]", "no format number; this is not the config of a weights folder"), ("{}", "no format")],
)
def test_a_config_of_something_else_is_refused(text: str, message: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=rf"config\.json: {message}"):
        read_header(folder)


def test_a_broken_rule_inside_the_config_is_named(folder: Path) -> None:
    rewrite_config(folder, vit={**VIT.model_dump(mode="json"), "image_px": [24, 17]})
    with pytest.raises(WeightsError, match=r"config\.json: vit\.image_px = \[24, 17\]: 17 px is not a multiple"):
        read_header(folder)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "pickle"])
def test_a_pickle_is_refused_unread(zipped: bool, folder: Path, state: dict[str, Tensor]) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, ("raise SystemExit('a pickle was run')",))

    if zipped:
        torch.save(state, folder / "model.safetensors")
    else:
        (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WeightsError, match=r"a pickle, not safetensors; a pickle runs code when loaded"):
        load_model(folder)


def test_a_file_cut_short_anywhere_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for size in (0, 5, 8, 40, 1000):
        path.write_bytes(whole[:size])
        with pytest.raises(WeightsError, match="not a safetensors file, or only the beginning of one; copy it again"):
            read_header(folder)
    for wrong in (whole[:-1], whole + b"\0"):
        path.write_bytes(wrong)
        with pytest.raises(WeightsError, match=rf"{len(wrong)} bytes, where its header promises {len(whole)}; copy it"):
            read_header(folder)


@pytest.mark.parametrize("entry", ['{"a": 1}', '{"a": {"shape": [1]}}', '{"a": {"shape": [1], "dtype": "I8"}}', "[]"])
def test_a_header_that_is_not_of_float_tensors_is_refused(entry: str, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(len(entry).to_bytes(8, "little") + entry.encode() + b"0")
    with pytest.raises(WeightsError, match="not a safetensors file"):
        read_header(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("ant", "bee")}, "2 class names for a head of 3 classes"),
        ({"head": HeadConfig()}, "head.num_classes must be stated"),
        ({"normalisation": Normalisation(mean=(0.5,))}, "one mean and one std for each of the 3 channels"),
    ],
)
def test_a_header_agrees_with_itself(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        WeightsHeader.model_validate({"vit": VIT, "head": HEADER.head, **changes})
