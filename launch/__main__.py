"""python -m launch: starts the ranks of a run, and tells what on this machine would stop one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.doctor import examine, report
from launch.local import launch_local


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        return doctor(options) if options.command == "doctor" else local(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted before any rank was started", file=sys.stderr)
        return 1


def local(options: argparse.Namespace) -> int:
    """`python -m launch local`: this interpreter runs the ranks."""
    command = [sys.executable, "-m", options.module]
    return launch_local(command, options.config, options.overrides, options.ranks)


def doctor(options: argparse.Namespace) -> int:
    """`python -m launch doctor`: examines the machine and the folder it is typed in."""
    findings = examine(Path.cwd())
    print(report(findings, options.json))
    return 1 if any(finding.mark == "STOP" for finding in findings) else 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="python -m launch", description=__doc__)
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    about = "run on this host with N ranks"
    on_this_host = commands.add_parser("local", help=about, description=about)
    on_this_host.add_argument("--ranks", type=int_from_1, required=True, metavar="N", help="on GPUs: at most one a GPU")
    on_this_host.add_argument("module", choices=["pretrain", "finetune"])
    on_this_host.add_argument("config", type=Path, metavar="CONFIG.yaml")
    on_this_host.add_argument("overrides", nargs="*", default=[], metavar="section.key=value")

    about = "say what on this machine would stop a run, and the cure"
    machine = commands.add_parser("doctor", help=about, description=about)
    machine.add_argument("--json", action="store_true", help="for programs")
    return root


def int_from_1(text: str) -> int:
    """An argument that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number, 1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
