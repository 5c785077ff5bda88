"""One Page: its token, what the token may do, its webhooks."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from convsync.doctor.check import Check, ok, problem, skipped
from convsync.errors import TryAgain
from convsync.facts import Json
from convsync.graph.account import SubscribedApp, TokenInfo, read_list, read_node
from convsync.graph.catalogue import ErrorClass
from convsync.graph.client import GraphAnswer, GraphClient, node_path
from convsync.graph.errors import GraphError
from convsync.pages import WEBHOOK_FIELDS, PageToken, TokenCheck, check_token, granted
from convsync.store import Problem, SealedToken, Store
from convsync.tokens import TokenBox, TokenKeyError

PERMISSIONS: Final = ("pages_messaging", "pages_manage_metadata", "pages_read_engagement")
EXPIRES_SOON: Final = timedelta(days=14)

_NO_SYNC: Final = "No sync can read the Page: what no webhook tells is missing."
_CHECKS: Final = ("token", "permissions", "subscription", "webhooks")


@dataclass(frozen=True, slots=True)
class PageDoctor:
    """Looks at Pages. Each call it makes is in the Page's budget; what it learns of the token is recorded."""

    store: Store
    graph: GraphClient
    box: TokenBox | None
    calls_per_second: float
    public_url: str | None

    async def examine(self, page: Json, *, ask: bool = True) -> list[Check]:
        """`ask`: Graph too. Without, what the database knows is told all the same."""
        page_id: str = page["page_id"]
        kept = await self.store.page_token(page_id=page_id)
        problems = await self.store.list_problems(page_id=page_id)
        token = self._opened(page_id, kept)
        why_not = "its token does not work"
        known = next((one for one in problems if one.problem == "token_invalid"), None)
        if not isinstance(token, PageToken):
            checks = [token]
        elif known is not None:  # calls with a dead token are held against the app
            checks = [_invalid(page_id, known.what)]
        elif ask:
            checks = await self._asked(page, token, problems)
        else:
            checks, why_not = [], "Graph cannot be asked"
        done = {one.check for one in checks}
        checks += [skipped(name, why_not, page_id=page_id) for name in _CHECKS if name not in done]
        return [*checks, *_mirror(page_id, problems)]

    def _opened(self, page_id: str, kept: SealedToken) -> PageToken | Check:
        """The token; or why nobody can call with it."""
        add = _add(page_id)
        if kept.sealed is None:
            return problem("token", "token_missing", "The Page has no token.", _NO_SYNC, add, page_id=page_id)
        if kept.sealed.isascii() and kept.sealed.decode("ascii").isprintable():
            return problem(
                "token",
                "token_unsealed",
                "The Page's token lies in the database unsealed.",
                "Whoever can read the database, or a backup of it, can act as the Page. No sync can read it"
                " either: only a sealed token is opened. End this one at Meta, and store another.",
                add,
                page_id=page_id,
            )
        if self.box is None:
            return skipped("token", "CONVSYNC_TOKEN_KEY is not set", page_id=page_id)
        try:
            token = self.box.open(page_id, kept.sealed)
        except TokenKeyError:
            return problem(
                "token",
                "token_key_differs",
                "The Page's token was sealed with another CONVSYNC_TOKEN_KEY.",
                f"It cannot be opened. {_NO_SYNC}",
                f"set the CONVSYNC_TOKEN_KEY that it was stored with; if that is lost: {add}",
                page_id=page_id,
            )
        return PageToken(token, kept.sealed)

    async def _asked(self, page: Json, token: PageToken, problems: list[Problem]) -> list[Check]:
        page_id: str = page["page_id"]
        checked = await check_token(self.store, self.graph, page_id, token, self.calls_per_second)
        token_check = _token(page_id, checked)
        if token_check.state != "ok":
            return [token_check]
        info, permissions = await self._permissions(page_id, token)
        if info is not None and (ending := _ending(page_id, info, datetime.now(UTC))) is not None:
            token_check = ending
        subscription = await self._subscription(page_id, token, info)
        if permissions.state == subscription.state == "problem" and subscription.check == "permissions":
            subscription = skipped("subscription", "the token may not ask for it", page_id=page_id)
        if subscription.state == "ok" and page["subscribed_at"] is None:
            # Somebody else has subscribed it; from now on it is known when webhooks are silent.
            await self.store.mark_subscribed(page_id=page_id)
        silent = any(one.problem == "webhooks_silent" for one in problems)
        webhooks = _webhooks(page_id, self.public_url, silent=silent, subscribed=subscription.state == "ok")
        return [token_check, permissions, subscription, webhooks]

    async def _call(self, page_id: str, token: PageToken, path: str, params: dict[str, str]) -> GraphAnswer:
        answer, _ = await granted(
            self.store,
            page_id,
            self.calls_per_second,
            token.sealed,
            lambda: self.graph.get(path, params, token.token),
        )
        return answer

    async def _permissions(self, page_id: str, token: PageToken) -> tuple[TokenInfo | None, Check]:
        """What Meta says of the token; where it does not say, whether it lists conversations."""
        try:
            # As a form: what is asked about is the token, and no address may hold one.
            form = {"input_token": token.token, "method": "GET"}
            answer, _ = await granted(
                self.store,
                page_id,
                self.calls_per_second,
                token.sealed,
                lambda: self.graph.post("debug_token", form, token.token),
                marks=False,
            )
            info = read_node(answer.data, TokenInfo)
        except TryAgain as error:
            return None, skipped("permissions", error.message, page_id=page_id)
        except GraphError:
            return None, await self._tried(page_id, token)
        if not info.scopes:
            return info, await self._tried(page_id, token)
        missing = list(_missing(page_id, info))
        if missing:
            return info, _lacking(page_id, f"The token lacks {', '.join(missing)}.")
        return info, ok("permissions", ", ".join(PERMISSIONS), page_id=page_id)

    async def _tried(self, page_id: str, token: PageToken) -> Check:
        path = node_path(page_id, "conversations")
        try:
            await self._call(page_id, token, path, {"fields": "id", "limit": "1"})
        except TryAgain as error:
            return skipped("permissions", error.message, page_id=page_id)
        except GraphError as error:
            return _refused(page_id, "permissions", error)
        return ok("permissions", "the Page's conversations can be read", page_id=page_id)

    async def _subscription(self, page_id: str, token: PageToken, info: TokenInfo | None) -> Check:
        try:
            answer = await self._call(page_id, token, node_path(page_id, "subscribed_apps"), {})
            apps = read_list(answer.data, SubscribedApp)
        except TryAgain as error:
            return skipped("subscription", error.message, page_id=page_id)
        except GraphError as error:
            return _refused(page_id, "subscription", error)
        app_id = info.app_id if info is not None else None
        ours = [app for app in apps if app_id is None or app.id is None or app.id == app_id]
        fields = {field for app in ours for field in app.subscribed_fields}
        mend = f"convsync page subscribe {shlex.quote(page_id)}"
        why = "Messages come minutes late, by sync; edits, reactions and unsends days late."
        if not fields:
            return problem(
                "subscription",
                "not_subscribed",
                "The app is not subscribed to the Page's webhooks.",
                why,
                mend,
                page_id=page_id,
            )
        if missing := [field for field in WEBHOOK_FIELDS if field not in fields]:
            return problem(
                "subscription",
                "fields_missing",
                f"The app's subscription to the Page lacks {', '.join(missing)}.",
                why,
                mend,
                page_id=page_id,
            )
        return ok("subscription", f"{len(WEBHOOK_FIELDS)} fields", page_id=page_id)


