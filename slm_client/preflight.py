"""What must hold before anything is started. Each check raises, in one sentence, what to do."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from slm_client.errors import PortTaken, StartError

_ALWAYS_ALLOWED = ("localhost", "127.0.0.1", "[::1]")  # the api's own default
_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104
_REDIS_URL = (
    "--redis-url must look like redis://127.0.0.1:6379/0, rediss://…, "
    "unix:///run/redis.sock or redis+sentinel://host:26379,host:26379/name."
)


class Lock:
    """Held on a data folder, which it makes, until `release` or the end of the process."""

    def __init__(self, data_dir: Path) -> None:
        """Raises StartError if another process holds it, or the folder cannot be written."""
        try:
            # prompts and stories are nobody else's business
            data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.fd = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StartError(f"cannot use {data_dir} as data folder: {error.strerror}") from None
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(self.fd, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(self.fd)
            raise StartError(
                f"{data_dir} is in use by another slm (process {owner}): "
                "stop that one, or choose another --data-dir."
            ) from None
        os.ftruncate(self.fd, 0)
        os.write(self.fd, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """The file stays: a new one at its place would be another lock."""
        os.close(self.fd)


def allowed_hosts(host: str) -> str:
    """SLM_ALLOWED_HOSTS for an api that listens on `host`: by these names it may be called."""
    names = [host] if host not in _WILDCARDS else _own_names()
    more = [f"[{name}]" if ":" in name else name for name in names]
    return ",".join(dict.fromkeys([*_ALWAYS_ALLOWED, *more]))


def _own_names() -> list[str]:
    """This machine's name and addresses, as far as it knows them."""
    name = socket.gethostname().lower()
    addresses = []
    with contextlib.suppress(OSError):
        addresses = [str(info[4][0]) for info in socket.getaddrinfo(name, None)]
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        # Connecting a datagram socket sends nothing, but chooses the address to send from.
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((elsewhere, 9))
            addresses.append(sock.getsockname()[0])
    return [name, *(address.partition("%")[0] for address in addresses)]


def local_url(host: str, port: int) -> str:
    """Where this machine reaches a server that is bound to `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_port(host: str, port: int) -> None:
    """Raises StartError unless `host` and `port` can be listened on: PortTaken if something
    listens there already."""
    try:
        _bind(host, port).close()
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise StartError(f"--host {host} is no address of this machine.") from None
        says = f"cannot listen on {host} port {port} ({error.strerror}): "
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(f"{says}stop what uses it, or choose another --port.") from None
        raise StartError(f"{says}choose another --port.") from None


def free_port_on(host: str) -> int:
    """Raises StartError if `host` is no address of this machine."""
    try:
        with _bind(host, 0) as sock:
            return int(sock.getsockname()[1])
    except OSError:
        raise StartError(f"--host {host} is no address of this machine.") from None


def _bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        # As uvicorn does: connections of an earlier run that are winding down do not count.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1)
    except OSError:
        sock.close()
        raise
    return sock


def check_redis(url: str) -> None:
    """Raises StartError unless something listens where the address says: at one of several, if it
    is that of Sentinels."""
    places = _places(url)
    if not places:
        raise StartError(_REDIS_URL)
    reason: object = ""
    for place in places:
        try:
            _connect(place)
        except OSError as error:
            reason = error.strerror or error
        else:
            return
    raise StartError(f"no Redis answers at {without_password(url)}: {reason}.")


def _places(url: str) -> list[str | tuple[str, int]]:
    """Paths of sockets, or hosts and ports. None if the address is not one of Redis."""
    parts = _split(url)
    if parts.scheme == "unix":
        return [parts.path] if parts.path else []
    ports = {"redis": 6379, "rediss": 6379, "redis+sentinel": 26379, "rediss+sentinel": 26379}
    if parts.scheme not in ports:
        return []
    hosts = parts.netloc.rpartition("@")[2]
    try:
        each = [urlsplit(f"//{host}") for host in hosts.split(",")]
        found = [(part.hostname or "", part.port or ports[parts.scheme]) for part in each]
    except ValueError:
        return []
    return list(found) if all(host for host, _ in found) else []


def _connect(place: str | tuple[str, int]) -> None:
    if isinstance(place, tuple):
        socket.create_connection(place, timeout=3).close()
        return
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(3)
        sock.connect(place)


def without_password(url: str) -> str:
    """For the screen: scheme, host, port and database only. Raises StartError."""
    parts = _split(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # its text may hold the password
        raise StartError(_REDIS_URL) from None
