"""Streams: which rows of a source are new, and how far a job has come."""
