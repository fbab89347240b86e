"""What bad input gets: exit 2 with one clear message, before torch loads, and nothing written."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from configs.load import dump
from data_pipeline.foreign import index_shards
from pretrain.__main__ import main
from pretrain.check import prepare
from pretrain.workload import AUTO_MICRO_BATCH, Workload
from tests.data_pipeline.shards import png, write_shard
from tests.ranks import run_command
from tests.training import Recipe


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data__batchh": 3}, r"command line: data.batchh=3: unknown key; did you mean data.batch\?"),
        ({"optim__lr": "fast"}, r"optim.lr=fast: text where a number belongs; write it in digits, such as 3e-4"),
        ({"optim__lr": 0}, r"optim.lr=0: must be greater than 0"),
        ({"vit__image_px": 13}, r"vit.image_px=13: 13 px is not a multiple of the patch, 4 px; nearest: 12 or 16"),
        ({"vit__heads": 5}, r"vit.heads=5: width 24 is not divisible by 5 heads; nearest that divide it: 4 or 6"),
        (
            {"data__train": "nowhere"},
            r"data.train: nowhere: no such folder; make it with: python -m data_pipeline pack",
        ),
        ({"head__num_classes": 4}, r"head.num_classes = 4, but .* has 6 classes .*leave it out"),
        ({"optim__warmup_steps": 11}, r"optim.warmup_steps = 11: is longer than the run of 10 steps"),
        ({"optim__name": "sgd"}, r"optim.name = sgd: pretraining is done with adamw"),
        (
            {"objective": "{name: sigmoid, label_smoothing: 0.1}"},
            r"label_smoothing = 0.1: belongs to softmax; leave it out with sigmoid",
        ),
        ({"data__identity": "abc"}, r"data.identity = abc: data.train is another set \([0-9a-f]{64}\)"),
        ({"run__steps": "null"}, r"exactly one of run.steps and run.epochs"),
        ({"engine__zero_stage": 4}, r"engine.zero_stage=4: must be 0, 1, 2 or 3"),
        ({"data__train": "$NOT_SET/train"}, r"NOT_SET"),
        ({"optim__betas": "[0.9, 1.5]"}, r"optim.betas.*=.*: must be less than 1"),
        ({"vit__channels": 1}, r"vit.channels = 1: images are fed as RGB; leave channels out"),
        ({"optim__end_lr": 0.1}, r"end_lr = 0.1: belongs to linear, not to cosine; leave end_lr out"),
        ({"optim__momentum": 0.5}, r"momentum = 0.5: belongs to sgd, not to adamw; leave momentum out"),
        ({"data__skip_steps": "[3, 10]"}, r"data.skip_steps: 10 is not a step of the run, 0 to 9; take it out"),
        ({"data__skip_steps": "[3, 3]"}, r"data.skip_steps = \[3, 3\]: names a step twice; name each once"),
        (
            {"data__val": "null", "evaluate__every_steps": 2},
            r"evaluate.every_steps = 2: there is no data.val; name one",
        ),
    ],
)
def test_a_mistake_is_one_message_and_exit_2(pretraining: Recipe, overrides, message):
    assert re.search(message, pretraining.but(**overrides).fails())


def test_file_and_line_of_a_misspelt_key(pretraining: Recipe):
    pretraining.path.write_text(pretraining.path.read_text().replace("warmup_steps", "warmup_step"))
    said = pretraining.fails()
    assert f"{pretraining.path}:6: optim.warmup_step: unknown key; did you mean optim.warmup_steps?" in said


def test_class_lists_that_differ(pretraining: Recipe, digits):
    said = pretraining.but(data__val=digits / "downstream/val").fails()
    assert "label 0 is '0' in one and '6' in the other" in said


@pytest.mark.parametrize("damage", ["missing shard", "short shard", "format"])
def test_a_manifest_that_does_not_match(pretraining: Recipe, digits, tmp_path, damage):
    copy = tmp_path / "set"
    shutil.copytree(digits / "upstream/train", copy)
    shard = sorted(copy.glob("*.tar"))[1]
    if damage == "missing shard":
        shard.unlink()
    elif damage == "short shard":
        shard.write_bytes(shard.read_bytes()[:-512])
    else:
        manifest = json.loads((copy / "manifest.json").read_text())
        (copy / "manifest.json").write_text(json.dumps({**manifest, "format": 7}))
    said = pretraining.but(data__train=copy).fails()
    assert (shard.name in said) == (damage != "format")
    assert ("7" in said) or damage != "format"


def test_more_ranks_than_images(pretraining: Recipe):
    with pytest.raises(
        ValueError, match=r"data.batch = 24: is less than the 25 ranks; raise data.batch or start fewer"
    ):
        prepare(pretraining.path, pretraining.arguments[1:], ranks=25)


def test_compiling_needs_a_compiler(pretraining: Recipe, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"engine.compile = true: .* install g\+\+, or set engine.compile=false"):
        prepare(pretraining.path, pretraining.but(engine__compile="true").arguments[1:], ranks=1)


def test_a_set_sorted_by_class_is_warned_of_and_passes(pretraining: Recipe, tmp_path, capsys):
    of_class = [{str(key): {"cls": b"%d" % label, "png": png()} for key in range(20)} for label in range(6)]
    index_shards([write_shard(tmp_path / f"{label}.tar", of_class[label]) for label in range(6)], tmp_path)
    capsys.readouterr()
    assert main([*pretraining.arguments, "--check"]) == 0
    assert capsys.readouterr().err == ""
    assert main([*pretraining.but(data__train=tmp_path).arguments, "--check"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith(f"warning: {tmp_path}: mixing 0.16 of a shuffled set's, under 0.9: ")
    assert said.err.endswith("pack the images again with: python -m data_pipeline pack\n")
    assert "120 images, 6 classes" in said.out


def test_checking_loads_neither_torch_nor_deepspeed(pretraining: Recipe):
    code = (
        "import sys; from pretrain.__main__ import main; code = main(sys.argv[1:]);"
        "print(sorted({'torch', 'deepspeed', 'webdataset'} & sys.modules.keys())); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *pretraining.arguments, "--check"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert "6 classes; 216 images to validate on" in done.stdout
    assert "10 of 24 images" in done.stdout
    assert not pretraining.folder.exists()


@pytest.mark.parametrize(("batch", "ranks"), [(4096, 64), (4096, 56), (4096, 48), (4096, 7), (24, 5), (2, 2)])
@pytest.mark.parametrize("micro_batch", ["auto", 10])
def test_every_share_fits_its_micro_batches(pretraining: Recipe, batch, ranks, micro_batch):
    arguments = [*pretraining.arguments[1:], f"data.batch={batch}", f"engine.micro_batch={micro_batch}"]
    prepared = prepare(pretraining.path, arguments, ranks=1)
    work = Workload.lay_out(prepared.config, prepared.train, ranks)
    shares = [len(work.plan.share(0, rank, ranks)) for rank in range(ranks)]
    assert sum(shares) == batch
    assert max(shares) <= work.rows < max(shares) + work.micro_batch
    assert work.micro_batch <= AUTO_MICRO_BATCH
    assert work.loss_scale == ranks * work.accumulation / batch


def test_another_config_on_an_old_run_is_refused_with_the_difference(pretraining: Recipe):
    done = pretraining.but(run__steps=2).run()
    before = (done.folder / "config.yaml").read_bytes()
    code, _, stderr = run_command("pretrain", pretraining.but(run__steps=2, optim__lr=0.5, run__seed=9).arguments)
    assert code == 2
    assert "optim.lr: 0.001 -> 0.5" in stderr
    assert "run.seed: 0 -> 9" in stderr
    assert (done.folder / "config.yaml").read_bytes() == before


def test_a_run_may_grow_only_where_its_schedule_does_not_know_its_length(pretraining: Recipe):
    constant = pretraining.but(optim__schedule="constant", run__steps=2)
    constant.run()
    grown = constant.but(run__steps=4).run()
    assert [line["step"] for line in grown.metrics] == [1, 2, 3, 4]
    cosine = pretraining.but(run__steps=2, run__folder=pretraining.folder.with_name("cosine"))
    cosine.run()
    code, _, stderr = run_command("pretrain", cosine.but(run__steps=4).arguments)
    assert code == 2
    assert "run.steps: 2 -> 4" in stderr


def test_the_resolved_config_holds_from_any_folder(pretraining: Recipe, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(digits)
    relative = pretraining.but(data__train="upstream/train", data__val="upstream/val")
    prepared = prepare(relative.path, relative.arguments[1:], ranks=1)
    again = tmp_path / "again.yaml"
    again.write_text(dump(prepared.config))
    monkeypatch.chdir("/")
    assert prepare(again, [], ranks=1).config == prepared.config
