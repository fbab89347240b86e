"""python -m data_pipeline pack | merge | index | inspect | verify | order | simulate"""

import argparse
import dataclasses
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from data_pipeline import manifest, pack
from data_pipeline.contact_sheet import contact_sheet
from data_pipeline.foreign import index_shards
from data_pipeline.inspect import inspect, text
from data_pipeline.mixing import mixing_of
from data_pipeline.order import order
from data_pipeline.plan import Plan
from data_pipeline.random import SEED_LIMIT
from data_pipeline.samples import SampleError, SampleSet
from data_pipeline.simulate import Job, simulate
from data_pipeline.simulate import text as text_of_run
from data_pipeline.sources import open_source
from data_pipeline.verify import verify

FAILED, REFUSED, STOPPED = 1, 2, 75
CONTACT_SHEET = "contact_sheet.png"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(REFUSED, f"error: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 done, 1 failed while running, 2 refused before any work, 75 stopped and can go on."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    except BrokenPipeError:  # `order ... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (pack.PackError, SampleError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return FAILED
    except Exception as error:
        traceback.print_exc()
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m data_pipeline", description="Images to shuffled WebDataset shards, and a look at them."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    cpus = len(os.sched_getaffinity(0))

    packing = commands.add_parser("pack", help="images to shuffled shards with a manifest")
    packing.set_defaults(command=_pack)
    packing.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder of class folders, of one tar a class, or of others' shards; a .csv, .tsv or .jsonl of path "
        "and label (or labels, separated by |); torchvision's CIFAR; `digits` (shipped with the project)",
    )
    packing.add_argument("out", type=Path, metavar="OUT", help="the folder to make; it appears complete or not at all")
    packing.add_argument("--split", metavar="NAME", help="names the shards (train); of SOURCE/NAME, where there is one")
    packing.add_argument(
        "--hold-out", type=float, metavar="FRACTION", help="of each class, as OUT/val beside OUT/SPLIT"
    )
    packing.add_argument("--classes", nargs="+", metavar="CLASS", help="only these, numbered in this order")
    size = packing.add_mutually_exclusive_group()
    size.add_argument("--shard-samples", type=int, default=pack.SHARD_SAMPLES, metavar="N", help="(%(default)s)")
    size.add_argument("--shard-mib", type=float, metavar="M", help="cut shards by size instead")
    packing.add_argument("--seed", type=int, default=0, help="of the shuffle (%(default)s)")
    packing.add_argument("--workers", type=int, default=cpus, metavar="K", help="processes (%(default)s)")
    packing.add_argument(
        "--part", type=_part, metavar="I/N", help="only part I of N; `merge` makes the set of them all"
    )
    packing.add_argument(
        "--short-side", type=int, metavar="PX", help="store JPEGs of at most this, not the files' bytes"
    )
    packing.add_argument("--quality", type=int, metavar="Q", help=f"of those JPEGs ({pack.QUALITY})")
    _add_max_rejects(packing)

    merging = commands.add_parser("merge", help="a set of the parts of pack --part")
    merging.set_defaults(command=_merge)
    merging.add_argument("dir", type=Path, metavar="DIR", help="the OUT of the parts")
    _add_max_rejects(merging)

    indexing = commands.add_parser("index", help="a manifest for shards made elsewhere")
    indexing.set_defaults(command=_index)
    indexing.add_argument(
        "shards", nargs="+", type=Path, metavar="SHARD", help="tars of KEY.jpg|png|webp with KEY.cls|json"
    )
    indexing.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the manifest and the index go")
    indexing.add_argument("--split", default="train", metavar="NAME", help="(%(default)s)")
    indexing.add_argument(
        "--classes", nargs="+", metavar="CLASS", help="names of labels 0, 1, ...; their numbers if left out"
    )
    indexing.add_argument("--workers", type=_positive, default=cpus, metavar="K", help="processes (%(default)s)")

    inspecting = commands.add_parser("inspect", help="counts, sizes, classes, mixing; a contact sheet")
    inspecting.set_defaults(command=_inspect)
    inspecting.add_argument("dir", type=Path, metavar="DIR")
    inspecting.add_argument(
        "--contact-sheet", type=Path, metavar="PNG", help=f"where the picture goes (DIR/{CONTACT_SHEET})"
    )
    inspecting.add_argument("--json", action="store_true")

    verifying = commands.add_parser("verify", help="every byte against the manifest; every image decoded")
    verifying.set_defaults(command=_verify)
    verifying.add_argument("dir", type=Path, metavar="DIR")
    verifying.add_argument("--workers", type=_positive, default=cpus, metavar="K", help="processes (%(default)s)")
    verifying.add_argument("--json", action="store_true")

    ordering = commands.add_parser("order", help="which keys each rank sees, as JSON lines")
    ordering.set_defaults(command=_order)
    ordering.add_argument("dir", type=Path, nargs="+", metavar="DIR", help="several form one set")
    ordering.add_argument("--batch", type=_positive, required=True, metavar="B")
    ordering.add_argument("--lanes", type=_positive, required=True, metavar="L")
    ordering.add_argument("--seed", type=_seed, required=True, metavar="S")
    ordering.add_argument("--steps", type=_steps, required=True, metavar="A:B", help="batches A to B - 1")
    ordering.add_argument("--ranks", type=_positive, default=1, metavar="R", help="(%(default)s)")
    ordering.add_argument("--micro-batch", type=_positive, metavar="M", help="a line for every M samples of a rank")
    ordering.add_argument("--json", action="store_true", help="accepted for symmetry: the order is always JSON lines")

    simulating = commands.add_parser("simulate", help="coverage, shards, bytes and memory of a run, on paper")
    simulating.set_defaults(command=_simulate)
    for name, letter in (("samples", "N"), ("shards", "M"), ("ranks", "R"), ("batch", "B"), ("steps", "T")):
        simulating.add_argument(f"--{name}", type=_positive, required=True, metavar=letter)
    simulating.add_argument("--workers", type=int, default=2, metavar="W", help="of a rank (%(default)s)")
    simulating.add_argument("--lanes", type=_positive, default=Job.lanes, metavar="L", help="(%(default)s)")
    simulating.add_argument("--image-bytes", type=_positive, default=Job.image_bytes, metavar="K", help="(%(default)s)")
    simulating.add_argument("--step-seconds", type=float, default=Job.step_seconds, metavar="S", help="(%(default)s)")
    simulating.add_argument(
        "--ranks-per-node", type=_positive, default=Job.ranks_per_node, metavar="G", help="(%(default)s)"
    )
    simulating.add_argument("--json", action="store_true")
    return parser


