"""The walls of the house: who may import whom, what loads without torch, and what every config model promises."""

import ast
import functools
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

HOUSE = Path(__file__).parents[1]
ROOMS = ("configs", "vit", "data_pipeline", "launch", "pretrain", "finetune")

# What a file may import of ours besides its own room: the first line that fits holds.
MAY_IMPORT = {
    "configs": [],
    "vit": [],
    "data_pipeline": [],
    "launch": ["configs"],
    "pretrain": ["configs", "vit", "data_pipeline", "launch"],
    "finetune": ["configs", "vit", "data_pipeline", "launch"]
    # Of pretraining only what really is the same; never its loop or its engine.
    + [f"pretrain.{tool}" for tool in ("config", "workload", "optim", "objective", "meter", "evaluate")]
    + ["pretrain.checkpoint", "pretrain.checkpoint_folder"],
}

ONE_FILE = {"deepspeed": "pretrain.engine", "accelerate": "finetune.train"}

COMMANDS = {
    "vit": ["", "info"],
    "data_pipeline": ["", "pack", "index", "inspect", "verify", "order", "simulate"],
    "launch": ["", "local", "doctor"],
    "pretrain": [""],
    "finetune": [""],
}

WITHOUT_TORCH = [
    *("configs.load", "vit.config", "vit.cost", "vit.weights", "launch.world", "launch.run", "launch.local"),
    *("data_pipeline.config", "data_pipeline.manifest", "data_pipeline.plan", "data_pipeline.samples"),
    *("pretrain.config", "pretrain.check", "finetune.config", "finetune.check"),
]

HEAVY = ("torch", "deepspeed", "accelerate", "webdataset", "torchvision")

MODULES = {
    ".".join(path.relative_to(HOUSE).with_suffix("").parts).removesuffix(".__init__"): path
    for room in ROOMS
    for path in sorted((HOUSE / room).rglob("*.py"))
}


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Every module that a file of ours imports, also inside functions and for types alone."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively: name the room"
            # `from pretrain import checkpoint` imports a module, `from pretrain.optim import build` does not.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return frozenset(found)


def reach(module: str) -> set[str]:
    """What of ours is loaded by importing a module, at the latest when its functions run."""
    reached, todo = set(), [module]
    while todo:
        if (current := todo.pop()) not in reached:
            reached.add(current)
            todo += [name for name in imports(current) if name in MODULES]
    return reached


def room_of(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_a_file_imports_only_what_its_room_may(module: str) -> None:
    room = room_of(module)
    allowed = [room, *MAY_IMPORT[room]]
    ours = {name for name in imports(module) if room_of(name) in (*ROOMS, "tests")}
    strangers = {name for name in ours if not any(name == a or name.startswith(f"{a}.") for a in allowed)}
    assert not strangers, f"{module} may import of ours: {', '.join(allowed)}"


def test_fine_tuning_never_reaches_the_pretraining_loop_or_engine() -> None:
    reached = set().union(*(reach(module) for module in MODULES if room_of(module) == "finetune"))
    assert not reached & {"pretrain.train", "pretrain.engine", "pretrain.__main__"}


@pytest.mark.parametrize(("library", "owner"), ONE_FILE.items())
def test_one_file_knows_the_library(library: str, owner: str) -> None:
    users = {module for module in MODULES if any(room_of(name) == library for name in imports(module))}
    assert users == {owner}


def test_no_drawer_for_everything() -> None:
    names = {path.stem for room in (*ROOMS, "tests") for path in (HOUSE / room).rglob("*")}
    assert not names & {"utils", "util", "common", "misc", "helpers", "helper"}, (
        "a function without a noun to live under"
    )


def loaded_by(program: str) -> list[str]:
    """The heavy libraries that a fresh interpreter has loaded after a program."""
    program = f"import json, sys\n{program}\nprint(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", program], cwd=HOUSE, capture_output=True, text=True, check=True)
    loaded: list[str] = json.loads(done.stdout.splitlines()[-1])
    return loaded


HELP_OF_EACH_COMMAND = """
import runpy
for command in {commands}:
    sys.argv = ["{room}", *command.split(), "--help"]
    try:
        runpy.run_module("{room}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, sys.argv
"""


@pytest.mark.parametrize(("room", "commands"), COMMANDS.items())
def test_help_loads_neither_torch_nor_deepspeed(room: str, commands: list[str]) -> None:
    assert loaded_by(HELP_OF_EACH_COMMAND.format(room=room, commands=commands)) == []


def test_configs_manifests_and_weights_are_judged_without_torch() -> None:
    assert loaded_by(f"import importlib\nfor name in {WITHOUT_TORCH}: importlib.import_module(name)") == []


def models() -> list[type[BaseModel]]:
    """The public pydantic models: configs, manifests, headers."""
    owners = [importlib.import_module(name) for name in WITHOUT_TORCH]
    found = {c for m in owners for c in vars(m).values() if inspect.isclass(c) and issubclass(c, BaseModel)}
    ours = (c for c in found if room_of(c.__module__) in ROOMS and not c.__qualname__.startswith("_"))
    return sorted(ours, key=lambda c: c.__qualname__)


@pytest.mark.parametrize("model", models(), ids=lambda model: model.__qualname__)
def test_models_are_frozen_and_refuse_unknown_keys(model: type[BaseModel]) -> None:
    assert model.model_config.get("frozen") is True
    assert model.model_config.get("extra") == "forbid"


@pytest.mark.parametrize(
    "model", [m for m in models() if m.__qualname__.endswith("Config")], ids=lambda m: m.__qualname__
)
def test_every_config_key_is_read(model: type[BaseModel]) -> None:
    read = set().union(*(attributes_read(module) for module in MODULES))
    assert set(model.model_fields) <= read


@functools.cache
def attributes_read(module: str) -> frozenset[str]:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load))
    return frozenset(node.attr for node in nodes)
