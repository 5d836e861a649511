"""Keep Airflow's task and asset state in a store: the public path of `checkpoint.neighbours.airflow`."""

from checkpoint.neighbours.airflow import CheckpointBackend as CheckpointBackend