def _add_max_rejects(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-rejects", type=float, default=pack.MAX_REJECTS, metavar="SHARE", help="unreadable images (%(default)s)"
    )


def _pack(options: argparse.Namespace) -> int:
    pack_options = pack.PackOptions(
        split=options.split or "train",
        hold_out=options.hold_out,
        shard_samples=options.shard_samples,
        shard_mib=options.shard_mib,
        seed=options.seed,
        workers=options.workers,
        max_rejects=options.max_rejects,
        short_side_px=options.short_side,
        quality=options.quality,
    )
    source = open_source(options.source, options.split)
    try:
        if options.part:
            num_images = pack.pack_part(source, options.out, pack_options, options.part, options.classes)
            print(f"{options.out}: part {options.part.number}/{options.part.of} is packed, {num_images} images")
        else:
            _say(pack.pack(source, options.out, pack_options, options.classes))
    except KeyboardInterrupt:
        print("error: interrupted; the same command goes on with what is packed", file=sys.stderr)
        return STOPPED
    return 0


def _merge(options: argparse.Namespace) -> int:
    _say(pack.merge(options.dir, options.max_rejects))
    return 0


def _say(packing: pack.Packing) -> None:
    if packing.ignored:
        endings = ", ".join(f"{count} {ending}" for ending, count in sorted(packing.ignored.items()))
        print(f"not images, left out: {endings}")
    for packed in packing.sets:
        print(_summary(packed.folder, packed.manifest))
        for reject in packed.rejects[:10]:
            print(f"  rejected {reject.source}: {reject.reason}")
        if packed.rejects:
            print(f"  {len(packed.rejects)} rejected; all of them: {packed.folder / pack.REJECTS_FILE}")


