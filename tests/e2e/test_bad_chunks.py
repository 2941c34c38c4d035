"""Whatever a client sends that has agreed on replies in chunks: like test_bad_input.py, with `victim`.

Every field of every message that is new with them, at its limits and one beyond on either side.
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from appliance import Appliance
from nbd_chunks import (
    ALLOCATION,
    ChunkWire,
    Kind,
    context_bytes,
    extended_bytes,
    filter_bytes,
)
from nbd_wire import (
    EXTENDED_REQUEST_MAGIC,
    REQUEST_MAGIC,
    Closed,
    Command,
    CommandFlag,
    Error,
    Option,
    Refused,
    Rep,
    Wire,
    option_bytes,
    request_bytes,
)
from victim import KIB, MIB, PAST_THE_END, PATTERN, SIZE, Victim

pytestmark = pytest.mark.deadline(30)

REQUEST_BYTES_MAX = 32 * MIB
OPTION_BYTES_MAX = 4096
COMMANDS_WITH_RANGE = [
    Command.READ,
    Command.WRITE,
    Command.TRIM,
    Command.CACHE,
    Command.WRITE_ZEROES,
    Command.BLOCK_STATUS,
]


@pytest.fixture(params=["structured", "extended"])
def wire(victim: Victim, request: pytest.FixtureRequest) -> Iterator[ChunkWire]:
    """A connection that may send requests, with base:allocation."""
    with ChunkWire(victim, request.param == "extended") as wire:
        wire.go()
        yield wire


@pytest.fixture
def extended(victim: Victim) -> Iterator[ChunkWire]:
    with ChunkWire(victim, True) as wire:
        wire.go()
        yield wire


@pytest.fixture
def options(victim: Victim) -> Iterator[ChunkWire]:
    """A connection in its handshake, with structured replies."""
    with ChunkWire(victim) as wire:
        wire.agree()
        yield wire


def expect_good(wire: ChunkWire) -> None:
    """The connection goes on."""
    assert wire.get(512, 512) == PATTERN[512:1024]


# Options


@pytest.mark.parametrize("option", [Option.STRUCTURED_REPLY, Option.EXTENDED_HEADERS])
@pytest.mark.parametrize("data", [b"\0", b"some data", bytes(OPTION_BYTES_MAX)])
def test_a_mode_with_data_is_invalid_and_not_agreed_on(
    victim: Victim, option: Option, data: bytes
) -> None:
    with Wire(victim) as wire:
        wire.greet()
        wire.expect_refused(Rep.ERR_INVALID, option, data)
        wire.export()
        assert wire.read(0, 512).data == PATTERN[:512]


@pytest.mark.parametrize("option", [Option.STRUCTURED_REPLY, Option.EXTENDED_HEADERS])
def test_a_mode_asked_for_twice_is_the_same(victim: Victim, option: Option) -> None:
    with ChunkWire(victim, option == Option.EXTENDED_HEADERS) as wire:
        wire.agree()
        assert wire.option(option) == []
        wire.export()
        expect_good(wire)


@pytest.mark.parametrize("option", [Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT])
def test_contexts_before_chunks_are_invalid(victim: Victim, option: Option) -> None:
    with Wire(victim) as wire:
        wire.greet()
        wire.expect_refused(Rep.ERR_INVALID, option, context_bytes(b"", (ALLOCATION,)))
        wire.export()
        assert wire.request(Command.BLOCK_STATUS, 0, 512) == Error.EINVAL


@pytest.mark.parametrize("option", [Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(3),
        bytes(7),
        bytes(9),
        struct.pack(">II", 1, 0),
        struct.pack(">II", 2**32 - 1, 0),
        struct.pack(">II", 2**32 - 4, 0),
        struct.pack(">I3sI", 4, b"vda", 0),
        struct.pack(">I3sI", 2, b"vda", 0),
        struct.pack(">I3sI", 3, b"vda", 1),
        struct.pack(">I3sI", 3, b"vda", 2**32 - 1),
        context_bytes(b"vda", (ALLOCATION,)) + b"!",
        context_bytes(b"vda", (ALLOCATION,))[:-1],
        struct.pack(">I3sII", 3, b"vda", 1, 16) + ALLOCATION,
        struct.pack(">I3sII", 3, b"vda", 1, 14) + ALLOCATION,
        struct.pack(">I3sII", 3, b"vda", 1, 2**32 - 1) + ALLOCATION,
        struct.pack(">I3sII", 3, b"vda", 2, 15) + ALLOCATION,
        struct.pack(">I3sII", 3, b"vda", 2, 15) + ALLOCATION + bytes(3),
        context_bytes(b"vda", (b"",)),
        context_bytes(b"vda", (b"base",)),
        context_bytes(b"vda", (ALLOCATION, b"base")),
    ],
)
def test_contexts_that_make_no_sense_are_invalid_and_the_handshake_goes_on(
    options: ChunkWire, option: Option, data: bytes
) -> None:
    options.expect_refused(Rep.ERR_INVALID, option, data)
    options.choose()
    options.export()
    expect_good(options)


@pytest.mark.parametrize("option", [Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT])
@pytest.mark.parametrize("name", [b"vdz", b"vd", b"vda\0", b"v" * 256, b"\xff"])
def test_contexts_of_an_unknown_export_are_refused(
    options: ChunkWire, option: Option, name: bytes
) -> None:
    options.expect_refused(Rep.ERR_UNKNOWN, option, context_bytes(name, (ALLOCATION,)))
    options.export()
    expect_good(options)


def test_as_many_queries_as_an_option_holds_and_one_more(options: ChunkWire) -> None:
    most = (OPTION_BYTES_MAX - 8) // 6
    assert options.option(Option.SET_META_CONTEXT, context_bytes(b"", (b"x:",) * most)) == []
    room = OPTION_BYTES_MAX - 12
    longest = b"x:" + b"q" * (room - 2)
    assert options.option(Option.SET_META_CONTEXT, context_bytes(b"", (longest,))) == []
    too_long = context_bytes(b"", (longest + b"q",))
    options.expect_refused(Rep.ERR_TOO_BIG, Option.SET_META_CONTEXT, too_long)
    options.export()
    expect_good(options)


def test_export_name_after_extended_headers_ends_the_connection(victim: Victim) -> None:
    with ChunkWire(victim, True) as wire:
        wire.agree()
        wire.send(option_bytes(Option.EXPORT_NAME, b"vda"))
        assert wire.expect_closed() == b""


def test_export_name_after_structured_replies_keeps_them(options: ChunkWire) -> None:
    options.choose()
    options.send(option_bytes(Option.EXPORT_NAME, b"vda"))
    size, flags = struct.unpack(">QH", options.receive(10))
    assert size == SIZE
    expect_good(options)
    assert options.status(0, SIZE) == [(SIZE, 0)]


# Requests


@pytest.mark.parametrize("magic", [0, REQUEST_MAGIC, EXTENDED_REQUEST_MAGIC + 1, 2**32 - 1])
def test_a_wrong_magic_closes_an_extended_connection(extended: ChunkWire, magic: int) -> None:
    extended.send(extended_bytes(Command.READ, 0, 512, magic=magic))
    assert extended.expect_closed() == b""


def test_an_extended_request_where_a_compact_one_is_due_closes(options: ChunkWire) -> None:
    options.export()
    options.send(extended_bytes(Command.READ, 0, 512))
    assert options.expect_closed() == b""


@pytest.mark.parametrize("command", [8, 99, 0x8000, 0xFFFF])
def test_an_unknown_command_is_invalid(wire: ChunkWire, command: int) -> None:
    answer = wire.ask(command, 0, 512)
    assert (answer.error, answer.kinds) == (Error.EINVAL, [Kind.ERROR])
    expect_good(wire)


@pytest.mark.parametrize("command", [*COMMANDS_WITH_RANGE, Command.FLUSH])
def test_flags_that_are_not_for_this_command_are_invalid(wire: ChunkWire, command: Command) -> None:
    allowed = {
        Command.READ: CommandFlag.DF,
        Command.WRITE_ZEROES: CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO,
        Command.BLOCK_STATUS: CommandFlag.REQ_ONE,
    }.get(command, CommandFlag(0))
    payload = bytes(512) if command == Command.WRITE else b""
    length = 0 if command == Command.FLUSH else 512
    for bit in range(1, 16):
        flag = 1 << bit
        is_length = flag == CommandFlag.PAYLOAD_LEN and wire.extended
        if flag & allowed or is_length:
            continue
        assert wire.request(command, 0, length, payload, flags=flag) == Error.EINVAL, flag
    expect_good(wire)


@pytest.mark.parametrize(("offset", "length"), PAST_THE_END)
@pytest.mark.parametrize("command", COMMANDS_WITH_RANGE)
def test_a_range_past_the_end_is_refused(
    wire: ChunkWire, command: Command, offset: int, length: int
) -> None:
    payload = bytes(length) if command == Command.WRITE else b""
    writes = command in (Command.WRITE, Command.WRITE_ZEROES)
    answer = wire.ask(command, offset, length, payload)
    assert answer.error == (Error.ENOSPC if writes else Error.EINVAL)
    assert answer.kinds == [Kind.ERROR]
    expect_good(wire)


@pytest.mark.parametrize(("offset", "length"), [(1, 512), (0, 1), (0, 511), (0, 513), (511, 1)])
@pytest.mark.parametrize("command", COMMANDS_WITH_RANGE)
def test_what_is_not_whole_blocks_is_invalid(
    wire: ChunkWire, command: Command, offset: int, length: int
) -> None:
    payload = bytes(length) if command == Command.WRITE else b""
    assert wire.request(command, offset, length, payload) == Error.EINVAL
    expect_good(wire)


@pytest.mark.parametrize("command", COMMANDS_WITH_RANGE)
def test_a_request_for_nothing_does_nothing(wire: ChunkWire, command: Command) -> None:
    assert wire.request(command, 512, 0) == Error.EINVAL
    expect_good(wire)


def test_the_last_block_has_a_status_and_a_whole_read(wire: ChunkWire) -> None:
    assert wire.status(SIZE - 512, 512) == [(512, 0)]
    assert wire.status(SIZE - 512, 512, flags=CommandFlag.REQ_ONE) == [(512, 0)]
    assert wire.get(SIZE - 512, 512, flags=CommandFlag.DF) == PATTERN[-512:]


@pytest.mark.parametrize("length", [REQUEST_BYTES_MAX + 512, 2**31, 2**32 - 512])
@pytest.mark.parametrize("flags", [0, CommandFlag.DF])
def test_a_read_beyond_the_longest_is_invalid(wire: ChunkWire, length: int, flags: int) -> None:
    assert wire.request(Command.READ, 0, length, flags=flags) == Error.EINVAL
    expect_good(wire)


@pytest.mark.parametrize("length", [2**32, 2**32 + 512, 2**63, 2**64 - 512, 2**64 - 1])
@pytest.mark.parametrize("command", COMMANDS_WITH_RANGE)
def test_lengths_of_64_bits_past_the_end_are_refused(
    extended: ChunkWire, command: Command, length: int
) -> None:
    """They must not be cut to 32 bits, where some would fit. A WRITE says no payload here."""
    assert extended.request(command, 0, length) in (Error.EINVAL, Error.ENOSPC)
    expect_good(extended)


@pytest.mark.parametrize("length", [REQUEST_BYTES_MAX + 1, 2**32, 2**32 + 512, 2**64 - 1])
@pytest.mark.parametrize("command", [Command.WRITE, Command.BLOCK_STATUS, Command.READ, 99])
def test_a_payload_beyond_the_longest_closes(
    extended: ChunkWire, command: int, length: int
) -> None:
    extended.send(extended_bytes(command, 0, length, flags=CommandFlag.PAYLOAD_LEN))
    assert extended.expect_closed() == b""


def test_the_longest_payload_that_is_refused_is_consumed(extended: ChunkWire) -> None:
    payload = bytes(REQUEST_BYTES_MAX)
    assert extended.request(Command.WRITE, 0, len(payload), payload) == Error.ENOSPC
    assert extended.request(99, 0, MIB + 1, bytes(MIB + 1)) == Error.EINVAL
    expect_good(extended)


@pytest.mark.parametrize(
    "command",
    [Command.READ, Command.FLUSH, Command.TRIM, Command.CACHE, Command.WRITE_ZEROES, 8, 0xFFFF],
)
@pytest.mark.parametrize("length", [1, 512, 64 * KIB + 1])
def test_a_payload_where_none_belongs_is_consumed_and_invalid(
    extended: ChunkWire, command: int, length: int
) -> None:
    payload = extended_bytes(Command.WRITE_ZEROES, 0, MIB) + bytes(length)
    assert extended.request(command, 0, len(payload), payload) == Error.EINVAL
    expect_good(extended)


def test_a_write_must_say_that_it_has_a_payload(extended: ChunkWire) -> None:
    answer = extended.ask(Command.WRITE, 0, 512)
    assert answer.error == Error.EINVAL
    expect_good(extended)


def test_a_flag_for_nothing_is_invalid(extended: ChunkWire) -> None:
    for command in (Command.READ, Command.WRITE, Command.BLOCK_STATUS):
        words = extended_bytes(command, 512, 0, flags=CommandFlag.PAYLOAD_LEN, cookie=3)
        extended.send(words)
        assert extended.answer(3, 512).error == Error.EINVAL
    expect_good(extended)


@pytest.mark.parametrize(
    "payload",
    [
        b"\0",
        bytes(7),
        filter_bytes(512),
        filter_bytes(512)[:7] + bytes(4),
        filter_bytes(512, 0),
        filter_bytes(512, 2),
        filter_bytes(512, 2**32 - 1),
        filter_bytes(512, 1, 1),
        filter_bytes(512, 1, 2),
        filter_bytes(512, 1) + b"\0",
        filter_bytes(512, *range(1, 1000)),
        filter_bytes(0, 1),
        filter_bytes(511, 1),
        filter_bytes(SIZE + 512, 1),
        filter_bytes(2**64 - 1, 1),
    ],
)
def test_contexts_named_wrongly_are_consumed_and_invalid(
    extended: ChunkWire, payload: bytes
) -> None:
    assert extended.contexts == {ALLOCATION: 1}
    answer = extended.ask(Command.BLOCK_STATUS, 0, len(payload), payload)
    assert (answer.error, answer.extents) == (Error.EINVAL, {})
    good = filter_bytes(512, 1)
    assert extended.ask(Command.BLOCK_STATUS, 0, 12, good).extents == {1: [(512, 0)]}
    expect_good(extended)


def test_contexts_named_without_any_chosen_are_invalid(victim: Victim) -> None:
    with ChunkWire(victim, True) as wire:
        wire.agree()
        wire.export()
        payload = filter_bytes(512, 1)
        assert wire.request(Command.BLOCK_STATUS, 0, len(payload), payload) == Error.EINVAL
        expect_good(wire)


def test_requests_that_come_byte_by_byte_are_served(extended: ChunkWire) -> None:
    payload = filter_bytes(SIZE, 1)
    words = extended_bytes(
        Command.BLOCK_STATUS,
        0,
        len(payload),
        payload,
        flags=CommandFlag.PAYLOAD_LEN | CommandFlag.REQ_ONE,
        cookie=1,
    )
    extended.send_slowly(words)
    assert extended.answer(1, 0).extents == {1: [(SIZE, 0)]}


@pytest.mark.parametrize("how", ["close", "reset"])
def test_leaving_at_any_byte_of_a_request_changes_nothing(victim: Victim, how: str) -> None:
    payload = filter_bytes(SIZE, 1)
    words = extended_bytes(
        Command.BLOCK_STATUS, 0, len(payload), payload, flags=CommandFlag.PAYLOAD_LEN
    )
    words += extended_bytes(Command.WRITE, 0, 512, bytes(512), flags=CommandFlag.PAYLOAD_LEN)
    for count in range(0, len(words), 3):
        with ChunkWire(victim, True) as wire:
            wire.go()
            wire.send(words[:count])
            if how == "reset":
                wire.reset()


def test_a_client_that_only_listens_any_more_gets_its_chunks(wire: ChunkWire) -> None:
    wire.send(wire.request_words(Command.READ, 0, MIB, cookie=1))
    wire.send(wire.request_words(Command.READ, 0, MIB, cookie=2)[:-1])
    wire.socket.shutdown(socket.SHUT_WR)
    assert wire.answer(1).bytes_of(0, MIB) == PATTERN[:MIB]
    assert wire.expect_closed() == b""


def test_statuses_that_are_never_read_stop_nobody(launch: Callable[..., Appliance]) -> None:
    """The appliance is its own: QEMU's user network never tells it that such a client has left."""
    appliance = launch(MIB)
    with ChunkWire(appliance) as wire, Wire(appliance) as other:
        wire.go()
        wire.socket.settimeout(1)
        words = wire.request_words(Command.BLOCK_STATUS, 0, MIB)
        with pytest.raises((TimeoutError, Closed)):
            for _ in range(4096):
                wire.send(words * 256)
        other.go()
        assert other.read(0, 64 * KIB).data == bytes(64 * KIB)
        appliance.stop()


