"""Where callbacks may go, so that nobody reaches through the service into its own network.

One parser reads a URL, the WHATWG's: what it makes of `http://0x7f.1` or `http://①②⑦.1` is what is
checked here, and connected to by whoever delivers. `allowed` is always a key's `callback_hosts`:
`host`, `host:port`, `*.domain`, an address, or a CIDR, as `_Rule` explains.

A refused URL has one of these reasons:

    too_long             over 2,048 characters
    invalid_url          no URL, or one that different programs would read differently
    scheme_not_allowed   neither https nor http
    user_info            it holds a user name or a password
    fragment             it has a part after `#`, which is never sent
    invalid_host         its host is no name that DNS could have
    host_not_public      its host is a name of a local network, and not listed
    address_not_allowed  its host is, or has, an address that is neither public nor listed; or none
    https_required       http, and its host is not listed
    port_not_allowed     another port than 443 or 8443, and its host is not listed

A name without addresses is refused as one with private ones is: which names there are in the
network that we run in is nobody's business.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple

from pydantic import AnyUrl, ValidationError

from slm_jobs.errors import CallbackUrlRefused
from slm_jobs.lookups import Resolve, is_no_such_name, resolve

MAX_URL = 2_048
PORTS = (443, 8443)  # for hosts that are not listed

# Spaces, control characters and backslashes, which programs skip or read as something else, and a
# missing or third slash.
_ODD = re.compile(r"[\x00-\x20\x7f-\xa0\\]|^[a-z]+:(?!//[^/])", re.IGNORECASE)
_NAME = re.compile(r"(?!.{254})(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.(?!$)|$))+")
# RFC 6761, 6762, 7686, 8375, 9476, ICANN's `internal`, and what routers and clusters make up
_LOCAL = re.compile(
    r"(?:.*\.)?(?:localhost|localdomain|local|internal|intranet|private|corp|home|lan|onion|alt"
    r"|invalid|test|home\.arpa|svc)"
)

_IPV4_NOT_GLOBAL = [
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; some clouds' metadata
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's host, for its virtual machines only
        "169.254.0.0/16",  # link-local; metadata of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
]
# Outside it there is nothing that a callback should reach: also no NAT64, no mapped IPv4.
_IPV6_GLOBAL = IPv6Network("2000::/3")
_IPV6_NOT_GLOBAL = [
    IPv6Network("2001::/23"),  # Teredo, ORCHID, benchmarking
    IPv6Network("2001:db8::/32"),
    IPv6Network("2002::/16"),  # 6to4
    IPv6Network("3fff::/20"),
]


class UrlParts(NamedTuple):
    """What to connect to, and what to ask for there."""

    scheme: str
    host: str  # a name in ASCII, or an address without brackets
    port: int
    target: str  # path and query

    @property
    def origin(self) -> str:
        """As the `Host` header tells it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = {"https": 443, "http": 80}[self.scheme]
        return host if self.port == default else f"{host}:{self.port}"


class _Rule(NamedTuple):
    """An entry of `callback_hosts`. A host that it names may have http, any port (or just its own)
    and any address; so may an address of its network that stands in the URL itself. For a name,
    the network says only which addresses it may have.
    """

    name: str = ""
    subdomains: bool = False  # of the name, and not itself
    network: IPv4Network | IPv6Network | None = None
    port: int | None = None

    def names(self, host: str, port: int) -> bool:
        if self.port not in (None, port):
            return False
        if self.network:
            address = _literal(host)
            return address is not None and address in self.network
        return host.endswith("." + self.name) if self.subdomains else host == self.name

    def covers(self, address: IPv4Address | IPv6Address, port: int) -> bool:
        return self.port in (None, port) and self.network is not None and address in self.network


def check_url(url: str, allowed: Sequence[str]) -> str:
    """The URL as it is to be kept and called. Asks no DNS. Raises CallbackUrlRefused."""
    if len(url) > MAX_URL:
        raise CallbackUrlRefused("too_long", f"it is longer than {MAX_URL} characters")
    parsed = _parse(url)
    if parsed is not None and parsed.scheme not in ("https", "http"):
        raise CallbackUrlRefused("scheme_not_allowed", "write an https URL")
    if parsed is None or _ODD.search(url):
        raise CallbackUrlRefused("invalid_url", "write it like https://example.com/hook")
    if "@" in re.split("[/?#]", url.split("//", 1)[1], maxsplit=1)[0]:
        raise CallbackUrlRefused(
            "user_info", "leave user name and password out: callbacks are signed instead"
        )
    if parsed.fragment is not None:
        raise CallbackUrlRefused("fragment", "leave out what begins with `#`: it is never sent")
    normalised = str(parsed)
    if len(normalised) > MAX_URL:
        raise CallbackUrlRefused("too_long", f"it has over {MAX_URL} characters when encoded")
    _check_parts(split(normalised), allowed)
    return normalised


def split(url: str) -> UrlParts:
    """Of a URL that `check_url` returned."""
    parsed = AnyUrl(url)
    query = "" if parsed.query is None else f"?{parsed.query}"
    host, port = (parsed.host or "").strip("[]"), parsed.port or 0
    return UrlParts(parsed.scheme, host, port, (parsed.path or "/") + query)


