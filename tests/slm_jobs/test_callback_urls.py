"""Where callbacks may go. Nothing here asks a real DNS."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Sequence
from urllib.parse import quote

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from slm_jobs import callback_urls
from slm_jobs.callback_urls import (
    check_addresses,
    check_reachable,
    check_url,
    split,
)
from slm_jobs.errors import CallbackUrlRefused
from tests.slm_jobs.hostile_urls import ADDRESS, HOSTILE


@pytest.mark.parametrize(("url", "reason"), HOSTILE)
def test_hostile_urls_are_refused(url: str, reason: str) -> None:
    with pytest.raises(CallbackUrlRefused) as refused:
        check_url(url, [])
    assert refused.value.reason == reason
    assert str(refused.value).startswith("no callback may go to this URL: ")


def test_every_reason_is_documented() -> None:
    reasons = {reason for _, reason in HOSTILE}
    documented = re.findall(r"^    (\w+)  +\S", callback_urls.__doc__ or "", re.MULTILINE)
    assert set(documented) == reasons


@pytest.mark.parametrize(
    ("url", "normalised"),
    [
        ("https://example.com", "https://example.com/"),
        ("HTTPS://Example.COM:443/a/../b?c=d", "https://example.com/b?c=d"),
        ("https://hooks.example.com:8443/in?token=1", "https://hooks.example.com:8443/in?token=1"),
        ("https://bücher.de/ü", "https://xn--bcher-kva.de/%C3%BC"),
        ("https://8.8.8.8/", "https://8.8.8.8/"),
        ("https://[2a00:1450:4001:0::200e]/", "https://[2a00:1450:4001::200e]/"),
        ("https://my_host.example.com/", "https://my_host.example.com/"),
    ],
)
def test_public_urls_pass(url: str, normalised: str) -> None:
    assert check_url(url, []) == normalised
    assert check_url(normalised, []) == normalised


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://127.0.0.1:9000/", ["127.0.0.1"]),
        ("http://127.0.0.1:9000/", ["other", "127.0.0.1:9000"]),
        ("http://0x7f.1:9000/", ["127.0.0.0/8"]),
        ("https://10.1.2.3:444/", ["10.0.0.0/8"]),
        ("http://[::1]:9000/", ["::1"]),
        ("http://[::1]:9000/", ["[::1]:9000"]),
        ("http://[fd00::5]/", ["fd00::/8"]),
        ("http://receiver/", ["receiver"]),
        ("http://receiver:8080/", ["Receiver:8080"]),
        ("http://localhost:5000/", ["localhost"]),
        ("http://a.b.corp.example.com:81/", ["*.corp.example.com"]),
        ("http://a.local/", ["*.local"]),
        ("http://xn--bcher-kva.internal/", ["bücher.internal"]),
    ],
)
def test_listed_hosts_pass(url: str, allowed: Sequence[str]) -> None:
    assert check_url(url, allowed)


@pytest.mark.parametrize(
    ("url", "allowed", "reason"),
    [
        ("http://127.0.0.1:9001/", ["127.0.0.1:9000"], ADDRESS),
        ("http://127.0.0.2/", ["127.0.0.1"], ADDRESS),
        ("http://[::ffff:127.0.0.1]/", ["127.0.0.0/8"], ADDRESS),
        ("http://[::1]:9001/", ["[::1]:9000"], ADDRESS),
        ("http://receiver:8081/", ["receiver:8080"], "host_not_public"),
        ("http://corp.example.com/", ["*.corp.example.com"], "https_required"),
        ("http://evilcorp.example.com/", ["*.corp.example.com"], "https_required"),
        ("http://example.com.evil.com/", ["example.com", "*.example.com"], "https_required"),
        ("https://example.com:444/", ["10.0.0.0/8"], "port_not_allowed"),
        ("http://receiver/", ["*", "", "*.", "http://receiver/", "a b", "x@receiver", "*.1"],
         "host_not_public"),
        ("http://user@receiver/", ["receiver"], "user_info"),
        ("http://receiver/#a", ["receiver"], "fragment"),
        ("ftp://receiver/", ["receiver"], "scheme_not_allowed"),
        ("http://receiver:0/", ["receiver"], "port_not_allowed"),
        ("http://[fe80::1%25eth0]/", ["fe80::/10"], "invalid_url"),
    ],
)  # fmt: skip
def test_a_list_allows_what_it_says_and_no_more(
    url: str, allowed: Sequence[str], reason: str
) -> None:
    with pytest.raises(CallbackUrlRefused) as refused:
        check_url(url, allowed)
    assert refused.value.reason == reason


def test_the_parts_to_connect_to() -> None:
    parts = split(check_url("http://[::1]:9000/a/b?c=d&e", ["::1"]))
    assert parts == ("http", "::1", 9000, "/a/b?c=d&e")
    assert parts.origin == "[::1]:9000"
    assert split("https://example.com/?").target == "/?"
    assert split("https://example.com/").origin == "example.com"
    assert split("http://example.com:443/").origin == "example.com:443"


@pytest.mark.parametrize(
    ("address", "allowed", "passes"),
    [
        ("93.184.215.14", [], True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", [], True),
        ("10.0.0.5", [], False),
        ("10.0.0.5", ["hooks.example.com"], True),
        ("10.0.0.5", ["hooks.example.com:443"], True),
        ("10.0.0.5", ["hooks.example.com:8443"], False),
        ("10.0.0.5", ["*.example.com"], True),
        ("10.0.0.5", ["10.0.0.0/24"], True),
        ("10.0.0.5", ["10.0.0.5"], True),
        ("10.0.0.5", ["10.0.0.5:443"], True),
        ("10.0.0.5", ["10.0.0.5:444"], False),
        ("10.0.1.5", ["10.0.0.0/24"], False),
        ("::ffff:10.0.0.5", ["10.0.0.0/24"], False),
        ("fe80::1%eth0", ["fe80::/10", "hooks.example.com"], False),
        ("nonsense", ["hooks.example.com"], False),
    ],
)
def test_the_addresses_of_a_name(address: str, allowed: Sequence[str], passes: bool) -> None:
    if passes:
        check_addresses([address], "hooks.example.com", 443, allowed)
        return
    with pytest.raises(CallbackUrlRefused) as refused:
        check_addresses([address], "hooks.example.com", 443, allowed)
    assert refused.value.reason == ADDRESS
    assert address not in str(refused.value)


def reach(url: str, answer: list[str] | OSError, allowed: Sequence[str] = ()) -> list[str]:
    """Which names it asked for, if it was not refused."""
    asked = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(f"{host}:{port}")
        if isinstance(answer, OSError):
            raise answer
        return answer

    asyncio.run(check_reachable(url, allowed, resolve=resolve))
    return asked


def test_reachable_names_pass() -> None:
    assert reach("https://example.com", ["93.184.215.14", "2606:2800:21f::1"]) == [
        "example.com:443"
    ]
    assert reach("http://receiver:81", ["172.18.0.3"], ["receiver"]) == ["receiver:81"]
    assert reach("https://hooks.example.com", ["10.0.0.5"], ["10.0.0.0/8"])


def test_addresses_are_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", pytest.fail)
    asyncio.run(check_reachable("https://8.8.8.8/", []))
    asyncio.run(check_reachable("http://[::1]:81/", ["::1"]))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (["93.184.215.14", "10.0.0.1"], ADDRESS),
        (["127.0.0.1"], ADDRESS),
        (["::ffff:93.184.215.14"], ADDRESS),
        ([], ADDRESS),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), ADDRESS),
    ],
)
def test_names_that_lead_elsewhere_are_refused(answer: list[str] | OSError, reason: str) -> None:
    with pytest.raises(CallbackUrlRefused) as refused:
        reach("https://example.com/", answer)
    assert refused.value.reason == reason


def test_a_url_is_refused_before_its_name_is_looked_up() -> None:
    with pytest.raises(CallbackUrlRefused, match="https"):
        reach("http://example.com/", AssertionError())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "failure", [socket.gaierror(socket.EAI_AGAIN, "try again"), TimeoutError(), OSError("no")]
)
def test_a_resolver_that_is_away_is_no_reason(failure: OSError) -> None:
    assert reach("https://example.com/", failure) == ["example.com:443"]


def test_a_resolver_that_hangs_is_no_reason() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    asyncio.run(check_reachable("https://example.com/", [], resolve=resolve, timeout=0.01))


# The oracle is what the standard library says about the address itself, spelled plainly.

_NOT_GLOBAL = ["0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"]
_NOT_GLOBAL += ["172.16.0.0/12", "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3"]
_IPV4_IN_IPV6 = [
    lambda v4: v4,
    lambda v4: (0xFFFF << 32) | v4,
    lambda v4: (0xFFFF << 48) | v4,
    lambda v4: (0x64_FF9B << 96) | v4,
    lambda v4: (0x64_FF9B_0001 << 80) | v4,
    lambda v4: (0x2002 << 112) | (v4 << 80) | 1,
    lambda v4: (0x2001_0000 << 96) | (v4 ^ 0xFFFF_FFFF),
    lambda v4: (0x2A00_1450 << 96) | (0x5EFE << 32) | v4,
]


@st.composite
def _spelled(draw: st.DrawFn) -> str:
    """An IPv4 address that is not global, as some program or other reads it."""
    network = ipaddress.IPv4Network(draw(st.sampled_from(_NOT_GLOBAL)))
    rest = int(network[0]) + draw(st.integers(0, network.num_addresses - 1))
    parts = []
    for shift in draw(st.sampled_from([(0,), (24, 0), (24, 16, 0), (24, 16, 8, 0)])):
        form = draw(st.sampled_from(["{1}", "0x{0}{1:x}", "0X{0}{1:X}", "0{0}{1:o}"]))
        parts.append(form.format("0" * draw(st.integers(0, 4)), rest >> shift))
        rest &= (1 << shift) - 1
    text = ".".join(parts) + draw(st.sampled_from(["", "."]))
    for plain in draw(st.sets(st.sampled_from("0123456789.xabcdef"), max_size=4)):
        wide = {".": "。", "x": "ⓧ"}.get(plain, chr(ord(plain) + 0xFEE0))
        if "%" not in text:  # what is escaped stays as it is
            text = text.replace(plain, draw(st.sampled_from([wide, f"%{ord(plain):02x}"])))
    return text


@settings(settings.get_profile("slm-stable"), max_examples=300)
@given(_spelled(), st.sampled_from(["http", "https", "HTTPS"]), st.sampled_from(["", ":8443"]))
def test_no_spelling_of_an_ipv4_address_passes(host: str, scheme: str, port: str) -> None:
    with pytest.raises(CallbackUrlRefused) as refused:
        check_url(f"{scheme}://{host}{port}/", [])
    assert refused.value.reason == ADDRESS


@settings(settings.get_profile("slm-stable"), max_examples=300)
@given(st.ip_addresses(v=4), st.sampled_from(_IPV4_IN_IPV6), st.booleans())
def test_no_ipv6_address_that_carries_ipv4_passes(
    address: object, embed: object, exploded: bool
) -> None:
    carrier = ipaddress.IPv6Address(embed(int(address)))  # type: ignore[operator,call-overload]
    host = carrier.exploded if exploded else str(carrier)
    with pytest.raises(CallbackUrlRefused):
        check_url(f"https://[{host}]/", [])
    with pytest.raises(CallbackUrlRefused):
        check_addresses([host], "example.com", 443, [])


@settings(settings.get_profile("slm-stable"), max_examples=300)
@given(st.ip_addresses())
def test_what_the_standard_library_calls_local_is_refused(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    assume(not address.is_global or address.is_multicast or address.is_reserved)
    host = f"[{address}]" if address.version == 6 else str(address)
    with pytest.raises(CallbackUrlRefused):
        check_url(f"https://{host}/", [])


@settings(settings.get_profile("slm-stable"), max_examples=300)
@given(
    st.one_of(
        st.text(max_size=40),
        st.text("htps:/.@[]%0123456789abcdefx#?\\ -_*", max_size=40),
        st.text(".0123456789abcdefx:[]%@-_", max_size=30).map(lambda host: f"https://{host}/"),
        st.text(max_size=20).map(lambda host: f"https://{host}.com/"),
        st.text(max_size=20).map(lambda path: f"https://example.com/{quote(path)}"),
    )
)
def test_whatever_passes_is_public_and_stays_as_it_is(url: str) -> None:
    try:
        checked = check_url(url, [])
    except CallbackUrlRefused:
        return
    assert check_url(checked, []) == checked
    parts = split(checked)
    assert (parts.scheme, parts.port in (443, 8443)) == ("https", True)
    assert parts.host.isascii()
    try:
        assert ipaddress.ip_address(parts.host).is_global
    except ValueError:
        assert "." in parts.host
        assert not parts.host.rpartition(".")[2].isdigit()
