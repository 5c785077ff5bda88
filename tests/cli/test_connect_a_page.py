"""Every command of the README's "Connect a real Page" and of docs/connect-a-page.md, in their order.

Facebook is the simulator, and for the one thing that it does not have, the exchange of a user's token, a
server of the test. The database is one as an administrator makes it: its owner is no superuser.
"""

from __future__ import annotations

import json
import re
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg

from cli.test_quickstart import ROOT, Terminals, directory, free_ports
from convsync.simulator.rules import DEFAULT_USER_TOKEN
from own_server import own_server
from secrets_hunt import marked, marked_key

__all__ = ["directory"]  # the fixture

PAGE = "100000000000001"
SHORT, APP_SECRET = marked("short-lived"), "sim-app-secret"


def fenced(text: str) -> list[str]:
    """The fenced blocks, also of list items, without their indentation."""
    return [
        re.sub(f"^{indent}", "", block, flags=re.MULTILINE)
        for indent, block in re.findall(r"^( *)```[^\n`]*\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL)
    ]


def section(document: Path, heading: str) -> list[str]:
    _, _, rest = document.read_text("utf-8").partition(f"\n## {heading}\n")
    assert rest, heading
    return fenced(rest.partition("\n## ")[0])


@contextmanager
def exchange() -> Iterator[tuple[str, list[dict[str, list[str]]]]]:
    """Where a short-lived token becomes a long-lived one, and what was asked there."""
    asked: list[dict[str, list[str]]] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(parse_qs(urlsplit(self.path).query))
            answer = json.dumps({"access_token": DEFAULT_USER_TOKEN, "token_type": "bearer"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_request(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()


def test_every_command_on_the_way_to_a_real_page_works_in_its_order(directory: Path) -> None:
    administer, settings, install, add, check = section(ROOT / "README.md", "Connect a real Page")
    guide = ROOT / "docs" / "connect-a-page.md"
    saved, exchanged, chosen = section(guide, "5. A token that does not expire")
    added, looked = section(guide, "6. Add the Page")
    (first,) = section(guide, "7. The first sync")
    every = fenced(guide.read_text("utf-8"))
    assert len(every) == 7, "and the settings of step 2, which are among those of the README"
    assert set(re.findall(r"^\w+(?==)", every[0], re.MULTILINE)) < set(
        re.findall(r"^\w+(?==)", settings, re.MULTILINE)
    )

    # The programs are those of this environment.
    (directory / ".venv" / "bin").mkdir(parents=True)
    (directory / ".venv" / "bin" / "activate").write_text(
        f"PATH={Path(sys.executable).parent}:$PATH\n", encoding="utf-8"
    )
    api, graph = free_ports(2)
    with own_server() as server, exchange() as (address, asked):
        changed = {
            "convsync_owner": "readers_owner",  # the server of the tests has both names
            "create database convsync ": "create database readers ",
            "postgresql://convsync_owner:...@localhost/convsync": server.url("readers_owner", "readers"),
            "postgresql://convsync_login:...@localhost/convsync": server.url("convsync_login", "readers"),
            "1234567890": PAGE,
            "YOUR-PAGE-ID": PAGE,
            "YOUR-APP-ID": "4711",
            "https://graph.facebook.com/v26.0/oauth": f"{address}/oauth",
            "https://graph.facebook.com/v26.0/me": f"http://127.0.0.1:{graph}/v26.0/me",
        }

        def here(text: str) -> str:
            for told, replaced in sorted(changed.items(), key=lambda one: -len(one[0])):
                text = text.replace(told, replaced)
            return text

        with psycopg.connect(server.url("postgres", "postgres"), autocommit=True) as administrator:
            for statement in here(administer).split(";"):
                administrator.execute(statement.encode())
        invented = {
            "APP_SECRET": APP_SECRET,
            "VERIFY_TOKEN": marked("verify"),
            "TOKEN_KEY": marked_key(),
            "API_KEYS": f"ops:operate:{marked('operate-key')}",
        }
        written = here(settings)
        for name, value in invented.items():
            written, times = re.subn(
                rf"(?<=^CONVSYNC_{name}=)(ops:operate:)?\.\.\.", value, written, flags=re.M
            )
            assert times == 1, name
        # Of the simulator, and of nobody's concern with a real Page.
        written += f"CONVSYNC_GRAPH_URL=http://127.0.0.1:{graph}\nCONVSYNC_CALLS_PER_SECOND=0\n"
        (directory / ".env").write_text(written, encoding="utf-8")
        assert "..." not in written

        terminals = Terminals(directory, {})
        try:
            # The password is typed at a prompt; this server asks for none.
            *commands, password = here(install).strip().splitlines()
            assert "\\password" in password
            terminals.type("\n".join(commands))
            terminals.leave_running(
                f"convsync simulate --port {graph} --conversations 30 --calls-per-second 0"
            )
            terminals.leave_running(f"convsync serve --host 127.0.0.1 --port {api}")

            (directory / "token").write_text(f"sim-page-token-{PAGE}\n", encoding="utf-8")
            terminals.type(here(add))
            terminals.type(here(check))

            for name, pasted in {"user_token": SHORT, "app_secret": APP_SECRET}.items():
                (directory / f"pasted_{name}").write_text(f"{pasted}\n", encoding="utf-8")
                saved, times = re.subn(
                    rf"^cat > {name}\b.*$", f"cat pasted_{name} > {name}", saved, flags=re.MULTILINE
                )
                assert times == 1
            # In one terminal, for what is set in the first holds in the others.
            printed = terminals.type(here(saved + exchanged + chosen))
            assert printed.splitlines()[-1].startswith(f"{PAGE} ")
            assert (directory / "page_token").read_text("utf-8") == f"sim-page-token-{PAGE}\n"
            secret = ("user_token", "app_secret", "long_token", "page_token", "answer.json", "pages.json")
            assert {stat.S_IMODE((directory / name).stat().st_mode) for name in secret} == {0o600}
            (asking,) = asked
            assert asking == {
                "grant_type": ["fb_exchange_token"],
                "client_id": ["4711"],
                "client_secret": [APP_SECRET],
                "fb_exchange_token": [SHORT],
            }
            terminals.type(here(added))
            assert [name for name in secret if (directory / name).exists()] == []
            terminals.type(here(looked))
            printed = terminals.type(here(first))
            assert "succeeded" in printed
        finally:
            codes = terminals.end()
    assert codes[0] == 0
