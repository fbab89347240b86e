"""One run's folder on disk: what was asked, what happened, what was measured, what came out.

    RUNS/NAME/
      config.yaml                every value, resolved
      metrics.jsonl              one line a logged step, each step once, rising; null: not finite, see the events
      tensorboard/               the same, plus images and the config as text
      events.jsonl               started, changed, resumed, superseded, failed, finished, ... and what the loops add
      logs/rank-00000.log ...    one a rank: what it said, and the traceback it ended with; .failed: when, in a line
      ledger/rank-00000.jsonl    with `run.ledger: full`, the keys of the images that each step consumed
      result.json                the end: its presence makes the run a finished one

The loops keep checkpoints/ and weights/ in the same folder. A kill at any moment leaves a folder that the same command
continues. Whatever only rank 0 does is decided in here.
"""

from __future__ import annotations

import json
import math
import os
import socket
import sys
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from textwrap import indent
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TextIO

from pydantic import BaseModel, ConfigDict, Field, model_validator

from configs.load import FREE, Difference, differences, dump, is_of_kind, read
from launch.failures import Failure, is_watched, leave_note, notes, reason_of, remove_note
from launch.lines import JsonLines, as_json
from launch.metrics import Metrics, metrics_after
from launch.progress import Progress, in_words
from launch.world import World

if TYPE_CHECKING:
    import numpy as np

NUMERIC_LIBRARIES = ("torch", "deepspeed", "accelerate", "webdataset", "torchvision", "numpy", "pillow")
"""Libraries that another version of may compute other last bits: a change is an event."""


class RunError(ValueError):
    """The run folder cannot be used with this config."""


