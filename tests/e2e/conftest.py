"""The server that the end-to-end tests talk to.

For now a stand-in, qemu-nbd on a sparse file, so that the clients can be built before the appliance
can serve. Everything about it is in this file; the tests know only what `Server` tells.
"""

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

DISK_BYTES = 256 * 1024 * 1024
READY_TIMEOUT_S = 10
START_ATTEMPTS = 5
SHARED_CLIENTS_MAX = 16


@dataclass(frozen=True)
class Server:
    """An NBD server on TCP; `export` '' is the default, `image` the raw file of `size` bytes."""

    host: str
    port: int
    export: str
    image: Path
    size: int


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server with an empty disk of its own for each test."""
    image = tmp_path / "disk.raw"
    with image.open("wb") as disk:
        disk.truncate(DISK_BYTES)
    process, port = _start_qemu_nbd(image)
    try:
        yield Server("127.0.0.1", port, "", image, DISK_BYTES)
    finally:
        process.kill()
        process.wait(10)


def _start_qemu_nbd(image: Path) -> tuple[subprocess.Popen[bytes], int]:
    # Another process may take the port between our look and its use.
    for _ in range(START_ATTEMPTS):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        command = ["setpriv", "--pdeathsig", "KILL", "qemu-nbd", "--format=raw", "--persistent"]
        command += [f"--shared={SHARED_CLIENTS_MAX}", "--bind=127.0.0.1", f"--port={port}"]
        process = subprocess.Popen([*command, str(image)])
        deadline = time.monotonic() + READY_TIMEOUT_S
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                with socket.create_connection(("127.0.0.1", port), 1) as connection:
                    if connection.recv(8) == b"NBDMAGIC":
                        return process, port
            time.sleep(0.02)
        process.kill()
        process.wait(10)
    raise RuntimeError("qemu-nbd does not answer")