def _index(options: argparse.Namespace) -> int:
    indexed = index_shards(options.shards, options.out, options.split, options.classes, options.workers)
    print(_summary(options.out, indexed))
    print(f"  mixing   {mixing_of(SampleSet.open(options.out))}")
    return 0


def _summary(folder: Path, packed: manifest.Manifest) -> str:
    mib = sum(shard.bytes for shard in packed.shards) / 2**20
    return (
        f"{folder}: {packed.num_samples} images of {len(packed.classes)} classes "
        f"in {len(packed.shards)} shard{'s' * (len(packed.shards) != 1)} ({mib:.1f} MiB)"
    )


def _inspect(options: argparse.Namespace) -> int:
    report = inspect(options.dir)
    if not options.json:
        print(text(report), flush=True)
    sheet: Path = options.contact_sheet or options.dir / CONTACT_SHEET
    shown: str | None = str(sheet)
    picture = contact_sheet(SampleSet.open(options.dir), f"{options.dir}: {report.samples} images")
    try:
        picture.save(sheet, "PNG")
    except OSError as error:
        if options.contact_sheet:
            raise
        place = f"{sheet}: {error.strerror}; name another place by --contact-sheet PNG"
        print(f"no contact sheet: {place}", file=sys.stderr)
        shown = None
    if options.json:
        print(json.dumps({**dataclasses.asdict(report), "contact_sheet": shown}))
    elif shown:
        print(f"  contact sheet: {shown}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    problems = verify(options.dir, options.workers)
    if options.json:
        print(json.dumps({"folder": str(options.dir), "problems": [problem._asdict() for problem in problems]}))
    else:
        for problem in problems:
            print(f"{problem.shard}{f'/{problem.key}' if problem.key else ''}: {problem.problem}")
    if problems:
        print(f"error: {options.dir}: {len(problems)} problems; copy or pack the set again", file=sys.stderr)
        return FAILED
    if not options.json:
        print(f"{options.dir}: every byte as it was packed, every image decodes")
    return 0


def _order(options: argparse.Namespace) -> int:
    samples = SampleSet.open(options.dir)
    plan = Plan(samples.shard_samples, samples.block_samples, options.seed, options.batch, options.lanes)
    first, stop = options.steps
    for line in order(samples, plan, first, stop, options.ranks, options.micro_batch):
        print(json.dumps(line))
    return 0


def _simulate(options: argparse.Namespace) -> int:
    job = Job(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Job)})
    found = simulate(job)
    print(json.dumps(dataclasses.asdict(job) | dataclasses.asdict(found)) if options.json else text_of_run(job, found))
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _part(text: str) -> pack.Part:
    number, _, of = text.partition("/")
    if not number.isdecimal() or not of.isdecimal() or not 1 <= int(number) <= int(of):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N, such as 1/4")
    return pack.Part(int(number), int(of))


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= SEED_LIMIT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2^64 - 1")
    return int(text)


def _steps(text: str) -> tuple[int, int]:
    first, colon, stop = text.partition(":")
    if not colon or not first.isdecimal() or not stop.isdecimal() or int(first) >= int(stop):
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B with A below B, such as 0:10")
    return int(first), int(stop)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)  # as Ctrl-C: nothing half-written is taken
    sys.exit(main())
