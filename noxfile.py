"""What CI runs, one session at a time. They run on work that is not committed too.

nox -l                                  names the sessions
nox -s lint                             runs one
nox -s tests-3.12 -- tests/test_x.py    what follows `--` goes to pytest
nox -R -s tests-3.12 -- -k lease        -R: as installed the last time, which saves seconds
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "area"]

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
NEWEST = PYTHONS[-1]

EXTRAS = "cli,server,postgres,objects,arrow,png"  # with httpx; `all` has httpx2 in its place
AREA = ("tests/test_public.py", "tests/test_codec.py", "tests/test_incremental.py", "tests/test_checkpointer.py")
AREA += ("tests/test_groups.py",)
"""The tests that find most mistakes in the shortest time."""
CORE = (*AREA, "tests/test_values.py", "tests/test_stores.py")
"""The core's own tests: what may differ with the versions of Python and of the libraries."""

# The long searches, the sweeps, the demo and the API's document are the same on every Python: one run does them.
SAME_ON_EVERY_PYTHON = [
    *("--ignore=tests/test_server_document.py", "--ignore=tests/test_soak.py", "--ignore=tests/test_crash_sweep.py"),
    *("--ignore=tests/test_incremental_oracle.py", "--ignore=tests/test_model.py", "--ignore=tests/test_demo.py"),
    *("--ignore=tests/test_capacity.py", "--ignore=tests/test_simulator.py", "--ignore=tests/test_guide.py"),
    *("--ignore=tests/test_cluster.py", "--ignore=tests/test_workers.py"),
    *(
        "--ignore=tests/test_connectors.py",
        "--ignore=tests/test_server_docs.py",
        "--ignore=tests/test_incremental_worlds.py",
    ),
    *("--ignore=tests/test_tutorial.py",),
    *("-k", "not fault_18 and not fault_36 and not fault_50 and not recipe_killed and not loses_anything"),
]


def group(*names: str) -> tuple[str, ...]:
    """Return the requirements of dependency groups."""
    return nox.project.dependency_groups(PROJECT, *names)


def pytest(session: nox.Session, *default: str) -> None:
    """Run what follows `--`, else `default`."""
    session.run("python", "-m", "pytest", *(session.posargs or ["-q", "-n", "2", *default]))


