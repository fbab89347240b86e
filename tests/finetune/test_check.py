"""What a wrong fine-tuning config is told: one line with what, where, the rule and the remedy, before any work."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.__main__ import main as data_pipeline
from tests import training
from tests.ranks import run_command
from tests.training import Recipe
from vit.config import HeadConfig, ViTConfig
from vit.model import ViT
from vit.weights import Normalisation, WeightsHeader, save


def refusal(recipe: Recipe) -> str:
    """What the recipe is told, without the place it names first; the run must leave nothing behind."""
    said = recipe.fails()
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said.removeprefix("error: ").removeprefix(f"{recipe.path}: ").strip()


@pytest.fixture
def weights(pretrained, tmp_path) -> Path:
    """A copy of the pretrained weights, to be spoilt."""
    return Path(shutil.copytree(pretrained.folder / "weights", tmp_path / "weights"))


def change_header(weights: Path, **values: object) -> None:
    path = weights / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# --- Keys and values -------------------------------------------------------------------------------------------------

VALUES: dict[str, tuple[dict[str, object], str]] = {
    "text where a number belongs": (
        {"optim__lr": "high"},
        r"command line: optim\.lr=high: text where a number belongs; write it in digits, such as 3e-4",
    ),
    "a fraction where a whole number belongs": (
        {"data__train_per_class": 2.5},
        r"command line: data\.train_per_class=2\.5: a number where a whole number belongs; .*",
    ),
    "an unknown key": (
        {"optim__momentun": 0.8},
        r"command line: optim\.momentun=0\.8: .*momentum.*",
    ),
    "a choice that there is not": (
        {"optim__name": "lamb"},
        r"command line: optim\.name=lamb: must be 'adamw' or 'sgd'",
    ),
    "a size that makes no whole patches": (
        {"vit__image_px": 30},
        r"vit\.image_px = 30: 30 px is not a multiple of the patch, 4 px; nearest: 28 or 32",
    ),
    "a height that makes no whole patches": (
        {"vit__image_px": "[20, 3]"},
        r"vit\.image_px = \(20, 3\): 3 px is not a multiple of the patch, 4 px; nearest: 4",
    ),
    "more images a class than there are": (
        {"data__train_per_class": 5000},
        r"data\.train_per_class = 5000: .*/train: class 6 has \d+ images, 5000 a class are .*; ask for \d+ or fewer",
    ),
    "labels that the head has no output for": (
        {"head__num_classes": 3},
        r"head\.num_classes = 3, but .*/downstream/train has 4 classes \(labels 0 to 3\); leave it out .*",
    ),
    "a warm-up longer than the run": (
        {"optim__warmup_steps": 9},
        r"optim\.warmup_steps = 9: is longer than the run of 8 steps; shorten it",
    ),
    "weights that are not there": (
        {"weights": "no/such/folder"},
        r"weights: no/such/folder/config\.json: no such file; a weights folder holds config\.json and .*",
    ),
    "other weights than the run began with": (
        {"weights_sha256": "f" * 64},
        r"weights_sha256 = f{64}: the weights in .* have [0-9a-f]{64}; point weights at the right folder, or .*",
    ),
    "another set than the run began with": (
        {"data__identity": "f" * 64},
        r"data\.identity = f{64}: data\.train is another set \([0-9a-f]{64}\); point data\.train at .*",
    ),
}


@pytest.mark.parametrize("what", VALUES)
def test_wrong_values(finetuning, what):
    overrides, message = VALUES[what]
    assert re.fullmatch(message, refusal(finetuning.but(**overrides)))


def test_an_unknown_key_in_the_file_is_shown_with_its_line_and_the_nearest(finetuning):
    text = training.TINY_FINETUNE.replace("lr: 0.05", "lr: 0.05, momentun: 0.8")
    finetuning.path.write_text(text)
    line = 1 + text[: text.index("momentun")].count("\n")
    said = finetuning.fails()
    assert said.startswith(f"error: {finetuning.path}:{line}: optim.momentun")
    assert "momentum" in said


def test_fewer_images_a_batch_than_ranks(finetuning):
    recipe = finetuning.but(data__batch=2)
    with recipe.start(ranks=3) as ranks:
        assert ranks.wait() == [2, 2, 2]
        said = ranks.output(0)[1]
    assert said.endswith("data.batch = 2: is less than the 3 ranks; raise data.batch or start fewer ranks\n")
    assert not recipe.folder.exists()


# --- Weights ---------------------------------------------------------------------------------------------------------


def test_weights_of_another_shape(finetuning, weights):
    header = json.loads((weights / "config.json").read_text())
    change_header(weights, vit={**header["vit"], "mlp_width": 64})
    assert re.fullmatch(
        rf"weights: {weights}/model\.safetensors: tensors are not those of config\.json: "
        r"blocks\.0\.mlp\.fc1\.weight is 48x24, not 64x24; .* and \d+ more",
        refusal(finetuning.but(weights=weights)),
    )


def test_weights_of_a_later_format(finetuning, weights):
    change_header(weights, format=2, readable_by="vit-at-scale >= 3.1")
    said = refusal(finetuning.but(weights=weights))
    assert (
        said == f"weights: {weights}/config.json: format 2 is read by vit-at-scale >= 3.1; this version reads format 1"
    )


def test_weights_that_want_other_pixels(finetuning, weights):
    change_header(weights, normalisation={"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]})
    said = refusal(finetuning.but(weights=weights))
    assert said == (
        f"weights = {weights}: want pixels of mean (0.485, 0.456, 0.406) and std (0.229, 0.224, 0.225); fine-tuning "
        "feeds pixels in [-1, 1], mean (0.5, 0.5, 0.5) and std (0.5, 0.5, 0.5): name weights that were trained on these"
    )


def test_weights_for_grey_images(finetuning, tmp_path):
    vit = ViTConfig(width=24, depth=1, mlp_width=48, heads=3, patch_px=4, image_px=12, channels=1)
    header = WeightsHeader(
        vit=vit,
        head=HeadConfig(kind="linear", num_classes=4),
        normalisation=Normalisation(mean=(0.5,), std=(0.5,)),
    )
    save(tmp_path / "grey", ViT(vit, header.head).state_dict(), header)
    said = refusal(finetuning.but(weights=tmp_path / "grey"))
    assert said == (
        f"weights = {tmp_path}/grey: are for images of 1 channel; sets are fed as RGB: name weights for 3 channels"
    )


def test_a_weights_file_cut_short(finetuning, weights):
    tensors = weights / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    assert re.fullmatch(
        rf"weights: {tensors}: \d+ bytes, where its header promises \d+; copy it again",
        refusal(finetuning.but(weights=weights)),
    )


# --- Sets ------------------------------------------------------------------------------------------------------------


def test_sets_that_number_their_classes_differently(finetuning, digits, tmp_path):
    pack = ["pack", "digits", str(tmp_path / "val"), "--workers", "1", "--classes", "7", "6", "8", "9"]
    assert data_pipeline(pack) == 0
    said = refusal(finetuning.but(data__val=tmp_path / "val"))
    assert said == (
        f"{digits}/downstream/train and {tmp_path}/val differ in their classes: label 0 is '6' in one and '7' in the "
        "other; pack both with the same --classes"
    )


def test_a_set_that_lost_a_shard(finetuning, digits, tmp_path):
    train = Path(shutil.copytree(digits / "downstream/train", tmp_path / "train"))
    (train / "train-000003.tar").unlink()
    said = refusal(finetuning.but(data__train=train))
    assert said == (
        f"data.train: {train}: the manifest does not match its shards: train-000003.tar is missing; "
        "copy or pack the set again"
    )


# --- The run folder, and the check itself ----------------------------------------------------------------------------


def test_a_folder_that_holds_a_run_of_another_config(finetuning):
    done = finetuning.but(run__steps=1).run()
    before = {path: path.stat().st_mtime_ns for path in done.folder.rglob("*")}
    code, _, said = run_command("finetune", finetuning.but(run__steps=1, optim__lr=0.5).arguments)
    assert code == 2
    assert f"run.folder = {done.folder}: holds a run of another config (optim.lr" in said
    assert {path: path.stat().st_mtime_ns for path in done.folder.rglob("*")} == before


def test_a_check_says_what_would_be_done_without_torch_and_does_nothing(finetuning, pretrained):
    program = (
        "import sys; from finetune.__main__ import main; code = main(sys.argv[1:]);"
        "print(code, sorted({'torch', 'deepspeed', 'accelerate', 'webdataset'} & set(sys.modules)))"
    )
    arguments = [*finetuning.but(data__train_per_class=5).arguments, "--check"]
    env = {**os.environ, "RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "20000"}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "data    20 images, 4 classes; 143 images to test on",
        f"model   ViT of width 24, depth 2, patch 4 at 20 x 20 px, fine-tuned from {pretrained.folder}/weights",
        "head    linear, 4 classes",
        "steps   8 of 16 images (6.4 epochs)",
        "ranks   3; 1 micro-batches of 6 on each, 2 rows of padding a step",
        f"run     {finetuning.folder}",
        "0 []",
    ]
    assert not done.stderr
    assert not finetuning.folder.exists()
