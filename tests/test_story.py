"""The whole arrow by command lines, on real images: a folder of class folders -> shards -> pretrained -> fine-tuned."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.ranks import Finished, run_command
from tests.training import Done, equal_to_the_bit
from vit.weights import read_header

HOUSE = Path(__file__).parents[1]
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
IMAGES_PER_CLASS = 100

PRETRAIN = """
run: {steps: 150, log_every_steps: 10, checkpoint_every_steps: 60}
vit: {width: 48, depth: 2, mlp_width: 96, heads: 3, patch_px: 4, image_px: 16}
data: {batch: 32, lanes: 8, workers: 1}
augment: {area: [0.6, 1.0], flip: false}
optim: {lr: 3e-3, warmup_steps: 10, weight_decay: 0.05}
engine: {zero_stage: 2, precision: fp32, activation_checkpointing: full}
"""

FINETUNE = """
run: {steps: 80, log_every_steps: 10}
vit: {image_px: 24}
data: {batch: 32, lanes: 8, workers: 0}
augment: {area: [0.6, 1.0], flip: false}
optim: {lr: 0.02}
evaluate: {every_steps: 30}
"""

CURVES = {
    "loss": "train/loss",
    "lr": "train/lr",
    "grad_norm": "train/grad_norm",
    "images_per_s": "perf/images_per_s",
    "data_wait_frac": "perf/data_wait_frac",
    "memory_bytes": "memory/peak_bytes",
}


class Story:
    """What the commands left under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pretrained, self.finetuned = Done(root / "runs/pretrain"), Done(root / "runs/finetune")
        self.said: dict[str, Finished] = {}

    def does(self, name: str, module: str, *arguments: object) -> None:
        """One command of the project, which must succeed."""
        self.said[name] = run_command(module, arguments)
        assert self.said[name].code == 0, self.said[name].stderr


