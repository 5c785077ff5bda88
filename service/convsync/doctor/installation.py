"""Settings, database and clocks: what is the same for every Page."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from datetime import date

from yarl import URL

from convsync.database.installer import schema_version
from convsync.database.probe import Found, Probe
from convsync.doctor.check import Check, ok, problem, skipped
from convsync.graph.versions import EXPIRES, lifetime
from convsync.settings import Settings, SettingsError

OLDEST_SERVER = 15
SKEW_SECONDS = 5.0
"""More than this and the order of events is no longer what it was; the proof of the app secret takes 300."""

_SHOWN = 3


def on_this_machine(url: str) -> bool:
    return URL(url).host in ("127.0.0.1", "localhost", "::1")


def check_settings(settings: Settings, today: date | None = None) -> Iterator[Check]:
    """What can be said without asking anybody."""
    reachable = not settings.on_loopback or (
        settings.public_url is not None and not on_this_machine(settings.public_url)
    )
    if settings.api_keys is None and reachable:
        where = settings.public_url if settings.on_loopback else settings.host
        yield problem(
            "api_keys",
            "no_api_key",
            f"The service is reached from outside ({where}), and CONVSYNC_API_KEYS is not set.",
            "With an address of its own it refuses to start; behind a proxy all share one generated key.",
            'echo "CONVSYNC_API_KEYS=ops:operate:$(openssl rand -hex 32)" >> .env',
        )
    else:
        yield ok("api_keys", "set" if settings.api_keys is not None else "generated; on this machine only")
    if settings.app_secret is None:
        yield problem(
            "app_secret",
            "no_app_secret",
            "CONVSYNC_APP_SECRET is not set.",
            "No delivery's signature can be checked, so the webhook refuses every one.",
            "put the secret of the app (App Dashboard, App settings, Basic) into .env as CONVSYNC_APP_SECRET",
        )
    else:
        yield ok("app_secret", "set")
    if settings.verify_token is None:
        yield problem(
            "verify_token",
            "no_verify_token",
            "CONVSYNC_VERIFY_TOKEN is not set.",
            "Meta cannot verify the webhook's address, so it cannot be entered or changed.",
            'echo "CONVSYNC_VERIFY_TOKEN=$(openssl rand -hex 32)" >> .env; enter the same in the webhook'
            " settings",
        )
    else:
        yield ok("verify_token", "set")
    try:
        settings.token_box()
    except SettingsError:
        yield problem(
            "token_key",
            "no_token_key",
            "CONVSYNC_TOKEN_KEY is not set.",
            "Page tokens are sealed with it: none can be stored or opened.",
            'echo "CONVSYNC_TOKEN_KEY=$(convsync page new-key)" >> .env',
        )
    else:
        yield ok("token_key", "set" if settings.token_key is not None else "kept in CONVSYNC_DATA_DIR")
    yield _graph_version(settings.graph_version, today)


def _graph_version(version: str, today: date | None) -> Check:
    found = lifetime(version, today)
    if found.told is None:
        return ok(
            "graph_version", f"{version}, {f'until {found.expires}' if found.expires else 'the newest'}"
        )
    newest = max(EXPIRES, key=lambda name: int(name[1:-2]))
    behind = found.state in ("ending", "expired") and version != newest
    return problem(
        "graph_version",
        f"graph_version_{found.state}",
        found.told,
        "Meta answers calls of a dead version with another one, whose answers may mean something else.",
        f'echo "CONVSYNC_GRAPH_VERSION={newest}" >> .env' if behind else "pip install --upgrade convsync",
    )


def check_embedded(settings: Settings, *, real_pages: bool) -> Check:
    """The embedded database is for trying things out: not for real Pages, nor where others reach it."""
    if not settings.embedded:
        return ok("embedded_database", "a PostgreSQL of your own")
    real = real_pages and not on_this_machine(settings.graph_url)
    outside = not settings.on_loopback or (
        settings.public_url is not None and not on_this_machine(settings.public_url)
    )
    if not real and not outside:
        return ok("embedded_database", "embedded; good for trying things out")
    uses = "mirrors real Pages" if real else "is reached from outside"
    return problem(
        "embedded_database",
        "embedded_in_production",
        f"The service {uses}, and keeps its data in the embedded PostgreSQL in CONVSYNC_DATA_DIR.",
        "It lives and dies with one machine and its disk: nobody backs it up, watches it or fails it over.",
        "set CONVSYNC_MIGRATE_DATABASE_URL and CONVSYNC_DATABASE_URL (README, Connect a real Page), then:"
        " convsync migrate",
    )


def unreachable(told: str) -> Check:
    return problem(
        "database",
        "database_unreachable",
        f"The database cannot be reached: {told}.",
        "Nothing works without it; webhooks are answered with 503, and sent again for a limited time.",
        "see that PostgreSQL runs, and that CONVSYNC_DATABASE_URL says where: convsync psql -c 'select 1'",
    )


def check_database(probed: Probe, *, own_login: bool) -> Iterator[Check]:
    """`own_login`: the login is not one that convsync has made for itself."""
    found = probed.found
    if found.server_number < OLDEST_SERVER * 10_000:
        yield problem(
            "database",
            "database_too_old",
            f"This is PostgreSQL {found.server_version}; convsync needs {OLDEST_SERVER} or newer.",
            "The schema cannot be installed.",
            f"upgrade the server to PostgreSQL {OLDEST_SERVER} or newer (pg_upgrade, or dump and restore)",
        )
    elif found.in_recovery:
        yield problem(
            "database",
            "database_read_only",
            "This server is a standby, which takes no writes.",
            "Webhooks are answered with 503, and no sync runs.",
            "set CONVSYNC_DATABASE_URL to the primary, or promote this one: select pg_promote()",
        )
    else:
        yield ok("database", f"PostgreSQL {found.server_version}")
    yield _schema(probed)
    if found.installed:
        yield _role(found, own_login=own_login)
    else:
        yield skipped("role", "nothing is installed")
    yield _durability(found)


def _schema(probed: Probe) -> Check:
    installed, wanted = probed.schema_version, schema_version()
    if installed == wanted:
        return ok("schema", wanted)
    if probed.found.refused and probed.found.installed and installed is None:
        return skipped("schema", "this login may not ask for it")
    if installed is not None and installed.partition("+")[0] > wanted.partition("+")[0]:
        return problem(
            "schema",
            "schema_newer",
            f"The database ({installed}) is newer than this release ({wanted}).",
            "A newer release has upgraded it; this one does not know what has changed, and is not ready.",
            "pip install --upgrade convsync",
        )
    return problem(
        "schema",
        "schema_behind",
        f"The database ({installed or 'nothing installed'}) is behind this release ({wanted}).",
        "Commands refuse to work, and the service is not ready.",
        "convsync migrate",
    )


def _role(found: Found, *, own_login: bool) -> Check:
    if found.refused:
        some = ", ".join(found.refused[:_SHOWN])
        more = f" and {len(found.refused) - _SHOWN} more" if len(found.refused) > _SHOWN else ""
        return problem(
            "role",
            "role_may_not",
            f"The login {found.login} may not execute {some}{more}.",
            "The service does everything through these functions.",
            "convsync migrate"  # it is the role that lacks them, not this login
            if found.member
            else f"convsync psql -c {shlex.quote(f'grant convsync_service to {_quoted(found.login)}')}",
        )
    if own_login and (found.superuser or found.owner):
        return problem(
            "role",
            "role_may_too_much",
            f"The login {found.login} is {'a superuser' if found.superuser else 'the owner of the schema'}.",
            "Whoever takes over the service could change or delete everything, past every rule; a member of"
            " convsync_service can call its functions and no more.",
            'convsync psql -c "create role convsync_login login in role convsync_service" -c "\\password'
            ' convsync_login", then set CONVSYNC_DATABASE_URL to it, and CONVSYNC_MIGRATE_DATABASE_URL to the'
            " owner",
        )
    return ok("role", f"{found.login} may call the functions, and no more")


def _durability(found: Found) -> Check:
    if not found.off:
        return ok("durability", "fsync, full_page_writes and synchronous_commit are on")
    names = " and ".join(name for name, _ in found.off)
    return problem(
        "durability",
        "not_durable",
        f"{names} {'is' if len(found.off) == 1 else 'are'} off.",
        "A crash can lose, or damage, what was committed: events that Meta was told are stored, and never"
        " sends again.",
        _switch_on(found),
    )


def _switch_on(found: Found) -> str:
    """Where it was switched off decides where it is switched on."""
    started_with = [f"-c {name}=off" for name, source in found.off if source == "command line"]
    if started_with:
        return f"start the server without {' '.join(started_with)}"
    login, database = _quoted(found.login), _quoted(found.database)
    resets = {
        "database": f"alter database {database} reset",
        "user": f"alter role {login} reset",
        "database user": f"alter role {login} in database {database} reset",
    }
    statements = [
        f"{resets[source]} {name}" if source in resets else f"alter system set {name} = on"
        for name, source in found.off
    ]
    commands = " ".join(
        f"-c {shlex.quote(statement)}" for statement in [*statements, "select pg_reload_conf()"]
    )
    return f"convsync psql {commands}"


def _quoted(name: str) -> str:
    """A name of SQL, quoted only where it has to be."""
    return name if name.isidentifier() and name.islower() else '"' + name.replace('"', '""') + '"'


def check_clocks(
    database: tuple[float, float] | None, graph: tuple[float, float] | None, *, what: str = "clock"
) -> Check:
    """Three clocks, each against this machine's: by how much the others are ahead, give or take how much.

    Graph's is taken to be right. Without it, that the two others differ is all that can be said.
    """
    if database is None:
        return skipped(what, "the database's clock is not known")
    ahead, within = database
    if graph is None:
        if abs(ahead) - within <= SKEW_SECONDS:
            return ok(what, f"the database's and this machine's agree within {abs(ahead) + within:.1f} s")
        return _skewed(
            f"The clocks of the database and of this machine differ by {abs(ahead):.0f} s", "both machines"
        )
    true, also_within = graph
    wrong = []
    if abs(true) - also_within > SKEW_SECONDS:
        wrong.append(("this machine", -true))
    if abs(ahead - true) - within - also_within > SKEW_SECONDS:
        wrong.append(("the database", ahead - true))
    if not wrong:
        return ok(what, f"this machine's and the database's agree with Meta's within {SKEW_SECONDS:.0f} s")
    told = " and ".join(
        f"the clock of {whose} is {abs(by):.0f} s {'ahead' if by > 0 else 'behind'}" for whose, by in wrong
    )
    machines = (
        "both machines" if len(wrong) == 2 else wrong[0][0].replace("the database", "the database's machine")
    )
    return _skewed(told[0].upper() + told[1:], machines)


def _skewed(told: str, where: str) -> Check:
    return problem(
        "clock",
        "clock_skew",
        f"{told}.",
        "What Graph told and what webhooks told is ordered by time; and the proof of the app secret, which"
        " every call carries, expires after five minutes.",
        f"on {where}: timedatectl set-ntp true",
    )
