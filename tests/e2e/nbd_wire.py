"""A bare NBD client that says exactly what it is told to, right or wrong.

Names and numbers are those of the NBD protocol document (doc/proto.md of the project that keeps the
protocol), sections "Protocol phases" and "Values". It checks what the server says, never what it is
asked to send.
"""

from __future__ import annotations

import contextlib
import enum
import socket
import struct
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

INIT_PASSWD = b"NBDMAGIC"
OPTION_MAGIC = b"IHAVEOPT"
OPTION_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF
EXTENDED_REQUEST_MAGIC = 0x21E41C71
EXTENDED_REPLY_MAGIC = 0x6E8A278C
TIMEOUT_S = 15


class HandshakeFlag(enum.IntFlag):
    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class Option(enum.IntEnum):
    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    PEEK_EXPORT = 4
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


class Rep(enum.IntEnum):
    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 2**31 + 1
    ERR_POLICY = 2**31 + 2
    ERR_INVALID = 2**31 + 3
    ERR_PLATFORM = 2**31 + 4
    ERR_TLS_REQD = 2**31 + 5
    ERR_UNKNOWN = 2**31 + 6
    ERR_SHUTDOWN = 2**31 + 7
    ERR_BLOCK_SIZE_REQD = 2**31 + 8
    ERR_TOO_BIG = 2**31 + 9
    ERR_EXT_HEADER_REQD = 2**31 + 10


class Info(enum.IntEnum):
    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class TransmissionFlag(enum.IntFlag):
    HAS_FLAGS = 1
    READ_ONLY = 2
    SEND_FLUSH = 4
    SEND_FUA = 8
    ROTATIONAL = 16
    SEND_TRIM = 32
    SEND_WRITE_ZEROES = 64
    SEND_DF = 128
    CAN_MULTI_CONN = 256
    SEND_RESIZE = 512
    SEND_CACHE = 1024
    SEND_FAST_ZERO = 2048
    BLOCK_STATUS_PAYLOAD = 4096


class Command(enum.IntEnum):
    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(enum.IntFlag):
    FUA = 1
    NO_HOLE = 2
    DF = 4
    REQ_ONE = 8
    FAST_ZERO = 16
    PAYLOAD_LEN = 32


class Error(enum.IntEnum):
    NONE = 0
    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


class Closed(Exception):
    """The server has closed the connection."""


class Refused(Exception):
    """The server has answered an option with an error."""

    def __init__(self, kind: int, text: bytes) -> None:
        super().__init__(Rep(kind).name, text.decode())
        self.kind = Rep(kind)


class Address(Protocol):
    host: str
    port: int


@dataclass(frozen=True)
class OptionReply:
    option: int
    kind: Rep
    data: bytes


@dataclass(frozen=True)
class Reply:
    cookie: int
    error: Error
    data: bytes


@dataclass
class Export:
    """What INFO and GO tell; empty where they told nothing."""

    size: int = 0
    flags: TransmissionFlag = TransmissionFlag(0)
    name: str = ""
    description: str = ""
    block_sizes: tuple[int, int, int] = (0, 0, 0)  # minimum, preferred, maximum
    told: list[Info] = field(default_factory=list)


def option_bytes(option: int, data: bytes = b"", length: int | None = None) -> bytes:
    """An option request; `length` claims another length than that of `data`."""
    return OPTION_MAGIC + struct.pack(">II", option, len(data) if length is None else length) + data


def go_bytes(name: bytes = b"", infos: tuple[int, ...] = ()) -> bytes:
    """The data of GO and INFO."""
    count = len(infos)
    return struct.pack(">I", len(name)) + name + struct.pack(f">H{count}H", count, *infos)


def request_bytes(
    command: int,
    offset: int = 0,
    length: int = 0,
    payload: bytes = b"",
    *,
    flags: int = 0,
    cookie: int = 0,
    magic: int = REQUEST_MAGIC,
) -> bytes:
    return struct.pack(">IHHQQI", magic, flags, command, cookie, offset, length) + payload


