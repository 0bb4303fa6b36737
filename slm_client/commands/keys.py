"""`slm keys …`: who may use the service, and how much."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from slm_client.client import DEFAULT_URL
from slm_client.commands import options
from slm_client.commands.options import print_json, print_result, print_table, screen
from slm_client.commands.secret import secret
from slm_client.keys import KeySettings

keys = typer.Typer(
    no_args_is_help=True,
    help="Make, list, rotate and revoke API keys, with an admin key, as `slm up` keeps one; show "
    "and rotate the secret of your own key's callbacks.",
)
keys.add_typer(secret, name="secret")

_Id = Annotated[
    str, typer.Argument(metavar="ID", help="As `slm keys list` shows it.", show_default=False)
]


def _limit(what: str, default: str) -> Any:
    return typer.Option(min=1, help=f"Most {what}.", show_default=default)


@keys.command()
def create(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="For people: whose key it is.", show_default=False)
    ],
    admin: Annotated[bool, typer.Option("--admin", help="Sees all jobs, manages keys.")] = False,
    requests_per_minute: Annotated[int | None, _limit("requests a minute", "600")] = None,
    tokens_per_minute: Annotated[
        int | None, _limit("tokens of prompts and outputs a minute", "1000000")
    ] = None,
    jobs_in_flight: Annotated[int | None, _limit("jobs that wait or run", "1000")] = None,
    queued_tokens: Annotated[int | None, _limit("tokens of jobs that wait", "5000000")] = None,
    batch_rows: Annotated[int | None, _limit("rows of batches that wait", "1000000")] = None,
    batch_tokens: Annotated[int | None, _limit("tokens of rows that wait", "1000000000")] = None,
    max_priority: Annotated[
        int, typer.Option(min=0, max=9, help="The greatest priority that its jobs may ask for.")
    ] = 0,
    callback_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="Where callbacks may go besides public https addresses: a host, host:port, "
            "*.domain, address or CIDR; may be repeated.",
            show_default="nowhere",
        ),
    ] = None,
    unlimited: Annotated[
        bool, typer.Option("--unlimited", help="No limits but those that are given.")
    ] = False,
    as_json: options.Json = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """Make an API key and print it. It is shown only now.

    Examples:

    \b
      slm keys create story-backend
      slm keys create nightly --unlimited --max-priority 5
      slm keys create partner --requests-per-minute 60 --tokens-per-minute 50000
      slm keys create shop --callback-host shop.internal:8443 --callback-host 10.1.0.0/16
      slm keys create ops --admin > ops.key
    """
    limits: dict[str, int | None] = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "jobs_in_flight": jobs_in_flight,
        "queued_tokens": queued_tokens,
        "batch_rows": batch_rows,
        "batch_tokens": batch_tokens,
    }
    settings = KeySettings(admin=admin, max_priority=max_priority)
    settings["callback_hosts"] = callback_host or []
    for limit, value in limits.items():
        if value is not None or unlimited:
            settings[limit] = value  # type: ignore[literal-required]
    with options.connect(url, api_key, data_dir) as client:
        made = client.keys.create(name, **settings)
    _show_token(made, as_json)


@keys.command("list")
def list_keys(
    as_json: options.Json = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """List all keys and what they may do; never the keys themselves.

    Examples:

    \b
      slm keys list
      slm keys list --json
    """
    with options.connect(url, api_key, data_dir) as client:
        found = client.keys.list()
    if as_json:
        print_json(found)
        return
    columns = (
        "id",
        "name",
        "kind",
        "created",
        "requests/min#",
        "tokens/min#",
        "in flight#",
        "queued tokens#",
        "batch rows#",
        "batch tokens#",
        "priority#",
        "callbacks to",
    )
    print_table(columns, map(_row, found))


@keys.command()
def rotate(
    key_id: _Id,
    as_json: options.Json = False,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """Replace a key by a new one with the same id and settings. The old one is dead at once.

    Examples:

    \b
      slm keys rotate x7k2m9q4ab
    """
    with options.connect(url, api_key, data_dir) as client:
        made = client.keys.rotate(key_id)
    _show_token(made, as_json)


@keys.command()
def revoke(
    key_id: _Id,
    url: options.Url = DEFAULT_URL,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = options.DEFAULT_DATA_DIR,
) -> None:
    """Revoke a key, at once and for ever. Its jobs run on.

    Examples:

    \b
      slm keys revoke x7k2m9q4ab
    """
    with options.connect(url, api_key, data_dir) as client:
        client.keys.revoke(key_id)
    screen.print(f"{key_id} is revoked.", markup=False, soft_wrap=True)


def _show_token(made: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(made)
        return
    print_result(made["token"])
    screen.print(
        f"This is the key of {made['name']!r}, shown only now. Send it as "
        "'Authorization: Bearer …', or set SLM_API_KEY.",
        markup=False,
        soft_wrap=True,
    )


def _row(key: dict[str, Any]) -> tuple[object, ...]:
    kind = "revoked" if key["revoked_at"] else "admin" if key["admin"] else "user"
    limits = (
        *("requests_per_minute", "tokens_per_minute", "jobs_in_flight", "queued_tokens"),
        *("batch_rows", "batch_tokens"),
    )
    return (
        key["id"],
        key["name"],
        kind,
        key["created_at"][:10],
        *("none" if key[limit] is None else key[limit] for limit in limits),
        key["max_priority"],
        ", ".join(key["callback_hosts"]),
    )