def test_after_a_disconnect_nothing_is_served(wire: ChunkWire) -> None:
    behind = wire.request_words(Command.WRITE_ZEROES, 0, MIB)
    wire.send(wire.request_words(Command.DISC) + behind)
    assert wire.expect_closed() == b""


# Garbage, from seeds


@pytest.mark.parametrize("seed", range(20))
def test_garbage_among_options_harms_nobody(victim: Victim, seed: int) -> None:
    luck = random.Random(seed)
    good = context_bytes(b"vda", (ALLOCATION, b"base:"))
    with ChunkWire(victim, seed % 2 == 0) as wire:
        wire.agree()
        try:
            for _ in range(40):
                data = bytearray(good[: luck.randrange(len(good) + 1)])
                for _ in range(luck.randrange(3)):
                    if data:
                        data[luck.randrange(len(data))] = luck.randrange(256)
                try:
                    wire.option(luck.choice([8, 9, 10, 10, 11]), bytes(data))
                except Refused:
                    pass
            wire.export()
            wire.send(luck.randbytes(300))
        except Closed:
            pass


@pytest.mark.parametrize("seed", range(20))
def test_garbage_among_requests_harms_nobody(wire: ChunkWire, seed: int) -> None:
    luck = random.Random(seed)
    for _ in range(100):
        command = luck.choice([0, 0, 3, 3, 4, 5, 6, 7, 7, luck.randrange(8, 65536)])
        flags = luck.choice([0, 0, 1, 1 << luck.randrange(16), luck.getrandbits(16)])
        flags &= ~CommandFlag.PAYLOAD_LEN if wire.extended else 0xFFFF
        offset = luck.choice([0, 512, SIZE - 512, luck.randrange(SIZE), luck.getrandbits(64)])
        length = luck.choice([0, 1, 512, 64 * KIB, luck.randrange(MIB), luck.getrandbits(32)])
        if wire.extended:
            length = luck.choice([length, luck.getrandbits(64)])
        if command in (Command.TRIM, Command.WRITE_ZEROES):
            offset |= 1  # else it might be a good one
        answer = wire.ask(command, offset, length, flags=flags)
        if command == Command.READ and answer.error == Error.NONE:
            assert answer.bytes_of(offset, length) == PATTERN[offset : offset + length]
    wire.send(luck.randbytes(40))
    assert wire.expect_closed() == b""