def check_addresses(addresses: Sequence[str], host: str, port: int, allowed: Sequence[str]) -> None:
    """Whether `host`, which is or has these addresses, may be called: each of them, and there must
    be one. Raises CallbackUrlRefused."""
    rules = _rules(tuple(allowed))
    if not addresses or not all(_may_be_called(each, host, port, rules) for each in addresses):
        raise CallbackUrlRefused(  # which of them it is, is nobody's business
            "address_not_allowed",
            "its host has no address, or one that is not on the public internet: correct it, or"
            " have it listed in the key's callback_hosts",
        )


async def check_reachable(
    url: str, allowed: Sequence[str], *, resolve: Resolve = resolve, timeout: float = 1.0
) -> None:
    """Refuses names that do not exist, or that have any address which may not be called.

    A resolver that is slow or away is no reason to refuse: who delivers checks again. Raises
    CallbackUrlRefused.
    """
    parts = split(check_url(url, allowed))
    try:
        async with asyncio.timeout(timeout):
            addresses = await resolve(parts.host, parts.port)
    except OSError as error:
        if not is_no_such_name(error):
            return
        addresses = []
    check_addresses(addresses, parts.host, parts.port, allowed)


def _check_parts(parts: UrlParts, allowed: Sequence[str]) -> None:
    _, host, port, _ = parts
    listed = any(rule.names(host, port) for rule in _rules(tuple(allowed)))
    if _literal(host) is not None:
        check_addresses([host], host, port, allowed)
    elif not _NAME.fullmatch(host):
        raise CallbackUrlRefused("invalid_host", "its host is no name that DNS could have")
    elif not listed and ("." not in host or _LOCAL.fullmatch(host)):
        raise CallbackUrlRefused(
            "host_not_public",
            "its host is a name of a local network: have it listed in the key's callback_hosts",
        )
    if parts.scheme != "https" and not listed:
        raise CallbackUrlRefused(
            "https_required", "use https, or have its host listed in the key's callback_hosts"
        )
    if port == 0 or (port not in PORTS and not listed):
        raise CallbackUrlRefused(
            "port_not_allowed",
            "use port 443 or 8443, or have its host listed in the key's callback_hosts",
        )


def _may_be_called(address: str, host: str, port: int, rules: Sequence[_Rule]) -> bool:
    parsed = None if "%" in address else _literal(address)  # no zones
    if parsed is None:
        return False
    listed = any(rule.covers(parsed, port) or rule.names(host, port) for rule in rules)
    return listed or _is_global(parsed)


def _parse(url: str) -> AnyUrl | None:
    try:
        return AnyUrl(url)
    except ValidationError:
        return None


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _is_global(address: IPv4Address | IPv6Address) -> bool:
    """Whether anybody on the internet may reach it, and under this address alone."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _IPV4_NOT_GLOBAL)
    isatap = (int(address) >> 32) & 0xFDFF_FFFF == 0x0000_5EFE  # an IPv4 address follows
    return (
        address in _IPV6_GLOBAL
        and not isatap
        and not any(address in network for network in _IPV6_NOT_GLOBAL)
    )


@lru_cache(maxsize=1_024)
def _rules(allowed: tuple[str, ...]) -> tuple[_Rule, ...]:
    """An entry that says nothing allows nothing."""
    return tuple(rule for entry in allowed if (rule := _rule(entry.strip())))


def _rule(entry: str) -> _Rule | None:
    with suppress(ValueError):
        return _Rule(network=ip_network(entry, strict=False))
    bare = entry.removeprefix("*.")
    parsed = None if re.search(r"[/?#@\\\s]", bare) else _parse(f"http://{bare}")
    if parsed is None or not parsed.host:
        return None
    host = parsed.host.strip("[]")
    port = parsed.port if re.search(r":[0-9]+$", bare.rpartition("]")[2]) else None
    if (address := _literal(host)) is not None:
        return None if bare != entry else _Rule(network=ip_network(address), port=port)
    return _Rule(host, subdomains=bare != entry, port=port)


def check_entry(entry: str) -> str:
    """An entry of `callback_hosts`, as it is to be kept. Raises ValueError for one that allows
    nothing, or something else than it looks like."""
    rule = _rule(entry)
    text = re.sub(r":[0-9]+$", "", entry).strip("[]")
    odd = (
        rule is None
        or rule.port == 0
        or "%" in entry
        or not (rule.network or _NAME.fullmatch(rule.name))
        # 127.1, for one; a CIDR has no port that may be cut off.
        or (rule.network and "/" not in entry and not (_literal(text) or _literal(entry)))
    )
    if rule is None or odd:
        raise ValueError(
            "Input should be a host, host:port, *.domain, an address or a CIDR as in 10.0.0.0/8,"
            " without scheme and path"
        )
    host = ("*." if rule.subdomains else "") + rule.name
    if rule.network:
        host = str(rule.network)
        if rule.network.prefixlen == rule.network.max_prefixlen:
            host = str(rule.network.network_address)
        if ":" in host and rule.port:
            host = f"[{host}]"
    return f"{host}:{rule.port}" if rule.port else host