def _add(page_id: str) -> str:
    return f"convsync page add {shlex.quote(page_id)} --token-stdin"


def _invalid(page_id: str, told: str) -> Check:
    return problem("token", "token_invalid", told, _NO_SYNC, _add(page_id), page_id=page_id)


def _lacking(page_id: str, told: str) -> Check:
    return problem(
        "permissions",
        "permissions_missing",
        told,
        f"convsync reads conversations with {PERMISSIONS[0]} and {PERMISSIONS[2]}, and subscribes to webhooks"
        f" with {PERMISSIONS[1]}.",
        f"grant them to the app, make a new long-lived Page token, then: {_add(page_id)}",
        page_id=page_id,
    )


def _refused(page_id: str, check: str, error: GraphError) -> Check:
    """What a call came to that the token should be good for."""
    if error.error_class is ErrorClass.PERMISSION or error.rule.name == "token_without_permissions":
        return _lacking(page_id, error.explained())
    if error.error_class is ErrorClass.TOKEN:
        return _invalid(page_id, error.explained())
    return skipped(check, error.explained(), page_id=page_id)


def _token(page_id: str, checked: TokenCheck) -> Check:
    told = checked.told or ""
    match checked.state:
        case "valid":
            return ok("token", "Meta takes it", page_id=page_id)
        case "invalid":
            return _invalid(page_id, told)
        case "unchecked":
            return skipped("token", told, page_id=page_id)
    rule = checked.error.rule if checked.error is not None else None
    if rule is not None and rule.name.startswith("proof_"):
        return problem(
            "token",
            "app_secret_refused",
            told,
            _NO_SYNC,
            "set CONVSYNC_APP_SECRET to the secret of the app that made the token (App Dashboard, App"
            " settings, Basic)",
            page_id=page_id,
        )
    if rule is not None and rule.error_class is ErrorClass.PERMISSION:
        return _lacking(page_id, told)
    return problem("token", "token_refused", told, _NO_SYNC, _add(page_id), page_id=page_id)


