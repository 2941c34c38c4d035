"""A wire that loses, delays, doubles and spoils frames, between QEMU's socket network and a tap.

The kernel here may have no netem, so a process of our own is the wire. What it does to frames follows
from a seed, but not when they come. Only what lies behind the Ethernet header is spoiled: a real
wire's checksum would find the rest.
"""

from __future__ import annotations

import fcntl
import heapq
import itertools
import os
import random
import select
import socket
import struct
import time
from dataclasses import dataclass

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
ETHERNET_BYTES = 14
ETHERTYPE_IP = b"\x08\x00"
FRAME_BYTES_MAX = 65536 + ETHERNET_BYTES
WAITING_MAX = 4096  # frames on the wire; more are lost, as in any queue


@dataclass(frozen=True)
class Faults:
    """Shares of the frames, and how long they take."""

    lost: float = 0.0
    doubled: float = 0.0
    spoiled: float = 0.0
    delay_s: tuple[float, float] = (0.0, 0.0)  # any time between: they overtake each other


@dataclass
class Counts:
    frames: int = 0
    lost: int = 0
    doubled: int = 0
    spoiled: int = 0
    delayed: int = 0


class Wire:
    """Runs in a process of its own: takes QEMU's connection, then carries frames for ever."""

    def __init__(self, listener: socket.socket, tap: str, seed: int) -> None:
        self._listener = listener
        self._tap = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(self._tap, TUNSETIFF, struct.pack("16sH", tap.encode(), IFF_TAP | IFF_NO_PI))
        self._luck = random.Random(seed)
        self._faults = Faults()
        self._counts = Counts()
        self._waiting: list[tuple[float, int, bool, bytes]] = []
        self._order = itertools.count()
        self._received = bytearray()

    def run(self, control: socket.socket) -> None:
        """`control` brings the next Faults, one in a message, and takes the counts of those before."""
        qemu, _ = self._listener.accept()
        poll = select.poll()
        for source in (qemu, self._tap, control):
            poll.register(source, select.POLLIN)
        while True:
            wait_ms = max(0.0, (self._waiting[0][0] - time.monotonic()) * 1000) if self._waiting else None
            for source, _ in poll.poll(wait_ms):
                if source == control.fileno():
                    message = control.recv(4096)
                    if not message:
                        return
                    control.send(repr(self._counts).encode())
                    self._faults = eval(message.decode(), {"Faults": Faults})  # our own words
                    self._counts = Counts()
                elif source == self._tap:
                    self._take(os.read(self._tap, FRAME_BYTES_MAX), to_guest=True)
                elif not self._read_guest(qemu):
                    return
            self._deliver(qemu)

    def _read_guest(self, qemu: socket.socket) -> bool:
        piece = qemu.recv(1 << 20)
        self._received += piece
        while len(self._received) >= 4:
            (length,) = struct.unpack_from(">I", self._received)
            if len(self._received) < 4 + length:
                break
            self._take(bytes(self._received[4 : 4 + length]), to_guest=False)
            del self._received[: 4 + length]
        return bool(piece)

    def _take(self, frame: bytes, to_guest: bool) -> None:
        faults, luck, counts = self._faults, self._luck, self._counts
        counts.frames += 1
        if luck.random() < faults.lost or len(self._waiting) >= WAITING_MAX:
            counts.lost += 1
            return
        copies = 1
        if luck.random() < faults.doubled:
            counts.doubled += 1
            copies = 2
        if luck.random() < faults.spoiled and frame[12:14] == ETHERTYPE_IP:
            counts.spoiled += 1
            at = luck.randrange(ETHERNET_BYTES, len(frame))
            changed = frame[at] ^ 1 << luck.randrange(8)
            frame = frame[:at] + bytes([changed]) + frame[at + 1 :]
        for _ in range(copies):
            delay = luck.uniform(*faults.delay_s)
            counts.delayed += delay > 0
            heapq.heappush(
                self._waiting, (time.monotonic() + delay, next(self._order), to_guest, frame)
            )

    def _deliver(self, qemu: socket.socket) -> None:
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            _, _, to_guest, frame = heapq.heappop(self._waiting)
            if to_guest:
                qemu.sendall(struct.pack(">I", len(frame)) + frame)
            else:
                os.write(self._tap, frame)
