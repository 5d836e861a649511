"""Incremental-sync checkpoints: where a job stopped, and how far it is safely past."""
