"""Batches from step t on, for one rank: the plan's places, read, decoded and transformed.

The only state is the step. A worker process is asked for a step and answers with the whole batch, so there is one
message a batch, nothing to save, and nothing that a number of workers could change.

Shapes: B rows of a batch (a rank's, real ones first, then padding), H, W pixels, K classes.
"""

import signal
from collections.abc import Collection, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, Self

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_pipeline.augment import Pixels
from data_pipeline.decode import DecodeError, decode
from data_pipeline.manifest import ManifestError
from data_pipeline.plan import InOrder, Plan, Shares
from data_pipeline.samples import SampleError, SampleSet

PADDING = -1


class Transform(Protocol):
    """A decoded image and its place to the pixels [H, W, 3] of the model's size."""

    @property
    def image_hw(self) -> tuple[int, int]: ...

    def __call__(self, image: Image.Image, place: int) -> Pixels: ...


@dataclass(frozen=True)
class Batch:
    """A rank's rows of one batch; the first len(keys) are real, the rest is padding of weight zero."""

    step: int
    images_B3HW: Tensor  # uint8, channels last in memory
    labels: Tensor  # int64 [B], or float multi-hot [B, K] for a multi-label set
    weights: Tensor  # float32 [B]: 1, or 0 on padding
    places: Tensor  # int64 [B], or -1 on padding
    keys: list[str]  # SHARD/KEY of the real rows

    def pixels(self) -> Tensor:
        """The images as float32 [B, 3, H, W] in [-1, 1]: the range of the paper's code."""
        return self.images_B3HW.float().sub_(127.5).div_(127.5)

    def to(self, device: torch.device | str) -> Self:
        """This batch with its tensors on `device`."""
        return replace(
            self,
            images_B3HW=self.images_B3HW.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            weights=self.weights.to(device, non_blocking=True),
            places=self.places.to(device, non_blocking=True),
        )

    def micro(self, size: int) -> list[Self]:
        """This batch cut into micro-batches of `size` rows, which must divide its rows."""
        rows = len(self.places)
        assert rows % size == 0, (rows, size)
        return [self._rows(slice(first, first + size)) for first in range(0, rows, size)]

    def _rows(self, rows: slice) -> Self:
        return replace(
            self,
            images_B3HW=self.images_B3HW[rows],
            labels=self.labels[rows],
            weights=self.weights[rows],
            places=self.places[rows],
            keys=self.keys[rows],
        )


@dataclass(frozen=True)
class TrainStream:
    """The training batches of one rank."""

    samples: SampleSet
    plan: Plan
    transform: Transform
    rank: int
    ranks: int
    rows: int  # of every batch: at least plan.max_share(batch, ranks), the same on every rank
    workers: int = 0  # loading processes; 0 loads in this one
    threads: int = 1  # decoding threads in each
    start_method: str | None = None  # fork, spawn or forkserver; None: Python's default

    def batches(self, first: int, stop: int, skip: Collection[int] = ()) -> Generator[Batch]:
        """Batches first .. stop - 1 in order, without those in `skip`; starting anywhere costs the same.

        Raises SampleError naming the sample that cannot be read or decoded, ManifestError for a shard that is not the
        manifest's."""
        passed_over = frozenset(skip)
        steps = [step for step in range(first, stop) if step not in passed_over]
        feed = _Feed(self.samples, self.plan, self.transform, self.rank, self.ranks, self.rows, self.threads)
        return _run(feed, steps, self.workers, self.start_method)


def eval_batches(
    samples: SampleSet, transform: Transform, rank: int, ranks: int, rows: int, workers: int = 0, threads: int = 1
) -> Iterator[Batch]:
    """Every image of the set once over all ranks, `rows` a rank and batch, in the order of the set.

    Every rank yields the same number of batches, so that they meet in collectives; the last ones carry padding."""
    order = InOrder(samples.shard_samples, rows)
    feed = _Feed(samples, order, transform, rank, ranks, rows, threads)
    return _run(feed, range(order.num_batches(ranks)), workers, None)


class _Message(NamedTuple):
    """What a worker sends: one tensor, and the rest as plain objects."""

    step: int
    images_B3HW: Tensor
    labels: list[tuple[int, ...]]
    places: list[int]
    keys: list[str]


@dataclass(frozen=True)
class _Feed(Dataset[_Message | SampleError | ManifestError]):
    """Steps to batches, in whichever process."""

    samples: SampleSet
    shares: Shares
    transform: Transform
    rank: int
    ranks: int
    rows: int
    threads: int

    def __getitem__(self, step: int) -> _Message | SampleError | ManifestError:
        try:
            return self._message(step)
        except (SampleError, ManifestError) as error:
            return error  # raised by the loop's process: as an exception it would arrive wrapped in a traceback's text

    def _message(self, step: int) -> _Message:
        places = self.shares.share(step, self.rank, self.ranks)
        assert len(places) <= self.rows, (len(places), self.rows)
        shards, rows, numbers = places.shard.tolist(), places.row.tolist(), places.place.tolist()
        height, width = self.transform.image_hw
        images_BHW3 = torch.zeros((self.rows, height, width, 3), dtype=torch.uint8)
        pixels_BHW3 = images_BHW3.numpy()

        def fill(at: int) -> tuple[str, tuple[int, ...]]:
            sample = self.samples.read(shards[at], rows[at])
            try:
                pixels_BHW3[at] = self.transform(decode(sample.image_bytes), numbers[at])
            except DecodeError as error:
                raise SampleError(f"{sample.key}: {error}") from None
            return sample.key, sample.labels

        if self.threads == 1:
            filled = [fill(at) for at in range(len(places))]
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                filled = list(pool.map(fill, range(len(places))))
        return _Message(
            step, images_BHW3.permute(0, 3, 1, 2), [labels for _, labels in filled], numbers, [key for key, _ in filled]
        )


def _run(feed: _Feed, steps: Sequence[int], workers: int, start_method: str | None) -> Generator[Batch]:
    loader = DataLoader(
        feed,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_ignore_interrupt,
        multiprocessing_context=start_method if workers else None,
        # Without a generator of its own a loader draws from the global one, and dropout would depend on its restarts.
        generator=torch.Generator(),
    )
    # Ctrl-C reaches every process of a terminal, but only this one decides. Workers start with the mask of this thread,
    # and so are safe before they ignore it themselves.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        messages = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        for message in messages:
            if isinstance(message, (SampleError, ManifestError)):
                raise message
            yield _batch(message, feed)
    finally:
        del messages  # ends the workers now; left in an error's traceback they would take five seconds, some time later


def _batch(message: _Message, feed: _Feed) -> Batch:
    real = len(message.keys)
    if feed.samples.multi_label:
        labels = torch.zeros(feed.rows, feed.samples.num_classes)
        for row, each in enumerate(message.labels):
            labels[row, list(each)] = 1
    else:
        labels = torch.zeros(feed.rows, dtype=torch.int64)
        labels[:real] = torch.tensor([label for (label,) in message.labels], dtype=torch.int64)
    weights = torch.zeros(feed.rows)
    weights[:real] = 1
    places = torch.full((feed.rows,), PADDING)
    places[:real] = torch.tensor(message.places, dtype=torch.int64)
    return Batch(message.step, message.images_B3HW, labels, weights, places, message.keys)


def _as_it_is(message: Any) -> Any:  # the loader's own would turn our lists into tensors
    return message


def _ignore_interrupt(worker: int) -> None:
    """What Ctrl-C does is the loop's decision; it ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
