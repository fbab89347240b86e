"""The demo without its two minutes: what it would type, the table it ends with, and when it calls itself a failure."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from configs.load import load
from data_pipeline.__main__ import main as data_pipeline
from finetune.config import FinetuneConfig
from launch import demo
from pretrain.config import PretrainConfig

HOUSE = Path(__file__).parents[2]
WORTH_IT = {"weights": (0.70, 0.80, 0.75), "scratch": (0.45, 0.55, 0.50)}


class Machine:
    """Stands in for `subprocess`: writes down the commands, and answers a fine-tuning with the accuracy it is given."""

    PIPE, DEVNULL = subprocess.PIPE, subprocess.DEVNULL

    def __init__(self, accuracies: Mapping[str, Sequence[float]]) -> None:
        self.accuracies = accuracies
        self.commands: list[list[str]] = []
        self.environments: list[Mapping[str, str]] = []
        self.fails_at: str | None = None

    def run(self, command: list[str], *, env: Mapping[str, str], **_: object) -> SimpleNamespace:
        self.commands.append(command[2:])
        self.environments.append(env)
        if self.fails_at in command:
            return SimpleNamespace(returncode=2, stderr="a warning\nerror: no room left\n")
        if command[2] == "finetune":
            values = dict(word.split("=", 1) for word in command[4:])
            folder = Path(values["run.folder"])
            folder.mkdir(parents=True)
            top1 = self.accuracies[values["init"]][int(values["run.seed"])]
            (folder / "result.json").write_text(json.dumps({"val_top1": top1}))
        return SimpleNamespace(returncode=0, stderr="")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.chdir(tmp_path)
    stand_in = Machine(WORTH_IT)
    monkeypatch.setattr(demo, "subprocess", stand_in)
    return stand_in


def test_it_ends_with_a_table_and_where_to_look(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main([]) == 0
    said = capsys.readouterr().out
    assert "| pretrained on 0-5 | 75.0% | 5.0% | 3 |\n| from scratch | 50.0% | 5.0% | 3 |" in said
    assert "Gain 25.0 points; two pooled standard deviations are 10.0." in said
    assert "data/demo/upstream/train/contact_sheet.png" in said
    assert "tensorboard --logdir runs/demo" in said
    assert "srun --ntasks-per-node=8 --gpus-per-task=1 python -m pretrain configs/pretrain/vit_h14_in21k.yaml" in said
    assert (HOUSE / "configs/pretrain/vit_h14_in21k.yaml").is_file()


def test_both_arms_have_the_same_budget(machine: Machine) -> None:
    assert demo.main([]) == 0
    runs = [command[1:] for command in machine.commands if command[0] == "finetune"]
    seeds: dict[str, set[str]] = {"init=weights": set(), "init=scratch": set()}
    for recipe, init, seed, folder in runs:
        assert recipe == "configs/finetune/demo.yaml"
        assert folder.startswith("run.folder=")
        seeds[init].add(seed)
    assert seeds["init=weights"] == seeds["init=scratch"] == {"run.seed=0", "run.seed=1", "run.seed=2"}


def test_its_commands_hang_together(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What it packs is what its recipes train on, and the weights that one leaves are what the other begins with."""
    assert demo.main([]) == 0
    packed = [Path(command[3]) for command in machine.commands if command[:2] == ["data_pipeline", "pack"]]
    upstream = load(HOUSE / "configs/pretrain/demo.yaml", PretrainConfig)
    transfer = load(HOUSE / "configs/finetune/demo.yaml", FinetuneConfig)
    assert (upstream.data.train, upstream.data.val) == (packed[0] / "train", packed[0] / "val")
    assert (transfer.data.train, transfer.data.val) == (packed[1] / "train", packed[1] / "val")
    assert transfer.weights == upstream.run.folder / "weights"
    assert ["launch", "local", "--ranks", "2", "pretrain", "configs/pretrain/demo.yaml"] in machine.commands
    for command in machine.commands:
        if command[0] == "data_pipeline":
            in_this_process = ["--workers", "1"] if command[1] == "pack" else []
            assert data_pipeline([*command[1:], *in_this_process]) == 0
    manifest = json.loads((tmp_path / "data/demo/downstream/train/manifest.json").read_text())
    assert manifest["classes"] == ["6", "7", "8", "9"]
    assert (tmp_path / "data/demo/upstream/train/contact_sheet.png").is_file()


def test_it_runs_on_the_cpu_whatever_the_machine_has(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert demo.main([]) == 0
    assert {env["DS_ACCELERATOR"] for env in machine.environments} == {"cpu"}


def test_it_begins_anew(machine: Machine) -> None:
    for left in ("runs/demo/pretrain/result.json", "data/demo/upstream/train/manifest.json"):
        Path(left).parent.mkdir(parents=True)
        Path(left).touch()
    assert demo.main([]) == 0
    assert not Path("runs/demo/pretrain").exists()
    assert not Path("data/demo").exists()


def test_a_transfer_that_was_not_worth_it_is_a_failure(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.accuracies = {"weights": (0.50, 0.60, 0.70), "scratch": (0.41, 0.51, 0.61)}
    assert demo.main([]) == 1
    shown = capsys.readouterr()
    assert "| pretrained on 0-5 | 60.0% | 10.0% | 3 |" in shown.out
    assert shown.err == "error: the gain of 9.0 points is under two pooled standard deviations (20.0)\n"


@pytest.mark.parametrize(("gain", "code"), [(0.19, 1), (0.21, 0)])
def test_the_bar_is_two_pooled_standard_deviations(machine: Machine, gain: float, code: int) -> None:
    scratch = (0.3, 0.4, 0.5)
    machine.accuracies = {"weights": [each + gain for each in scratch], "scratch": scratch}
    assert demo.main([]) == code


@pytest.mark.parametrize(
    ("step", "command", "words"),
    [
        ("launch", "python -m launch local --ranks 2 pretrain configs/pretrain/demo.yaml", "ended with exit code 2"),
        ("finetune", "python -m finetune configs/finetune/demo.yaml init=", "exit code 2: error: no room left"),
    ],
)
def test_a_failing_step_ends_it(
    machine: Machine, capsys: pytest.CaptureFixture[str], step: str, command: str, words: str
) -> None:
    machine.fails_at = step
    assert demo.main([]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: `{command}")
    assert words in shown.err
    assert "| n |" not in shown.out


def test_ctrl_c_is_one_line(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> SimpleNamespace:
        raise KeyboardInterrupt

    monkeypatch.setattr(machine, "run", interrupted)
    assert demo.main([]) == 1
    assert capsys.readouterr().err == "error: interrupted\n"
