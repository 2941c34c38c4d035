"""The part of the NBD protocol that Debian's libnbd is too old for, or too careful to get wrong:
replies in chunks, structured or with extended headers, and metadata contexts.

It checks what the server says, never what it is asked to send.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, field

from nbd_wire import (
    EXTENDED_REPLY_MAGIC,
    EXTENDED_REQUEST_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Address,
    Command,
    CommandFlag,
    Error,
    Export,
    Option,
    Rep,
    Wire,
    request_bytes,
)

ALLOCATION = b"base:allocation"
HOLE = 1
ZERO = 2
DONE = 1


class Kind(enum.IntEnum):
    """NBD_REPLY_TYPE."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    BLOCK_STATUS_EXT = 6
    ERROR = 2**15 + 1
    ERROR_OFFSET = 2**15 + 2


@dataclass(frozen=True)
class Chunk:
    flags: int
    kind: Kind
    cookie: int
    payload: bytes


@dataclass
class Answer:
    """All chunks of one reply."""

    error: Error = Error.NONE
    message: str = ""
    error_offset: int | None = None
    data: dict[int, bytes] = field(default_factory=dict)
    holes: dict[int, int] = field(default_factory=dict)
    # For each context, lengths and flags.
    extents: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    kinds: list[Kind] = field(default_factory=list)

    def bytes_of(self, offset: int, length: int) -> bytes:
        """What was read, from chunks that must cover it once."""
        parts = dict(self.data) | {at: bytes(size) for at, size in self.holes.items()}
        assert len(parts) == len(self.data) + len(self.holes)
        position = offset
        whole = bytearray()
        for at in sorted(parts):
            assert at == position, "a gap, or an overlap"
            whole += parts[at]
            position += len(parts[at])
        assert position == offset + length
        return bytes(whole)


def context_bytes(name: bytes = b"", queries: tuple[bytes, ...] = ()) -> bytes:
    """The data of LIST_META_CONTEXT and SET_META_CONTEXT."""
    data = struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries))
    return data + b"".join(struct.pack(">I", len(query)) + query for query in queries)


def extended_bytes(
    command: int,
    offset: int = 0,
    length: int = 0,
    payload: bytes = b"",
    *,
    flags: int = 0,
    cookie: int = 0,
    magic: int = EXTENDED_REQUEST_MAGIC,
) -> bytes:
    return struct.pack(">IHHQQQ", magic, flags, command, cookie, offset, length) + payload


def filter_bytes(length: int, *contexts: int) -> bytes:
    """The payload of a BLOCK_STATUS that names its contexts."""
    return struct.pack(f">Q{len(contexts)}I", length, *contexts)


