"""The whole arrow on real images, small enough for a laptop: pack -> pretrain -> fine-tune -> a table. `make demo` runs it.

Upstream sees the handwritten digits 0 to 5. Transfer gets five labelled images of each of 6 to 9, which upstream never saw, and must beat
the same budget spent from scratch by two pooled standard deviations. Every step is a command that a user would type.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launch.host import num_cores

SEEDS = (0, 1, 2)
ARMS = {"weights": "pretrained on 0-5", "scratch": "from scratch"}


class DemoError(RuntimeError):
    """A step of the demo failed."""


def main() -> int:
    """Run the demo; exit code 0 when the transfer was worth it."""
    parser = argparse.ArgumentParser(prog="python -m launch.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="go on from what an earlier demo left in data/demo and runs/demo")
    started_s = time.monotonic()
    if not parser.parse_args().keep:
        for folder in (Path("data/demo"), Path("runs/demo")):
            shutil.rmtree(folder, ignore_errors=True)
    try:
        _pack()
        _say("2. Pretrain on two ranks: ZeRO-2, gradient checkpointing, MLP head")
        _run("launch", "local", "--ranks", "2", "pretrain", "configs/pretrain/demo.yaml")
        _say("3. Fine-tune on classes never seen, five images each, at a higher resolution; and the same from scratch")
        accuracies = _finetune()
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    gain, needed = _table(accuracies)
    _epilogue(time.monotonic() - started_s)
    if gain < needed:
        print(f"error: the gain of {gain:.1%} is under two pooled standard deviations ({needed:.1%})", file=sys.stderr)
        return 1
    return 0


def _pack() -> None:
    _say("1. Pack the handwritten digits into shards: 0-5 upstream, 6-9 downstream")
    for name, classes, hold_out in (("upstream", "012345", 0.1), ("downstream", "6789", 0.8)):
        out = f"data/demo/{name}"
        if not Path(out).exists():
            _run("data_pipeline", "pack", "digits", out, "--classes", *classes, "--hold-out", hold_out, "--shard-samples", 64)
    _run("data_pipeline", "inspect", "data/demo/upstream/train")


def _finetune() -> dict[str, list[float]]:
    """Test accuracy of every arm and seed; two runs at a time, one core each."""
    runs = [(arm, seed) for seed in SEEDS for arm in ARMS]

    def run(arm: str, seed: int) -> float:
        folder = Path(f"runs/demo/finetune-{arm}-seed{seed}")
        overrides = (f"init={arm}", f"run.seed={seed}", f"run.folder={folder}")
        _run("finetune", "configs/finetune/demo.yaml", *overrides, quiet=True)
        accuracy = json.loads((folder / "result.json").read_text())["val_top1"]
        print(f"   {ARMS[arm]}, seed {seed}: {accuracy:.1%}", flush=True)
        return float(accuracy)

    with ThreadPoolExecutor(min(2, num_cores())) as pool:
        found = list(pool.map(lambda each: run(*each), runs))
    return {arm: [accuracy for (of, _), accuracy in zip(runs, found, strict=True) if of == arm] for arm in ARMS}


def _table(accuracies: dict[str, list[float]]) -> tuple[float, float]:
    """Print mean, standard deviation and n of each arm; returns (gain, twice the pooled standard deviation)."""
    print("\n| 5 images a class, digits 6-9 at 32 px | test accuracy | std | n |")
    print("| --- | --- | --- | --- |")
    for arm, values in accuracies.items():
        print(f"| {ARMS[arm]} | {statistics.mean(values):.1%} | {statistics.stdev(values):.1%} | {len(values)} |")
    pretrained, scratch = accuracies["weights"], accuracies["scratch"]
    pooled = math.sqrt((statistics.variance(pretrained) + statistics.variance(scratch)) / 2)
    return statistics.mean(pretrained) - statistics.mean(scratch), 2 * pooled


def _epilogue(seconds: float) -> None:
    scripts = Path(sys.executable).parent
    print(
        f"""
Done in {seconds:.0f} s. Look at
  the images     data/demo/upstream/train/contact_sheet.png
  the curves     {scripts / "tensorboard"} --logdir runs/demo
  the runs       runs/demo/*/metrics.jsonl, result.json, weights/

The same on a cluster, with another recipe, is
  srun --ntasks-per-node=8 --gpus-per-task=1 python -m pretrain configs/pretrain/vit_h14_in21k.yaml
and on your own folder of class folders
  python -m data_pipeline pack PHOTOS data/photos --hold-out 0.1
"""
    )


def _say(text: str) -> None:
    print(f"\n{text}", flush=True)


def _run(module: str, *arguments: object, quiet: bool = False) -> None:
    """Run one command of the project, shown as a user would type it; raises DemoError with its last words when it fails."""
    words = ["python", "-m", module, *map(str, arguments)]
    if not quiet:
        print(f"$ {shlex.join(words)}", flush=True)
    env = os.environ | ({"OMP_NUM_THREADS": "1"} if quiet else {})
    done = subprocess.run(
        [sys.executable, *words[1:]], env=env, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if quiet else None, stderr=subprocess.PIPE if quiet else None, check=False,
    )  # fmt: skip
    if done.returncode:
        last = "\n".join((done.stderr or "").strip().splitlines()[-3:])
        raise DemoError(f"`{shlex.join(words)}` ended with exit code {done.returncode} {last}")


if __name__ == "__main__":
    sys.exit(main())
