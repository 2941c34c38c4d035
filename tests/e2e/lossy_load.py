"""Runs inside namespaces of its own: the lossy wire, and real TCP clients behind it.

    lossy_load.py SOCKET SEED SECONDS

Makes a tap, listens at SOCKET for QEMU, and speaks with who called it in lines: "listening"; "ready" when
clients have used the appliance over a good wire; then a line is waited for; "phase WORDS" at the
beginning of each phase of SECONDS; "done WORDS", or "failed WORDS". Clients know what every block may
hold: a write that was cut off has happened or not, so its blocks are only read from then on.
"""

from __future__ import annotations

import multiprocessing
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import dataclass

import lossy_wire
from lossy_wire import Faults
from nbd_wire import Closed, Command, CommandFlag, Error, Wire, request_bytes

TAP = "tap0"
HOST_ADDRESS = "10.0.2.2/24"
GUEST_ADDRESS = "10.0.2.15"
# QEMU's default for the first card: what a neighbour is must not depend on a frame that may be lost.
GUEST_MAC = "52:54:00:12:34:56"
PORT = 10809
BLOCK = 4096
BLOCKS = 2048  # of one client
CLIENTS = 3
CONNECT_S = 20.0
IN_FLIGHT = 8
CUT_ONE_IN = 25  # batches
STILL_S = 0.5  # a blackout

PHASES = {
    "good": Faults(),
    "1 % lost": Faults(lost=0.01),
    "doubled and overtaking": Faults(doubled=0.05, delay_s=(0.0, 0.004)),
    "spoiled": Faults(spoiled=0.02),
    "slow": Faults(delay_s=(0.015, 0.02)),
    "all of it": Faults(lost=0.02, doubled=0.02, spoiled=0.02, delay_s=(0.0, 0.01)),
    "5 % lost": Faults(lost=0.05),
    "link": Faults(),  # who called us unplugs the cable
}


@dataclass(frozen=True)
class Server:
    host: str = GUEST_ADDRESS
    port: int = PORT


