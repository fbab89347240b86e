"""A run's folder: what it holds, who may continue it, and that restarts leave each step once."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import launch.run
from configs.load import FREE, NUMERIC, load
from launch.failures import WATCHED, Failure
from launch.run import Run, RunConfig, RunError, finished, write_whole
from launch.world import World


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    depth: int = 2
    classes: int | None = None  # filled in at a start


class Engine(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    zero_stage: int = Field(1, json_schema_extra=NUMERIC)
    workers: int = Field(0, json_schema_extra=FREE)


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    run: RunConfig
    vit: Model = Model()
    engine: Engine = Engine()


def alone(rank: int = 0, size: int = 1) -> World:
    return World(rank, size, rank, size, "127.0.0.1", 20_000)


Make = Callable[..., Config]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def config(
        steps: int | None = 100,
        epochs: float | None = None,
        ledger: Literal["none", "full"] = "none",
        log_every_steps: int = 10,
        depth: int = 2,
        zero_stage: int = 1,
        folder: str = "first",
    ) -> Config:
        run = RunConfig(
            folder=tmp_path / "runs" / folder,
            steps=steps,
            epochs=epochs,
            ledger=ledger,
            log_every_steps=log_every_steps,
        )
        return Config(run=run, vit=Model(depth=depth), engine=Engine(zero_stage=zero_stage))

    return config


def events(config: Config, kind: str) -> list[dict[str, Any]]:
    path = config.run.folder / "events.jsonl"
    return [row for row in map(json.loads, path.read_text().splitlines()) if row["kind"] == kind]


def logged(config: Config) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (config.run.folder / "metrics.jsonl").read_text().splitlines()]


def shown(config: Config) -> dict[str, list[tuple[int, Any]]]:
    """The points of each curve as TensorBoard's own pages show them: (step, value)."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    page = EventAccumulator(str(config.run.folder / "tensorboard"))
    page.Reload()
    points = {
        tag: [(p.step, make_ndarray(p.tensor_proto)) for p in page.Tensors(tag)] for tag in page.Tags()["tensors"]
    }
    return {
        tag: [(step, value.item() if value.size == 1 else tuple(value)) for step, value in points[tag]]
        for tag in points
    }


def train(config: Config, start: int, stop: int, world: World | None = None, end: bool = False) -> None:
    """A start of a run that logs every step: the loss names the step and the start, so that a forked curve shows."""
    with Run.open(config, world or alone(), "pretrain") as run:
        run.resume_at(start, 100)
        for step in range(start + 1, stop + 1):
            run.consume(step, [f"train-000000/{step:09}"])
            run.record(step, {"loss": step + start / 1000, "lr": 0.1, "images_seen": step * 8})
        if end:
            run.finish({"step": stop, "val_top1": 0.5})


