"""docs/deployment.md, "Managed PostgreSQL", on a server as a provider has it: TLS, passwords, no superuser.

It is Debian's, for the embedded one is built without TLS.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cli.test_connect_a_page import section
from cli.test_quickstart import ROOT, free_ports
from faults.processes import Processes, inherited
from secrets_hunt import marked, marked_key

PROGRAMS = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)), Path()).parent
ADMIN, OWNER, LOGIN = (marked(name) for name in ("admin", "owner", "login"))


def certificate(
    name: str, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Of a host, if somebody issues it; else one that issues others."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder(subject_name=subject, public_key=key.public_key())
        .issuer_name(issuer[0].subject if issuer else subject)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    )
    return made.sign(issuer[1] if issuer else key, hashes.SHA256()), key


def pem(one: x509.Certificate) -> bytes:
    return one.public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True)
class Provider:
    """`root` and `other` are files: of the root that issued the server's certificate, and of none of its."""

    port: int
    root: Path
    other: Path

    def url(self, login: str, password: str, database: str, root: Path | None = None) -> str:
        return (
            f"postgresql://{login}:{password}@localhost:{self.port}/{database}"
            f"?sslmode=verify-full&sslrootcert={root or self.root}"
        )


@contextmanager
def provider() -> Iterator[Provider]:
    directory = Path(tempfile.mkdtemp(prefix="convsync-test-", dir="/tmp"))
    # PostgreSQL refuses to run as root.
    as_postgres = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    user = pwd.getpwnam("postgres").pw_uid if as_postgres else os.geteuid()
    (port,) = free_ports(1)
    data = directory / "server" / "data"

    def run(program: str, *arguments: str) -> None:
        done = subprocess.run(  # noqa: S603
            [*as_postgres, str(PROGRAMS / program), *arguments],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    try:
        directory.chmod(0o711)
        (directory / "server").mkdir()
        (directory / "password").write_text(ADMIN, encoding="utf-8")
        os.chown(directory / "server", user, -1)
        os.chown(directory / "password", user, -1)
        run("initdb", "-D", str(data), "-U", "admin", "-A", "scram-sha-256", f"--pwfile={directory}/password")
        root = certificate("the provider")
        made, key = certificate("localhost", root)
        found = Provider(port, directory / "root.pem", directory / "other.pem")
        found.root.write_bytes(pem(root[0]))
        found.other.write_bytes(pem(certificate("somebody else")[0]))
        (data / "server.crt").write_bytes(pem(made))
        (data / "server.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        (data / "server.key").chmod(0o600)
        os.chown(data / "server.key", user, -1)
        (data / "pg_hba.conf").write_text("hostssl all all all scram-sha-256\n", encoding="utf-8")
        options = f"-p {port} -c listen_addresses=localhost -c ssl=on -c unix_socket_directories={data}"
        run("pg_ctl", "start", "-w", "-D", str(data), "-l", f"{directory}/server/log", "-o", options)
        yield found
    finally:
        with suppress(AssertionError):
            run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", str(data))
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.skipif(not PROGRAMS.name, reason="no PostgreSQL with TLS is installed (Debian: postgresql)")
async def test_a_server_that_lets_in_by_tls_and_password_alone_is_installed_and_served(
    tmp_path: Path,
) -> None:
    made, granted, *_ = section(ROOT / "docs" / "deployment.md", "Managed PostgreSQL")
    with provider() as there:
        with psycopg.connect(there.url("admin", ADMIN, "postgres"), autocommit=True) as administrator:
            for statement in made.split(";"):
                administrator.execute(statement.encode())
            for login, password in (("convsync_owner", OWNER), ("convsync_login", LOGIN)):
                administrator.execute(f"alter role {login} password '{password}'".encode())
        owner, login = (
            there.url("convsync_owner", OWNER, "convsync"),
            there.url("convsync_login", LOGIN, "convsync"),
        )
        settings = {
            **inherited(),
            "CONVSYNC_MIGRATE_DATABASE_URL": owner,
            "CONVSYNC_DATABASE_URL": login,
            "CONVSYNC_TOKEN_KEY": marked_key(),
            "CONVSYNC_API_KEYS": f"ops:operate:{marked('operate-key')}",
            "CONVSYNC_DATA_DIR": str(tmp_path / "data"),
        }
        convsync = Processes(tmp_path, settings)
        try:
            code, _, errors = await convsync.run("migrate")
            assert code == 0, errors
            code, _, errors = await convsync.run("status")
            assert code == 1
            assert 'grant convsync_service to "convsync_login";' in errors
            with psycopg.connect(owner, autocommit=True) as connection:
                connection.execute(granted.encode())
            code, _, errors = await convsync.run("status", "--json")
            assert code == 0, errors
            service = await convsync.start("serve", "--port", "0")
            address = (await service.line("convsync ")).rpartition(" ")[2]
            async with aiohttp.ClientSession() as client, client.get(f"{address}readyz") as answer:
                assert answer.status == 200, await answer.text()
            service.signal(15)
            assert await service.wait() == 0, service.errors()

            for wrong, told in (
                (
                    there.url("convsync_login", LOGIN, "convsync", there.other),
                    "its certificate was not issued by",
                ),
                (
                    there.url("convsync_login", LOGIN, "convsync", tmp_path / "none"),
                    "the file of sslrootcert is not",
                ),
                (login.replace("localhost", "127.0.0.1"), "its certificate is for another host name"),
                (
                    re.sub(r"\?.*", "?sslmode=disable", login),
                    "it lets nobody in that way: pg_hba.conf forbids it",
                ),
                (login.replace(LOGIN, marked("wrong")), "it refuses the login or its password"),
                (login.replace("/convsync?", "/nowhere?"), "there is no such database on that server"),
            ):
                code, _, errors = await convsync.run("status", CONVSYNC_DATABASE_URL=wrong)
                assert (code, f"the database cannot be reached: {told}" in errors) == (1, True), errors
        finally:
            await convsync.end()