def _ending(page_id: str, info: TokenInfo, now: datetime) -> Check | None:
    """The token, or what it may see, ends soon."""
    ends = min((at for at in (info.expires_at, info.data_access_expires_at) if at is not None), default=None)
    if ends is None or ends > now + EXPIRES_SOON:
        return None
    return problem(
        "token",
        "token_expires",
        f"The token's access ends on {ends.astimezone(UTC):%Y-%m-%d %H:%M} UTC.",
        "No sync can read the Page from then on. A long-lived Page token does not end by time.",
        f"let its owner log in to the app again, make a long-lived Page token, then: {_add(page_id)}",
        page_id=page_id,
    )


def _missing(page_id: str, info: TokenInfo) -> Iterator[str]:
    """Permissions that the token has not got, or not for this Page."""
    for permission in PERMISSIONS:
        limits = [
            one.target_ids for one in info.granular_scopes if one.scope == permission and one.target_ids
        ]
        if permission not in info.scopes or (limits and not any(page_id in ids for ids in limits)):
            yield permission


def _webhooks(page_id: str, public_url: str | None, *, silent: bool, subscribed: bool) -> Check:
    if not subscribed:
        return skipped("webhooks", "none can come without the subscription", page_id=page_id)
    if not silent:
        return ok("webhooks", "no message was newer than the last of them", page_id=page_id)
    host = (public_url or "https://YOUR-HOST").rstrip("/")
    return problem(
        "webhooks",
        "webhooks_silent",
        "Messages come by sync, and no webhook tells of them, though the app is subscribed.",
        "They are in the mirror minutes late; edits, reactions and unsends days late. Meta's deliveries do"
        " not arrive, or the app is not live: then only people with a role in it are told of.",
        f"curl -i {host}/api/webhook from outside must answer 403; enter {host}/api/webhook as the callback"
        " URL in the app's Messenger settings, and switch the app to Live",
        page_id=page_id,
    )


def _mirror(page_id: str, problems: list[Problem]) -> Iterator[Check]:
    """What the database knows of; the token and the webhooks were looked at above."""
    found = [
        one
        for one in problems
        if not one.problem.startswith("token_") and one.problem not in ("webhooks_silent", "page_not_added")
    ]
    if not found:
        yield ok("mirror", "nothing is stuck, failed or overdue", page_id=page_id)
    for one in found:
        yield problem("mirror", one.problem, one.what, one.why, one.mend, page_id=page_id)
