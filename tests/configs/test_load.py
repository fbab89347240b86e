"""The strict reading of configs: what is accepted, and the one line that each mistake gets."""

import math
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from configs.load import FREE, NUMERIC, ConfigError, Difference, differences, dump, is_of_kind, load, read


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunConfig(Section):
    folder: Path
    seed: int = 0
    log_every_steps: Annotated[int, Field(ge=1)] = Field(10, json_schema_extra=FREE)


class VitConfig(Section):
    image_px: Annotated[int, Field(ge=1)] | tuple[int, int] = 224
    patch_px: int = 16
    pool: Literal["cls", "gap"] = "cls"
    dropout: float = Field(0.0, ge=0, lt=1)
    qkv_bias: bool = True

    @field_validator("patch_px")
    @classmethod
    def _even(cls, patch_px: int) -> int:
        if patch_px % 2:
            raise ValueError("a patch has an even number of pixels; take 16")
        return patch_px

    @model_validator(mode="after")
    def _fits(self) -> "VitConfig":
        if isinstance(self.image_px, int) and self.image_px % self.patch_px:
            raise ValueError(f"image_px {self.image_px} is not a multiple of patch_px {self.patch_px}; take 224")
        return self


class DataConfig(Section):
    train: Path | tuple[Path, ...]
    val: Path | None = None
    skip_steps: tuple[int, ...] = Field((), max_length=3)
    names: tuple[str, ...] = Field(("a",), min_length=1)
    workers: int = Field(2, ge=0, json_schema_extra=FREE)


class Order(StrEnum):
    rising = "rising"
    falling = "falling"


class OptimConfig(Section):
    lr: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    micro_batch: Literal["auto"] | Annotated[int, Field(ge=1)] = Field("auto", json_schema_extra=NUMERIC)
    order: Order = Order.rising


class Evaluate(Section):
    every_steps: int = 100


class Config(Section):
    run: RunConfig
    vit: VitConfig = VitConfig()
    data: DataConfig
    optim: OptimConfig = OptimConfig()
    evaluate: Evaluate | None = Field(None, json_schema_extra=FREE)
    weights: Path | None = None


