"""The command line: what it prints, and its exit codes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from data_pipeline import __main__ as command
from data_pipeline.plan import Plan
from data_pipeline.samples import SampleSet
from tests.data_pipeline.shards import png, write_shard

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            code = command.main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            code = stop.code if isinstance(stop.code, int) else 1
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def refused(result: tuple[int, str, str], message: str) -> None:
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_pack_inspect_verify_and_order_work_together(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, shown, _ = run(
        "pack", "digits", out, "--classes", 3, 1, "--hold-out", 0.1, "--shard-samples", 100, "--seed", 5
    )
    assert code == 0
    assert shown.splitlines()[0].startswith(f"{out / 'train'}: 329 images of 2 classes in 4 shards (")
    assert shown.splitlines()[1].startswith(f"{out / 'val'}: 36 images of 2 classes in 1 shard (")

    code, shown, _ = run("inspect", out / "train", "--json")
    report = json.loads(shown)
    assert code == 0
    assert report["images_of_class"] == {"3": 165, "1": 164}
    with Image.open(report["contact_sheet"]) as sheet:
        assert sheet.width > 500

    code, shown, _ = run("inspect", out / "train", "--contact-sheet", tmp_path / "sheet.png")
    assert code == 0
    assert f"contact sheet: {tmp_path / 'sheet.png'}" in shown
    assert (tmp_path / "sheet.png").exists()

    code, shown, _ = run("verify", out / "train", "--workers", 1)
    assert (code, shown) == (0, f"{out / 'train'}: every byte as it was packed, every image decodes\n")

    code, shown, _ = run(
        "order", out / "train", "--batch", 7, "--lanes", 3, "--seed", 1, "--steps", "2:4", "--ranks", 2
    )
    assert code == 0
    lines = [json.loads(line) for line in shown.splitlines()]
    assert [(line["batch"], line["rank"]) for line in lines] == [(2, 0), (2, 1), (3, 0), (3, 1)]
    samples = SampleSet.open(out / "train")
    plan = Plan(samples.shard_samples, samples.block_samples, 1, 7, 3)
    for line in lines:
        share = plan.share(line["batch"], line["rank"], 2)
        assert line["keys"] == [samples.key(shard, row) for shard, row in zip(share.shard, share.row, strict=True)]


def test_order_in_micro_batches(run: Run, coded: Path) -> None:
    where = ("order", coded, "--batch", 10, "--lanes", 4, "--seed", 0, "--steps", "0:1", "--ranks", 2)
    whole = [json.loads(line) for line in run(*where, "--json")[1].splitlines()]
    micro = [json.loads(line) for line in run(*where, "--micro-batch", 4)[1].splitlines()]
    assert [(line["rank"], line["micro_batch"], len(line["keys"])) for line in micro] == [
        (0, 0, 4),
        (1, 0, 4),
        (1, 1, 2),
    ]
    assert [key for line in micro for key in line["keys"]] == [key for line in whole for key in line["keys"]]


def test_order_of_several_folders(run: Run, coded: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(coded, tmp_path / "copy")
    code, shown, _ = run("order", coded, copy, "--batch", 194, "--lanes", 9, "--seed", 0, "--steps", "0:1")
    assert code == 0
    keys = json.loads(shown)["keys"]
    assert Counter(key.split("/")[0] for key in keys) == {"coded": 97, "copy": 97}


def test_pack_reports_what_it_left_out(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "source/a"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png())
    (folder / "notes.txt").touch()
    (folder / "broken.png").write_bytes(png()[:-40])
    code, shown, _ = run("pack", tmp_path / "source", tmp_path / "out", "--max-rejects", 0.5)
    assert code == 0
    assert "not images, left out: 1 .txt" in shown
    assert "rejected a/broken.png: broken image" in shown
    assert f"1 rejected; all of them: {tmp_path / 'out/rejects.jsonl'}" in shown
    code, shown, err = run("pack", tmp_path / "source", tmp_path / "out2")
    assert (code, shown) == (1, "")
    assert err.splitlines()[-1].startswith("error: 1 unreadable images, more than --max-rejects 0.01 of 4 allows")
    assert "; remove them, or pass --max-rejects 0.25; nothing was kept" in err
    assert run("pack", tmp_path / "source", tmp_path / "out2", "--max-rejects", 0.25)[0] == 0


def test_pack_takes_a_split_of_the_source(run: Run, tmp_path: Path) -> None:
    for name in ("train", "test"):
        folder = tmp_path / "source" / name / "a"
        folder.mkdir(parents=True)
        (folder / f"{name}.png").write_bytes(png())
    code, _, _ = run("pack", tmp_path / "source", tmp_path / "out", "--split", "test")
    assert code == 0
    samples = SampleSet.open(tmp_path / "out")
    assert samples.shard_names == ("test-000000",)
    assert samples.rows(0)["source"].tolist() == [b"a/test.png"]


def test_index(run: Run, tmp_path: Path) -> None:
    tar = write_shard(tmp_path / "a.tar", {"1": {"png": png(), "cls": b"1"}})
    code, shown, _ = run("index", tar, "--out", tmp_path, "--classes", "ant", "bee")
    assert (code, shown.split(" (")[0]) == (0, f"{tmp_path}: 1 images of 2 classes in 1 shard")
    assert shown.splitlines()[1] == "  mixing   1.00 of a shuffled set's"
    refused(run("index", tar, "--out", tmp_path), "has a manifest.json already")


def test_verify_lists_what_is_wrong(run: Run, broken_set: Path) -> None:
    code, shown, err = run("verify", broken_set)
    assert code == 1
    assert shown.startswith("shard/3: broken image")
    assert err.splitlines()[-1] == f"error: {broken_set}: 1 problems; copy or pack the set again"
    code, shown, _ = run("verify", broken_set, "--json")
    assert code == 1
    assert [problem["key"] for problem in json.loads(shown)["problems"]] == ["3"]


RUN = ("--samples", "10", "--shards", "3", "--ranks", "2", "--batch", "4", "--steps", "6", "--step-seconds", "0.5")


def test_simulate_says_in_numbers_what_it_says_in_words(run: Run) -> None:
    code, shown, _ = run("simulate", *RUN)
    assert code == 0
    assert shown.startswith(
        "6 steps of 4: 2.40 epochs of 10 samples in 3 shards; looked at 6 of 6 batches, 2 of 2 rank"
    )
    assert "each sample 2 to 3 times (counted); 0 repeats inside an epoch" in shown
    assert "0.4 MB/s a rank, 0.9 MB/s a node of 2, at 0.5 s a step and 110,000 bytes an image" in shown
    code, shown, _ = run("simulate", *RUN, "--json")
    found = json.loads(shown)
    assert (code, found["steps"], found["seen_least"], found["rank_images_most"]) == (0, 6, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pack", "nosuch", "out"), "nosuch: no such folder"),
        (("pack", "digits", "/"), "/: exists already"),
        (("pack", "digits", "out", "--hold-out", "2"), "--hold-out 2.0: a share"),
        (("pack", "digits", "out", "--hold-out", "some"), "argument --hold-out: invalid float value: 'some'"),
        (("pack", "digits", "out", "--classes", "11"), "--classes 11: the source has no such class; did you mean 1?"),
        (("pack", "digits", "out", "--shard-mib", "1", "--shard-samples", "4"), "not allowed with argument"),
        (("pack", "digits", "out", "--sed", "4"), "unrecognized arguments: --sed 4; see python -m data_pipeline"),
        (("pack", "digits", "out", "--part", "0/4"), "'0/4' is not I/N with I from 1 to N, such as 1/4"),
        (("pack", "digits", "out", "--part", "5/4"), "'5/4' is not I/N"),
        (("pack", "digits", "out", "--part", "1"), "'1' is not I/N"),
        (
            ("merge", "nosuch"),
            "nosuch: nothing of it is packed; begin with: python -m data_pipeline pack SOURCE nosuch",
        ),
        (("inspect", "nosuch"), "nosuch: no such folder"),
        (("verify", "nosuch"), "nosuch: no such folder"),
        (("verify", "nosuch", "--workers", "0"), "'0' is not a whole number above 0"),
        (("index", "nosuch.tar", "--out", "out"), "nosuch.tar: no such shard"),
        (("index", "nosuch.tar", "--out", "out", "--workers", "0"), "'0' is not a whole number above 0"),
        (
            ("order", "nosuch", "--batch", "1", "--lanes", "1", "--seed", "0", "--steps", "0:1"),
            "nosuch: no such folder",
        ),
        (("order", "x", "--batch", "0", "--lanes", "1", "--seed", "0", "--steps", "0:1"), "not a whole number above 0"),
        (("order", "x", "--batch", "1", "--lanes", "1", "--seed", "-1", "--steps", "0:1"), "from 0 to 2^64 - 1"),
        (("order", "x", "--batch", "1", "--lanes", "1", "--seed", "0", "--steps", "3:3"), "'3:3' is not A:B"),
        (("simulate", *RUN, "--shards", "11"), "--shards 11: more than the 10 samples; a shard has at least one"),
        (("simulate", *RUN, "--ranks", "5"), "--ranks 5: more than the 4 samples of a batch; raise --batch"),
        (("simulate", *RUN, "--workers", "-1"), "--workers -1: 0 (in the loop itself) or more processes"),
        (("simulate", *RUN, "--step-seconds", "0"), "--step-seconds 0.0: a time above 0, in seconds"),
        (("simulate", *RUN, "--steps", "0"), "'0' is not a whole number above 0"),
        (("ordr",), "invalid choice: 'ordr'"),
        ((), "the following arguments are required: COMMAND"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line_before_any_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run(*arguments), message)
    assert list(tmp_path.iterdir()) == []


def test_a_set_that_may_not_be_written_is_inspected_all_the_same(
    run: Run, coded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(self: Image.Image, path: Path, *how: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image.Image, "save", save)
    code, shown, err = run("inspect", coded)
    assert code == 0 and shown.startswith(f"{coded}: 97 images")
    sheet = coded / "contact_sheet.png"
    assert err == f"no contact sheet: {sheet}: Permission denied; name another place by --contact-sheet PNG\n"
    code, shown, err = run("inspect", coded, "--json")
    assert code == 0 and json.loads(shown)["contact_sheet"] is None
    code, shown, _ = run("inspect", coded, "--contact-sheet", "/nosuch/sheet.png")
    assert code == 1 and shown.startswith(f"{coded}: 97 images")


def test_a_failure_of_the_system_is_one_line(run: Run, coded: Path) -> None:
    code, _, err = run("inspect", coded, "--contact-sheet", "/nosuch/sheet.png")
    assert code == 1
    assert err == "error: [Errno 2] No such file or directory: '/nosuch/sheet.png'\n"


@pytest.mark.parametrize(
    ("error", "last"),
    [(KeyboardInterrupt(), "error: interrupted"), (RuntimeError("a bug"), "error: RuntimeError: a bug")],
)
def test_the_last_line_is_clear_whatever_happens(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, last: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(command, "verify", fail)
    code, _, err = run("verify", "x")
    assert code == 1
    assert err.splitlines()[-1] == last
    assert ("Traceback" in err) == isinstance(error, RuntimeError)


WITHOUT_TORCH = """
import sys
from data_pipeline.__main__ import main
for line in ("--help", "pack --help", "pack nosuch out", "order nosuch --batch 1 --lanes 1 --seed 0 --steps 0:1"):
    try:
        main(line.split())
    except SystemExit:
        pass
