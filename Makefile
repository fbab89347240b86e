# Needs Python >= 3.11 with pip, make and git; no compiler and no activated environment.
# Everything is installed into .venv, by uv and from uv.lock, its bytecode compiled once instead of in every rank;
# `make clean` takes it away again.

PYTHON ?= python3
UV_VERSION := 0.13.8

# .venv/.torch remembers whose torch .venv has, so that TORCH=system is said once: at `make setup`.
TORCH ?= $(or $(shell cat .venv/.torch 2>/dev/null),locked)
READY := .venv/.ok-$(TORCH)-$(firstword $(shell cksum uv.lock))

export UV_PYTHON_DOWNLOADS := never
export UV_HTTP_TIMEOUT := 300
unexport VIRTUAL_ENV

.PHONY: help setup demo test clean

help:
	@echo "make demo                  pack, pretrain and fine-tune on real images, in two minutes; sets up what it needs"
	@echo "make test                  every check and test; sets up what it needs"
	@echo "make setup                 only set up: .venv from uv.lock (5.6 GB on Linux, CUDA libraries included)"
	@echo "make setup TORCH=system    the same on top of the torch >= 2.11 that $(PYTHON) already has"
	@echo "make clean                 remove .venv and the private uv"

demo: $(READY)
	.venv/bin/python -m launch.demo

test: $(READY)
	$(call timed,.venv/bin/ruff check)
	$(call timed,.venv/bin/ruff format --check)
	$(call timed,.venv/bin/mypy)
	$(call timed,OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q --durations=10)

define timed
@echo "== $(1)"; start=$$(date +%s); $(1); status=$$?; echo "== $$(($$(date +%s) - start)) s"; exit $$status
endef

setup: $(READY)
	@echo ".venv is set up, with $(TORCH) torch; next: make demo"

clean:
	rm -rf .venv .uv


# ---- setting up ----

$(READY): uv.lock | .uv/bin/uv
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11)' || { echo "error: $(PYTHON) is not Python >= 3.11;" \
	    "name one that is: make PYTHON=python3.12 ..." >&2; exit 2; }
	@rm -f .venv/.ok-*
	@echo "installing into .venv, with $(TORCH) torch"
	$(install-$(TORCH))
	@echo $(TORCH) > .venv/.torch
	@touch $@

# uv from PATH if it reads our lock, else the pinned one; `pip --target` also works where ensurepip is missing.
.uv/bin/uv:
	@mkdir -p .uv/bin
	@if uv export --frozen --quiet >/dev/null 2>&1; then ln -sf "$$(command -v uv)" $@; \
	else $(PYTHON) -m pip install --quiet --root-user-action ignore --disable-pip-version-check --upgrade --target .uv uv==$(UV_VERSION); fi

define install-locked
@test "$$(cat .venv/.torch 2>/dev/null)" != system || rm -rf .venv
.uv/bin/uv sync --frozen --group test --compile-bytecode --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')"
endef

# torch stays where it is, found through a .pth file (which also serves where $(PYTHON) is itself of an environment);
# all else is installed as locked.
define install-system
@$(PYTHON) -c 'import torch, torchvision; assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11)' || { echo \
    "error: TORCH=system needs torch >= 2.11 and its torchvision in $(PYTHON); name the Python that has them:" \
    "make setup TORCH=system PYTHON=/path/to/python" >&2; exit 2; }
.uv/bin/uv venv --quiet --clear --system-site-packages --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" .venv
@$(PYTHON) -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])' \
    > "$$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch-of-the-system.pth"
.uv/bin/uv export --quiet --frozen --group test --prune torch --prune torchvision --output-file .venv/requirements.txt
.uv/bin/uv pip install --quiet --no-deps --compile-bytecode --python .venv -r .venv/requirements.txt
endef

$(if $(filter locked system,$(TORCH)),,$(error TORCH is locked or system, not $(TORCH)))