class Wire:
    """A connection that has been greeted. Leaving its `with` block closes it without a word.

    The greeting is always waited for: QEMU's user network lets one connection wait to be accepted,
    and the host asks again for a second one only after a second.
    """

    def __init__(self, server: Address, source_port: int = 0) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if source_port:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self.socket.bind(("", source_port))
            self.socket.connect((server.host, server.port))
            password, magic, offered = struct.unpack(">8s8sH", self.receive(18))
        except Exception:
            self.close()
            raise
        assert (password, magic) == (INIT_PASSWD, OPTION_MAGIC)
        self.offered = HandshakeFlag(offered)

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Closes with RST instead of FIN, as a client that crashed."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            raise Closed from None

    def send_slowly(self, data: bytes) -> None:
        """Every byte in a segment of its own, as far as TCP lets us."""
        for byte in data:
            self.send(bytes([byte]))

    def receive(self, count: int) -> bytes:
        received = bytearray()
        while len(received) < count:
            try:
                piece = self.socket.recv(min(count - len(received), 1 << 20))
            except ConnectionResetError:
                piece = b""
            if not piece:
                raise Closed(bytes(received))
            received += piece
        return bytes(received)

    def expect_closed(self, timeout_s: float = TIMEOUT_S) -> bytes:
        """The server closes the connection; returns what it said before."""
        self.socket.settimeout(timeout_s)
        received = bytearray()
        with contextlib.suppress(ConnectionResetError):
            while piece := self.socket.recv(65536):
                received += piece
        return bytes(received)

    # Handshake

    def greet(self, flags: int = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES) -> None:
        """Answers the server's greeting with these flags."""
        self.send(struct.pack(">I", flags))

    def option_reply(self) -> OptionReply:
        magic, option, kind, length = struct.unpack(">QIII", self.receive(20))
        assert magic == OPTION_REPLY_MAGIC
        return OptionReply(option, Rep(kind), self.receive(length))

    def option(self, option: int, data: bytes = b"") -> list[OptionReply]:
        """Sends an option; returns its replies up to the final ACK, or raises Refused."""
        self.send(option_bytes(option, data))
        replies = []
        while True:
            reply = self.option_reply()
            assert reply.option == option
            if reply.kind == Rep.ACK:
                return replies
            if reply.kind & 2**31:
                raise Refused(reply.kind, reply.data)
            replies.append(reply)

    def expect_refused(self, kind: Rep, option: int, data: bytes = b"") -> None:
        """The option gets this error."""
        try:
            self.option(option, data)
        except Refused as refused:
            assert refused.kind == kind
        else:
            raise AssertionError(f"option {option} is not refused")

    def export(self, name: bytes = b"", option: Option = Option.GO) -> Export:
        """GO or INFO, asking for all there is to know."""
        export = Export()
        infos = (Info.EXPORT, Info.NAME, Info.DESCRIPTION, Info.BLOCK_SIZE)
        for reply in self.option(option, go_bytes(name, infos)):
            assert reply.kind == Rep.INFO
            kind = Info(struct.unpack_from(">H", reply.data)[0])
            export.told.append(kind)
            if kind == Info.EXPORT:
                export.size, flags = struct.unpack(">2xQH", reply.data)
                export.flags = TransmissionFlag(flags)
            elif kind == Info.NAME:
                export.name = reply.data[2:].decode()
            elif kind == Info.DESCRIPTION:
                export.description = reply.data[2:].decode()
            elif kind == Info.BLOCK_SIZE:
                export.block_sizes = struct.unpack(">2xIII", reply.data)
        assert Info.EXPORT in export.told
        return export

    def go(self, name: bytes = b"") -> Export:
        """The whole handshake."""
        self.greet()
        return self.export(name)

    # Transmission

    def reply(self, data_bytes: int = 0) -> Reply:
        """The next reply; `data_bytes` follow if it is a success."""
        magic, error, cookie = struct.unpack(">IIQ", self.receive(16))
        assert magic == SIMPLE_REPLY_MAGIC
        return Reply(cookie, Error(error), b"" if error else self.receive(data_bytes))

    def request(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        payload: bytes = b"",
        *,
        flags: int = 0,
    ) -> Error:
        """Sends a request that is not a READ, with no other in flight; returns how it ended."""
        cookie = (command << 48) ^ offset & 0xFFFFFFFFFFFF
        self.send(request_bytes(command, offset, length, payload, flags=flags, cookie=cookie))
        reply = self.reply()
        assert reply.cookie == cookie
        return reply.error

    def write(self, offset: int, payload: bytes, *, flags: int = 0) -> Error:
        return self.request(Command.WRITE, offset, len(payload), payload, flags=flags)

    def read(self, offset: int, length: int, *, flags: int = 0) -> Reply:
        cookie = ~offset & 0xFFFFFFFFFFFFFFFF
        self.send(request_bytes(Command.READ, offset, length, flags=flags, cookie=cookie))
        reply = self.reply(length)
        assert reply.cookie == cookie
        return reply

    def disconnect(self) -> None:
        """DISC; the server closes without an answer."""
        self.send(request_bytes(Command.DISC))
        assert self.expect_closed() == b""
        self.close()
