"""Network and process namespaces for one run, with taps and a disk in memory.

Taps and addresses cannot collide with others', and every process, QEMU included, is gone when the
run ends in whatever way; so is the memory. It needs root, and there is no way out to the network.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

MEMORY_FOLDER = Path("/dev/shm")
LOOPBACK = "127.0.0.1"
PREFIX_BITS = 24
NBD_PORT = 10809
# QEMU's default for the first network card. Known beforehand, so that no lookup of the host's, once
# a second, stands between a guest that is ready and our noticing it.
GUEST_MAC = "52:54:00:12:34:56"
MARK = "PLATTER_BENCH_ENCLOSED"


@dataclass(frozen=True)
class Place:
    """Where one contestant is reached: a tap with a network of its own, or a port of loopback."""

    kind: str  # tap, user or host
    index: int
    mtu: int  # of a tap

    @property
    def tap(self) -> str:
        return f"tap{self.index}"

    @property
    def host_ip(self) -> str:
        return f"10.0.{2 + self.index}.2"

    @property
    def guest_ip(self) -> str:
        return f"10.0.{2 + self.index if self.kind == 'tap' else 2}.15"

    @property
    def guest_address(self) -> str:
        return f"{self.guest_ip}/{PREFIX_BITS}"

    @property
    def server(self) -> tuple[str, int]:
        if self.kind == "tap":
            return self.guest_ip, NBD_PORT
        return LOOPBACK, NBD_PORT + self.index

    def make(self) -> None:
        """Makes the tap, if it is one."""
        if self.kind == "tap":
            _run(f"ip tuntap add {self.tap} mode tap vnet_hdr")
            _run(f"ip addr add {self.host_ip}/{PREFIX_BITS} dev {self.tap}")
            _run(f"ip link set {self.tap} mtu {self.mtu} up")
            neighbour = f"{self.guest_ip} lladdr {GUEST_MAC} dev {self.tap}"
            _run(f"ip neigh replace {neighbour} nud permanent")

    def set_queue_length(self, packets: int) -> None:
        """From the host to the guest. It takes effect when the guest opens the tap."""
        if self.kind == "tap":
            _run(f"ip link set {self.tap} txqueuelen {packets}")


def enter() -> None:
    """Starts this program again inside, unless that has been done."""
    if os.environ.get(MARK) == "1":
        return
    if os.geteuid() != 0:
        raise SystemExit("bench needs root: it makes taps in a network namespace of its own")
    os.environ[MARK] = "1"
    enclose = ["unshare", "--net", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
    os.execvp(enclose[0], [*enclose, sys.executable, *sys.argv])


def make_memory_disk(mib: int) -> None:
    """Mounts this run's own memory over the host's; taken page by page as it is written."""
    _run("ip link set lo up")
    _run(f"mount -t tmpfs -o size={mib}m bench {MEMORY_FOLDER}")


def make_disk(image: Path, mib: int) -> None:
    """A disk without holes, which no server could answer from nothing. Written in one piece, as its
    copies are: of a tmpfs, pages that were taken piece by piece are read a tenth slower."""
    image.write_bytes(os.urandom(1024 * 1024) * mib)


def has_direct_io(folder: Path) -> bool:
    """Linux before 6.6 has no O_DIRECT on tmpfs, and `aio=native` needs it."""
    probe = folder / "probe"
    probe.touch()
    try:
        os.close(os.open(probe, os.O_RDWR | os.O_DIRECT))
    except OSError:
        return False
    finally:
        probe.unlink()
    return True


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True, timeout=10)
