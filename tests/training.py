"""Tiny real runs for tests: a packed set of digits, recipes as overrides, and what a run left."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.ranks import Ranks, command, run_command, start_ranks

TINY_PRETRAIN = """
run: {steps: 10, log_every_steps: 1, checkpoint_every_steps: 100, ledger: full}
vit: {width: 24, depth: 2, mlp_width: 48, heads: 3, patch_px: 4, image_px: 12}
data: {batch: 24, lanes: 5, workers: 0}
augment: {area: [0.5, 1.0]}
optim: {lr: 1e-3, weight_decay: 0.1, warmup_steps: 2, schedule: cosine}
evaluate: {batch: 16}
engine: {precision: fp32}
"""

TINY_FINETUNE = """
run: {steps: 8, log_every_steps: 1, checkpoint_every_steps: 100, ledger: full}
vit: {image_px: 20}
data: {batch: 16, lanes: 3, workers: 0}
augment: {area: [0.5, 1.0]}
optim: {name: sgd, lr: 0.05, schedule: cosine}
evaluate: {batch: 16}
"""


def pretraining(digits: Path, root: Path, **overrides: object) -> Recipe:
    """A pretraining run of ten steps in root/run on the digits 0-5, not started."""
    path = root / "pretrain.yaml"
    path.write_text(TINY_PRETRAIN)
    sets = {"data__train": digits / "upstream/train", "data__val": digits / "upstream/val"}
    return Recipe("pretrain", path, run__folder=root / "run", **{**sets, **overrides})


def finetuning(digits: Path, weights: Path, root: Path, **overrides: object) -> Recipe:
    """A fine-tuning run of eight steps in root/run on the digits 6-9, not started."""
    path = root / "finetune.yaml"
    path.write_text(TINY_FINETUNE)
    sets = {"data__train": digits / "downstream/train", "data__val": digits / "downstream/val"}
    return Recipe("finetune", path, run__folder=root / "run", weights=weights, **{**sets, **overrides})


class Recipe:
    """A config on disk and the values that replace its own."""

    def __init__(self, module: str, path: Path, **overrides: object) -> None:
        self.module, self.path, self.overrides = module, path, overrides

    def but(self, **overrides: object) -> Recipe:
        """The same with other values; `section__key=value` is `section.key=value`."""
        return Recipe(self.module, self.path, **{**self.overrides, **overrides})

    @property
    def arguments(self) -> list[str]:
        """What follows `python -m MODULE`."""
        return [str(self.path), *(f"{key.replace('__', '.')}={value}" for key, value in self.overrides.items())]

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(str(self.overrides["run__folder"]))

    def start(self, ranks: int) -> Ranks:
        """Start warm ranks and return at once."""
        return start_ranks(ranks, command, self.module, self.arguments)

    def run(self, ranks: int = 1) -> Done:
        """Run to the end on warm ranks; every one must exit 0."""
        with self.start(ranks) as running:
            codes = running.wait()
            said = "\n".join("".join(running.output(rank)) for rank in range(ranks))
            assert codes == [0] * ranks, said
        return Done(self.folder)

    def start_and_kill(self, victim: int, after_step: int, timeout_s: float = 60) -> None:
        """Start two ranks and SIGKILL one once `after_step` is logged; again, if the run was done before the kill."""
        log = self.folder / "metrics.jsonl"
        for _ in range(5):
            with self.start(ranks=2) as running:
                deadline = time.monotonic() + timeout_s
                while not log.exists() or log.read_text().count("\n") < after_step:
                    assert time.monotonic() < deadline, f"step {after_step} was not reached within {timeout_s} s"
                    time.sleep(0.005)
                running.kill(victim)
            if not (self.folder / "result.json").exists():
                return
            shutil.rmtree(self.folder)
        raise AssertionError("five times the run was done before it could be killed")

    def fails(self) -> str:
        """Run as one rank; it must exit 2, and its one line of error is returned."""
        code, stdout, stderr = run_command(self.module, self.arguments)
        assert code == 2, stdout + stderr
        assert "Traceback" not in stderr
        assert not self.folder.exists()
        return stderr


class Done:
    """What a run left on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return lines(self.folder / "metrics.jsonl")

    @property
    def events(self) -> list[dict[str, Any]]:
        return lines(self.folder / "events.jsonl")

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "result.json").read_text())
        return found

    @property
    def losses(self) -> list[float]:
        return [line["loss"] for line in self.metrics]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "weights" / "model.safetensors")

    def ledger(self) -> dict[int, list[str]]:
        """Keys that all ranks' engines consumed, by step, sorted."""
        found: dict[int, list[str]] = {}
        for path in sorted((self.folder / "ledger").glob("rank-*.jsonl")):
            for line in lines(path):
                found.setdefault(line["step"], []).extend(line["keys"])
        return {step: sorted(keys) for step, keys in sorted(found.items())}


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def largest_difference(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> float:
    """The largest absolute difference between two models' weights."""
    assert ours.keys() == theirs.keys()
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


def equal_to_the_bit(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> bool:
    """Whether two models' weights are the same numbers."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
