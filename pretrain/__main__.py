"""python -m pretrain CONFIG.yaml [section.key=value ...]: one rank under a launcher, or a run of one rank by itself."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILLED_IN = ("head.num_classes", "data.identity")
"""Keys that a start fills in from the data."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train, check or export; returns the exit code (0 done, 1 failed, 2 wrong input, 130 Ctrl-C)."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain", description="Pretrain a Vision Transformer from a recipe."
    )
    parser.add_argument(
        "config", type=Path, metavar="CONFIG.yaml", help="a recipe, such as configs/pretrain/digits.yaml"
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="values that replace the recipe's"
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--check", action="store_true", help="judge everything that can be judged without training, then stop"
    )
    action.add_argument(
        "--weights",
        type=_step,
        nargs="?",
        const=0,
        metavar="STEP",
        help="write public weights from a checkpoint (the newest), then stop",
    )
    args = parser.parse_intermixed_args(argv)

    from configs.load import load
    from launch.rank import interrupted, refused, run_rank
    from launch.run import Run, finished, in_a_line
    from launch.world import World
    from pretrain.check import prepare
    from pretrain.config import PretrainConfig

    try:
        world = World.detect()
        result = finished(load(args.config, PretrainConfig, args.overrides), FILLED_IN)
        if result is not None and args.weights is None:
            if world.rank == 0:
                print(in_a_line(result))
            return 0
        prepared = prepare(args.config, args.overrides, world.size)
        if args.check:
            print(prepared.summary())
            return 0
        if args.weights is not None:
            from pretrain.export import export_from_run

            print(f"weights {export_from_run(prepared, args.weights or None)}")
            return 0
    except (ValueError, OSError) as error:
        return refused(error)
    except KeyboardInterrupt:
        return interrupted()

    def train_on(run: Run) -> dict[str, Any]:
        from pretrain.train import train

        return train(prepared, world, run)

    return run_rank("pretrain", prepared.config, world, prepared.may_grow, train_on)


def _step(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be the step of a checkpoint, 1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
