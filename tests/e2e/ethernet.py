"""The other end of an appliance's Ethernet: clients that are made of frames, and can vanish.

QEMU's `stream` network is a Unix socket on which each frame follows its length. On it the test is the
whole network: it answers for any address of 10.0.2.0/24, as far as a client needs that is to vanish.
"""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path

from appliance import GUEST_ADDRESS

OUR_MAC = bytes.fromhex("525400123457")
BROADCAST = b"\xff" * 6
ETHERTYPE_IP = 0x0800
ETHERTYPE_ARP = 0x0806
FIN, SYN, RST, PUSH, ACK = 1, 2, 4, 8, 16
PATIENCE_S = 10.0
NBD_PORT = 10809


def checksum(data: bytes) -> int:
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Ethernet:
    """Listens for QEMU; `clients` get what is for them, until they are taken out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.wire: socket.socket | None = None
        self.guest_mac = b""
        self.clients: dict[tuple[bytes, int], FrameClient] = {}

    def close(self) -> None:
        self.listener.close()
        if self.wire is not None:
            self.wire.close()

    def connect(self) -> None:
        """Takes QEMU's connection, and learns where the guest is."""
        self.listener.settimeout(PATIENCE_S)
        self.wire, _ = self.listener.accept()
        deadline = time.monotonic() + PATIENCE_S
        while not self.guest_mac:
            assert time.monotonic() < deadline, "the guest does not answer"
            self.send_arp(1, BROADCAST, socket.inet_aton("10.0.2.2"), bytes(6))
            self.serve(0.2)

    def send_arp(self, kind: int, to: bytes, ours: bytes, target_mac: bytes) -> None:
        words = struct.pack(">HHBBH", 1, ETHERTYPE_IP, 6, 4, kind) + OUR_MAC + ours
        words += target_mac + socket.inet_aton(GUEST_ADDRESS)
        self.send_frame(to, ETHERTYPE_ARP, words)

    def send_frame(self, to: bytes, ethertype: int, payload: bytes) -> None:
        assert self.wire is not None
        frame = to + OUR_MAC + struct.pack(">H", ethertype) + payload
        frame += bytes(max(0, 60 - len(frame)))
        self.wire.sendall(struct.pack(">I", len(frame)) + frame)

    def _receive(self, count: int) -> bytes:
        assert self.wire is not None
        data = b""
        while len(data) < count:
            piece = self.wire.recv(count - len(data))
            assert piece, "QEMU has ended"
            data += piece
        return data

    def serve(self, seconds: float) -> None:
        """Handles what comes in this time, or the first frame of it."""
        assert self.wire is not None
        self.wire.settimeout(seconds)
        try:
            first = self.wire.recv(1)
        except TimeoutError:
            return
        self.wire.settimeout(PATIENCE_S)
        (length,) = struct.unpack(">I", first + self._receive(3))
        frame = self._receive(length)
        (ethertype,) = struct.unpack_from(">H", frame, 12)
        if ethertype == ETHERTYPE_ARP:
            self._take_arp(frame[14:])
        elif ethertype == ETHERTYPE_IP and frame[23] == socket.IPPROTO_TCP:
            self._take_tcp(frame[14:])

    def _take_arp(self, words: bytes) -> None:
        (kind,) = struct.unpack_from(">H", words, 6)
        if words[14:18] == socket.inet_aton(GUEST_ADDRESS):
            self.guest_mac = words[8:14]
        if kind == 1 and words[24:28] != words[14:18]:
            self.send_arp(2, words[8:14], words[24:28], words[8:14])

    def _take_tcp(self, packet: bytes) -> None:
        header_bytes = (packet[0] & 15) * 4
        (total,) = struct.unpack_from(">H", packet, 2)
        segment = packet[header_bytes:total]
        (port,) = struct.unpack_from(">H", segment, 2)
        client = self.clients.get((packet[16:20], port))
        if client is not None:
            client.take(segment)


class FrameClient:
    """A TCP client of few words. It acknowledges what comes as long as it is there."""

    def __init__(self, ethernet: Ethernet, address: str, port: int) -> None:
        self.ethernet = ethernet
        self.address = socket.inet_aton(address)
        self.port = port
        self.sequence = 1000
        self.expected = 0
        self.received = b""
        self.window = 65535
        self.lose_one_in = 0  # of the segments with data; 0 for none
        self.segments = 0
        self.is_open = False
        self.is_reset = False
        ethernet.clients[self.address, port] = self
        self._send(SYN)
        self.sequence += 1
        self.wait(lambda: self.is_open or self.is_reset)

    def _send(self, flags: int, data: bytes = b"", options: bytes = b"") -> None:
        guest = socket.inet_aton(GUEST_ADDRESS)
        offset = 5 + len(options) // 4 << 4
        words = (self.port, NBD_PORT, self.sequence, self.expected, offset, flags, self.window)
        segment = struct.pack(">HHIIBBHHH", *words, 0, 0) + options + data
        pseudo = self.address + guest + struct.pack(">BBH", 0, socket.IPPROTO_TCP, len(segment))
        segment = segment[:16] + struct.pack(">H", checksum(pseudo + segment)) + segment[18:]
        total = 20 + len(segment)
        header = struct.pack(">BBHHHBBH", 0x45, 0, total, 0, 0, 64, socket.IPPROTO_TCP, 0)
        header += self.address + guest
        header = header[:10] + struct.pack(">H", checksum(header)) + header[12:]
        self.ethernet.send_frame(self.ethernet.guest_mac, ETHERTYPE_IP, header + segment)

    def take(self, segment: bytes) -> None:
        sequence, _, offset, flags = struct.unpack_from(">IIBB", segment, 4)
        data = segment[(offset >> 4) * 4 :]
        self.segments += len(data) > 0
        if data and self.lose_one_in and self.segments % self.lose_one_in == 0:
            return
        if flags & RST:
            self.is_reset = True
        elif flags & SYN:
            self.expected = sequence + 1
            self.is_open = True
            self._send(ACK)
        elif sequence == self.expected and (data or flags & FIN):
            self.received += data
            self.expected += len(data) + (1 if flags & FIN else 0)
            self._send(ACK)
        elif data or sequence != self.expected:
            self._send(ACK)  # again, or a question whether this end is there

    def say(self, data: bytes) -> None:
        self._send(ACK | PUSH, data)
        self.sequence += len(data)

    def acknowledge(self, options: bytes = b"") -> None:
        self._send(ACK, options=options)

    def wait(self, is_done: object) -> None:
        assert callable(is_done)
        deadline = time.monotonic() + PATIENCE_S
        while not is_done():
            assert time.monotonic() < deadline, "the appliance does not answer"
            self.ethernet.serve(0.1)

    def vanish(self) -> None:
        """Without a word; nothing is answered from now on."""
        del self.ethernet.clients[self.address, self.port]