def write_class_folders(root: Path) -> None:
    """The digits as a person would have them: one folder a class, JPEG and PNG side by side."""
    with np.load(HOUSE / "data_pipeline/digits/digits.npz") as digits:
        for label, name in enumerate(NAMES):
            folder = root / ("seen" if label < 6 else "unseen") / name
            folder.mkdir(parents=True)
            for number, pixels in enumerate(digits["images"][digits["labels"] == label][:IMAGES_PER_CLASS]):
                image = Image.fromarray(pixels * 15).resize((16, 16), Image.Resampling.BICUBIC).convert("RGB")
                image.save(folder / f"{number:03d}.{'jpg' if number % 2 else 'png'}", quality=95)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Pack, verify, pretrain with real processes, fine-tune: the commands of the README on a folder of images."""
    root = tmp_path_factory.mktemp("story")
    story = Story(root)
    write_class_folders(root / "images")
    for name in ("seen", "unseen"):
        packing = ("--hold-out", 0.25, "--shard-samples", 64, "--workers", 1)
        story.does(f"pack {name}", "data_pipeline", "pack", root / "images" / name, root / "data" / name, *packing)
    story.does("verify", "data_pipeline", "verify", root / "data/seen/train")

    (root / "pretrain.yaml").write_text(PRETRAIN)
    sets = [f"data.{split}={root}/data/seen/{split}" for split in ("train", "val")]
    recipe = [root / "pretrain.yaml", f"run.folder={story.pretrained.folder}", *sets]
    launch = [sys.executable, "-m", "launch", "local", "--ranks", "2", "pretrain", *map(str, recipe)]
    bare = {**os.environ, "PATH": str(root / "nothing")}  # neither a compiler nor ninja nor an activated environment
    done = subprocess.run(launch, cwd=HOUSE, env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    story.said["pretrain"] = Finished(done.returncode, done.stdout, done.stderr)

    (root / "finetune.yaml").write_text(FINETUNE)
    sets = [f"data.{split}={root}/data/unseen/{split}" for split in ("train", "val")]
    where = (f"weights={story.pretrained.folder}/weights", f"run.folder={story.finetuned.folder}")
    story.does("finetune", "finetune", root / "finetune.yaml", *where, *sets)
    return story


def test_packing_kept_every_image_and_named_the_classes(story):
    train, val = (
        json.loads((story.root / f"data/seen/{split}/manifest.json").read_text()) for split in ("train", "val")
    )
    assert train["classes"] == val["classes"] == sorted(NAMES[:6])
    assert sum(shard["samples"] for shard in train["shards"]) == 6 * 75
    assert sum(shard["samples"] for shard in val["shards"]) == 6 * 25
    assert "every byte as it was packed, every image decodes" in story.said["verify"].stdout


def test_both_models_learned(story):
    assert story.pretrained.losses[0] == pytest.approx(np.log(6), abs=1e-5)
    assert story.pretrained.result["val_top1"] > 0.6  # chance: 1 / 6
    assert story.finetuned.losses[0] == pytest.approx(np.log(4), abs=1e-5)
    assert story.finetuned.result["val_top1"] > 0.6  # chance: 1 / 4


def test_a_person_sees_how_far_it_is(story):
    said = story.said["pretrain"].stdout.splitlines()
    assert any(line.startswith("step 50/150  loss ") and line.endswith(" left") for line in said)
    assert f"val_top1 {story.pretrained.result['val_top1']}" in said[-1]
    assert story.said["pretrain"].stderr == ""


@pytest.mark.parametrize(("which", "ranks", "steps"), [("pretrained", 2, [120, 150]), ("finetuned", 1, [80])])
def test_a_run_leaves_what_was_promised(story, which, ranks, steps):
    run: Done = getattr(story, which)
    assert {path.name for path in run.folder.iterdir()} == {
        "config.yaml", "metrics.jsonl", "tensorboard", "events.jsonl", "logs", "checkpoints", "weights", "result.json"
    }  # fmt: skip
    assert sorted(path.name for path in (run.folder / "logs").iterdir()) == [f"rank-{n:05d}.log" for n in range(ranks)]
    assert sorted(path.name for path in (run.folder / "checkpoints").iterdir()) == [f"step-{n:08d}" for n in steps]
    assert {path.name for path in (run.folder / "weights").iterdir()} == {"model.safetensors", "config.json"}
    last = steps[-1]
    assert [line["step"] for line in run.metrics] == [1, *range(10, last + 1, 10)]
    for line in run.metrics:
        assert {"step", "images_seen", "batch_digest", *CURVES} <= line.keys()
        assert line["images_seen"] == 32 * line["step"]
    result = run.result
    assert {"step", "images_seen", "seconds", "loss", "val_top1", "val_top5", "val_loss"} <= result.keys()
    assert (result["step"], result["images_seen"], result["loss"]) == (last, 32 * last, run.losses[-1])


@pytest.mark.parametrize(("which", "validated"), [("pretrained", [150]), ("finetuned", [30, 60, 80])])
def test_tensorboard_shows_the_same_numbers(story, which, validated):
    run: Done = getattr(story, which)
    curves = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    assert set(curves.Tags()["scalars"]) == {*CURVES.values(), "val/top1", "val/top5", "val/loss"}
    for metric, tag in CURVES.items():
        points = {point.step: point.value for point in curves.Scalars(tag)}
        assert points == {line["step"]: pytest.approx(line[metric], rel=1e-6) for line in run.metrics}
    for metric in ("top1", "top5", "loss"):
        points = curves.Scalars(f"val/{metric}")
        assert [point.step for point in points] == validated
        assert points[-1].value == pytest.approx(run.result[f"val_{metric}"], rel=1e-6)
    assert "train/images" in curves.Tags()["images"]
    (text,) = curves.Tensors("config/text_summary")
    assert "image_px" in text.tensor_proto.string_val[0].decode()


def test_the_weights_carry_their_history(story):
    upstream, tuned = (read_header(run.folder / "weights") for run in (story.pretrained, story.finetuned))
    assert upstream.classes == tuple(sorted(NAMES[:6]))
    assert tuned.classes == tuple(sorted(NAMES[6:]))
    assert (upstream.vit.grid, tuned.vit.grid) == ((4, 4), (6, 6))
    assert (upstream.head.kind, tuned.head.kind) == ("mlp", "linear")
    told = tuned.provenance["upstream"]
    assert isinstance(told, dict)
    assert upstream.provenance.items() <= told.items()


def test_its_own_config_repeats_a_run(story):
    again = Done(story.root / "runs/again")
    story.does("again", "finetune", story.finetuned.folder / "config.yaml", f"run.folder={again.folder}")
    assert again.losses == story.finetuned.losses
    assert equal_to_the_bit(again.weights, story.finetuned.weights)
