"""What a person sees while a run runs: a bar on a terminal, the same words as plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping

from tqdm import tqdm

FIELDS: dict[str, Callable[[float], str]] = {
    "loss": lambda value: f"loss {value:.4f}",
    "lr": lambda value: f"lr {value:.1e}",
    "images_per_s": lambda value: f"{value:.0f} images/s",
    "data_wait_frac": lambda value: f"data wait {100 * value:.0f} %",
    "val_top1": lambda value: f"top-1 {100 * value:.2f} %",
    "val_top5": lambda value: f"top-5 {100 * value:.2f} %",
    "val_loss": lambda value: f"validation loss {value:.4f}",
}


class Progress:
    """The way from `first` completed steps to all `steps` of the run."""

    def __init__(self, first: int, steps: int) -> None:
        self.steps = steps
        self._since, self._since_step = time.monotonic(), first
        self._seen_one = False
        bar = "{bar:20} {desc}"
        self._bar = tqdm(total=steps, initial=first, bar_format=bar, file=sys.stdout) if sys.stdout.isatty() else None

    def line(self, step: int, metrics: Mapping[str, float]) -> str:
        """Move on to `step`: `step 120/400  loss 1.2345  lr 8.1e-04  412 images/s  data wait 3 %  0:42 left`."""
        text = f"step {step}/{self.steps}  {in_words(metrics)}"
        if step < self.steps:
            text += f"  {duration(self._seconds_left(step))} left"
        if self._bar is not None:
            self._bar.set_description_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
            self._bar.refresh()
        return text

    def show(self, text: str) -> None:
        """Print a line, above the bar where there is one."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    @property
    def on_terminal(self) -> bool:
        return self._bar is not None

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def _seconds_left(self, step: int) -> float:
        now = time.monotonic()
        seconds = (now - self._since) / max(1, step - self._since_step) * (self.steps - step)
        if not self._seen_one:  # the first steps carry compilation and the first batch: from here on they do not count
            self._since, self._since_step, self._seen_one = now, step, True
        return seconds


def in_words(metrics: Mapping[str, float]) -> str:
    """Those of the metrics that a person follows: `loss 1.2345  lr 8.1e-04`."""
    return "  ".join(show(metrics[name]) for name, show in FIELDS.items() if name in metrics)


def duration(seconds: float) -> str:
    """Seconds as `0:42`, `1:02:03` or `2 days 1:02:03`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
    return clock if not days else f"{days} day{'s' if days > 1 else ''} {clock}"
