"""Checkpoints: complete or absent, found damaged before they are used, readable by any other number of ranks."""

import json
import random
from typing import cast

import pytest
import torch

from launch.world import World
from pretrain import checkpoint
from pretrain.checkpoint import MASTER, Checkpoint, Slice, even_parts, write
from pretrain.checkpoint_folder import CheckpointError, folder_name, prune, steps_on_disk
from tests.ranks import run_ranks

ALONE = World(0, 1, 0, 1, "127.0.0.1", 29500)
SHAPES = {"a": (5, 3), "b": (7,), "c": (1,)}


def whole(seed: int = 0) -> list[Slice]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Slice(
            name, 0, {kind: torch.randn(torch.Size(shape).numel(), generator=generator) for kind in (MASTER, "exp_avg")}
        )
        for name, shape in SHAPES.items()
    ]


def newest(root, world=ALONE, on_refused=pytest.fail) -> Checkpoint:
    """The newest that holds; there must be one."""
    found = checkpoint.newest(root, world, on_refused)
    assert found is not None
    return found


def zeros() -> list[Slice]:
    return [Slice(s.name, 0, {kind: torch.zeros_like(view) for kind, view in s.values.items()}) for s in whole()]


def same(ours: list[Slice], theirs: list[Slice]) -> bool:
    return all(
        torch.equal(mine.values[kind], other.values[kind])
        for mine, other in zip(ours, theirs, strict=True)
        for kind in other.values
    )


def test_what_is_written_is_read(tmp_path):
    folder = write(tmp_path, 12, whole(), {"updates": 11}, ALONE)
    assert folder.name == "step-00000012"
    found = newest(tmp_path)
    assert (found.step, found.facts["updates"]) == (12, 11)
    loaded = zeros()
    found.fill(loaded)
    assert same(loaded, whole())
    tensors = dict(found.tensors(SHAPES))
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == SHAPES
    assert torch.equal(tensors["a"].view(-1), whole()[0].values[MASTER])
    assert not list(tmp_path.glob("*.tmp"))
    assert folder.stat().st_mode & 0o077 == 0, "a checkpoint is private"


def of_rank(root, rank: int, size: int) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    world = World.detect()
    write(root, 3, even_parts(whole(), world), {}, world)
    found = newest(root, world)
    loaded = zeros()
    found.fill(loaded)
    assert same(loaded, whole())


def test_three_ranks_write_each_element_once_and_one_reads_them(tmp_path):
    run_ranks(3, of_rank, tmp_path, 0, 3)
    found = Checkpoint(tmp_path / "step-00000003")
    assert sorted(found.files) == [f"rank-0000{rank}.safetensors" for rank in range(3)]
    written = sum(stop - start for places in checkpoint._Pieces(found).where.values() for start, stop, *_ in places)
    assert written == 2 * sum(torch.Size(shape).numel() for shape in SHAPES.values())
    parts = [piece.cut(start, start + 1) for piece in zeros()[:1] for start in range(15)]
    found.fill(parts)
    assert torch.equal(torch.cat([part.values[MASTER] for part in parts]), whole()[0].values[MASTER])


DAMAGES = [
    "flip a bit",
    "truncate",
    "fill with zeros",
    "delete",
    "stale file of another step",
    "no manifest",
    "half a manifest",
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_taken(tmp_path, damage):
    write(tmp_path, 1, whole(1), {}, ALONE)
    last = write(tmp_path, 2, whole(2), {}, ALONE)
    tensors, manifest = last / "rank-00000.safetensors", last / "manifest.json"
    content = bytearray(tensors.read_bytes())
    if damage == "flip a bit":
        content[random.Random(0).randrange(len(content))] ^= 4
        tensors.write_bytes(content)
    elif damage == "truncate":
        tensors.write_bytes(content[:-1])
    elif damage == "fill with zeros":
        tensors.write_bytes(bytes(len(content)))
    elif damage == "delete":
        tensors.unlink()
    elif damage == "stale file of another step":
        tensors.write_bytes((tmp_path / "step-00000001" / "rank-00000.safetensors").read_bytes())
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_bytes(manifest.read_bytes()[:40])
    refused = []
    found = newest(tmp_path, on_refused=lambda step, reason: refused.append((step, reason)))
    assert found.step == 1
    assert [step for step, _ in refused] == [2]
    loaded = zeros()
    found.fill(loaded)
    assert same(loaded, whole(1))


def test_every_single_bit_counts(tmp_path):
    path = write(tmp_path, 1, whole(), {}, ALONE) / "rank-00000.safetensors"
    content, dice = path.read_bytes(), random.Random(1)
    for _ in range(100):
        flipped = bytearray(content)
        flipped[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        path.write_bytes(flipped)
        assert "does not have the sha256" in str(Checkpoint(path.parent).fault())
    path.write_bytes(content)
    assert Checkpoint(path.parent).fault() is None


def test_what_a_killed_save_left_is_never_read_and_makes_way(tmp_path):
    write(tmp_path, 1, whole(1), {}, ALONE)
    half = tmp_path / "step-00000002.tmp"
    half.mkdir()
    (half / "rank-00000.safetensors").write_bytes(b"half")
    assert newest(tmp_path).step == 1
    write(tmp_path, 2, whole(2), {}, ALONE)
    assert newest(tmp_path).step == 2
    assert not half.exists()


def failing(root) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    world = World.detect()
    broken = [None] if world.rank == 1 else whole()
    with pytest.raises(RuntimeError, match="writing a checkpoint failed on rank 1: AttributeError"):
        write(root, 1, cast(list[Slice], broken), {}, world)


def test_one_ranks_failure_is_everyones_and_leaves_no_checkpoint(tmp_path):
    run_ranks(2, failing, tmp_path)
    assert steps_on_disk(tmp_path) == []


def test_pruning_keeps_the_newest_and_the_milestones(tmp_path):
    for step in range(1, 8):
        (tmp_path / folder_name(step)).mkdir()
    assert prune(tmp_path, keep=2, keep_every_steps=3) == [1, 2, 4, 5]
    assert steps_on_disk(tmp_path) == [3, 6, 7]
    assert prune(tmp_path, keep=2, keep_every_steps=None) == [3]
    assert prune(tmp_path, keep=2, keep_every_steps=None) == []


def test_an_unknown_format_names_who_reads_what(tmp_path):
    manifest = write(tmp_path, 1, whole(), {}, ALONE) / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    with pytest.raises(
        CheckpointError, match=r"format 99 is read by vit-at-scale >= 0\.1\.0; this version reads format 1"
    ):
        Checkpoint(manifest.parent)


def test_what_was_never_written_is_missed(tmp_path):
    found = Checkpoint(write(tmp_path, 1, whole()[:2], {}, ALONE))
    with pytest.raises(
        CheckpointError, match=r"master of c has 0 of the 1 elements asked for; was the model changed\?"
    ):
        dict(found.tensors(SHAPES))
