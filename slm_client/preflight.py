"""What must hold before anything is started. Each check raises, in one sentence, what to do."""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit

from slm_client.errors import BadInput, StartError

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


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


def is_loopback(host: str) -> bool:
    return host in _LOOPBACK


def local_url(host: str, port: int) -> str:
    """Where this machine reaches a server that is bound to `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_port(host: str, port: int) -> None:
    """Raises StartError unless `host` and `port` can be listened on."""
    try:
        _bind(host, port).close()
    except OSError as error:
        if isinstance(error, socket.gaierror):
            raise StartError(f"--host {host} is no address of this machine.") from None
        raise StartError(
            f"cannot listen on {host} port {port} ({error.strerror}): "
            "stop what uses it, or choose another --port."
        ) from None


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
    """Raises StartError unless something listens at a `redis://` or `rediss://` address."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 6379
    except ValueError:
        host = None
    if host is None or parts.scheme not in ("redis", "rediss"):
        raise StartError("--redis-url must look like redis://127.0.0.1:6379/0.")
    try:
        socket.create_connection((host, port), timeout=3).close()
    except OSError as error:
        reason = error.strerror or error
        raise StartError(f"no Redis answers at {without_password(url)}: {reason}.") from None


def without_password(url: str) -> str:
    """For the screen: scheme, host, port and database only."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def write_manifest(model: Path, data_dir: Path) -> Path:
    """Writes a `models.toml` that names one checkpoint folder after itself, and returns its path.

    Raises BadInput if the folder holds no checkpoint.
    """
    checkpoint = model.resolve()
    if not checkpoint.is_dir():
        raise BadInput(f"--model {model} is not a folder.")
    for name in ("config.json", "model.safetensors"):
        if not (checkpoint / name).is_file():
            raise BadInput(f"--model {model} is not a checkpoint: it has no {name}.")
    manifest = data_dir / "models.toml"
    # A JSON string is a TOML basic string; unescaped, so that no surrogate pairs appear.
    path = json.dumps(str(checkpoint), ensure_ascii=False)
    manifest.write_text(
        f'["{model_name(checkpoint.name)}"]\ncheckpoint = {path}\nprecision = "auto"\n', "utf-8"
    )
    return manifest


def model_name(folder: str) -> str:
    """A name that the service accepts: 1 to 64 of a-z, 0-9, '.', '_', '-', the first no sign."""
    name = re.sub(r"[^a-z0-9._-]+", "-", folder.lower()).strip("-._")
    return name[:64] or "model"
