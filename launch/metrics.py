"""What a run measured: metrics.jsonl, and the same as curves in TensorBoard.

Each step stands there once, and steps rise, however often the run was restarted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.lines import JsonLines

if TYPE_CHECKING:
    import numpy as np

TAGS = {
    "loss": "train/loss",
    "lr": "train/lr",
    "grad_norm": "train/grad_norm",
    "images_per_s": "perf/images_per_s",
    "data_wait_frac": "perf/data_wait_frac",
    "memory_bytes": "memory/peak_bytes",
    "val_top1": "val/top1",
    "val_top5": "val/top5",
    "val_loss": "val/loss",
}
"""Where TensorBoard shows a metric; one without a tag stands in metrics.jsonl alone."""


class Metrics:
    """The metrics of the run in `folder`, to go on after `step` completed steps; importing TensorBoard takes seconds.

    What an earlier start logged after `step` is dropped: take `metrics_after(folder, step)` before.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._lines = _lines(folder)
        self._lines.cut(step)
        self._last_step = max((row["step"] for row in self._lines.rows()), default=0)
        self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    @property
    def last_step(self) -> int:
        """The last step with a line; 0 before the first."""
        return self._last_step

    def record(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Add the line and the points of a completed step."""
        assert step > self._last_step, f"step {step} after step {self._last_step}"
        self._last_step = step
        self._lines.append({"step": step, **metrics})
        self.draw(step, metrics)

    def draw(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Add points to the curves alone."""
        for name in TAGS.keys() & metrics.keys():
            self._tensorboard.add_scalar(TAGS[name], metrics[name], step)
        self._tensorboard.flush()

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Show a text in TensorBoard."""
        self._tensorboard.add_text(tag, markdown, step)

    def image(self, tag: str, image_HW3: np.ndarray, step: int) -> None:
        """Show an image (uint8, height x width x RGB) in TensorBoard."""
        self._tensorboard.add_image(tag, image_HW3, step, dataformats="HWC")

    def close(self) -> None:
        """Write out what TensorBoard still holds."""
        self._lines.close()
        self._tensorboard.close()


def metrics_after(folder: Path, step: int) -> list[dict[str, Any]]:
    """The lines that stand in metrics.jsonl after `step`."""
    return [row for row in _lines(folder).rows() if row["step"] > step]


def _lines(folder: Path) -> JsonLines:
    return JsonLines(folder / "metrics.jsonl")
