"""What is shipped beside the code says what the code does: settings, compose.yaml, the unit, documents."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

import promtool
from convsync.settings import Settings
from convsync.web.app import STOP_SECONDS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
EXAMPLE = (ROOT / ".env.example").read_text("utf-8")


def settings_of(text: str) -> list[str]:
    return re.findall(r"^\| `CONVSYNC_(\w+)`", text, re.MULTILINE)


def test_every_setting_is_in_the_document_once_and_in_the_example() -> None:
    document = (DOCS / "configuration.md").read_text("utf-8")
    known = sorted(name.upper() for name in Settings.model_fields)
    assert sorted(settings_of(document)) == known
    exampled = re.findall(r"^#?CONVSYNC_(\w+)=", EXAMPLE, re.MULTILINE)
    assert sorted(set(known) - set(exampled)) == []


def test_the_document_marks_exactly_the_secrets() -> None:
    document = (DOCS / "configuration.md").read_text("utf-8")
    marked = re.findall(r"^\| `CONVSYNC_(\w+)` 🔒 \|", document, re.MULTILINE)
    secret = [
        name.upper() for name, field in Settings.model_fields.items() if SecretStr in _types(field.annotation)
    ]
    assert sorted(marked) == sorted(secret)


def _types(annotation: Any) -> tuple[Any, ...]:
    return getattr(annotation, "__args__", (annotation,))


def test_the_document_has_the_defaults() -> None:
    document = (DOCS / "configuration.md").read_text("utf-8")
    told = dict(re.findall(r"^\| `CONVSYNC_(\w+)`(?: 🔒)? \| ([^|]+?) \|", document, re.MULTILINE))
    for name, field in Settings.model_fields.items():
        default = field.get_default()
        if default in (None, "") or name == "data_dir":
            continue
        text = str(int(default)) if isinstance(default, float) else str(default)
        assert told[name.upper()] == text, name


def test_each_link_of_a_document_leads_somewhere() -> None:
    broken = []
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]:
        text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            if path.startswith(("http://", "https://", "mailto:")):
                continue
            there = (page.parent / path).resolve() if path else page
            if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there)):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def anchors(page: Path) -> set[str]:
    """The names of its headings, as GitHub makes them."""
    headings = re.findall(r"^#{1,6} (.+)$", page.read_text("utf-8"), re.MULTILINE)
    names = {
        re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", one).lower()).strip().replace(" ", "-")
        for one in headings
    }
    return names | set(re.findall(r'<a (?:id|name)="([^"]+)"', page.read_text("utf-8")))


def test_the_index_names_every_document() -> None:
    index = (DOCS / "README.md").read_text("utf-8")
    missing = [
        page.name for page in DOCS.glob("*.md") if page.name != "README.md" and f"({page.name})" not in index
    ]
    assert missing == []


# compose.yaml


def test_compose_sets_only_settings_that_exist() -> None:
    names = [name for name in COMPOSE["services"]["convsync"]["environment"] if name.startswith("CONVSYNC_")]
    assert {name.removeprefix("CONVSYNC_").lower() for name in names} <= set(Settings.model_fields)


def test_every_variable_that_compose_reads_is_in_the_example() -> None:
    read = set(re.findall(r"(?<!\$)\$\{(\w+)", (ROOT / "compose.yaml").read_text("utf-8")))
    told = set(re.findall(r"^#?(\w+)=", EXAMPLE, re.MULTILINE))
    assert read
    assert sorted(read - told) == []


def test_what_compose_names_it_also_has() -> None:
    services = COMPOSE["services"]
    for name, service in services.items():
        for config in service.get("configs", []):
            assert config["source"] in COMPOSE["configs"], name
        for other in service.get("depends_on", {}):
            assert other in services, name
        for volume in service.get("volumes", []):
            source, target = volume.split(":")[:2]
            assert target.startswith("/"), name
            if source.startswith("."):
                assert (ROOT / source).exists(), source
            else:
                assert source in COMPOSE["volumes"], source
    used = {config["source"] for service in services.values() for config in service.get("configs", [])}
    assert used == set(COMPOSE["configs"])


def test_compose_starts_the_service_and_its_database_and_the_rest_when_asked() -> None:
    asked = {name: service.get("profiles") for name, service in COMPOSE["services"].items()}
    assert asked == {
        "postgres": None,
        "convsync": None,
        "pgbouncer": ["pgbouncer"],
        "prometheus": ["prometheus"],
    }


def test_nothing_that_compose_publishes_is_open_to_the_network() -> None:
    for name, service in COMPOSE["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name


def test_whoever_stops_the_service_waits_longer_than_it_takes() -> None:
    compose = COMPOSE["services"]["convsync"]["stop_grace_period"]
    unit = (ROOT / "deploy" / "convsync.service").read_text("utf-8")
    (patience,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert int(compose.removesuffix("s")) > STOP_SECONDS + 2
    assert int(patience) > STOP_SECONDS + 2
    assert STOP_SECONDS + 2 <= 10  # what `docker stop` waits


def test_pgbouncer_pools_transactions_for_the_service_alone() -> None:
    ini = COMPOSE["configs"]["pgbouncer"]["content"]
    assert "pool_mode = transaction" in ini
    assert COMPOSE["configs"]["pgbouncer_users"]["content"].startswith('"convsync_login" "$')
    environment = COMPOSE["services"]["convsync"]["environment"]
    assert "@postgres/" in environment["CONVSYNC_MIGRATE_DATABASE_URL"]
    assert "@${SERVICE_DATABASE_HOST:-postgres}/" in environment["CONVSYNC_DATABASE_URL"]


def test_prometheus_scrapes_what_the_service_serves_with_the_key_it_is_given() -> None:
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text("utf-8"))
    (job,) = prometheus["scrape_configs"]
    (config,) = COMPOSE["services"]["prometheus"]["configs"]
    assert job["authorization"]["credentials_file"] == config["target"]
    assert job["static_configs"] == [{"targets": ["convsync:8080"]}]
    assert job.get("metrics_path", "/metrics") == "/metrics"


def test_prometheus_takes_its_settings(tmp_path: Path) -> None:
    """With the files where compose.yaml puts them."""
    text = (ROOT / "deploy" / "prometheus.yml").read_text("utf-8")
    (tmp_path / "key").write_text("a key", encoding="utf-8")
    for volume in COMPOSE["services"]["prometheus"]["volumes"][:2]:
        source, target, _ = volume.split(":")
        text = text.replace(target, str(ROOT / source))
    (config,) = COMPOSE["services"]["prometheus"]["configs"]
    here = tmp_path / "prometheus.yml"
    here.write_text(text.replace(config["target"], str(tmp_path / "key")), encoding="utf-8")
    code, said = promtool.run("check", "config", here)
    assert code == 0, said
    assert "rules found" in said


# Dockerfile and unit


def test_the_image_runs_as_nobody_special_and_without_what_built_it() -> None:
    stages = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)[1:]
    assert len(stages) == 2
    final = stages[1]
    assert re.search(r"^USER 10001:10001$", final, re.MULTILINE)
    assert final.index("USER 10001") < final.index("ENTRYPOINT")
    assert "HEALTHCHECK" in final
    assert "pip" not in final
    assert re.search(r"apt-get install .*\bpostgresql-client\b", final), "convsync psql needs it"
    assert not re.search(r"(PASSWORD|SECRET|TOKEN|API_KEYS)=", final)
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", stages[0], re.MULTILINE)
    for sources in copied:
        for source in sources.split():
            assert (ROOT / source).exists(), source


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    unit = (ROOT / "deploy" / "convsync.service").read_text("utf-8")
    assert re.search(r"^ExecStart=/opt/convsync/bin/convsync serve ", unit, re.MULTILINE)
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    # The program is not where the unit expects it on this machine.
    here = tmp_path / "convsync.service"
    here.write_text(unit.replace("/opt/convsync/bin/convsync", "/bin/true"), encoding="utf-8")
    done = subprocess.run(  # noqa: S603
        [program, "verify", "--man=no", str(here)], capture_output=True, text=True, check=False
    )
    said = [line for line in done.stderr.splitlines() if "convsync.service" in line]
    assert said == []


@pytest.mark.parametrize("user", ["convsync", "root"])
def test_commands_on_the_units_machine_have_the_services_settings_and_user(tmp_path: Path, user: str) -> None:
    unit = (ROOT / "deploy" / "convsync.service").read_text("utf-8")
    settings, data, program = "/etc/convsync", "/var/lib/convsync", "/opt/convsync/bin/convsync"
    for line in (f"WorkingDirectory={settings}", f"CONVSYNC_DATA_DIR={data} ", f"ExecStart={program} "):
        assert line in unit
    script = (ROOT / "deploy" / "convsync.sh").read_text("utf-8")
    (tmp_path / "etc").mkdir()
    for name, does in {
        "convsync": 'pwd; echo "$CONVSYNC_DATA_DIR"; cat; printf "%s\\n" "$@"',
        "runuser": 'echo "$1 $2 $3"; shift 3; exec "$@"',
        "id": f"echo {user}",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    here = script.replace(settings, str(tmp_path / "etc")).replace(program, str(tmp_path / "convsync"))
    done = subprocess.run(  # noqa: S603
        ["/bin/sh", "-c", here, "convsync", "page", "add", "1 2", "--token-stdin"],
        cwd="/",
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        input="the token\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    became = [] if user == "convsync" else ["-u convsync --"]
    said = [str(tmp_path / "etc"), data, "the token", "page", "add", "1 2", "--token-stdin"]
    assert done.stdout.splitlines() == became + said
