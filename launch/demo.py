"""The whole arrow on real images, on the CPU of a laptop: pack -> pretrain -> fine-tune -> a table.

Upstream sees the handwritten digits 0 to 5. Transfer gets five labelled images of each of 6 to 9, which upstream never
saw, and must beat the same budget spent from scratch by two pooled standard deviations. Every step is a command that a
user would type. `make demo` runs it.
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
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launch.host import num_cores

DATA, RUNS = Path("data/demo"), Path("runs/demo")
SEEDS = (0, 1, 2)
ARMS = {"weights": "pretrained on 0-5", "scratch": "from scratch"}
ON_THE_CPU = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
"""For every command: the same numbers whatever GPUs and cores this machine has; one GPU would not take two ranks."""

Accuracies = Mapping[str, Sequence[float]]  # of each arm, one a seed


class DemoError(RuntimeError):
    """A step of the demo failed, or the transfer was not worth it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo from the beginning; exit code 0 when the transfer was worth it."""
    parser = argparse.ArgumentParser(prog="python -m launch.demo", description=(__doc__ or "").partition("\n")[0])
    parser.parse_args(arguments)
    started_s = time.monotonic()
    for left in (DATA, RUNS):
        shutil.rmtree(left, ignore_errors=True)
    try:
        _pack()
        _pretrain()
        accuracies = _finetune()
        print(f"\n{table(accuracies)}\n\n{_where_to_look(time.monotonic() - started_s)}", flush=True)
        _judge(accuracies)
    except (DemoError, KeyboardInterrupt) as error:
        print(f"error: {str(error) or 'interrupted'}", file=sys.stderr)
        return 1
    return 0


def _pack() -> None:
    print("1. Pack the handwritten digits into shards: 0-5 upstream, 6-9 downstream", flush=True)
    for name, classes, hold_out in (("upstream", "012345", 0.1), ("downstream", "6789", 0.8)):
        cut = ("--hold-out", hold_out, "--shard-samples", 64)
        _run("data_pipeline", "pack", "digits", DATA / name, "--classes", *classes, *cut)
    _run("data_pipeline", "inspect", DATA / "upstream/train")


def _pretrain() -> None:
    print("\n2. Pretrain on two ranks of the CPU: ZeRO-2, gradient checkpointing, MLP head", flush=True)
    _run("launch", "local", "--ranks", 2, "pretrain", "configs/pretrain/demo.yaml")


def _finetune() -> Accuracies:
    """Test accuracy of every arm and seed; one run a core."""
    print(
        "\n3. Fine-tune on classes never seen, five images of each, at a higher resolution; and from scratch",
        flush=True,
    )
    arms_and_seeds = [(arm, seed) for seed in SEEDS for arm in ARMS]

    def accuracy(arm_and_seed: tuple[str, int]) -> float:
        arm, seed = arm_and_seed
        folder = RUNS / f"finetune-{arm}-seed{seed}"
        overrides = (f"init={arm}", f"run.seed={seed}", f"run.folder={folder}")
        _run("finetune", "configs/finetune/demo.yaml", *overrides, quiet=True)
        top1: float = json.loads((folder / "result.json").read_text())["val_top1"]
        print(f"   {ARMS[arm]}, seed {seed}: {top1:.1%}", flush=True)
        return top1

    with ThreadPoolExecutor(min(len(arms_and_seeds), num_cores())) as pool:
        found = list(pool.map(accuracy, arms_and_seeds))
    return {arm: [top1 for (of, _), top1 in zip(arms_and_seeds, found, strict=True) if of == arm] for arm in ARMS}


def table(accuracies: Accuracies) -> str:
    """Mean, standard deviation and number of runs of each arm, and what lies between them, as Markdown."""
    rows = [
        f"| {ARMS[arm]} | {statistics.mean(found):.1%} | {statistics.stdev(found):.1%} | {len(found)} |"
        for arm, found in accuracies.items()
    ]
    gain, pooled_std = gain_and_std(accuracies)
    return "\n".join(
        (
            "| 5 images of each of the digits 6-9, 32 px | test accuracy | std | n |",
            "| --- | --- | --- | --- |",
            *rows,
            f"\nGain {100 * gain:.1f} points; two pooled standard deviations are {200 * pooled_std:.1f}.",
        )
    )


def gain_and_std(accuracies: Accuracies) -> tuple[float, float]:
    """How much higher the mean accuracy of the transfer is, and the pooled standard deviation of a run."""
    pretrained, scratch = accuracies["weights"], accuracies["scratch"]
    pooled_std = math.sqrt((statistics.variance(pretrained) + statistics.variance(scratch)) / 2)  # as many runs each
    return statistics.mean(pretrained) - statistics.mean(scratch), pooled_std


def _judge(accuracies: Accuracies) -> None:
    gain, pooled_std = gain_and_std(accuracies)
    if gain < 2 * pooled_std:
        raise DemoError(
            f"the gain of {100 * gain:.1f} points is under two pooled standard deviations ({200 * pooled_std:.1f})"
        )


def _where_to_look(seconds: float) -> str:
    tensorboard = Path(sys.executable).with_name("tensorboard")
    if tensorboard.is_relative_to(Path.cwd()):
        tensorboard = tensorboard.relative_to(Path.cwd())
    return f"""Done in {seconds:.0f} s. Look at
  the images     {DATA}/upstream/train/contact_sheet.png
  the curves     {tensorboard} --logdir {RUNS}
  the runs       {RUNS}/*/metrics.jsonl, result.json, weights/

The same on a cluster is the same command with another recipe, as many times as there are GPUs:
  srun --ntasks-per-node=8 --gpus-per-task=1 python -m pretrain configs/pretrain/vit_h14_in21k.yaml
On your own folder of class folders it begins with
  python -m data_pipeline pack PHOTOS data/photos --hold-out 0.1
"""


def _run(module: str, *arguments: object, quiet: bool = False) -> None:
    """Run one command of the project; raises DemoError when it fails, with its last words if it was to be quiet."""
    words = ["python", "-m", module, *map(str, arguments)]
    if not quiet:
        print(f"$ {shlex.join(words)}", flush=True)
    output = subprocess.PIPE if quiet else None
    done = subprocess.run(
        [sys.executable, *words[1:]],
        env={**os.environ, **ON_THE_CPU},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr or "").strip().rpartition("\n")[2]
        raise DemoError(f"`{shlex.join(words)}` ended with exit code {done.returncode}" + (f": {last}" if last else ""))


if __name__ == "__main__":
    sys.exit(main())
