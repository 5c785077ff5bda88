"""The commands for outgoing webhooks."""

from __future__ import annotations

import sys

import click

from convsync.cli import OK, as_json, command, load_settings, open_store, print_json
from convsync.console import Table, stdout
from convsync.facts import Json
from convsync.outgoing import new_secret, sealed_for, secret_bytes
from convsync.settings import keeps_secrets


@click.group()
def outgoing() -> None:
    """Signed webhooks that tell others what changed."""


@outgoing.command("new-secret")
def outgoing_new_secret() -> None:
    """Print a fresh secret for a webhook; its receiver needs it too."""
    sys.stdout.write(new_secret() + "\n")


@outgoing.command("add")
@click.argument("name")
@click.argument("url")
@click.option("--secret-stdin", is_flag=True, required=True, help="Read the secret from standard input.")
@click.option("--page", "pages", multiple=True, metavar="PAGE_ID", help="Only of this Page; may be repeated.")
@click.option(
    "--after", metavar="POSITION", help="Tell what changed after this position of the feed, not from now on."
)
@as_json
@command
async def outgoing_add(
    name: str, url: str, secret_stdin: bool, pages: tuple[str, ...], after: str | None, json_: bool
) -> int:
    """Add a webhook, or change its address, secret and Pages. It goes on where it stood."""
    settings = load_settings()
    if not keeps_secrets(url):
        raise click.UsageError("the address must be https, or http on this machine")
    secret = sys.stdin.readline().strip()
    secret_bytes(secret)
    box = settings.token_box()
    async with open_store(settings) as (store, _):
        document = await store.add_outgoing(
            name=name,
            url=url,
            secret_sealed=box.seal(sealed_for(name), secret),
            secret_key_id=box.key_id,
            pages=sorted(set(pages)) or None,
            after=after,
        )
    if json_:
        print_json(document)
    else:
        stdout.print(f"Webhook {name} is told what changes.", highlight=False, markup=False)
    return OK


@outgoing.command("list")
@as_json
@command
async def outgoing_list(json_: bool) -> None:
    """Every webhook: how far it has come, and what could not be delivered."""
    async with open_store(load_settings()) as (store, _):
        webhooks = await store.list_outgoing()
    if json_:
        print_json(webhooks)
    else:
        _show(webhooks)


@outgoing.command("remove")
@click.argument("name")
@as_json
@command
async def outgoing_remove(name: str, json_: bool) -> None:
    """Remove a webhook, with its secret and its position."""
    async with open_store(load_settings()) as (store, _):
        document = await store.remove_outgoing(name=name)
    if json_:
        print_json(document)
    else:
        stdout.print(f"Webhook {name} is removed.", highlight=False, markup=False)


@outgoing.command("resume")
@click.argument("name")
@click.option("--skip", is_flag=True, help="Leave out what could not be delivered.")
@as_json
@command
async def outgoing_resume(name: str, skip: bool, json_: bool) -> None:
    """Try a webhook again at once, also one that was paused."""
    async with open_store(load_settings()) as (store, _):
        document = await store.resume_outgoing(name=name, skip=skip)
    if json_:
        print_json(document)
    else:
        stdout.print(f"Webhook {name} is tried again.", highlight=False, markup=False)


def _show(webhooks: list[Json]) -> None:
    table = Table("Webhook", "Address", "State", "Delivered", "Last delivered", "Attempts", "Last answer")
    for one in webhooks:
        reason = f": {one['pause_reason']}" if one["pause_reason"] else ""
        table.add_row(
            one["name"],
            one["url"],
            one["state"] + reason,
            str(one["delivered"]),
            one["delivered_at"] or "nothing yet",
            str(one["attempts"]),
            str(one["last_status"] or one["last_error"] or ""),
        )
    table.show()
