"""The Dockerfile without Docker: its steps make a service that starts, and that its health check finds well.

The base image and the file system of the container are not tried here.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from cli.test_quickstart import LIMIT, ROOT, directory, free_ports
from faults.processes import Processes, inherited
from own_server import LOGIN, install, own_server
from secrets_hunt import marked, marked_key

__all__ = ["directory"]  # the fixture


def stages() -> list[list[tuple[str, str]]]:
    """(instruction, the rest) of each stage."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    found: list[list[tuple[str, str]]] = []
    for instruction, _, rest in (line.partition(" ") for line in lines if line):
        if instruction == "FROM":
            found.append([])
        found[-1].append((instruction, rest.strip()))
    return found


def build(steps: list[tuple[str, str]], directory: Path, made: str) -> None:
    """What `docker build` does in the first stage, with `made` in the place of /opt/convsync."""
    context = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text("utf-8"), re.MULTILINE))
    where = directory / "build"
    where.mkdir()
    here = Path(sys.executable).parent
    for instruction, rest in steps:
        if instruction == "COPY":
            *sources, target = rest.split()
            assert set(sources) <= context
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, where / target)
                else:
                    shutil.copy(ROOT / source, where / target)
        elif instruction == "RUN":
            done = subprocess.run(  # noqa: S603 - the steps of our own file
                ["/bin/bash", "-euc", rest.replace("/opt/convsync", shlex.quote(made))],
                cwd=where,
                env={**os.environ, "PATH": f"{here}:{os.environ['PATH']}"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=LIMIT,
                check=False,
            )
            assert done.returncode == 0, f"{rest}\n{done.stdout.decode()}"
        else:
            assert instruction in ("FROM", "WORKDIR"), instruction
    assert not Path(made, "bin", "pip").exists()


async def test_the_steps_of_the_image_make_a_service_that_is_healthy_until_it_is_stopped(
    directory: Path,
) -> None:
    first, final = stages()
    made = str(directory / "image")
    await asyncio.to_thread(build, first, directory, made)
    told = dict(step for step in final if step[0] != "RUN")
    settings = dict(one.split("=", 1) for one in shlex.split(told["ENV"]))
    command = [*json.loads(told["ENTRYPOINT"]), *json.loads(told["CMD"])]
    check = json.loads(told["HEALTHCHECK"].partition("CMD ")[2])
    assert settings.pop("PATH") == "/opt/convsync/bin:$PATH"
    (port,) = free_ports(1)
    with own_server() as server:
        await install(server)
        environment = {
            **inherited(),
            **settings,
            "CONVSYNC_DATA_DIR": str(directory / "data"),
            "CONVSYNC_DATABASE_URL": server.service_url(LOGIN),
            "CONVSYNC_MIGRATE_DATABASE_URL": server.owner_url,
            "CONVSYNC_TOKEN_KEY": marked_key(),
            "CONVSYNC_API_KEYS": f"ops:operate:{marked('operate-key')}",
            "CONVSYNC_PORT": str(port),
        }
        processes = Processes(directory, environment)
        try:
            sick = await processes.program(f"{made}/bin/{check[0]}", *check[1:])
            assert await sick.wait() != 0, "nobody is there"
            service = await processes.program(f"{made}/bin/{command[0]}", *command[1:])
            await service.line("convsync ")
            well = await processes.program(f"{made}/bin/{check[0]}", *check[1:])
            assert await well.wait() == 0, well.errors()
            assert told["STOPSIGNAL"] == "SIGTERM"
            service.signal(signal.SIGTERM)
            assert await service.wait() == 0, service.errors()
        finally:
            await processes.end()