GOOD = """\
run:
  folder: runs/first
data:
  train: shards
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD)
    return path


def errors_of(text: str, *overrides: str, folder: Path) -> list[str]:
    path = folder / "r.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, Config, overrides)
    return str(caught.value).replace(str(path), "FILE").splitlines()


# ---- what is accepted ----


def test_numbers_and_words_follow_yaml_1_2(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "a: [3e-4, 1e3, .5, -2, 0x10, 0o10, '3e-4', +1.]\nb: [yes, no, on, off, 12:30:00, 2020-01-01]\non: ~\nc:\n"
    )
    assert read(path) == {
        "a": [0.0003, 1000.0, 0.5, -2, 16, 8, "3e-4", 1.0],
        "b": ["yes", "no", "on", "off", "12:30:00", "2020-01-01"],
        "on": None,
        "c": None,
    }


def test_defaults_overrides_and_types(recipe: Path) -> None:
    words = ["optim.lr=3e-4", "vit.image_px=[32, 48]", "data.train=[a, b]", "run.seed=7", "weights=w", "vit.pool=gap"]
    config = load(recipe, Config, [*words, "optim.order=falling"])
    assert config.optim.lr == 3e-4
    assert config.vit.image_px == (32, 48)
    assert config.data.train == (Path("a"), Path("b"))
    assert (config.run.seed, config.weights, config.vit.pool) == (7, Path("w"), "gap")
    assert config.optim.order is Order.falling
    assert config.optim.betas == (0.9, 0.999)


def test_an_override_replaces_a_value_and_the_last_one_holds(recipe: Path) -> None:
    assert load(recipe, Config, ["run.folder=runs/a=b", "run.folder=runs/c=d"]).run.folder == Path("runs/c=d")
    assert load(recipe, Config, ["data.val=x", "data.val="]).data.val is None
    assert load(recipe, Config, ["evaluate.every_steps=5"]).evaluate == Evaluate(every_steps=5)


def test_an_empty_section_means_its_defaults(recipe: Path) -> None:
    recipe.write_text(GOOD + "vit:\n  # pool: gap\nevaluate:\n")
    config = load(recipe, Config, ["optim.lr=1"])
    assert config.vit == VitConfig()
    assert config.evaluate is None
    assert load(recipe, Config, ["evaluate.every_steps=5"]).evaluate == Evaluate(every_steps=5)


def test_variables_come_from_the_environment(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDS", "/data/$not_again")
    recipe.write_text(GOOD.replace("shards", "[$SHARDS/a, '${SHARDS}b', $$SHARDS, a$]"))
    config = load(recipe, Config)
    assert config.data.train == tuple(map(Path, ["/data/$not_again/a", "/data/$not_againb", "$SHARDS", "a$"]))
    assert load(recipe, Config, ["run.folder=$SHARDS"]).run.folder == Path("/data/$not_again")


def test_an_overridden_value_needs_no_variable(recipe: Path) -> None:
    recipe.write_text(GOOD.replace("shards", "$UNSET_FOR_SURE"))
    assert load(recipe, Config, ["data.train=x"]).data.train == Path("x")


# ---- dump ----


def test_dump_loads_back_equal_and_is_complete(tmp_path: Path) -> None:
    config = Config(
        run=RunConfig(folder=Path("$HOME/no"), seed=-3),
        vit=VitConfig(image_px=(32, 48)),
        data=DataConfig(train=(Path("12:30"), Path("3e-4")), names=("no", "null", "0x10", "1_000", "", "é: #", "a\nb")),
        optim=OptimConfig(lr=1e-5, betas=(1e22, 0.1 + 0.2)),
    )
    path = tmp_path / "config.yaml"
    path.write_text(dump(config), encoding="utf-8")
    assert load(path, Config) == config
    assert differences(read(path), config) == []
    # Another reader, of YAML 1.1, sees the same values.
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert tree["optim"] == {"lr": 1e-5, "betas": [1e22, 0.1 + 0.2], "micro_batch": "auto", "order": "rising"}
    assert tree["data"]["names"] == list(config.data.names)
    assert tree["evaluate"] is None


def test_dump_is_readable(recipe: Path) -> None:
    text = dump(load(recipe, Config))
    assert text.startswith("run:\n  folder: runs/first\n  seed: 0\n  log_every_steps: 10\n\nvit:\n  image_px: 224\n")
    assert "  betas: [0.9, 0.999]\n" in text


# ---- what is refused ----

FAULTS = [
    # unknown keys
    ("run:\n  folder: x\n  sed: 1\n", "FILE:3: run.sed: unknown key; did you mean run.seed?"),
    ("run:\n  folder: x\n  lr: 1\n", "FILE:3: run.lr: unknown key; did you mean optim.lr?"),
    ("run:\n  folder: x\n  zz: 1\n", "FILE:3: run.zz: unknown key; run has folder, seed, log_every_steps"),
    ("run:\n  folder: x\nbetas: 1\n", "FILE:3: betas: unknown section; did you mean optim.betas?"),
    ("run:\n  folder: x\nvitt: {}\n", "FILE:3: vitt: unknown section; did you mean vit?"),
    # missing
    ("run:\n  seed: 1\n", "FILE:1: run.folder is missing; write `folder: ...` under `run:`, a path"),
    ("optim:\n", "FILE: section run is missing; write `run:`, and below it folder, seed, log_every_steps"),
    # another kind of value
    ("optim:\n  lr: '1e3'\n", 'FILE:2: optim.lr = "1e3": text where a number belongs; write 1e3, without quotes'),
    (
        "data:\n  train: x\n  skip_steps: [1, 2.5]\n",
        "FILE:3: data.skip_steps[1] = 2.5: a number where a whole number belongs; write it in digits, such as 100",
    ),
    ("optim:\n  lr: '3e-4'\n", 'FILE:2: optim.lr = "3e-4": text where a number belongs; write 3e-4, without quotes'),
    (
        "optim:\n  lr: fast\n",
        'FILE:2: optim.lr = "fast": text where a number belongs; write it in digits, such as 3e-4',
    ),
    (
        "optim:\n  lr: true\n",
        "FILE:2: optim.lr = true: true or false where a number belongs; write it in digits, such as 3e-4",
    ),
    ("optim:\n  lr: ~\n", "FILE:2: optim.lr = null: null where a number belongs; write it in digits, such as 3e-4"),
    ("optim:\n  betas: [1]\n", "FILE:2: optim.betas = [1]: a list of 1 where a list of 2 numbers belongs"),
    ("optim:\n  betas: [1, 2, 3]\n", "FILE:2: optim.betas = [1, 2, 3]: at most 2 values belong here"),
    (
        "optim:\n  betas: [1, x]\n",
        'FILE:2: optim.betas[1] = "x": text where a number belongs; write it in digits, such as 3e-4',
    ),
    (
        "optim:\n  betas:\n  - 1\n  - '2'\n",
        'FILE:4: optim.betas[1] = "2": text where a number belongs; write 2, without quotes',
    ),
    ("optim: 3\n", "FILE:1: optim = 3: a whole number where a section of keys belongs"),
    ("optim:\n  order: up\n", "FILE:2: optim.order = \"up\": must be 'rising' or 'falling'"),
    ("vit:\n  pool: 3\n", "FILE:2: vit.pool = 3: must be 'cls' or 'gap'"),
    ("vit:\n  qkv_bias: no\n", 'FILE:2: vit.qkv_bias = "no": text where true or false belongs; write false'),
    ("vit:\n  qkv_bias: 1\n", "FILE:2: vit.qkv_bias = 1: a whole number where true or false belongs"),
    ("vit:\n  patch_px: 1.6e1\n", "FILE:2: vit.patch_px = 16.0: a number where a whole number belongs; write 16"),
    (
        "vit:\n  patch_px: '16'\n",
        'FILE:2: vit.patch_px = "16": text where a whole number belongs; write 16, without quotes',
    ),
    ("weights: 3\n", 'FILE:1: weights = 3: a whole number where a path belongs; write "3", in quotes'),
    ("data:\n  train: {a: b}\n", "FILE:2: data.train: a section of keys where a path or a list of paths belongs"),
    # unions: the option that was meant speaks, or all are named
    (
        "optim:\n  micro_batch: some\n",
        'FILE:2: optim.micro_batch = "some": text where auto or a whole number belongs; '
        "write it in digits, such as 100",
    ),
    ("optim:\n  micro_batch: 0\n", "FILE:2: optim.micro_batch = 0: must be greater than or equal to 1"),
    ("vit:\n  image_px: 0\n", "FILE:2: vit.image_px = 0: must be greater than or equal to 1"),
    (
        "vit:\n  image_px: [32]\n",
        "FILE:2: vit.image_px = [32]: a list of 1 where a whole number or a list of 2 whole numbers belongs",
    ),
    (
        "vit:\n  image_px: [32, x]\n",
        'FILE:2: vit.image_px[1] = "x": text where a whole number belongs; write it in digits, such as 100',
    ),
    # rules
    ("vit:\n  dropout: 1\n", "FILE:2: vit.dropout = 1: must be less than 1"),
    (
        "data:\n  train: x\n  skip_steps: [1, 2, 3, 4]\n",
        "FILE:3: data.skip_steps = [1, 2, 3, 4]: at most 3 values belong here",
    ),
    ("data:\n  train: x\n  names: []\n", "FILE:3: data.names = []: at least 1 values belong here"),
    ("vit:\n  patch_px: 15\n", "FILE:2: vit.patch_px = 15: a patch has an even number of pixels; take 16"),
    ("\nvit:\n  image_px: 30\n", "FILE:2: vit: image_px 30 is not a multiple of patch_px 16; take 224"),
    ("optim:\n  lr: .inf\n", "FILE:2: optim.lr = Infinity: a number must be finite; write it in digits, such as 3e-4"),
    (
        "weights: $UNSET_FOR_SURE/x\n",
        'FILE:1: weights = "$UNSET_FOR_SURE/x": the environment variable UNSET_FOR_SURE is not set; '
        "`export UNSET_FOR_SURE=...` first, or write $$ for a dollar sign",
    ),
    # the file itself
    ("a: 1\nb: 2\na: 3\n", "FILE:3: key a stands here and on line 1; keep one"),
    ("run:\n  seed: 1\n  seed: 1\n", "FILE:3: key seed stands here and on line 2; keep one"),
    ("- a\n", "FILE: a config is a mapping of sections, such as `run:` with `folder: runs/first` under it"),
    ("", "FILE: a config is a mapping of sections, such as `run:` with `folder: runs/first` under it"),
    (
        "run:\n\tseed: 1\n",
        "FILE:2: not readable as YAML: found character '\\t' that cannot start any token; "
        "check quotes and indentation (spaces, no tabs)",
    ),
    ("run: \x07\n", "FILE:1: not readable as YAML: a control character stands here; remove it"),
    ("run: &a {}\nvit:\n  x: *a\n", "FILE:3: alias *a is not read; write the value out"),
    ("run: !!set {a}\n", "FILE:1: tag tag:yaml.org,2002:set does not fit here; write the value without a tag"),
    ("run: !!int x\n", "FILE:1: tag tag:yaml.org,2002:int does not fit here; write the value without a tag"),
    ("? [a]\n: 1\n", "FILE:1: a key is text, not a list or a mapping"),
]


@pytest.mark.parametrize(("text", "message"), FAULTS, ids=[message[:60] for _, message in FAULTS])
def test_each_mistake_has_its_line(text: str, message: str, tmp_path: Path) -> None:
    lines = errors_of(text, folder=tmp_path)
    assert message in lines
    field = re.split(r" = |\[", message)[0]
    assert sum(line.startswith(field) for line in lines) == 1, "one fault, one line"


OVERRIDE_FAULTS = [
    ("optim.lr='1'", "command line: optim.lr='1': text where a number belongs; write 1, without quotes"),
    ("optim.lr=0", "command line: optim.lr=0: must be greater than 0"),
    (
        "optim.betas=[1,x]",
        "command line: optim.betas=[1,x]: text where a number belongs; write it in digits, such as 3e-4",
    ),
    ("optim.lrr=1", "command line: optim.lrr=1: unknown key; did you mean optim.lr?"),
    ("optm.lr=1", "command line: optm.lr=1: unknown section; did you mean optim?"),
    ("zz.lr=1", "command line: zz.lr=1: unknown section; a config has run, vit, data, optim, evaluate, weights"),
    ("run.folder.x=1", "command line: run.folder.x=1: run.folder is a value, not a section with keys"),
    ("lr", "command line: lr: an override is section.key=value, such as optim.lr=3e-4"),
    (".lr=3", "command line: .lr=3: an override is section.key=value, such as optim.lr=3e-4"),
    ("--lr=3", "command line: --lr=3: an override is section.key=value, such as optim.lr=3e-4"),
    (
        "optim.betas=[1",
        "command line: optim.betas=[1: not readable as YAML: expected ',' or ']', but got '<stream end>'; "
        "check quotes and indentation (spaces, no tabs)",
    ),
]


@pytest.mark.parametrize(("word", "message"), OVERRIDE_FAULTS, ids=[word for word, _ in OVERRIDE_FAULTS])
def test_a_mistake_on_the_command_line_is_shown_as_typed(word: str, message: str, tmp_path: Path) -> None:
    assert errors_of(GOOD, word, folder=tmp_path) == [message]


def test_all_mistakes_are_said_at_once(tmp_path: Path) -> None:
    text = "run:\n  seed: x\n  sed: 1\noptim:\n  lr: '1'\n  betas: [x, y]\n"
    lines = errors_of(text, "vit.dropout=2", folder=tmp_path)
    assert len(lines) == len(set(lines)) == 8
    places = [re.match(r"FILE(:\d+)?|command line", line)[0] for line in lines]  # type: ignore[index]
    assert sorted(places) == ["FILE", "FILE:1", "FILE:2", "FILE:3", "FILE:5", "FILE:6", "FILE:6", "command line"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such file; the recipes lie under configs/pretrain"):
        load(tmp_path / "gone.yaml", Config)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory; name a YAML file"):
        load(tmp_path, Config)
    (tmp_path / "latin.yaml").write_bytes(b"run: \xe9\n")
    with pytest.raises(ConfigError, match=r"not UTF-8 text \(byte 5\); name a YAML file"):
        load(tmp_path / "latin.yaml", Config)


# ---- differences ----


def test_differences_are_of_the_kind_declared_at_the_key_or_its_section(recipe: Path) -> None:
    old = {**read_back(load(recipe, Config)), "gone": {"x": 1}}
    words = ["run.log_every_steps=5", "vit.image_px=[32,32]", "optim.micro_batch=4", "data.workers=0", "run.seed=1"]
    found = differences(old, load(recipe, Config, [*words, "evaluate.every_steps=7"]))
    assert found == [
        Difference("run.seed", 0, 1, "identity"),
        Difference("run.log_every_steps", 10, 5, "free"),
        Difference("vit.image_px", 224, [32, 32], "identity"),
        Difference("data.workers", 2, 0, "free"),
        Difference("optim.micro_batch", "auto", 4, "numeric"),
        Difference("evaluate", None, {"every_steps": 7}, "free"),
        Difference("gone", {"x": 1}, "(absent)", "identity"),
    ]
    assert str(found[0]) == "run.seed: 0 -> 1"


def test_differences_stand_in_the_order_of_the_config(recipe: Path) -> None:
    gone = {f"gone{number}": number for number in range(20)}
    found = differences({**read_back(load(recipe, Config)), **gone}, load(recipe, Config))
    assert [difference.key for difference in found] == list(gone)


def test_a_config_of_another_command_is_told_by_its_sections(recipe: Path) -> None:
    config = load(recipe, Config)
    old = read_back(config)
    assert is_of_kind(old, config)
    assert is_of_kind({key: value for key, value in old.items() if key != "optim"}, config)  # it has defaults
    assert not is_of_kind({**old, "objective": {}}, config)
    assert not is_of_kind({key: value for key, value in old.items() if key != "data"}, config)


def test_a_section_hands_its_kind_to_its_keys(recipe: Path) -> None:
    old = read_back(load(recipe, Config, ["evaluate.every_steps=7"]))
    assert differences(old, load(recipe, Config, ["evaluate.every_steps=8"])) == [
        Difference("evaluate.every_steps", 7, 8, "free")
    ]


def test_a_key_that_an_earlier_version_did_not_write_had_its_default(recipe: Path) -> None:
    old = {"run": {"seed": 0}, "data": {"train": "shards"}}
    assert differences(old, load(recipe, Config, ["optim.lr=1e-4"])) == [
        Difference("run.folder", "(absent)", "runs/first", "identity"),
        Difference("optim.lr", 1e-3, 1e-4, "identity"),
    ]


def read_back(config: BaseModel) -> dict[str, object]:
    return config.model_dump(mode="json")


def test_a_float_survives_to_the_last_bit(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for lr in (5e-324, math.pi, 1.7976931348623157e308, 1 / 3, 1e16, 123456789.0):
        config = Config(run=RunConfig(folder=Path("x")), data=DataConfig(train=Path("y")), optim=OptimConfig(lr=lr))
        path.write_text(dump(config))
        assert load(path, Config).optim.lr == lr
