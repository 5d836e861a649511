"""The jobs of `docs/howto/cluster.md`, as they stand there, on engines whose workers and drivers are killed.

`benchmarks/cluster.py` is the long form. Dask and Spark have sessions of their own: `nox -s dask`, `nox -s spark`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import cluster
import places

SEED = int(os.environ.get("CHECKPOINT_SEED", "0"))
SMALL = cluster.Size(rows=1_098, step="days=6", accounts=80, chunk=20, workers_killed=2, workers=3, latency=0)
"""61 windows of eighteen rows, 80 accounts of two."""


@pytest.fixture(params=["sqlite", "postgres", "s3", "server"])
def made(request, tmp_path):
    """A store that processes share, and what they need to reach it."""
    if request.param == "server":
        with places.place("server", tmp_path) as made:
            yield made
        return
    if request.param == "sqlite":
        yield places.Place(f"sqlite:///{tmp_path / 'state.db'}", {})
        return
    yield places.Place(request.getfixturevalue({"postgres": "postgres_url", "s3": "s3"}[request.param]), {})


CASES = [("processes", "sqlite"), ("processes", "postgres"), ("processes", "s3"), ("processes", "server"),
         ("accounts", "postgres"), ("accounts", "server"), ("accounts", "s3"), ("accounts-parts", "s3"),
         ("dask", "sqlite"), ("dask", "server"), ("accounts-dask", "server"),
         ("spark", "postgres"), ("spark", "server"),
         ("accounts-spark", "postgres"), ("accounts-spark", "server")]  # fmt: skip


@pytest.mark.parametrize(("engine", "made"), CASES, indirect=["made"])
def test_nothing_is_missing_after_kills(engine, made, tmp_path):
    if engine in cluster.NEEDS:
        pytest.importorskip(cluster.NEEDS[engine], reason=f"{engine} is not installed")
    run = cluster.Cluster(engine, made, tmp_path, SMALL, SEED)
    found = run.run()
    print(found)
    assert (found.rows, found.parts) == ((160, 80) if engine.startswith("accounts") else (1_098, 61)), f"seed {SEED}"
    assert (found.missing, found.foreign) == (0, 0), f"seed {SEED}"
    assert found.workers_killed + found.drivers_killed > 0, f"seed {SEED}"  # of three; a quick one is done before
    assert found.twice < found.rows, f"seed {SEED}"  # it went on, and did not begin anew


def test_the_cluster_page_shows_what_was_measured():
    results = json.loads((cluster.RESULTS / "cluster.json").read_text("utf-8"))
    shown = cluster.PAGE.read_text("utf-8").partition(cluster.BEGIN)[2].partition(cluster.END)[0]
    assert shown == cluster.table(results)
    assert {(row["missing"], row["foreign"]) for row in results["runs"]} == {(0, 0)}
