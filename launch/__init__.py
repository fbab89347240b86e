"""Starts ranks, tells each rank who it is, and keeps a run's folder. Nothing here imports torch before it has to."""
