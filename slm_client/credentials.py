"""Which API key a command sends: the one it is given, else that of the service on this machine."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from slm_client.errors import BadInput


def key_file(data_dir: Path) -> Path:
    """Where `slm up` keeps its admin key."""
    return data_dir / "api_key"


def read_key(data_dir: Path) -> str | None:
    """None if there is none. Raises BadInput if it cannot be read."""
    path = key_file(data_dir)
    try:
        return path.read_text("utf-8").strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise BadInput(f"cannot read the API key in {path}: {reason}") from None


def choose_key(given: str | None, url: str, data_dir: Path) -> str | None:
    """`given`, or the data folder's key if `url` is on this machine: nobody else may get that one.

    Raises BadInput if the file cannot be read.
    """
    if given:
        return given
    return read_key(data_dir) if is_here(url) else None


def is_here(url: str) -> bool:
    """Whether the host of `url` is an address of this machine."""
    try:
        host = urlsplit(url).hostname or ""
        infos = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        return False
    return bool(infos) and all(_is_ours(info[0], info[4]) for info in infos)


def _is_ours(family: socket.AddressFamily, address: tuple[Any, ...]) -> bool:
    """Whether it can be bound; loopback needs no try, and may be of a family that is missing."""
    if ip_address(str(address[0]).partition("%")[0]).is_loopback:
        return True
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.bind(address)
    except OSError:
        return False
    return True
