"""Checkpoints: private, sharded, complete or absent; they resume this run, to the bit.

A rank writes its slices: `exp_avg/blocks.0.attn.qkv.weight@4096` holds the values of that state from element 4,096 on.
A slice names the tensor that it is cut from and where, so any set of ranks at any ZeRO stage finds what it needs in
files that any other set has written. Nothing is pickled. The manifest is written last and the folder renamed after it,
so a folder without `.tmp` is whole; a resume still hashes every byte before it trusts one, and takes the newest
checkpoint that holds. `checkpoint_folder.py` draws the tree.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from data_pipeline.manifest import sha256_of
from launch.agreement import all_succeed, gather, once
from launch.run import Run
from launch.world import World
from pretrain.checkpoint_folder import (
    CHECKPOINTS,
    FORMAT,
    READER,
    CheckpointError,
    UnknownFormatError,
    folder_name,
    prune,
    read_manifest,
    remove_unfinished,
    steps_on_disk,
)

MASTER = "master"  # kind: the fp32 weights. The other kinds are the optimizer's own words for its states


@dataclass(frozen=True)
class Slice:
    """A contiguous piece of one tensor and of its optimizer states, as views into the memory that training updates."""

    name: str
    start: int  # first element, in the flattened tensor
    values: Mapping[str, torch.Tensor]  # kind -> 1-D view; all of one length

    @property
    def stop(self) -> int:
        """One past the last element."""
        return self.start + self.values[MASTER].numel()

    def cut(self, start: int, stop: int) -> Slice:
        """The part of this slice that lies in elements start .. stop-1 of the tensor (it may be empty)."""
        first, last = max(start, self.start), min(stop, self.stop)
        length = max(0, last - first)
        offset = first - self.start if length else 0
        return Slice(self.name, first, {kind: view.narrow(0, offset, length) for kind, view in self.values.items()})


def even_parts(slices: Iterable[Slice], world: World) -> Iterator[Slice]:
    """This rank's even part of every slice, for states that all ranks hold whole: each element is written once."""
    for piece in slices:
        yield piece.cut(piece.stop * world.rank // world.size, piece.stop * (world.rank + 1) // world.size)


# --- Writing ---------------------------------------------------------------------------------------------------------


def write(root: Path, step: int, slices: Iterable[Slice], facts: Mapping[str, Any], world: World) -> Path:
    """Write the checkpoint of `step`; called by every rank with its own slices, returns on all of them once it is
    whole.

    Raises on every rank when one failed, naming that rank; what was there before is untouched.
    """
    final = root / folder_name(step)
    partial = final.with_name(final.name + ".tmp")
    once(world, "making the checkpoint folder", lambda: _make_empty(partial))
    entries = all_succeed(
        world, "writing a checkpoint", lambda: _write_slices(partial / f"rank-{world.rank:05d}.safetensors", slices)
    )

    def close() -> None:
        manifest = {
            "format": FORMAT,
            "readable_by": READER,
            "facts": {"step": step, "ranks": world.size, **facts},
            "files": dict(entries),
        }
        _write_durably(partial / "manifest.json", json.dumps(manifest, indent=1).encode())
        if final.exists():  # the same step, saved before and found damaged: only then is a step written twice
            shutil.rmtree(final)
        partial.rename(final)
        _sync_folder(root)

    once(world, "closing a checkpoint", close)
    return final


def _make_empty(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, mode=0o700)


def _write_slices(path: Path, slices: Iterable[Slice]) -> tuple[str, dict[str, Any]]:
    tensors = {
        f"{kind}/{piece.name}@{piece.start}": view.detach().cpu().clone()
        for piece in slices
        for kind, view in piece.values.items()
        if view.numel()
    }
    save_file(tensors, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path.name, {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- Reading ---------------------------------------------------------------------------------------------------------


class Checkpoint:
    """A finished checkpoint, opened for reading; its files are trusted only after `fault()` has found none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts, self.files = read_manifest(folder)

    @property
    def step(self) -> int:
        """Batches completed when it was written: the resumed run begins with this batch."""
        return int(self.facts["step"])

    def fault(self, names: Iterable[str] | None = None) -> str | None:
        """What is wrong with the named files (by default all), judged by existence, size and sha256; None when nothing
        is."""
        for name in self.files if names is None else names:
            path, wanted = self.folder / name, self.files[name]
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != wanted["bytes"]:
                return f"{name} has {path.stat().st_size:,} bytes, its manifest says {wanted['bytes']:,}"
            if sha256_of(path) != wanted["sha256"]:
                return f"{name} does not have the sha256 of its manifest"
        return None

    def fill(self, slices: Iterable[Slice]) -> None:
        """Copy saved values into the given slices' memory, whoever wrote them; every element must be found."""
        with _Pieces(self) as pieces:
            for piece in slices:
                for kind, view in piece.values.items():
                    pieces.copy_into(view, kind, piece.name, piece.start)

    def tensors(self, shapes: Mapping[str, tuple[int, ...]], kind: str = MASTER) -> Iterator[tuple[str, torch.Tensor]]:
        """Whole fp32 tensors of one kind, one at a time, put together from all ranks' slices."""
        with _Pieces(self) as pieces:
            for name, shape in shapes.items():
                tensor = torch.empty(shape)
                pieces.copy_into(tensor.view(-1), kind, name, 0)
                yield name, tensor


class _Pieces:
    """Where every slice of a checkpoint lies: (kind, name) -> [(start, stop, file, key)]."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.folder = checkpoint.folder
        self.files = {name: safe_open(checkpoint.folder / name, framework="pt") for name in checkpoint.files}
        self.where: dict[tuple[str, str], list[tuple[int, int, str, str]]] = {}
        for file_name, file in self.files.items():
            for key in file.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                kind_and_name, start_text = key.rsplit("@", 1)
                kind, name = kind_and_name.split("/", 1)
                start = int(start_text)
                stop = start + file.get_slice(key).get_shape()[0]
                self.where.setdefault((kind, name), []).append((start, stop, file_name, key))

    def __enter__(self) -> _Pieces:
        return self

    def __exit__(self, *_: object) -> None:
        self.files.clear()

    def copy_into(self, view: torch.Tensor, kind: str, name: str, start: int) -> None:
        """Fill the 1-D `view`, which stands for elements start .. of tensor `name`."""
        stop, found = start + view.numel(), 0
        for piece_start, piece_stop, file_name, key in self.where.get((kind, name), ()):
            first, last = max(start, piece_start), min(stop, piece_stop)
            if first < last:
                values = self.files[file_name].get_slice(key)[first - piece_start : last - piece_start]
                view[first - start : last - start].copy_(values)
                found += last - first
        if found != view.numel():
            raise CheckpointError(
                f"{self.folder}: {kind} of {name} has {found:,} of the {view.numel():,} elements asked for; "
                "was the model changed?"
            )


def newest(root: Path, world: World, on_refused: Callable[[int, str], None]) -> Checkpoint | None:
    """The newest checkpoint that holds, the hashing shared by all ranks; `on_refused` hears step and reason of others.

    None when there is no checkpoint at all. Raises RuntimeError when there are some and none holds: to train from the
    beginning then is the user's decision.
    """
    steps: list[int] = gather(world, steps_on_disk(root) if world.rank == 0 else None)[0]
    for step in reversed(steps):
        reason: str | None = None
        try:
            checkpoint = Checkpoint(root / folder_name(step))
            reason = checkpoint.fault(list(checkpoint.files)[world.rank :: world.size])
        except UnknownFormatError:
            raise
        except CheckpointError as error:
            reason = str(error)
        reasons = [found for found in gather(world, reason) if found]
        if not reasons:
            return checkpoint
        on_refused(step, reasons[0])
    if steps:
        raise RuntimeError(f"{root}: none of {len(steps)} checkpoints holds; remove the folder to begin from step 0")
    return None


# --- In a run --------------------------------------------------------------------------------------------------------


def resume(run: Run, world: World) -> Checkpoint | None:
    """The checkpoint that `run` goes on from, None to begin; says which were refused, and clears away half-written
    ones."""
    root = run.folder / CHECKPOINTS

    def refused(step: int, reason: str) -> None:
        run.event("checkpoint refused", step=step, reason=reason)
        run.say(f"checkpoint of step {step} refused: {reason}")

    saved = newest(root, world, refused)
    once(world, "clearing away half-written checkpoints", lambda: remove_unfinished(root))
    if saved:
        run.say(f"resumed at step {saved.step}")
    return saved


def save(run: Run, step: int, slices: Iterable[Slice], facts: Mapping[str, Any], world: World) -> None:
    """Write the checkpoint of `step` into `run`, note it, and remove the older ones that the config does not keep."""
    root, config = run.folder / CHECKPOINTS, run.config.run
    write(root, step, slices, facts, world)
    run.event("checkpoint written", step=step)
    once(world, "removing old checkpoints", lambda: prune(root, config.keep_checkpoints, config.keep_every_steps))
