"""python -m pretrain CONFIG.yaml [section.key=value ...]: one rank under a launcher, or a run of one rank by itself."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    """Train, check or export; returns the exit code (0 done, 1 failed, 2 wrong input)."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain", description="Pretrain a Vision Transformer from a recipe."
    )
    parser.add_argument(
        "config", type=Path, metavar="CONFIG.yaml", help="a recipe, such as configs/pretrain/digits.yaml"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the recipe's")
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--check", action="store_true", help="judge everything that can be judged without training, then stop"
    )
    action.add_argument(
        "--weights",
        type=int,
        nargs="?",
        const=-1,
        metavar="STEP",
        help="write public weights from a checkpoint (the newest), then stop",
    )
    args = parser.parse_intermixed_args(argv)

    from launch.world import World
    from pretrain.check import prepare

    try:
        world = World.detect()
        prepared = prepare(args.config, args.overrides, world.size)
        if args.check:
            print(prepared.summary())
            return 0
        if args.weights is not None:
            from pretrain.export import export_from_run

            print(f"weights {export_from_run(prepared, None if args.weights < 0 else args.weights)}")
            return 0
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    from launch.rank import run_rank
    from launch.run import Run

    def train_on(run: Run) -> dict[str, Any]:
        from pretrain.train import train

        return train(prepared, world, run)

    return run_rank("pretrain", prepared.config, world, prepared.may_grow, train_on)


if __name__ == "__main__":
    sys.exit(main())
