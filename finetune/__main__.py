"""python -m finetune CONFIG.yaml [section.key=value ...]: one rank under a launcher, or a run of one rank by itself."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILLED_IN = ("weights_sha256", "head.num_classes", "vit.image_px", "vit.dropout", "data.identity")
"""Keys that a start fills in from the weights and the data."""


def main(argv: Sequence[str] | None = None) -> int:
    """Fine-tune or check; returns the exit code (0 done, 1 failed, 2 wrong input, 130 Ctrl-C)."""
    parser = argparse.ArgumentParser(prog="python -m finetune", description="Fine-tune weights on a packed set.")
    parser.add_argument(
        "config", type=Path, metavar="CONFIG.yaml", help="a recipe, such as configs/finetune/cifar10.yaml"
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="values that replace the recipe's"
    )
    parser.add_argument("--check", action="store_true", help="judge all that can be judged without training, then stop")
    args = parser.parse_intermixed_args(argv)

    from configs.load import load
    from finetune.check import prepare
    from finetune.config import FinetuneConfig
    from launch.rank import interrupted, refused, run_rank
    from launch.run import Run, finished, in_a_line
    from launch.world import World

    try:
        world = World.detect()
        result = finished(load(args.config, FinetuneConfig, args.overrides), FILLED_IN)
        if result is not None:
            if world.rank == 0:
                print(in_a_line(result))
            return 0
        prepared = prepare(args.config, args.overrides, world.size)
        if args.check:
            print(prepared.summary())
            return 0
    except (ValueError, OSError) as error:
        return refused(error)
    except KeyboardInterrupt:
        return interrupted()

    def train_on(run: Run) -> dict[str, Any]:
        from finetune.train import train

        return train(prepared, world, run)

    return run_rank("finetune", prepared.config, world, prepared.config.optim.may_grow, train_on)


if __name__ == "__main__":
    sys.exit(main())
