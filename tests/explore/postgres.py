"""A real PostgreSQL server for a test, on a loopback port, in a folder of its own."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

PASSWORD = "pass@word"


def programs():
    """The folder of initdb and pg_ctl, as Debian's package installs them; None without it."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "pg_ctl").exists() and (folder / "initdb").exists()), None)


def user():
    """Arguments of `subprocess.run` for a user that PostgreSQL runs as; None for one who is not there."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    return None


def missing():
    """Why no server can be started here; None where one can."""
    if programs() is None:
        return "PostgreSQL is not installed (Debian's package postgresql)"
    return "PostgreSQL refuses root, and there is no other user" if user() is None else None


class Server:
    """A server with one user and one database, both called hps.

    Attributes:
        url: of the database, with its password.
    """

    def __init__(self):
        # Not pytest's folder, which other users cannot enter.
        self.folder = Path(tempfile.mkdtemp(prefix="hps-postgres-"))
        if user():
            os.chown(self.folder, user()["user"], user()["group"])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql://hps:pass%40word@127.0.0.1:{self.port}/postgres"
        password = self.folder / "password"
        password.write_text(PASSWORD)
        self._run("initdb", "-D", "data", "-U", "hps", "--auth=scram-sha-256", "--pwfile=password", "--no-sync")
        self.start()

    def _run(self, program, *arguments):
        done = subprocess.run(
            [programs() / program, *arguments],
            cwd=self.folder,
            # pg_ctl's server would keep a pipe open.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
            **user(),
        )
        assert done.returncode == 0, program

    def start(self):
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k {self.folder} -c fsync=off"
        self._run("pg_ctl", "start", "-w", "-D", "data", "-l", "log", "-o", options)

    def stop(self):
        self._run("pg_ctl", "stop", "-m", "immediate", "-D", "data")

    def remove(self):
        with contextlib.suppress(AssertionError):
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
