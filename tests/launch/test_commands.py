"""`python -m pretrain` and `python -m finetune` from outside: what is refused, interrupted, finished."""

import signal
import time
from pathlib import Path

import pytest

import finetune.__main__
import finetune.check
import pretrain.__main__
import pretrain.check
from tests.ranks import run_command
from tests.training import Done, Recipe

MAINS = {"pretrain": (pretrain.__main__.main, pretrain.check), "finetune": (finetune.__main__.main, finetune.check)}


@pytest.fixture(params=["pretrain", "finetune"])
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Recipe:
    """A config that is whole, of data and weights that are not there."""
    path = tmp_path / "recipe.yaml"
    size = "{width: 24, depth: 2, mlp_width: 48, heads: 3, patch_px: 4, image_px: 12}"
    own = f"vit: {size}" if request.param == "pretrain" else "weights: gone/weights"
    path.write_text(
        f"run: {{folder: {tmp_path}/run, steps: 5}}\ndata: {{train: gone, batch: 8}}\noptim: {{lr: 0.1}}\n{own}\n"
    )
    return Recipe(request.param, path)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            PermissionError(13, "Permission denied", "/data/train/manifest.json"),
            2,
            "/data/train/manifest.json: Permission denied",
        ),
        (ValueError("data.train: is not there"), 2, "data.train: is not there"),
        (KeyboardInterrupt(), 130, "interrupted before training"),
    ],
)
@pytest.mark.parametrize("words", [[], ["--check"]])
def test_what_goes_wrong_while_judging_is_one_line(
    recipe: Recipe,
    error: BaseException,
    code: int,
    line: str,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def prepare(*arguments: object) -> None:
        raise error

    main, check = MAINS[recipe.module]
    monkeypatch.setattr(check, "prepare", prepare)
    assert main([str(recipe.path), *words]) == code
    assert capsys.readouterr().err == f"error: {line}\n"


def test_weights_that_cannot_be_written_are_one_line(
    pretrained: Done, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import pretrain.export

    def export(*arguments: object) -> Path:
        raise PermissionError(13, "Permission denied", "runs/first/weights-00000010")

    monkeypatch.setattr(pretrain.export, "export_from_run", export)
    assert pretrain.__main__.main([str(pretrained.folder / "config.yaml"), "--weights"]) == 2
    assert capsys.readouterr().err == "error: runs/first/weights-00000010: Permission denied\n"


@pytest.mark.parametrize("module", ["pretrain", "finetune"])
def test_without_a_config_only_the_config_is_missed(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        MAINS[module][0]([])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("error: the following arguments are required: CONFIG.yaml\n")


@pytest.mark.parametrize("step", ["-7", "0", "newest"])
def test_a_step_that_no_checkpoint_has(step: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        pretrain.__main__.main(["a.yaml", "--weights", step])
    assert ended.value.code == 2
    assert f"argument --weights: {step}: must be the step of a checkpoint, 1 or more\n" in capsys.readouterr().err


def test_ctrl_c_while_training_is_one_line(pretraining: Recipe) -> None:
    endless = pretraining.but(run__steps=1_000_000, data__workers=1)
    with endless.start(ranks=1) as ranks:
        deadline = time.monotonic() + 60
        while not (endless.folder / "metrics.jsonl").exists():
            assert time.monotonic() < deadline and ranks.exit_codes == [None], ranks.output(0)
            time.sleep(0.02)
        ranks.kill(0, signal.SIGINT)
        assert ranks.wait(30) == [130]
        stderr = ranks.output(0)[1]
    assert stderr.splitlines()[-1] == "error: interrupted; the same command continues from the last checkpoint"
    assert "Traceback" not in stderr


def test_a_finished_run_needs_neither_its_data_nor_a_folder_that_can_be_written(
    pretrained: Done, digits: Path, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in pretrained.folder.rglob("*")}
    pretrained_from = Recipe("pretrain", pretrained.folder / "config.yaml")
    moved = pretrained_from.but(data__train=tmp_path / "moved", data__val="null")
    for recipe in (moved, moved.but(data__identity="null", head__num_classes="null")):
        for words in ([], ["--check"]):
            code, stdout, stderr = run_command("pretrain", [*recipe.arguments, *words])
            assert (code, stderr) == (0, "")
            assert f"val_top1 {pretrained.result['val_top1']}" in stdout
    assert {path: path.stat().st_mtime_ns for path in pretrained.folder.rglob("*")} == before
    code, _, stderr = run_command("pretrain", moved.but(run__steps=20).arguments)
    assert code == 2 and "data.train" in stderr  # not finished: the data is wanted