class Client:
    """Batches of reads and writes on a range of its own, on one connection after the other."""

    def __init__(self, index: int, seed: int) -> None:
        self.luck = random.Random(seed * 100 + index)
        self.base = index * BLOCKS
        self.version = 0
        self.may_hold = [[0] for _ in range(BLOCKS)]
        self.is_settled = bytearray(b"\1" * BLOCKS)
        self.wire: Wire | None = None
        self.requests = 0
        self.connections = 0

    def connect(self) -> Wire:
        """A handshake may be lost as anything else; TCP tries again, and so do we."""
        deadline = time.monotonic() + CONNECT_S
        while True:
            try:
                wire = Wire(Server())
                wire.go()
                self.connections += 1
                return wire
            except (OSError, Closed):
                if time.monotonic() > deadline:
                    raise

    def leave(self) -> None:
        if self.wire is not None:
            self.wire.disconnect()
            self.wire = None

    def cut(self) -> None:
        assert self.wire is not None
        self.wire.reset() if self.luck.random() < 0.5 else self.wire.close()
        self.wire = None

    def words(self, block: int, version: int) -> bytes:
        if version == 0:
            return bytes(BLOCK)
        return struct.pack(">QQ", self.base + block, version) * (BLOCK // 16)

    def batch(self) -> None:
        """So many requests at once; sometimes the connection is cut before they are answered."""
        self.wire = self.wire or self.connect()
        is_cut = self.luck.randrange(CUT_ONE_IN) == 0
        blocks = self.luck.sample(range(BLOCKS), IN_FLIGHT)
        writes = {b for b in blocks if self.is_settled[b] and self.luck.random() < 0.5}
        self.version += 1
        words = b""
        for block in blocks:
            at = (self.base + block) * BLOCK
            if block in writes:
                self.may_hold[block].append(self.version)
                flags = self.luck.choice([0, 0, CommandFlag.FUA])
                data = self.words(block, self.version)
                words += request_bytes(Command.WRITE, at, BLOCK, data, flags=flags, cookie=block)
            else:
                words += request_bytes(Command.READ, at, BLOCK, cookie=block)
        if is_cut:
            words = words[: self.luck.randrange(len(words) + 1)]
        self.wire.send(words)
        answered = self.luck.randrange(IN_FLIGHT) if is_cut else IN_FLIGHT
        try:
            # Of a request that was not sent whole there is no answer to wait for.
            for _ in range(0 if is_cut and len(words) < 28 * IN_FLIGHT else answered):
                if not self.take_answer(blocks, writes, is_cut):
                    break
        finally:
            for block in writes:
                if len(self.may_hold[block]) > 1:
                    self.is_settled[block] = 0  # it was not answered: it may happen even later
        if is_cut:
            self.cut()

    def take_answer(self, blocks: list[int], writes: set[int], is_cut: bool) -> bool:
        """False when it did not come in time; then whatever comes may be the rest of it."""
        assert self.wire is not None
        if is_cut:
            self.wire.socket.settimeout(STILL_S)
        try:
            _, error, block = struct.unpack(">IIQ", self.wire.receive(16))
            assert error == Error.NONE and block in blocks
            data = b"" if block in writes else self.wire.receive(BLOCK)
        except TimeoutError:
            if is_cut:
                return False  # the rest of a request is missing
            raise
        self.requests += 1
        if block in writes:
            self.may_hold[block] = [self.version]
        else:
            versions = self.may_hold[block]
            good = any(data == self.words(block, version) for version in versions)
            assert good, f"block {self.base + block} holds {data[:16].hex()}, may hold {versions}"
        return True


class Load:
    def __init__(self, seed: int) -> None:
        self.clients = [Client(index, seed) for index in range(CLIENTS)]
        self.failures: list[BaseException] = []

    def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds

        def one(client: Client) -> None:
            try:
                while time.monotonic() < until and not self.failures:
                    client.batch()
            except BaseException as failure:
                self.failures.append(failure)

        threads = [threading.Thread(target=one, args=(client,)) for client in self.clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.failures:
            raise self.failures[0]


def say(*words: object) -> None:
    print(*words, flush=True)


def run_wire(listener: socket.socket, control: socket.socket, seed: int) -> None:
    lossy_wire.Wire(listener, TAP, seed).run(control)


def main() -> None:
    path, seed, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1)
    for step in (
        "ip link set lo up",
        f"ip tuntap add {TAP} mode tap",
        f"ip addr add {HOST_ADDRESS} dev {TAP}",
        f"ip link set {TAP} up",
        f"ip neigh replace {GUEST_ADDRESS} lladdr {GUEST_MAC} dev {TAP} nud permanent",
    ):
        subprocess.run(step.split(), check=True, timeout=10)
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    arguments = (listener, theirs, seed)
    multiprocessing.Process(target=run_wire, args=arguments, daemon=True).start()
    theirs.close()
    say("listening")
    load = Load(seed)
    load.run(1)
    for client in load.clients:
        client.leave()
    say("ready")
    sys.stdin.readline()
    for name, faults in PHASES.items():
        say("phase", name)
        control.send(repr(faults).encode())
        control.recv(4096)  # of the phase before
        load.run(seconds)
        if name == "all of it":
            # Nothing at all passes for a while, in the middle of what is in flight.
            control.send(repr(Faults(lost=1.0)).encode())
            say("counts", control.recv(4096).decode())
            threading.Timer(STILL_S, lambda: control.send(repr(faults).encode())).start()
            load.run(2 * STILL_S)
            control.recv(4096)
    control.send(repr(Faults()).encode())
    control.recv(4096)
    load.run(1)
    for client in load.clients:
        client.leave()
    requests = sum(client.requests for client in load.clients)
    connections = sum(client.connections for client in load.clients)
    say("done", requests, "requests,", connections, "connections")
    sys.stdin.readline()  # the wire goes with us, and the guest may have last words for it


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        say("failed", " | ".join(traceback.format_exc().splitlines()))
        sys.exit(1)