class RunConfig(BaseModel):
    """The section `run`: where the run lives, how long it is, how often it writes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Path = Field(json_schema_extra=FREE)
    seed: int = Field(0, ge=0, lt=1 << 64)
    steps: int | None = Field(None, gt=0)
    epochs: float | None = Field(None, gt=0)
    log_every_steps: int = Field(10, gt=0, json_schema_extra=FREE)
    checkpoint_every_steps: int = Field(500, gt=0, json_schema_extra=FREE)
    keep_checkpoints: int = Field(2, ge=2, json_schema_extra=FREE)
    keep_every_steps: int | None = Field(None, gt=0, json_schema_extra=FREE)
    ledger: Literal["none", "full"] = Field("none", json_schema_extra=FREE)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of run.steps and run.epochs")
        return self


class HasRun(Protocol):
    """Any whole config with a section `run`; a pydantic model."""

    @property
    def run(self) -> RunConfig: ...


class Run:
    """The folder of one run, held by one rank; of a rank other than 0 only the log and the ledger reach the disk."""

    def __init__(self, config: HasRun, world: World) -> None:
        self.config = config
        self.folder = config.run.folder
        self.world = world
        self.log = self.folder / "logs" / f"rank-{world.rank:05}.log"
        self._leads = world.rank == 0
        self._since = time.time()
        self._events = JsonLines(self.folder / "events.jsonl")
        self._ledger = JsonLines(self.folder / "ledger" / f"rank-{world.rank:05}.jsonl")
        self._log: TextIO | None = None
        self._metrics: Metrics | None = None
        self._progress: Progress | None = None

    # --- Before a start ----------------------------------------------------------------------------------------------

    @staticmethod
    def judge(config: HasRun, may_grow: Collection[str] = ()) -> list[Difference]:
        """Say whether `config` can start or continue its folder; writes nothing, needs no torch.

        Returns how it differs from the config that the folder was last run with. A key in `may_grow` (`run.steps`,
        where the schedule does not depend on it) may become larger; a run that has not trained yet may become any
        other one. Raises RunError.
        """
        folder = config.run.folder
        _judge_place(folder)
        if not (folder / "config.yaml").exists():
            return []
        old = read(folder / "config.yaml")
        if not is_of_kind(old, _model(config)):
            raise RunError(f"run.folder = {folder}: is {_whose(folder)}; name a new run.folder")
        changes = differences(old, _model(config))
        refused = [change for change in changes if change.kind == "identity" and not _grew(change, may_grow)]
        if refused and _has_trained(folder):
            raise RunError(
                f"run.folder = {folder}: holds a run of another config ({'; '.join(map(str, refused))}); "
                "name a new run.folder for this config, or take these changes back to continue"
            )
        return changes

    def finished(self) -> dict[str, Any] | None:
        """The result, if the run reached the end that its config asks for (`run.steps` may have grown since)."""
        return _result(self.config.run)

    # --- A start -----------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, config: HasRun, world: World, command: str, may_grow: Collection[str] = ()) -> Run:
        """Start or continue the folder of `config`, as `judge` allows; a finished run is left untouched.

        `command` is what `python -m` was given: pretrain or finetune.
        """
        run = cls(config, world)
        changes = cls.judge(config, may_grow) if run._leads else []
        if run.finished() is not None:
            return run
        run.log.parent.mkdir(parents=True, exist_ok=True)
        remove_note(run.log.parent, world.rank)
        if run._leads:
            run._begin(command, changes)
        run._log = run.log.open("a", encoding="utf-8", buffering=1)
        return run

    def resume_at(self, step: int, steps: int) -> None:
        """Begin after `step` completed steps of `steps` in all; called once by every rank, before training.

        What an earlier start logged after `step` moves from the metrics to the events, and leaves curves and ledger.
        """
        _cut(self._ledger, step)
        if not self._leads:
            return
        for path in sorted(self._ledger.path.parent.glob("rank-*.jsonl")):
            if int(path.stem.removeprefix("rank-")) >= self.world.size:  # of a rank that only an earlier start had
                _cut(JsonLines(path), step)
        self._mend("metrics.jsonl")
        for row in metrics_after(self.folder, step):
            self.event("superseded", line=row)
        if sum(row["kind"] == "started" for row in self._events.rows()) > 1:
            self.event("resumed", step=step)
        self._metrics = Metrics(self.folder, step)
        # At the first step that it holds for: another restart at the same step drops it there.
        self._metrics.text("config", indent(dump(_model(self.config)), "    "), step + 1)
        self._progress = Progress(step, steps)

    # --- While it runs -----------------------------------------------------------------------------------------------

    def record(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Log a completed step, once and in order: metrics, curves, progress. Do so before its checkpoint."""
        if not self._leads:
            return
        assert self._metrics is not None, "resume_at comes first"
        assert self._progress is not None
        self._metrics.record(step, metrics)
        self._note_not_finite(step, metrics)
        line = self._progress.line(step, metrics)
        if not self._progress.on_terminal:
            self._progress.show(line)
        self._write_log(line)

    def record_validation(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Log what the model reached on the validation set after `step`; a repetition after a restart is dropped."""
        if self._metrics is not None and step not in self._validated():
            self._metrics.draw(step, metrics)
            self._note_not_finite(step, metrics)
            self.event("validated", step=step, **metrics)
            self.say(f"step {step}  {in_words(metrics)}")

    def consume(self, step: int, keys: Sequence[str]) -> None:
        """With `run.ledger: full`, keep the keys that this rank's engine consumed in `step`; called by every rank."""
        if self.config.run.ledger == "full":
            self._ledger.append({"step": step, "keys": list(keys)})

    def event(self, kind: str, /, **facts: Any) -> None:
        """Write down that something happened."""
        if self._leads:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            self._events.append({"time": now, "kind": kind, **facts})

    def say(self, text: str) -> None:
        """Tell a person: rank 0's words go to the terminal, every rank's into its log."""
        if self._progress is not None:
            self._progress.show(text)
        elif self._leads:
            print(text, flush=True)
        self._write_log(text)

    def image(self, tag: str, image_HW3: np.ndarray, step: int) -> None:
        """Show an image (uint8, height x width x RGB) in TensorBoard."""
        if self._metrics is not None:
            self._metrics.image(tag, image_HW3, step)

    # --- The end -----------------------------------------------------------------------------------------------------

    def finish(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write result.json, with the last loss and the seconds of all starts: the run is a finished one now."""
        whole = {**result, "length": _length(self.config.run)}
        if self._leads:
            losses = [row["loss"] for row in JsonLines(self.folder / "metrics.jsonl").rows() if "loss" in row]
            whole = {"seconds": self._seconds(), "loss": losses[-1] if losses else None, **whole}
            self.event("finished", **result)
            write_whole(self.folder / "result.json", as_json(whole, indent=2) + "\n")
        return whole

    def close(self) -> None:
        """Close every file; closing twice does no harm."""
        for part in (self._metrics, self._progress, self._events, self._ledger, self._log):
            if part is not None:
                part.close()
        self._metrics = self._progress = self._log = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            self._write_log("".join(traceback.format_exception(error)).rstrip())
            leave_note(self.log.parent, Failure(time.time(), self.world.rank, reason_of(error)))
            if not is_watched():
                self.failed(notes(self.log.parent, self._since)[0])
        elif isinstance(error, KeyboardInterrupt):
            self.event("interrupted")
        self.close()

    def failed(self, first: Failure) -> None:
        """Write down which rank failed first and why, if there is a run to say it of."""
        if (self.folder / "config.yaml").exists():
            self._mend("events.jsonl")
            self.event("failed", rank=first.rank, reason=first.reason)
            self._events.close()

    # --- Rank 0's own ------------------------------------------------------------------------------------------------

    def _begin(self, command: str, changes: Sequence[Difference]) -> None:
        """Write the resolved config first (it makes the folder a run), then the facts of this start."""
        path = self.folder / "config.yaml"
        if changes or not path.exists():
            repeat = f"python -m {command} THIS_FILE run.folder=ANOTHER_FOLDER"
            write_whole(
                path, f"# Every value of this run. To run the same once more: {repeat}\n\n{dump(_model(self.config))}"
            )
        self._mend("events.jsonl")
        starts = [row for row in self._events.rows() if row["kind"] == "started"]
        self.event(
            "started",
            command=command,
            ranks=self.world.size,
            host=socket.gethostname(),
            process=os.getpid(),
            python=sys.version.split()[0],
            libraries=library_versions(),
        )
        for change in changes:
            if change.kind != "free":
                self.event("changed", key=change.key, old=change.old, new=change.new)
        if starts:
            before = {"ranks": starts[-1]["ranks"], **starts[-1]["libraries"]}
            for key, new in {"ranks": self.world.size, **library_versions()}.items():
                if before.get(key) != new:
                    self.event("changed", key=key, old=before.get(key), new=new)

    def _mend(self, name: str) -> None:
        """Drop the line that a kill left torn at the end of a file, and note it."""
        if torn := JsonLines(self.folder / name).mend():
            self.event("torn", file=name, text=torn)

    def _note_not_finite(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Say which of the nulls in the files was what."""
        odd = {n: str(value) for n, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)}
        if odd:
            self.event("not finite", step=step, values=odd)

    def _validated(self) -> set[int]:
        """The steps whose validation stands in the curves: a restart before a step has dropped it."""
        steps: set[int] = set()
        for row in self._events.rows():
            if row["kind"] == "validated":
                steps.add(row["step"])
            elif row["kind"] == "resumed":
                steps = {step for step in steps if step <= row["step"]}
        return steps

    def _seconds(self) -> float:
        """Time from each start to the last that was heard of it."""
        times = [(row["kind"], datetime.fromisoformat(row["time"])) for row in self._events.rows()]
        starts = [place for place, (kind, _) in enumerate(times) if kind == "started"]
        last_heard = [times[place - 1][1] for place in starts[1:]] + [datetime.now(UTC)]
        total = sum((heard - times[place][1] for place, heard in zip(starts, last_heard, strict=True)), timedelta())
        return total.total_seconds()

    def _write_log(self, text: str) -> None:
        if self._log is not None:
            self._log.write(f"{datetime.now().isoformat(sep=' ', timespec='seconds')}  {text}\n")


def finished(config: HasRun, filled_in: Collection[str]) -> dict[str, Any] | None:
    """The result of the run that `config` asks for, if its folder has it; reads two files there and nothing else.

    `filled_in` names the keys that a start fills in from data and weights: what is left open is not compared.
    """
    result, path = _result(config.run), config.run.folder / "config.yaml"
    if result is None or not path.exists():
        return None
    changes = differences(read(path), _model(config))
    others = [change for change in changes if not (change.new is None and change.key in filled_in)]
    return None if any(change.kind == "identity" for change in others) else result


def in_a_line(result: Mapping[str, Any]) -> str:
    """A result for people: `step 400  images_seen 9600  val_top1 0.93`."""
    return "  ".join(f"{name} {value}" for name, value in result.items() if not isinstance(value, dict))


def library_versions() -> dict[str, str]:
    """The installed versions of NUMERIC_LIBRARIES, found without importing them."""
    found = {name: [d.version for d in metadata.distributions(name=name)] for name in NUMERIC_LIBRARIES}
    return {name: versions[0] for name, versions in found.items() if versions}


def write_whole(path: Path, text: str) -> None:
    """Write a file so that whoever reads it sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _model(config: HasRun) -> BaseModel:
    assert isinstance(config, BaseModel)
    return config


def _result(run: RunConfig) -> dict[str, Any] | None:
    path = run.folder / "result.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return result if result.get("length") == _length(run) else None


def _length(run: RunConfig) -> dict[str, float | None]:
    return {"steps": run.steps, "epochs": run.epochs}


def _has_trained(folder: Path) -> bool:
    """Whether a run has anything that another config would spoil: a result, a checkpoint, a logged step."""
    logged = next(JsonLines(folder / "metrics.jsonl").rows(), None) is not None
    return logged or (folder / "result.json").exists() or any((folder / "checkpoints").glob("step-*"))


def _whose(folder: Path) -> str:
    """Of which command the run in `folder` is."""
    commands = [row["command"] for row in JsonLines(folder / "events.jsonl").rows() if row["kind"] == "started"]
    return f"a {commands[-1]} run" if commands else "another command's run"


def _cut(lines: JsonLines, step: int) -> None:
    lines.mend()
    lines.cut(step)


def _judge_place(folder: Path) -> None:
    """Refuse a folder that cannot be made, cannot be written, or holds something other than a run."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise RunError(f"run.folder = {folder}: {existing} is a file; name another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RunError(f"run.folder = {folder}: {existing} may not be written by this user; name another folder")
    if existing == folder and not (folder / "config.yaml").exists():
        names = sorted(entry.name for entry in folder.iterdir())
        strangers = [name for name in names if name != "logs" and not name.startswith(".")]
        if strangers:
            raise RunError(
                f"run.folder = {folder}: holds {strangers[0]} but no config.yaml, so it is not a run; name a new folder"
            )


def _grew(change: Difference, may_grow: Collection[str]) -> bool:
    numbers = isinstance(change.old, int | float) and isinstance(change.new, int | float)
    return change.key in may_grow and numbers and change.new > change.old
