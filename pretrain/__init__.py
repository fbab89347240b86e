"""Upstream pretraining: DeepSpeed ZeRO, gradient checkpointing, exact order of the data, checkpoints that resume to the
bit."""