class ChunkWire(Wire):
    """A connection on which replies come in chunks."""

    def __init__(self, server: Address, extended: bool = False) -> None:
        super().__init__(server)
        self.extended = extended
        self.contexts: dict[bytes, int] = {}

    def agree(self) -> None:
        """Greets, and asks for chunks."""
        self.greet()
        option = Option.EXTENDED_HEADERS if self.extended else Option.STRUCTURED_REPLY
        assert self.option(option) == []

    def choose(self, name: bytes = b"", queries: tuple[bytes, ...] = (ALLOCATION,)) -> None:
        self.contexts = {}
        for reply in self.option(Option.SET_META_CONTEXT, context_bytes(name, queries)):
            assert reply.kind == Rep.META_CONTEXT
            (number,) = struct.unpack_from(">I", reply.data)
            assert number not in self.contexts.values()
            self.contexts[reply.data[4:]] = number

    def go(self, name: bytes = b"") -> Export:
        """The whole handshake, with base:allocation."""
        self.agree()
        self.choose(name)
        return self.export(name)

    def request_words(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        payload: bytes = b"",
        *,
        flags: int = 0,
        cookie: int = 0,
    ) -> bytes:
        if self.extended:
            flags |= CommandFlag.PAYLOAD_LEN if payload else 0
            return extended_bytes(command, offset, length, payload, flags=flags, cookie=cookie)
        return request_bytes(command, offset, length, payload, flags=flags, cookie=cookie)

    def chunk(self, offset: int | None = None) -> Chunk:
        """The next chunk, of a request for `offset` if that is known."""
        if self.extended:
            words = struct.unpack(">IHHQQQ", self.receive(32))
            magic, flags, kind, cookie, of, length = words
            assert magic == EXTENDED_REPLY_MAGIC
            assert offset is None or of == offset
        else:
            magic, flags, kind, cookie, length = struct.unpack(">IHHQI", self.receive(20))
            assert magic == STRUCTURED_REPLY_MAGIC
        assert flags in (0, DONE)
        return Chunk(flags, Kind(kind), cookie, self.receive(length))

    def answer(self, cookie: int, offset: int | None = None) -> Answer:
        """The chunks up to the last one, of the only request in flight."""
        answer = Answer()
        while True:
            chunk = self.chunk(offset)
            assert chunk.cookie == cookie
            take_chunk(answer, chunk, self.extended)
            if chunk.flags & DONE:
                return answer

    def ask(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        payload: bytes = b"",
        *,
        flags: int = 0,
    ) -> Answer:
        cookie = ((command & 0xFF) << 56) ^ (~offset & 0xFFFFFFFFFFFF)
        self.send(
            self.request_words(command, offset, length, payload, flags=flags, cookie=cookie)
        )
        return self.answer(cookie, offset)

    def request(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        payload: bytes = b"",
        *,
        flags: int = 0,
    ) -> Error:
        return self.ask(command, offset, length, payload, flags=flags).error

    def get(self, offset: int, length: int, *, flags: int = 0) -> bytes:
        answer = self.ask(Command.READ, offset, length, flags=flags)
        assert answer.error == Error.NONE
        return answer.bytes_of(offset, length)

    def status(self, offset: int, length: int, *, flags: int = 0) -> list[tuple[int, int]]:
        answer = self.ask(Command.BLOCK_STATUS, offset, length, flags=flags)
        assert answer.error == Error.NONE
        assert list(answer.extents) == [self.contexts[ALLOCATION]]
        (extents,) = answer.extents.values()
        assert sum(size for size, _ in extents[:-1]) < length
        return extents


def take_chunk(answer: Answer, chunk: Chunk, extended: bool) -> None:
    payload = chunk.payload
    answer.kinds.append(chunk.kind)
    if chunk.kind == Kind.NONE:
        assert payload == b"" and chunk.flags & DONE
    elif chunk.kind == Kind.OFFSET_DATA:
        assert len(payload) > 8
        answer.data[struct.unpack_from(">Q", payload)[0]] = payload[8:]
    elif chunk.kind == Kind.OFFSET_HOLE:
        at, size = struct.unpack(">QI", payload)
        assert size > 0
        answer.holes[at] = size
    elif chunk.kind == Kind.BLOCK_STATUS:
        assert (len(payload) - 4) % 8 == 0 and len(payload) > 4
        (context,) = struct.unpack_from(">I", payload)
        assert context not in answer.extents
        answer.extents[context] = list(struct.iter_unpack(">II", payload[4:]))
    elif chunk.kind == Kind.BLOCK_STATUS_EXT:
        assert extended
        context, count = struct.unpack_from(">II", payload)
        assert len(payload) == 8 + 16 * count and count > 0
        assert context not in answer.extents
        answer.extents[context] = list(struct.iter_unpack(">QQ", payload[8:]))
    else:
        error, message_bytes = struct.unpack_from(">IH", payload)
        assert answer.error == Error.NONE and error != 0
        answer.error = Error(error)
        answer.message = payload[6 : 6 + message_bytes].decode()
        if chunk.kind == Kind.ERROR_OFFSET:
            (answer.error_offset,) = struct.unpack(">Q", payload[6 + message_bytes :])
        else:
            assert len(payload) == 6 + message_bytes
