"""The servers that are measured: how each is started, watched and stopped.

Ours and the Linux guests run on the same QEMU and board; the host's servers have the same image
and TCP over loopback.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import peer_linux
from enclosure import Place

MEMORY_MIB = 256
READY_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 10.0
CLIENTS_MAX = 128

# An attempt to connect each millisecond, of which the oldest few stay open: their SYNs wait in the
# tap's queue and are what the guest sees first. The queue is kept as short, or the guest would
# have to wade through hundreds of them when it wakes. Later attempts are rarer, one per hundredth
# of the time gone by: a thousand refusals a second might slow a guest that boots for seconds.
RETRY_INTERVAL_MIN_S = 0.001
RETRY_SHARE = 0.01
PENDING_MAX = 4
BOOT_QUEUE_PACKETS = PENDING_MAX
LOAD_QUEUE_PACKETS = 1000  # the default of a tap
GREETING_BYTES = 18
GREETING_MAGIC = b"NBDMAGICIHAVEOPT"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Failure(Exception):
    """A contestant did not do what it was started for."""


@dataclass(frozen=True)
class Kind:
    """A way to serve an image over NBD."""

    name: str
    what: str  # for a reader of the table
    runs_on: str  # platter, linux (a guest too) or host
    # From where it is reached, the image, the memory in MiB and more words for QEMU.
    command: Callable[[Place, Path, int, str], list[str]]
    export: str = ""
    needs_direct_io: bool = False


def _appliance(place: Place, image: Path, memory_mib: int, qemu: str, *more: str) -> list[str]:
    if place.kind == "tap":
        network = ["--net", "tap", "--tap", place.tap]
        network += ["--ip", place.guest_address, "--gw", place.host_ip]
    else:
        network = ["--port", str(place.server[1])]
    words = ["--qemu", qemu] if qemu else []
    memory = ["--memory", str(memory_mib)]
    return ["./build.sh", "run", "--disk", str(image), *memory, *network, *more, *words]


def _appliance_native(place: Place, image: Path, memory_mib: int, qemu: str) -> list[str]:
    return _appliance(place, image, memory_mib, qemu, "--aio", "native")


def _linux(server: str) -> Callable[[Place, Path, int, str], list[str]]:
    def command(place: Place, image: Path, memory_mib: int, qemu: str) -> list[str]:
        if place.kind == "tap":
            network = peer_linux.tap(place.tap, place.mtu)
        else:
            network = peer_linux.user(place.server[1], place.guest_ip)
        gateway = place.host_ip if place.kind == "tap" else "10.0.2.2"
        peer = peer_linux.build(server)
        started = peer.command(network, image, place.guest_address, gateway, memory_mib)
        return [*started, *qemu.split()]

    return command


def _host_nbdkit(place: Place, image: Path, _memory_mib: int, _qemu: str) -> list[str]:
    address, port = place.server
    return ["nbdkit", "-f", "-i", address, "-p", str(port), "file", str(image)]


def _host_qemu_nbd(
    place: Place, image: Path, _memory_mib: int, _qemu: str, *more: str
) -> list[str]:
    address, port = place.server
    where = [f"--bind={address}", f"--port={port}"]
    manner = ["--persistent", f"--shared={CLIENTS_MAX}", "--format=raw", "--discard=unmap"]
    return ["qemu-nbd", *where, *manner, *more, str(image)]


def _host_qemu_nbd_native(place: Place, image: Path, memory_mib: int, qemu: str) -> list[str]:
    return _host_qemu_nbd(place, image, memory_mib, qemu, "--aio=native", "--cache=none")


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "platter",
            "the appliance as `run` starts it: io_uring, else threads",
            "platter",
            _appliance,
        ),
        Kind(
            "platter-native",
            "the appliance, aio=native,cache=none",
            "platter",
            _appliance_native,
            needs_direct_io=True,
        ),
        *(
            Kind(
                f"linux-{name}",
                f"a Linux guest with {name}, aio=native,cache=none",
                "linux",
                _linux(name),
                export=server.export,
                needs_direct_io=True,
            )
            for name, server in peer_linux.SERVERS.items()
        ),
        Kind("host-nbdkit", "nbdkit on the host itself", "host", _host_nbdkit),
        Kind("host-qemu-nbd", "qemu-nbd on the host itself", "host", _host_qemu_nbd),
        Kind(
            "host-qemu-nbd-native",
            "qemu-nbd on the host, aio=native,cache=none",
            "host",
            _host_qemu_nbd_native,
            needs_direct_io=True,
        ),
    )
}


class Contestant:
    """A server of one kind at its place, with its image; runs or does not."""

    def __init__(self, kind: Kind, place: Place, image: Path, log: Path) -> None:
        self.kind = kind
        self.name = kind.name
        self.place = place
        self.image = image
        self.restarts = 0
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        address, port = self.place.server
        return f"nbd://{address}:{port}/{self.kind.export}"

    def start(
        self,
        memory_mib: int = MEMORY_MIB,
        qemu: str = "",
        timeout_s: float = READY_TIMEOUT_S,
        more: Sequence[str] = (),
    ) -> float:
        """Gives the seconds until its first greeting. `more` are words for its command line."""
        assert self._process is None
        command = [*self.kind.command(self.place, self.image, memory_mib, qemu), *more]
        with self._log.open("wb") as log:
            started = time.monotonic()
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            return self._await_greeting(self._process, started, timeout_s)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            stop(process)

    @contextlib.contextmanager
    def running(
        self,
        memory_mib: int = MEMORY_MIB,
        qemu: str = "",
        timeout_s: float = READY_TIMEOUT_S,
        more: Sequence[str] = (),
    ) -> Iterator[float]:
        """Starts it, gives the seconds until its first greeting, and stops it at the end."""
        ready_s = self.start(memory_mib, qemu, timeout_s, more)
        try:
            yield ready_s
        finally:
            self.stop()

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def cpu_s(self) -> float:
        """Processor time that it and what it has started have used, of user and kernel."""
        assert self._process is not None
        ticks = 0
        waiting = [self._process.pid]
        while waiting:
            pid = waiting.pop()
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                # Behind the name, which may hold anything: utime and stime are fields 14 and 15.
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
                for task in Path(f"/proc/{pid}/task").iterdir():
                    waiting += map(int, (task / "children").read_text().split())
        return ticks / TICKS_PER_S

    def log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])

    def _await_greeting(
        self, process: subprocess.Popen[bytes], started: float, timeout_s: float
    ) -> float:
        pending: list[socket.socket] = []
        try:
            while (now := time.monotonic()) < started + timeout_s:
                if process.poll() is not None:
                    raise Failure(
                        f"{self.name} ended with {process.returncode}:\n{self.log_tail()}"
                    )
                if len(pending) == PENDING_MAX:
                    pending.pop().close()
                pending.append(_begin_connect(self.place.server))
                next_s = now + max(RETRY_INTERVAL_MIN_S, (now - started) * RETRY_SHARE)
                while (wait_s := next_s - time.monotonic()) > 0:
                    # Refused and reset ones are readable too, and are dropped; greeted ones end it.
                    for connection in select.select(pending, [], [], wait_s)[0]:
                        if _has_greeting(connection):
                            return time.monotonic() - started
                        pending.remove(connection)
                        connection.close()
        finally:
            for connection in pending:
                connection.close()
        raise Failure(f"{self.name} did not answer in {timeout_s} s:\n{self.log_tail()}")


def _begin_connect(server: tuple[str, int]) -> socket.socket:
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    connection.setblocking(False)
    # Not connected yet, or refused at once: either shows when it is read.
    connection.connect_ex(server)
    return connection


def _has_greeting(connection: socket.socket) -> bool:
    greeting = b""
    try:
        connection.setblocking(True)
        connection.settimeout(1)
        # nbd-server sends it in pieces.
        while len(greeting) < GREETING_BYTES:
            piece = connection.recv(GREETING_BYTES - len(greeting))
            if not piece:
                break
            greeting += piece
    except OSError:
        return False
    if not GREETING_MAGIC.startswith(greeting[: len(GREETING_MAGIC)]):
        raise Failure(f"not an NBD server: {greeting!r}")
    return len(greeting) == GREETING_BYTES


def _reap_group(group: int) -> None:
    """This is process 1 of its namespace: what its children leave behind is for it to bury."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0] != 0:
            pass


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a process group and waits until it is gone, so that its tap is free again."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        deadline = time.monotonic() + STOP_TIMEOUT_S / 2
        while time.monotonic() < deadline:
            process.poll()
            _reap_group(process.pid)
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.005)
    raise Failure(f"process group {process.pid} does not end")
