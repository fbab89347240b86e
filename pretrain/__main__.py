"""python -m pretrain CONFIG.yaml [section.key=value ...]: one rank under a launcher, or a run of one rank by itself."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


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

    from launch.run import Run

    world.export()
    try:
        with Run.open(prepared.config, world, "pretrain", may_grow=prepared.may_grow) as run:
            if result := run.finished():
                run.say(f"finished already: {result}")
                return 0
            from pretrain.train import train

            train(prepared, world, run)
            return 0
    except Exception as error:
        print(
            f"rank {world.rank} failed: {type(error).__name__}: {error}; "
            f"the traceback is in {prepared.config.run.folder / 'logs'}",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
