"""Recipes (`pretrain/`, `finetune/`: one YAML file a run) and the strict reading of them (`load.py`)."""