@nox.session
def lint(session: nox.Session) -> None:
    """Style, the format, the direction of imports, and a reason behind each suppression. Seconds."""
    session.install(*group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports", "--no-logo", "--no-cache", env={"PYTHONPATH": "."})
    session.run("python", ".ci/house.py", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy and pyright, both strict."""
    session.install("-e", ".[all,meltano]", *group("lint", "test"))
    session.run("mypy", "--strict")
    session.run(
        "pyright", "--pythonpath", str(Path(session.bin, "python")), env={"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    )
    # What the package shows has a type everywhere; Meltano's own classes, which one file inherits from, have none.
    session.install(".", "--no-deps", "--force-reinstall" if session.venv_backend != "uv" else "--reinstall")
    found = session.run("pyright", "--verifytypes", "checkpoint", "--ignoreexternal", silent=True, success_codes=[0, 1])
    if "error: No py.typed" in str(found):
        session.error(str(found))
    lines = [line for line in str(found).splitlines() if "/checkpoint/" in line and " - error: " in line]
    if untyped := [line for line in lines if "/neighbours/meltano.py" not in line]:
        session.error("\n".join(untyped))


@nox.session
def area(session: nox.Session) -> None:
    """The tests that find most mistakes in the shortest time, or those that follow `--`: a minute at most."""
    session.install("-e", ".[all]", *group("test"))
    pytest(session, *AREA)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """All tests: with httpx2 on every other Python, with httpx on the rest."""
    session.install("-e", ".[all]" if PYTHONS.index(str(session.python)) % 2 else f".[{EXTRAS}]", *group("test"))
    pytest(session)


@nox.session(python=PYTHONS)
def short(session: nox.Session) -> None:
    """The tests that may differ from Python to Python."""
    session.install("-e", ".[all]" if PYTHONS.index(str(session.python)) % 2 else f".[{EXTRAS}]", *group("test"))
    pytest(session, *SAME_ON_EVERY_PYTHON)


@nox.session(python=PYTHONS)
def core(session: nox.Session) -> None:
    """The core's own tests on any Python."""
    session.install("-e", ".[all]", *group("test"))
    pytest(session, *CORE)


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """The core's own tests with the lowest release that pyproject.toml allows of each library."""
    session.install("uv")
    session.run("uv", "lock", "--dry-run", silent=True)  # `uv sync` finds releases for every Python that we support
    pins = Path(session.create_tmp(), "lowest.txt")
    extras = [word for extra in EXTRAS.split(",") for word in ("--extra", extra)]
    python = ("--python", str(Path(session.bin, "python")))
    resolve = ("uv", "pip", "compile", "-q", "--resolution", "lowest-direct", "--no-header", "--no-annotate", *python)
    session.run(*resolve, *extras, "-o", str(pins), "pyproject.toml", silent=True)
    tools = [each for each in group("test") if not each.startswith("schemathesis")]  # it needs newer releases itself
    session.install("-e", f".[{EXTRAS}]", "-c", str(pins), *tools)
    pytest(session, *CORE)


@nox.session(python=NEWEST)
def coverage(session: nox.Session) -> None:
    """The lines that the tests run, and the floor below which that must not fall ([tool.coverage.report])."""
    session.install("-e", ".[all]", *group("test"))
    session.run("coverage", "erase")
    session.env["COVERAGE_CORE"] = "sysmon"
    pytest(session, "--cov", "--cov-report=term:skip-covered", *SAME_ON_EVERY_PYTHON)


@nox.session
def wheel(session: nox.Session) -> None:
    """The wheel, installed elsewhere, without an editable checkout to lean on."""
    session.install("build", "uv")
    folder = Path(session.create_tmp()).resolve()
    session.run("python", "-m", "build", "--installer", "uv", "--wheel", "--outdir", str(folder), silent=True)
    newest = max(folder.glob("*.whl"), key=lambda path: path.stat().st_mtime)
    session.install("--reinstall" if session.venv_backend == "uv" else "--force-reinstall", f"{newest}[cli,server]")
    session.chdir(folder)
    session.run("checkpoint", "--version")
    session.run("checkpoint", "demo")
    session.run("checkpoint", "demo", "--serve")


@nox.session
def neighbours(session: nox.Session) -> None:
    """Meltano, and a real tap and target: their own requirements keep them out of the other sessions."""
    session.install("-e", ".[all,meltano]", *group("test"))
    folder, places = Path(session.create_tmp()).resolve(), list[str]()
    for package in ("tap-rest-api-msdk==1.4.2", "target-jsonl==0.1.4"):
        place = folder / package.partition("==")[0]
        session.run("python", "-m", "venv", "--clear", str(place), silent=True)
        session.run(str(place / "bin" / "pip"), "install", "-qq", package, external=True)
        places.append(str(place / "bin"))
    session.env["PATH"] = os.pathsep.join([os.environ["PATH"], *places])
    pytest(session, "tests/test_meltano.py", "tests/test_singer_registry.py")


@nox.session
def engines(session: nox.Session) -> None:
    """The recipe of a Dagster asset, and what dlt and the Singer SDK answer to the same rows."""
    session.install("-e", ".[all]", *group("test"), "dagster>=1.10", "dlt>=1.4", "singer-sdk>=0.40")
    compared = ("tests/test_incremental_dlt.py", "tests/test_incremental_singer.py")
    pytest(session, "tests/test_orchestrators.py", "tests/test_migrate.py", *compared, "-k", "dagster or dlt or singer")


@nox.session
def airflow(session: nox.Session) -> None:
    """Airflow: its state in our stores, and the recipes for its DAGs. It goes with none of the other sessions."""
    mypy = [each for each in group("lint") if each.startswith("mypy")]
    session.install("-e", ".[all,airflow]", *group("test"), *mypy)
    session.run("mypy", "--strict", "checkpoint/airflow.py", "checkpoint/neighbours/airflow.py")
    pytest(session, "tests/test_airflow.py")


@nox.session
def prefect(session: nox.Session) -> None:
    """The recipe of a Prefect flow, over a server of Prefect's own on the loopback. CI does not run it."""
    session.install("-e", f".[{EXTRAS}]", *group("test"), "prefect>=3")
    pytest(session, "tests/test_orchestrators.py", "-n", "0", "-k", "prefect")


@nox.session
def dask(session: nox.Session) -> None:
    """The jobs of `docs/howto/cluster.md` on Dask, its workers killed. `-- tests/test_cluster.py -k dask`: all."""
    session.install("-e", ".[all]", *group("test", "dask"))
    pytest(session, "tests/test_cluster.py", "-k", "dask and server")


@nox.session
def spark(session: nox.Session) -> None:
    """The same on Spark, which needs Java 17. `-- tests/test_cluster.py -k spark`: all."""
    if shutil.which("java") is None:
        session.skip("Spark needs Java 17 or later, and there is no `java` on the PATH")
    session.install("-e", ".[all]", *group("test", "spark"))
    pytest(session, "tests/test_cluster.py", "-k", "spark and server")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, in build/docs/site: every link and anchor leads somewhere. `-- --serve` to look at it."""
    session.install("-e", ".[all]", *group("docs"))
    session.run("python", ".ci/build_docs.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Has anything become grossly slower? Ratios to peers within wide bounds, a minute."""
    session.install("-e", ".[all]", *group("bench"))
    session.run("python", "benchmarks/check.py", *session.posargs)


@nox.session
def house(session: nox.Session) -> None:
    """The measures of the code: sizes, complexity, suppressions, names. A git revision may follow `--`."""
    session.run("python", ".ci/house.py", *session.posargs)
