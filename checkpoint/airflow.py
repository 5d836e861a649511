"""Airflow's task and asset state in our stores: the public path of `checkpoint.neighbours.airflow`."""

from checkpoint.neighbours.airflow import CheckpointBackend as CheckpointBackend
