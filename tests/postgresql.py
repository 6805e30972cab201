"""A PostgreSQL server of the tests' own, on 127.0.0.1, with its data in a temporary folder."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

USER, PASSWORD = "searcher", "pa55-w0rd"
# what is lost when the machine stops need not be kept
_SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "shared_buffers": "16MB"}


def server_programs() -> Path | None:
    """Where ``initdb`` and ``postgres`` are: on the path, or of the newest version that Debian's packages brought."""
    found = shutil.which("postgres")
    beside = [Path(found).resolve().parent] if found else []
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: -float(folder.parent.name))
    return next((folder for folder in [*beside, *versions] if (folder / "initdb").exists()), None)


class Server:
    """One PostgreSQL server, which dies with this process; over TCP it asks for the password.

    Example:
        >>> with Server(programs) as server:
        ...     url = server.database("first")
    """

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        # a path that any user can reach, and short enough for a socket
        self._folder = Path(tempfile.mkdtemp(prefix="elm-nni-", dir="/tmp"))
        self._as_user: list[str] = []
        if os.getuid() == 0:
            # the server refuses to run as root
            shutil.chown(self._folder, "nobody", "nogroup")
            self._as_user = ["--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._initialize()
            self._start()
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def url(self, database: str = "postgres", *, user: str = USER, password: str = PASSWORD) -> str:
        return f"postgresql+psycopg://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def database(self, name: str) -> str:
        """Makes an empty database; returns its URL."""
        self._run("psql", "--no-psqlrc", "--command", f'CREATE DATABASE "{name}"', self._socket)
        return self.url(name)

    def stop(self) -> None:
        if self._process is not None:
            # a fast shutdown, which does not wait for clients
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _socket(self) -> str:
        return f"host={self._folder} port={self.port} user={USER} dbname=postgres"

    def _initialize(self) -> None:
        file = self._folder / "password"
        file.write_text(PASSWORD, encoding="utf-8")
        file.chmod(0o644)
        self._run(
            "initdb", "--pgdata", "data", "--username", USER, "--pwfile", "password", "--auth-local=trust",
            "--auth-host=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync",
        )  # fmt: skip

    def _start(self, seconds: float = 30.0) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        settings = {**_SETTINGS, "listen_addresses": "127.0.0.1", "unix_socket_directories": self._folder}
        given = [f"--{name}={value}" for name, value in settings.items()]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                self._command("postgres", "-D", "data", "-p", str(self.port), *given), cwd=self._folder,
                env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        limit = time.monotonic() + seconds
        while self._call("pg_isready", "--dbname", self._socket).returncode:
            if self._process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(f"PostgreSQL does not start: {(self._folder / 'log').read_text()[-1000:]}")
            time.sleep(0.1)

    def _run(self, program: str, *arguments: str) -> None:
        done = self._call(program, *arguments)
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stderr}")

    def _call(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._command(program, *arguments), cwd=self._folder, env=self._environment, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip

    def _command(self, program: str, *arguments: str) -> list[str]:
        # also when this process is killed the server ends
        return ["setpriv", "--pdeathsig=INT", *self._as_user, str(self._programs / program), *arguments]

    @property
    def _environment(self) -> dict[str, str]:
        # none of the user's own PGHOST, PGDATA and so on
        return {"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": str(self._folder)}
