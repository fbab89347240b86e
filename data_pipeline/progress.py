"""How far long work has come: a bar on a terminal, a plain line every ten seconds in a log; both on standard error."""

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

LINE_EVERY_S = 10.0


class Progress:
    """Counts up to `total`; a context, so that the bar is closed whatever happens."""

    def __init__(self, doing: str, total: int, unit: str = "images") -> None:
        self._doing, self._total, self._unit = doing, total, unit
        self._done = 0
        self._started_s = self._said_s = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(desc=doing, total=total, unit=f" {unit}", disable=not self._terminal)

    def advance(self, count: int) -> None:
        """`count` more are done."""
        self._done += count
        self._bar.update(count)
        now_s = time.monotonic()
        if not self._terminal and (now_s - self._said_s >= LINE_EVERY_S or self._done >= self._total):
            self._said_s = now_s
            rate = self._done / max(now_s - self._started_s, 1e-9)
            left_s = (self._total - self._done) / max(rate, 1e-9)
            done = f"{self._doing}: {self._done}/{self._total} {self._unit}"
            print(f"{done}, {rate:.0f} {self._unit}/s, {left_s:.0f} s left", file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