# --- The section -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "give exactly one of run.steps and run.epochs"),
        ({"steps": 1, "epochs": 1.0}, "give exactly one of run.steps and run.epochs"),
        ({"steps": 0}, "greater than 0"),
        ({"steps": 5, "keep_checkpoints": 1}, "greater than or equal to 2"),
        ({"steps": 5, "seed": -1}, "greater than or equal to 0"),
        ({"steps": 5, "ledger": "some"}, "'none' or 'full'"),
        ({"steps": 5, "stop": 5}, "Extra inputs are not permitted"),
    ],
)
def test_section_refuses(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RunConfig.model_validate({"folder": Path("runs/x"), **keys})


# --- Who may start, who may continue ---------------------------------------------------------------------------------


def test_the_resolved_config_alone_repeats_the_run(make: Make) -> None:
    config = make()
    Run.open(config, alone(), "pretrain").close()
    written = config.run.folder / "config.yaml"
    assert load(written, Config) == config
    assert "python -m pretrain THIS_FILE run.folder=ANOTHER_FOLDER" in written.read_text()


def test_judge_writes_nothing(make: Make, tmp_path: Path) -> None:
    assert Run.judge(make()) == []
    assert list(tmp_path.iterdir()) == []


def test_another_identity_is_refused_with_all_differences(make: Make) -> None:
    train(make(), 0, 1)
    message = r"holds a run of another config \(run.steps: 100 -> 50; vit.depth: 2 -> 6\); name a new run.folder"
    with pytest.raises(RunError, match=message):
        Run.judge(make(depth=6, steps=50, zero_stage=3))
    before = (make().run.folder / "config.yaml").read_text()
    with pytest.raises(RunError, match=message):
        Run.open(make(depth=6, steps=50), alone(), "pretrain")
    assert (make().run.folder / "config.yaml").read_text() == before


@pytest.mark.parametrize("left", ["metrics.jsonl", "checkpoints/step-00000005", "result.json"])
def test_a_run_that_never_trained_may_become_another(make: Make, left: str) -> None:
    Run.open(make(), alone(), "pretrain").close()
    corrected = make(depth=6)
    Run.open(corrected, alone(), "pretrain").close()
    assert load(corrected.run.folder / "config.yaml", Config) == corrected
    assert [(row["key"], row["old"], row["new"]) for row in events(corrected, "changed")] == [("vit.depth", 2, 6)]
    trained = corrected.run.folder / left
    trained.parent.mkdir(exist_ok=True)
    trained.write_text('{"step": 1}\n')
    with pytest.raises(RunError, match=r"vit\.depth: 6 -> 2"):
        Run.judge(make())


def test_another_commands_folder_is_named_as_that(make: Make) -> None:
    class Finetuning(Config):
        weights: Path

    Run.open(make(), alone(), "pretrain").close()
    with pytest.raises(RunError, match=r"runs/first: is a pretrain run; name a new run\.folder$"):
        Run.judge(Finetuning(run=make().run, weights=Path("weights")))


def test_free_changes_are_silent_and_numeric_ones_are_events(make: Make) -> None:
    Run.open(make(), alone(), "pretrain").close()
    changed = make(log_every_steps=5, zero_stage=3)
    Run.open(changed, alone(size=2), "pretrain").close()
    assert load(changed.run.folder / "config.yaml", Config) == changed
    facts = [(row["key"], row["old"], row["new"]) for row in events(changed, "changed")]
    assert facts == [("engine.zero_stage", 1, 3), ("ranks", 1, 2)]


def test_other_library_versions_are_an_event(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    Run.open(make(), alone(), "pretrain").close()
    assert events(make(), "started")[0]["libraries"]["torch"] >= "2.11"
    versions = events(make(), "started")[0]["libraries"]
    monkeypatch.setattr(launch.run, "library_versions", lambda: {**versions, "torch": "9.9"})
    Run.open(make(), alone(), "pretrain").close()
    assert [(row["key"], row["new"]) for row in events(make(), "changed")] == [("torch", "9.9")]


def test_steps_may_grow_only_where_the_caller_says_so_and_never_shrink(make: Make) -> None:
    train(make(steps=100), 0, 1)
    with pytest.raises(RunError, match=r"run\.steps: 100 -> 200"):
        Run.judge(make(steps=200))
    with pytest.raises(RunError, match=r"run\.steps: 100 -> 50"):
        Run.judge(make(steps=50), may_grow=["run.steps"])
    with pytest.raises(RunError, match=r"run\.steps: 100 -> None; run\.epochs: None -> 3\.0"):
        Run.judge(make(steps=None, epochs=3.0), may_grow=["run.steps", "run.epochs"])
    Run.open(make(steps=200), alone(), "pretrain", may_grow=["run.steps"]).close()
    assert [(row["key"], row["new"]) for row in events(make(), "changed")] == [("run.steps", 200)]


def test_places_where_no_run_can_live(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(RunError, match=r"runs/first: .*/runs is a file; name another folder"):
        Run.judge(make())
    (tmp_path / "runs").unlink()
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "logs").mkdir()  # a launcher makes it first
    assert Run.judge(make()) == []
    (tmp_path / "runs" / "first" / "train-000000.tar").touch()
    with pytest.raises(
        RunError, match=r"holds train-000000.tar but no config.yaml, so it is not a run; name a new folder"
    ):
        Run.judge(make())
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(RunError, match=r"runs may not be written by this user; name another folder"):
        Run.judge(make(folder="second"))


# --- Finished runs ---------------------------------------------------------------------------------------------------


def test_a_finished_run_is_left_untouched(make: Make) -> None:
    config = make()
    train(config, 0, 3, end=True)

    def state() -> dict[str, tuple[int, bytes]]:
        files = [path for path in config.run.folder.rglob("*") if path.is_file()]
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = state()
    for rank in (0, 1):
        with Run.open(make(log_every_steps=7), alone(rank, 2), "pretrain") as run:
            result = run.finished()
            assert result is not None
            assert 0.0 <= result.pop("seconds") < 60.0
            assert result == {
                "loss": 3.0,
                "step": 3,
                "val_top1": 0.5,
                "length": {"steps": 100, "epochs": None},
            }
            run.say("finished already")
    assert state() == before
    with pytest.raises(RunError, match=r"vit\.depth: 2 -> 6"):
        Run.open(make(depth=6), alone(), "pretrain")


def test_a_longer_run_is_not_finished_for_any_rank_at_any_moment(make: Make) -> None:
    train(make(), 0, 3, end=True)
    longer = make(steps=200)
    before = Run.open(longer, alone(1, 2), "pretrain", may_grow=["run.steps"])  # rank 1 before rank 0 wrote anything
    first = Run.open(longer, alone(0, 2), "pretrain", may_grow=["run.steps"])
    assert before.finished() is None and first.finished() is None
    first.resume_at(3, 200)
    assert first.finish({"step": 200}) == before.finished()
    first.close()
    before.close()


def test_a_finished_run_is_known_without_its_data(make: Make) -> None:
    def with_classes(config: Config, classes: int | None) -> Config:
        return config.model_copy(update={"vit": config.vit.model_copy(update={"classes": classes})})

    assert finished(make(), ()) is None
    train(with_classes(make(), 4), 0, 3)
    assert finished(with_classes(make(), 4), ()) is None
    train(with_classes(make(), 4), 3, 3, end=True)
    result = finished(with_classes(make(), 4), ())
    assert result is not None and result["step"] == 3
    assert finished(make(), ["vit.classes"]) == result == finished(make(log_every_steps=3), ["vit.classes"])
    assert finished(make(), ()) is None  # it would be another model
    assert finished(with_classes(make(), 5), ["vit.classes"]) is None
    assert finished(make(steps=200), ["vit.classes"]) is None
    assert finished(make(depth=6), ["vit.classes"]) is None


def test_an_unfinished_run_has_no_result(make: Make) -> None:
    assert Run(make(), alone()).finished() is None
    train(make(), 0, 3)
    assert Run(make(), alone()).finished() is None


# --- Metrics over restarts -------------------------------------------------------------------------------------------


@pytest.fixture
def restarted(make: Make) -> Config:
    """Killed after step 8 (in the middle of line 9), went on from 5, killed after 7, went on from 5 again to 9."""
    config = make(ledger="full")
    train(config, 0, 8)
    with (config.run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    train(config, 5, 7)
    train(config, 5, 9)
    return config


def test_each_step_stands_once_in_the_metrics(restarted: Config) -> None:
    rows = logged(restarted)
    assert [row["step"] for row in rows] == list(range(1, 10))
    assert [row["loss"] for row in rows] == [1, 2, 3, 4, 5, 6.005, 7.005, 8.005, 9.005]
    assert rows[3] == {"step": 4, "loss": 4.0, "lr": 0.1, "images_seen": 32}


def test_what_was_dropped_is_in_the_events(restarted: Config) -> None:
    superseded = [row["line"] for row in events(restarted, "superseded")]
    assert [(row["step"], row["loss"]) for row in superseded] == [(6, 6.0), (7, 7.0), (8, 8.0), (6, 6.005), (7, 7.005)]
    assert [(row["file"], row["text"]) for row in events(restarted, "torn")] == [("metrics.jsonl", '{"step": 9, "lo')]
    assert [row["step"] for row in events(restarted, "resumed")] == [5, 5]
    assert len(events(restarted, "started")) == 3


def test_curves_show_no_step_twice(restarted: Config) -> None:
    curves = shown(restarted)
    assert [step for step, _ in curves["train/loss"]] == list(range(1, 10))
    assert [loss for _, loss in curves["train/loss"]] == pytest.approx([row["loss"] for row in logged(restarted)])
    assert {tag: len(curves[tag]) for tag in curves} == {"train/lr": 9, "train/loss": 9, "config/text_summary": 2}
    assert [step for step, _ in curves["config/text_summary"]] == [1, 6]  # the first step that each start trained


def test_the_ledger_is_cut_with_the_metrics(restarted: Config) -> None:
    ledger = (restarted.run.folder / "ledger" / "rank-00000.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in ledger] == [
        {"step": i, "keys": [f"train-000000/{i:09}"]} for i in range(1, 10)
    ]


def test_nothing_is_lost_when_killed_between_events_and_metrics(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    train(make(), 0, 4)

    def killed(folder: Path, step: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch.run, "Metrics", killed)
    with pytest.raises(KeyboardInterrupt):
        train(make(), 2, 4)
    assert [row["step"] for row in logged(make())] == [1, 2, 3, 4]
    assert [row["line"]["step"] for row in events(make(), "superseded")] == [3, 4]


def test_a_run_that_changes_its_ranks_cuts_the_ledgers_of_all(make: Make) -> None:
    config = make(ledger="full")
    for rank in (0, 1, 2):
        train(config, 0, 4, alone(rank, 3))
    for rank in (0, 1):
        train(config, 2, 3, alone(rank, 2))
    steps = [
        [json.loads(line)["step"] for line in path.read_text().splitlines()]
        for path in sorted((config.run.folder / "ledger").iterdir())
    ]
    assert steps == [[1, 2, 3], [1, 2, 3], [1, 2]]


def test_no_ledger_unless_asked_for(make: Make) -> None:
    train(make(), 0, 2)
    assert not (make().run.folder / "ledger").exists()


def test_steps_rise(make: Make) -> None:
    with Run.open(make(), alone(), "pretrain") as run:
        with pytest.raises(AssertionError, match="resume_at comes first"):
            run.record(1, {})
        run.resume_at(0, 100)
        run.record(2, {"loss": 1.0})
        with pytest.raises(AssertionError, match="step 2 after step 2"):
            run.record(2, {"loss": 1.0})


def test_validation_stands_once_whatever_the_restarts(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    config = make()
    for start, top1 in [(0, 0.1), (5, 0.2), (3, 0.3), (5, 0.4)]:  # only the start at 3 undoes what stood at 5
        with Run.open(config, alone(), "pretrain") as run:
            run.resume_at(start, 100)
            run.record_validation(5, {"val_top1": top1})
    assert shown(config)["val/top1"] == [(5, pytest.approx(0.3))]
    assert [row["val_top1"] for row in events(config, "validated")] == [0.1, 0.3]
    assert capsys.readouterr().out == "step 5  top-1 10.00 %\nstep 5  top-1 30.00 %\n"


def test_images_reach_tensorboard(make: Make) -> None:
    with Run.open(make(), alone(), "pretrain") as run:
        run.image("early", np.zeros((4, 6, 3), np.uint8), 0)  # before resume_at: nowhere to go yet
        run.resume_at(0, 100)
        run.image("batch", np.zeros((4, 6, 3), np.uint8), 1)
    curves = shown(make())
    assert sorted(curves) == ["batch", "config/text_summary"]
    [(step, (width, height, _png))] = curves["batch"]
    assert (step, width, height) == (1, b"6", b"4")


def test_a_number_that_is_not_finite_is_null_and_an_event(make: Make) -> None:
    config = make()
    with Run.open(config, alone(), "pretrain") as run:
        run.resume_at(0, 100)
        run.record(1, {"loss": math.nan, "grad_norm": math.inf, "lr": 0.1})
        run.record(2, {"loss": -math.inf, "lr": 0.1})
        run.record_validation(2, {"val_loss": math.nan})
        run.finish({"step": 2, "val_loss": math.nan})
    texts = [(config.run.folder / name).read_text() for name in ("metrics.jsonl", "events.jsonl", "result.json")]
    assert not any(word in text for text in texts for word in (": NaN", "Infinity,", "Infinity}"))
    assert [(row["loss"], row["lr"]) for row in logged(config)] == [(None, 0.1), (None, 0.1)]
    found = [(row["step"], row["values"]) for row in events(config, "not finite")]
    assert found == [(1, {"loss": "nan", "grad_norm": "inf"}), (2, {"loss": "-inf"}), (2, {"val_loss": "nan"})]
    assert json.loads(texts[2])["val_loss"] is None


# --- Ranks, logs, failures -------------------------------------------------------------------------------------------


def test_other_ranks_write_their_log_and_nothing_else(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    config = make()
    with Run.open(config, alone(1, 2), "pretrain") as run:
        run.resume_at(0, 100)
        run.record(1, {"loss": 1.0})
        run.record_validation(1, {"val_top1": 1.0})
        run.event("checkpoint written", step=1)
        run.say("only in my log")
        assert run.finish({"step": 1})["step"] == 1
    assert capsys.readouterr().out == ""
    files = [path.relative_to(config.run.folder) for path in config.run.folder.rglob("*") if path.is_file()]
    assert files == [Path("logs/rank-00001.log")]
    assert "only in my log" in (config.run.folder / files[0]).read_text()


def test_rank_0_speaks_to_terminal_and_log(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    with Run.open(make(), alone(), "pretrain") as run:
        run.say("before the first step")
        run.resume_at(0, 100)
        run.record(50, {"loss": 1.25})
        run.say("afterwards")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "before the first step" and said[2] == "afterwards"
    assert said[1].startswith("step 50/100  loss 1.2500  ")
    log = (make().run.folder / "logs" / "rank-00000.log").read_text().splitlines()
    assert [line.split("  ", 1)[1] for line in log] == said


def test_a_failure_leaves_its_traceback_in_the_log(make: Make) -> None:
    def explode(run: Run) -> None:
        raise RuntimeError("the loss is a banana")

    for rank in (0, 1):
        with pytest.raises(RuntimeError), Run.open(make(), alone(rank, 2), "pretrain") as run:
            explode(run)
        log = (make().run.folder / "logs" / f"rank-{rank:05}.log").read_text()
        assert "in explode" in log and "RuntimeError: the loss is a banana" in log
    assert [(row["rank"], row["reason"]) for row in events(make(), "failed")] == [(0, "the loss is a banana")]


def failing(config: Config, rank: int, reason: str) -> None:
    with pytest.raises(RuntimeError), Run.open(config, alone(rank, 2), "pretrain"):
        raise RuntimeError(f"{reason}\nin many\nlines")


def test_the_failed_event_tells_of_the_rank_that_failed_first(make: Make) -> None:
    config = make()
    first = Run.open(config, alone(0, 2), "pretrain")
    failing(config, 1, "the disk is on fire")
    with pytest.raises(RuntimeError), first:
        raise RuntimeError("connection closed by peer")
    assert [(row["rank"], row["reason"]) for row in events(config, "failed")] == [(1, "the disk is on fire")]
    failing(config, 0, "another start, another reason")  # rank 1's note lies there still
    assert events(config, "failed")[-1]["reason"] == "another start, another reason"
    Run.open(config, alone(0, 2), "pretrain").close()
    assert [path.name for path in (config.run.folder / "logs").glob("*.failed")] == ["rank-00001.failed"]


def test_under_a_launcher_that_watches_the_event_is_left_to_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WATCHED, "1")
    config = make()
    Run(config, alone()).failed(Failure(0.0, 1, "before there was a run"))
    assert not config.run.folder.exists()
    failing(config, 0, "connection closed by peer")
    assert events(config, "failed") == []
    with (config.run.folder / "events.jsonl").open("a") as file:
        file.write('{"kind": "to')
    Run(config, alone()).failed(Failure(0.0, 1, "killed by SIGKILL"))
    assert [(row["rank"], row["reason"]) for row in events(config, "failed")] == [(1, "killed by SIGKILL")]


def test_ctrl_c_is_no_failure(make: Make) -> None:
    with pytest.raises(KeyboardInterrupt), Run.open(make(), alone(), "pretrain"):
        raise KeyboardInterrupt
    assert events(make(), "failed") == [] and len(events(make(), "interrupted")) == 1


def test_leaving_by_an_exit_code_is_no_failure(make: Make) -> None:
    with pytest.raises(SystemExit), Run.open(make(), alone(), "pretrain"):
        raise SystemExit(75)
    assert events(make(), "failed") == []


@pytest.fixture
def killed_at_replace(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)


def test_a_file_is_old_or_new_never_a_part(tmp_path: Path, killed_at_replace: None) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "new")
    assert path.read_text() == "old"


def test_a_start_killed_before_its_config_was_written_can_be_repeated(make: Make, killed_at_replace: None) -> None:
    with pytest.raises(KeyboardInterrupt):
        Run.open(make(), alone(), "pretrain")
    assert Run.judge(make()) == []
