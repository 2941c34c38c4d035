"""A disk below the emulator whose write cache a power cut empties: an NBD server that QEMU opens as its
image.

What was written is in the cache; a flush makes durable what had been answered before it came. Writes are
held back now and then, and done after requests that came later, as a disk with many heads would; a flush
may be answered late, and be done when it comes or when it is answered: what is written meanwhile is not
part of it. At the cut each block holds what is durable, or any one of the values written to it since.
"""

from __future__ import annotations

import random
import select
import socket
import struct
import threading
from dataclasses import dataclass
from pathlib import Path

from nbd_wire import (
    INIT_PASSWD,
    OPTION_MAGIC,
    OPTION_REPLY_MAGIC,
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
    Command,
    CommandFlag,
    HandshakeFlag,
    Info,
    Option,
    Rep,
    TransmissionFlag,
)

BLOCK = 512
HELD_MAX = 8
HELD_SHARE = 0.3  # of the requests are answered later
HELD_S = 0.002  # at most, when nothing else comes
DROPPED_SHARE = 0.7  # of the blocks in the cache hold what is durable after the cut
PATIENCE_S = 30


@dataclass
class Held:
    cookie: int
    offset: int = 0
    data: bytes = b""  # none for a flush
    is_fua: bool = False
    covers: int = 0  # by a flush: all that was written up to this one


class VolatileDisk:
    """Serves one client, until that is gone. Then `cut` tells what is left."""

    def __init__(self, path: Path, size: int, luck: random.Random) -> None:
        self.durable = bytearray(size)
        # What is not durable of each block, with the number of the write, in their order.
        self.cache: dict[int, list[tuple[int, bytes]]] = {}
        self.writes = 0
        self._luck = luck
        self._held: list[Held] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def cut(self) -> bytes:
        """The client has been killed: what the disk holds when power is back."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the emulator is still there"
        image = bytearray(self.durable)
        for block, values in self.cache.items():
            if self._luck.random() >= DROPPED_SHARE:
                image[block * BLOCK : (block + 1) * BLOCK] = self._luck.choice(values)[1]
        return bytes(image)

    def close(self) -> None:
        self._listener.close()

    # The protocol

    def _serve(self) -> None:
        self._listener.settimeout(PATIENCE_S)
        client, _ = self._listener.accept()
        with client:
            self._client = client
            try:
                self._handshake()
                while self._request():
                    pass
            except (ConnectionError, EOFError):
                pass  # the power is cut

    def _receive(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = self._client.recv(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)

    def _handshake(self) -> None:
        flags = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
        self._client.sendall(INIT_PASSWD + OPTION_MAGIC + struct.pack(">H", flags))
        self._receive(4)
        while True:
            _, option, length = struct.unpack(">8sII", self._receive(16))
            self._receive(length)
            if option in (Option.GO, Option.INFO):
                can = TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_FLUSH | TransmissionFlag.SEND_FUA
                export = struct.pack(">HQH", Info.EXPORT, len(self.durable), can)
                self._reply_option(option, Rep.INFO, export)
                self._reply_option(option, Rep.ACK)
                if option == Option.GO:
                    return
            else:
                self._reply_option(option, Rep.ERR_UNSUP)

    def _reply_option(self, option: int, kind: Rep, data: bytes = b"") -> None:
        header = struct.pack(">QIII", OPTION_REPLY_MAGIC, option, kind, len(data))
        self._client.sendall(header + data)

    def _answer(self, cookie: int, data: bytes = b"") -> None:
        self._client.sendall(struct.pack(">IIQ", SIMPLE_REPLY_MAGIC, 0, cookie) + data)

    def _request(self) -> bool:
        if self._held and not select.select([self._client], [], [], HELD_S)[0]:
            self._complete(self._held.pop(self._luck.randrange(len(self._held))))
            return True
        header = struct.unpack(">IHHQQI", self._receive(28))
        magic, flags, command, cookie, offset, length = header
        assert magic == REQUEST_MAGIC
        if command == Command.DISC:
            return False
        if command == Command.WRITE:
            is_fua = bool(flags & CommandFlag.FUA)
            self._begin(Held(cookie, offset, self._receive(length), is_fua))
        elif command == Command.READ:
            self._answer(cookie, self._read(offset, length))
        else:
            assert command == Command.FLUSH, f"command {command} was not offered"
            self._begin_flush(Held(cookie))
        return True

    # The disk

    def _begin(self, request: Held) -> None:
        if len(self._held) < HELD_MAX and self._luck.random() < HELD_SHARE:
            self._held.append(request)
        else:
            self._complete(request)

    def _begin_flush(self, flush: Held) -> None:
        flush.covers = self.writes
        if self._luck.random() < 0.5:
            self._make_all_durable(flush.covers)
        self._begin(flush)

    def _complete(self, request: Held) -> None:
        if not request.data:
            self._make_all_durable(request.covers)
        else:
            self._write(request)
        self._answer(request.cookie)

    def _write(self, request: Held) -> None:
        self.writes += 1
        first = request.offset // BLOCK
        for at in range(0, len(request.data), BLOCK):
            block = first + at // BLOCK
            value = self.writes, request.data[at : at + BLOCK]
            self.cache.setdefault(block, []).append(value)
            if request.is_fua:
                self._make_durable(block, self.writes)

    def _make_durable(self, block: int, up_to: int) -> None:
        values = self.cache[block]
        covered = [value for number, value in values if number <= up_to]
        if covered:
            self.durable[block * BLOCK : (block + 1) * BLOCK] = covered[-1]
            del values[: len(covered)]
        if not values:
            del self.cache[block]

    def _make_all_durable(self, up_to: int) -> None:
        for block in list(self.cache):
            self._make_durable(block, up_to)

    def _read(self, offset: int, length: int) -> bytes:
        data = bytearray(self.durable[offset : offset + length])
        for at in range(offset // BLOCK, (offset + length) // BLOCK):
            if at in self.cache:
                start = at * BLOCK - offset
                data[start : start + BLOCK] = self.cache[at][-1][1]
        return bytes(data)
