"""The command line of the model: `python -m vit info NAME_OR_WEIGHTS`. Loads no torch."""

import argparse
import json
import re
import sys
from typing import NoReturn

from vit.config import HeadConfig
from vit.info import facts, find, table


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """Say it and exit with 2."""
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit code, 0 or, for the user's mistake, 2."""
    parser = Parser(prog="python -m vit", description="The Vision Transformer.")
    info = parser.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "info", help="a model's sizes, parameters, FLOPs and tensor shapes"
    )
    info.add_argument(
        "source", metavar="NAME_OR_WEIGHTS", help="ViT-L/16, vit_large_patch16_224, vit_l_16, or a folder"
    )
    info.add_argument(
        "--num-classes", type=count, metavar="K", help="classes of the head (default: the folder's; else no head)"
    )
    info.add_argument(
        "--head", choices=("linear", "mlp"), default="linear", help="the head for --num-classes (default: linear)"
    )
    info.add_argument(
        "--image-px", type=pixels, metavar="P", help="side in pixels, or HEIGHTxWIDTH (default: the folder's; else 224)"
    )
    info.add_argument("--json", action="store_true", help="the same as one JSON object")
    options = parser.parse_args(arguments)

    head = HeadConfig(kind=options.head, num_classes=options.num_classes) if options.num_classes else None
    try:
        model = find(options.source, head, options.image_px)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(facts(model), indent=2) if options.json else table(model))
    return 0


def count(text: str) -> int:
    """A whole number from 1, from the command line."""
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def pixels(text: str) -> int | tuple[int, int]:
    """384, or 384x512 for height and width, from the command line."""
    sides = [count(side) for side in text.split("x")]
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"{text!r} is neither P nor HEIGHTxWIDTH")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