print(sorted({"torch", "webdataset", "deepspeed"} & set(sys.modules)))
"""


def test_help_and_refusals_load_no_torch() -> None:
    found = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_packing_that_is_stopped_says_so_and_can_go_on(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "source/a").mkdir(parents=True)
    os.mkfifo(tmp_path / "source/a/never.png")  # reading it waits for ever
    arguments = [sys.executable, "-m", "data_pipeline", "pack", str(tmp_path / "source")]
    packing = subprocess.Popen([*arguments, str(tmp_path / "out"), "--workers", "1"], stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob(".out.partial/train/notes/.writing.*/*.tar")):
        time.sleep(0.05)
    packing.send_signal(number)
    _, err = packing.communicate(timeout=30)
    assert (packing.returncode, err) == (75, "error: interrupted; the same command goes on with what is packed\n")
    (tmp_path / "source/a/never.png").unlink()
    (tmp_path / "source/a/never.png").write_bytes(png())
    subprocess.run([*arguments, str(tmp_path / "out"), "--workers", "1"], check=True, capture_output=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    assert not list(tmp_path.glob("out/.*"))
    assert SampleSet.open(tmp_path / "out").num_samples == 1


def test_parts_and_their_merging(run: Run, tmp_path: Path) -> None:
    arguments = ("pack", "digits", tmp_path / "out", "--classes", 3, "--shard-samples", 100, "--workers", 1)
    for part, images in (("2/2", 83), ("1/2", 100)):
        code, shown, _ = run(*arguments, "--part", part)
        assert (code, shown) == (0, f"{tmp_path / 'out'}: part {part} is packed, {images} images\n")
    code, shown, _ = run("merge", tmp_path / "out")
    assert code == 0
    assert shown.startswith(f"{tmp_path / 'out'}: 183 images of 1 classes in 2 shards (")
    refused(run("merge", tmp_path / "out"), "exists already, as a whole; there is nothing to merge")


def test_a_reader_that_has_seen_enough_is_no_failure(coded: Path) -> None:
    arguments = [sys.executable, "-m", "data_pipeline", "order", str(coded), "--batch", "97", "--lanes", "1"]
    order = subprocess.Popen(
        [*arguments, "--seed", "0", "--steps", "0:1000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert order.stdout
    order.stdout.readline()
    order.stdout.close()
    assert order.stderr
    assert order.stderr.read() == b""
    order.stderr.close()
    assert order.wait() == 0
