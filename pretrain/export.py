"""Public weights from a private checkpoint of any stage and any number of ranks, in one process without a GPU."""

from __future__ import annotations

from pathlib import Path

from pretrain.check import Prepared
from pretrain.checkpoint import Checkpoint
from pretrain.checkpoint_folder import CHECKPOINTS, CheckpointError, folder_name, steps_on_disk
from vit import weights
from vit.cost import tensor_shapes


def export_weights(checkpoint: Checkpoint, prepared: Prepared, out: Path) -> None:
    """Write the fp32 masters of `checkpoint` as a weights folder at `out`, with where they come from."""
    config = prepared.config
    provenance = {
        "run": config.run.folder.name,
        "step": checkpoint.step,
        "objective": config.objective.name,
        "training_images": prepared.train.num_samples,
        "training_set": prepared.train.identity,
        **checkpoint.facts["versions"],
    }
    # A head may have more outputs than the set has classes; then nobody has named them all.
    classes = prepared.train.classes if config.head.num_classes == prepared.train.num_classes else ()
    header = weights.WeightsHeader(vit=config.vit, head=config.head, classes=classes, provenance=provenance)
    weights.save(out, dict(checkpoint.tensors(tensor_shapes(config.vit, config.head))), header)


def export_from_run(prepared: Prepared, step: int | None) -> Path:
    """Write RUN/weights-STEP from the checkpoint of `step`, by default the newest whole one; raises CheckpointError
    when there is none."""
    root = prepared.config.run.folder / CHECKPOINTS
    steps = steps_on_disk(root)
    if not steps:
        raise CheckpointError(f"{root}: holds no finished checkpoint; train first")
    if step is not None and step not in steps:
        raise CheckpointError(f"{root}: no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
    checkpoint = Checkpoint(root / folder_name(step or steps[-1]))
    if fault := checkpoint.fault():
        raise CheckpointError(f"{checkpoint.folder}: {fault}; choose another of the steps {', '.join(map(str, steps))}")
    out = prepared.config.run.folder / f"weights-{checkpoint.step:08d}"
    export_weights(checkpoint, prepared, out)
    return out
