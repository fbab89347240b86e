"""Small files that let other programs read a packed set as it lies, beside the manifest:

    _info.json                          timm:  create_dataset("wds/", root=DIR, split=SPLIT)
    clip_benchmark/classnames.txt       clip-benchmark:  --dataset wds/NAME --dataset_root DIR/clip_benchmark
    clip_benchmark/SPLIT/nshards.txt                     --split SPLIT
    clip_benchmark/SPLIT/0.tar ...      -> ../../SPLIT-000000.tar

clip-benchmark reads {0..N-1}.tar and no other names, so its folder holds relative links to the shards. Whoever uploads
a set with a program that follows links leaves that folder out: nothing else reads it. A multi-label set has none,
because clip-benchmark wants labels as NumPy files.
"""

import json
import shutil
from pathlib import Path

from data_pipeline.manifest import WRITTEN_BY, Manifest

TIMM_FILE = "_info.json"
CLIP_BENCHMARK_FOLDER = "clip_benchmark"


def write_timm(folder: Path, packed: Manifest) -> None:
    """`_info.json`, as timm/data/readers/reader_wds.py reads it; one that others wrote stays as it is."""
    path = folder / TIMM_FILE
    if path.exists() and WRITTEN_BY.split()[0] not in path.read_text():
        return
    split = {
        "name": packed.split,
        "num_samples": packed.num_samples,
        "filenames": [shard.name for shard in packed.shards],
        "shard_lengths": [shard.samples for shard in packed.shards],
    }
    if packed.multi_label:
        split["alt_label"] = "labels"  # the field of KEY.json to take instead of KEY.cls
    path.write_text(json.dumps({"written_by": packed.written_by, "splits": {packed.split: split}}, indent=1) + "\n")


def write_clip_benchmark(folder: Path, packed: Manifest) -> None:
    """The files and names of `build_wds_dataset` in clip_benchmark/datasets/builder.py (LAION-AI/CLIP_benchmark)."""
    root = folder / CLIP_BENCHMARK_FOLDER
    shutil.rmtree(root, ignore_errors=True)
    if packed.multi_label:
        return
    shards = root / packed.split
    shards.mkdir(parents=True)
    # A class a line: whatever ends a line is a blank here.
    lines = [f"{' '.join(name.split())}\n" for name in packed.classes]
    (root / "classnames.txt").write_text("".join(lines), encoding="utf-8")
    (shards / "nshards.txt").write_text(f"{len(packed.shards)}\n")
    for number, shard in enumerate(packed.shards):
        (shards / f"{number}.tar").symlink_to(Path("../..", shard.name))
