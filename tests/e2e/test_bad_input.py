"""Whatever a client sends, other clients are served and the disk keeps its bytes.

Every test here gets `victim` (victim.py). What goes with replies in chunks is in test_bad_chunks.py.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from appliance import Appliance, part
from nbd_wire import (
    Closed,
    Command,
    CommandFlag,
    Error,
    HandshakeFlag,
    Info,
    Option,
    Refused,
    Rep,
    TransmissionFlag,
    Wire,
    go_bytes,
    option_bytes,
    request_bytes,
)
from victim import KIB, MIB, PAST_THE_END, PATTERN, SIZE, Victim

pytestmark = pytest.mark.deadline(30)

ALL_THAT_THE_HOST_BUFFERS = 10000  # requests: more than the appliance takes, and none waits
OPTION_BYTES_MAX = 4096
HANDSHAKE_S = 10
REQUEST_BYTES_MAX = 32 * MIB
WRITE_WHOLE_BYTES = 256 * KIB
WRITE_WHOLE_ANYWHERE_BYTES = 64 * KIB  # however little memory there is
CONNECTIONS_MAX = 64
HASTE_S = 0.002
STALL_S = 6  # until both sides have begun to ask each other for room


@pytest.fixture
def wire(victim: Victim) -> Iterator[Wire]:
    """A connection that has been greeted, and has not said anything."""
    with Wire(victim) as wire:
        yield wire


@pytest.fixture
def open_wire(wire: Wire) -> Wire:
    """A connection that may send requests."""
    wire.go()
    return wire


# Handshake: flags


@pytest.mark.parametrize("flags", [1 << 2, 1 << 8 | 3, 1 << 31 | 1, 2**32 - 1])
def test_unknown_client_flags_close_the_connection(wire: Wire, flags: int) -> None:
    wire.greet(flags)
    assert wire.expect_closed() == b""


def test_the_greeting_offers_fixed_newstyle_without_zeroes(wire: Wire) -> None:
    assert wire.offered == HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES


@pytest.mark.parametrize("flags", [0, 1, 2, 3])
def test_export_name_enters_transmission_with_zeroes_unless_declined(
    wire: Wire, flags: int
) -> None:
    wire.greet(flags)
    wire.send(option_bytes(Option.EXPORT_NAME, b"vda"))
    size, told = struct.unpack(">QH", wire.receive(10))
    assert size == SIZE
    assert told & TransmissionFlag.HAS_FLAGS
    if not flags & HandshakeFlag.NO_ZEROES:
        assert wire.receive(124) == bytes(124)
    assert wire.read(512, 512).data == PATTERN[512:1024]


@pytest.mark.parametrize("option", [Option.GO, Option.LIST, Option.STARTTLS, 99])
def test_without_fixed_newstyle_other_options_close_the_connection(wire: Wire, option: int) -> None:
    wire.greet(0)
    wire.send(option_bytes(option, go_bytes()))
    assert wire.expect_closed() == b""


# Handshake: options


@pytest.mark.parametrize("magic", [bytes(8), b"iHAVEOPT", b"NBDMAGIC", b"\xff" * 8])
def test_a_wrong_option_magic_closes_the_connection(wire: Wire, magic: bytes) -> None:
    wire.greet()
    wire.send(magic + struct.pack(">II", Option.LIST, 0))
    assert wire.expect_closed() == b""


@pytest.mark.parametrize("option", [Option.LIST, Option.GO, Option.EXPORT_NAME, 99])
@pytest.mark.parametrize("length", [2**32 - 1, 2**31, 2**24])
def test_an_absurd_option_length_closes_the_connection(
    wire: Wire, option: int, length: int
) -> None:
    wire.greet()
    wire.send(option_bytes(option, b"", length))
    assert wire.expect_closed() == b""


@pytest.mark.parametrize("option", [Option.LIST, Option.GO, Option.INFO, 99])
def test_an_option_beyond_the_limit_is_too_big_and_the_handshake_goes_on(
    wire: Wire, option: int
) -> None:
    wire.greet()
    wire.expect_refused(Rep.ERR_TOO_BIG, option, bytes(OPTION_BYTES_MAX + 1))
    assert wire.export().size == SIZE


def test_an_option_at_the_limit_is_looked_at(wire: Wire) -> None:
    wire.greet()
    count = (OPTION_BYTES_MAX - 6) // 2
    data = go_bytes(b"", tuple([Info.EXPORT] * count))
    assert len(data) == OPTION_BYTES_MAX
    assert [reply.kind for reply in wire.option(Option.INFO, data)][0] == Rep.INFO
    name = go_bytes(b"n" * (OPTION_BYTES_MAX - 6))
    wire.expect_refused(Rep.ERR_UNKNOWN, Option.INFO, name)


@pytest.mark.parametrize("sent", [0, 1, 50, 99])
def test_a_truncated_option_is_not_answered(wire: Wire, sent: int) -> None:
    wire.greet()
    wire.send(option_bytes(Option.LIST, bytes(sent), 100))
    wire.socket.shutdown(socket.SHUT_WR)
    assert wire.expect_closed() == b""


@pytest.mark.parametrize(
    "name", [b"vdz", b"vd", b"vdaa", b"VDA", b"vda\0", b"\xff\xfe", b"x" * 4096, b"x" * 4097]
)
def test_export_name_of_what_is_not_there_closes_the_connection(wire: Wire, name: bytes) -> None:
    wire.greet()
    wire.send(option_bytes(Option.EXPORT_NAME, name))
    assert wire.expect_closed() == b""


@pytest.mark.parametrize("option", [Option.GO, Option.INFO])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0",
        struct.pack(">I", 0),
        struct.pack(">IB", 0, 0),
        struct.pack(">IH", 1, 0),
        struct.pack(">I3sH", 4, b"vda", 0),
        struct.pack(">I3sH", 2, b"vda", 0),
        struct.pack(">I3sH", 2**32 - 1, b"vda", 0),
        struct.pack(">I3sH", 2**32 - 6, b"vda", 0),
        struct.pack(">I3sH", 2**31, b"vda", 0),
        struct.pack(">I3sH", 3, b"vda", 1),
        struct.pack(">I3sH", 3, b"vda", 0xFFFF),
        struct.pack(">I3sHH", 3, b"vda", 0, 0),
        struct.pack(">I3sHH", 3, b"vda", 2, 0),
        struct.pack(">I3sHHB", 3, b"vda", 1, 0, 0),
    ],
)
def test_lengths_that_do_not_agree_are_invalid_and_the_handshake_goes_on(
    wire: Wire, option: Option, data: bytes
) -> None:
    wire.greet()
    wire.expect_refused(Rep.ERR_INVALID, option, data)
    assert wire.export(b"vda").size == SIZE


@pytest.mark.parametrize("option", [Option.GO, Option.INFO])
@pytest.mark.parametrize(
    "name", [b"vdz", b"vd", b"VDA", b"vda\0", b"\0", b"\xff\xfe\xc0\x80", b"%s%n", b"x" * 4000]
)
def test_an_unknown_name_is_refused_and_the_handshake_goes_on(
    wire: Wire, option: Option, name: bytes
) -> None:
    wire.greet()
    wire.expect_refused(Rep.ERR_UNKNOWN, option, go_bytes(name))
    assert wire.export(b"vda").size == SIZE


def test_information_that_nobody_knows_is_left_out(wire: Wire) -> None:
    wire.greet()
    replies = wire.option(Option.INFO, go_bytes(b"", (4, 0x7FFF, 0xFFFF)))
    told = {struct.unpack_from(">H", reply.data)[0] for reply in replies}
    assert Info.EXPORT in told
    assert told <= set(Info)


@pytest.mark.parametrize(
    "option",
    [
        0,
        Option.PEEK_EXPORT,
        Option.STARTTLS,
        12,
        99,
        2**31,
        2**32 - 1,
    ],
)
@pytest.mark.parametrize("data", [b"", b"some data"])
def test_an_option_not_offered_is_unsupported_and_the_handshake_goes_on(
    wire: Wire, option: int, data: bytes
) -> None:
    wire.greet()
    wire.expect_refused(Rep.ERR_UNSUP, option, data)
    assert wire.export().size == SIZE


def test_a_list_with_data_is_invalid_and_the_handshake_goes_on(wire: Wire) -> None:
    wire.greet()
    wire.expect_refused(Rep.ERR_INVALID, Option.LIST, b"vda")
    (reply,) = wire.option(Option.LIST)
    told = wire.export()
    assert told.size == SIZE
    assert reply.data[4:].decode() == told.name + told.description


@pytest.mark.parametrize("data", [b"", b"with data"])
def test_abort_is_acknowledged_and_the_connection_closed(wire: Wire, data: bytes) -> None:
    wire.greet()
    assert wire.option(Option.ABORT, data) == []
    assert wire.expect_closed() == b""


def test_info_leaves_the_handshake_open_for_go(wire: Wire) -> None:
    wire.greet()
    told = wire.export(b"vda", Option.INFO)
    assert wire.export(b"vda", Option.GO) == told
    assert (told.size, told.name, told.block_sizes[0]) == (SIZE, "disk0", 512)
    assert wire.read(0, 512).data == PATTERN[:512]


def test_options_sent_all_at_once_are_answered_one_by_one(wire: Wire) -> None:
    wire.greet()
    count = 500
    wire.send(option_bytes(Option.LIST) * count + option_bytes(Option.GO, go_bytes()))
    for _ in range(count):
        assert wire.option_reply().kind == Rep.SERVER
        assert wire.option_reply().kind == Rep.ACK
    assert wire.option_reply().option == Option.GO


def test_requests_behind_go_in_one_segment_are_served(wire: Wire) -> None:
    go = option_bytes(Option.GO, go_bytes(b"", ()))
    wire.send(struct.pack(">I", 3) + go + request_bytes(Command.READ, 1024, 512, cookie=7))
    while wire.option_reply().kind != Rep.ACK:
        pass
    reply = wire.reply(512)
    assert (reply.cookie, reply.data) == (7, PATTERN[1024:1536])


def test_options_whose_answers_are_never_read_stop_nobody(victim: Victim, wire: Wire) -> None:
    wire.greet()
    wire.socket.settimeout(1)
    with pytest.raises((TimeoutError, Closed)):
        for _ in range(4096):
            wire.send(option_bytes(Option.LIST) * 256)
    victim.expect_served()


# Handshake: time and disconnection


def test_a_handshake_that_takes_too_long_is_ended(victim: Victim) -> None:
    """Silent; one byte a second; and options without end."""
    started = time.monotonic()
    with Wire(victim) as silent, Wire(victim) as slow, Wire(victim) as busy:
        busy.greet()
        slow_bytes = struct.pack(">I", 3) + option_bytes(Option.GO, go_bytes(b"vda"))
        with pytest.raises(Closed):
            for turn in range(HANDSHAKE_S + 3):
                slow.send(slow_bytes[turn : turn + 1])
                busy.option(Option.LIST)
                time.sleep(1)
        assert time.monotonic() - started > HANDSHAKE_S - 1
        assert silent.expect_closed(3) == b""
        assert slow.expect_closed(3) == b""


@pytest.mark.parametrize("how", ["close", "reset"])
def test_leaving_at_any_byte_of_handshake_and_write_changes_nothing(
    victim: Victim, how: str
) -> None:
    words = struct.pack(">I", 3) + option_bytes(Option.GO, go_bytes(b"vda"))
    words += request_bytes(Command.WRITE, 0, 512, bytes(512))
    for count in range(len(words)):
        with Wire(victim) as wire:
            wire.send(words[:count])
            if how == "reset":
                wire.reset()


# Requests


@pytest.mark.parametrize("magic", [0, 0x25609514, 0x67446698, 0x13956025, 2**32 - 1])
def test_a_wrong_request_magic_closes_the_connection(open_wire: Wire, magic: int) -> None:
    open_wire.send(request_bytes(Command.READ, 0, 512, magic=magic))
    assert open_wire.expect_closed() == b""


@pytest.mark.parametrize("command", [Command.BLOCK_STATUS, 8, 99, 0x8000, 0xFFFF])
def test_an_unknown_command_is_invalid_and_the_next_is_served(
    open_wire: Wire, command: int
) -> None:
    assert open_wire.request(command, 0, 512) == Error.EINVAL
    assert open_wire.read(0, 512).data == PATTERN[:512]


@pytest.mark.parametrize("flags", [1 << 6, 1 << 15, 0xFFC0, 0xFFFF])
@pytest.mark.parametrize(
    "command", [Command.READ, Command.FLUSH, Command.TRIM, Command.CACHE, Command.WRITE_ZEROES]
)
def test_unknown_command_flags_are_invalid_and_the_next_is_served(
    open_wire: Wire, command: Command, flags: int
) -> None:
    length = 0 if command == Command.FLUSH else 512
    assert open_wire.request(command, 0, length, flags=flags) == Error.EINVAL
    assert open_wire.read(0, 512).data == PATTERN[:512]


def test_a_write_with_unknown_flags_is_consumed_and_the_next_is_served(open_wire: Wire) -> None:
    assert open_wire.write(0, bytes(4 * KIB), flags=1 << 15) == Error.EINVAL
    assert open_wire.read(0, 512).data == PATTERN[:512]


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (Command.TRIM, CommandFlag.NO_HOLE),
        (Command.READ, CommandFlag.NO_HOLE),
        (Command.FLUSH, CommandFlag.NO_HOLE),
        (Command.READ, CommandFlag.DF),
        (Command.TRIM, CommandFlag.FAST_ZERO),
        (Command.READ, CommandFlag.FAST_ZERO),
        (Command.WRITE_ZEROES, CommandFlag.DF),
        (Command.READ, CommandFlag.REQ_ONE),
        (Command.READ, CommandFlag.PAYLOAD_LEN),
        (Command.TRIM, CommandFlag.PAYLOAD_LEN),
        (Command.WRITE_ZEROES, CommandFlag.REQ_ONE),
    ],
)
def test_a_flag_that_is_not_for_this_command_is_invalid(
    open_wire: Wire, command: Command, flags: CommandFlag
) -> None:
    length = 0 if command == Command.FLUSH else 512
    assert open_wire.request(command, 0, length, flags=flags) == Error.EINVAL


@pytest.mark.parametrize("command", [Command.FLUSH, Command.CACHE])
def test_fua_is_tolerated_on_what_does_not_write(open_wire: Wire, command: Command) -> None:
    length = 0 if command == Command.FLUSH else 512
    assert open_wire.request(command, 0, length, flags=CommandFlag.FUA) == Error.NONE


def test_fua_is_tolerated_on_a_read(open_wire: Wire) -> None:
    assert open_wire.read(512, 512, flags=CommandFlag.FUA).data == PATTERN[512:1024]


@pytest.mark.parametrize(("offset", "length"), PAST_THE_END)
@pytest.mark.parametrize(
    ("command", "error"),
    [
        (Command.READ, Error.EINVAL),
        (Command.CACHE, Error.EINVAL),
        (Command.TRIM, Error.EINVAL),
        (Command.WRITE_ZEROES, Error.ENOSPC),
    ],
)
def test_a_request_past_the_end_is_refused(
    open_wire: Wire, command: Command, error: Error, offset: int, length: int
) -> None:
    assert open_wire.request(command, offset, length) == error
    assert open_wire.read(0, 512).data == PATTERN[:512]


@pytest.mark.parametrize(("offset", "length"), PAST_THE_END)
def test_a_write_past_the_end_has_no_space_and_its_payload_is_consumed(
    open_wire: Wire, offset: int, length: int
) -> None:
    assert open_wire.write(offset, bytes(length)) == Error.ENOSPC
    assert open_wire.read(0, 512).data == PATTERN[:512]


def test_the_last_block_can_be_read_and_written(victim: Victim, open_wire: Wire) -> None:
    assert open_wire.read(SIZE - 512, 512).data == PATTERN[-512:]
    assert open_wire.write(SIZE - 512, b"e" * 512) == Error.NONE
    victim.put(SIZE - 512, b"e" * 512)


@pytest.mark.parametrize(
    ("offset", "length"), [(1, 512), (511, 512), (256, 256), (0, 1), (0, 511), (0, 513), (513, 511)]
)
@pytest.mark.parametrize(
    "command", [Command.READ, Command.WRITE, Command.TRIM, Command.CACHE, Command.WRITE_ZEROES]
)
def test_what_is_not_whole_blocks_is_invalid(
    open_wire: Wire, command: Command, offset: int, length: int
) -> None:
    payload = bytes(length) if command == Command.WRITE else b""
    assert open_wire.request(command, offset, length, payload) == Error.EINVAL
    assert open_wire.read(0, 512).data == PATTERN[:512]


@pytest.mark.parametrize("offset", [0, 512, SIZE])
@pytest.mark.parametrize(
    "command", [Command.READ, Command.WRITE, Command.TRIM, Command.CACHE, Command.WRITE_ZEROES]
)
def test_a_request_for_nothing_does_nothing(open_wire: Wire, command: Command, offset: int) -> None:
    # The protocol leaves open which.
    assert open_wire.request(command, offset, 0) in (Error.NONE, Error.EINVAL)
    assert open_wire.read(0, 512).data == PATTERN[:512]


@pytest.mark.parametrize("length", [REQUEST_BYTES_MAX + 512, 2**31, 2**32 - 512])
def test_a_read_beyond_the_longest_is_invalid(open_wire: Wire, length: int) -> None:
    assert open_wire.request(Command.READ, 0, length) == Error.EINVAL
    assert open_wire.read(0, 512).data == PATTERN[:512]


def test_a_write_beyond_the_longest_is_refused(open_wire: Wire) -> None:
    try:
        error = open_wire.write(0, bytes(REQUEST_BYTES_MAX + 512))
    except Closed:
        return
    assert error in (Error.EINVAL, Error.ENOSPC)
    assert open_wire.read(0, 512).data == PATTERN[:512]


@pytest.mark.parametrize("length", [2**31, 2**32 - 1])
def test_a_write_that_claims_gigabytes_stops_nobody(
    victim: Victim, open_wire: Wire, length: int
) -> None:
    open_wire.send(request_bytes(Command.WRITE, 0, length, bytes(MIB)))
    victim.expect_served()


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("length", [512, 4 * KIB, WRITE_WHOLE_ANYWHERE_BYTES, WRITE_WHOLE_BYTES])
def test_a_write_cut_short_changes_nothing(open_wire: Wire, length: int, how: str) -> None:
    if length > WRITE_WHOLE_ANYWHERE_BYTES and "MEMORY_MIB" in os.environ:
        pytest.skip("a connection's share of the receive buffers may be less")
    open_wire.send(request_bytes(Command.WRITE, 0, length, bytes(length - 1)))
    open_wire.reset() if how == "reset" else open_wire.close()


def test_a_long_write_cut_short_changes_only_what_was_sent(victim: Victim, open_wire: Wire) -> None:
    """Sectors are old or new, and new ones come from what was sent."""
    open_wire.send(request_bytes(Command.WRITE, 0, MIB, bytes(MIB // 2 - 1)))
    open_wire.close()
    victim.appliance.wait_until_idle()
    image = victim.appliance.image.read_bytes()
    for start in range(0, MIB // 2 - 512, 512):
        if image[start : start + 512] == bytes(512):
            victim.put(start, bytes(512))


def test_what_is_sent_behind_a_disconnect_is_ignored(open_wire: Wire) -> None:
    behind = request_bytes(Command.WRITE, 0, 512, bytes(512))
    behind += request_bytes(Command.WRITE_ZEROES, 0, MIB)
    open_wire.send(request_bytes(Command.DISC) + behind)
    assert open_wire.expect_closed() == b""


def test_requests_before_a_disconnect_are_finished(victim: Victim, open_wire: Wire) -> None:
    writes = [
        request_bytes(Command.WRITE, n * 4 * KIB, 4 * KIB, b"d" * 4 * KIB, cookie=n)
        for n in range(16)
    ]
    open_wire.send(b"".join(writes) + request_bytes(Command.DISC))
    replies = [open_wire.reply() for _ in writes]
    assert {reply.cookie for reply in replies} == set(range(16))
    assert all(reply.error == Error.NONE for reply in replies)
    assert open_wire.expect_closed() == b""
    victim.put(0, b"d" * 64 * KIB)


def test_a_client_that_only_listens_any_more_gets_its_answers(open_wire: Wire) -> None:
    open_wire.send(request_bytes(Command.READ, 0, MIB, cookie=1))
    open_wire.socket.shutdown(socket.SHUT_WR)
    assert open_wire.reply(MIB).data == PATTERN[:MIB]
    assert open_wire.expect_closed() == b""


def test_a_write_that_comes_byte_by_byte_arrives_right(victim: Victim, open_wire: Wire) -> None:
    data = random.Random(21).randbytes(4 * KIB)
    open_wire.send_slowly(request_bytes(Command.WRITE, 512, len(data), data, cookie=3))
    reply = open_wire.reply()
    assert (reply.cookie, reply.error) == (3, Error.NONE)
    victim.put(512, data)


@pytest.mark.parametrize("piece", [3, 29, 511, 1400])
def test_pipelined_requests_in_odd_pieces_are_all_served(
    victim: Victim, open_wire: Wire, piece: int
) -> None:
    luck = random.Random(piece)
    words = b""
    for n in range(16):
        data = luck.randbytes(1536)
        words += request_bytes(Command.WRITE, n * 1536, 1536, data, cookie=n)
        victim.put(n * 1536, data)
    for start in range(0, len(words), piece):
        open_wire.send(words[start : start + piece])
    replies = [open_wire.reply() for _ in range(16)]
    assert {reply.cookie for reply in replies} == set(range(16))
    assert all(reply.error == Error.NONE for reply in replies)


def test_requests_with_one_cookie_are_all_answered(open_wire: Wire) -> None:
    open_wire.send(request_bytes(Command.READ, 0, 512, cookie=5) * 100)
    for _ in range(100):
        reply = open_wire.reply(512)
        assert (reply.cookie, reply.data) == (5, PATTERN[:512])


# Many, and greedy ones


def test_hundreds_of_connections_come_and_go_and_leave_no_memory_behind(victim: Victim) -> None:
    memory_kib = victim.appliance.counter("memory:")
    for turn in range(300):
        with Wire(victim) as wire:
            if turn % 3 == 1:
                wire.go()
            elif turn % 3 == 2:
                wire.go()
                wire.send(request_bytes(Command.READ, 0, MIB))
                wire.reset()
    victim.appliance.wait_until_idle()
    assert victim.appliance.counter("memory:") < memory_kib + 64


def test_connections_dropped_before_the_greeting_do_not_use_up_the_limit(victim: Victim) -> None:
    for _ in range(10 * CONNECTIONS_MAX):
        with socket.socket() as hasty:
            hasty.settimeout(HASTE_S)
            with contextlib.suppress(TimeoutError):
                hasty.connect((victim.host, victim.port))
            hasty.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    started = time.monotonic()
    while True:
        try:
            victim.expect_served()
            break
        except Closed:  # some of them may still be on their way
            assert time.monotonic() - started < 3


@pytest.mark.parametrize("how", ["close", "reset"])
def test_leaving_in_the_middle_of_long_reads_and_writes_harms_nobody(
    victim: Victim, how: str
) -> None:
    for turn in range(20):
        with Wire(victim) as wire:
            wire.go()
            reads = request_bytes(Command.READ, 0, SIZE) + request_bytes(Command.READ, 0, MIB) * 8
            writes = b"".join(
                request_bytes(Command.WRITE, n * MIB, MIB, part(PATTERN, n * MIB, MIB))
                for n in range(2)
            )
            wire.send(reads + writes[: len(writes) * turn // 20])
            wire.receive(turn * 10000)
            if how == "reset":
                wire.reset()


def test_connections_beyond_the_limit_are_closed_and_the_limit_frees_itself(
    launch: Callable[..., Appliance],
) -> None:
    appliance = launch(MIB)
    appliance.wait_until_idle()  # what looked for the greeting is gone then
    wires = [Wire(appliance) for _ in range(CONNECTIONS_MAX)]
    try:
        for wire in wires:
            wire.go()
        for _ in range(3):
            with pytest.raises(Closed):
                Wire(appliance)
        for wire in wires:
            assert wire.read(0, 512).error == Error.NONE
        for wire in wires[:8]:
            wire.disconnect()
        for index in range(8):
            wires[index] = Wire(appliance)
            wires[index].go()
    finally:
        for wire in wires:
            wire.close()


def test_a_client_that_never_reads_its_answers_stops_neither_others_nor_power_off(
    launch: Callable[..., Appliance],
) -> None:
    """It asks for more than it takes, until nothing moves either way. The appliance is its own:
    QEMU's user network never tells it that such a client has left."""
    appliance = launch(SIZE)
    with Wire(appliance) as stalled:
        stalled.go()
        stalled.send(request_bytes(Command.READ, 0, SIZE) * ALL_THAT_THE_HOST_BUFFERS)
        started = time.monotonic()
        for _ in range(100):
            with Wire(appliance) as other:
                other.go()
                assert other.read(0, 64 * KIB).data == bytes(64 * KIB)
        assert time.monotonic() - started < 10
        appliance.stop()


def test_a_client_that_never_reads_its_answers_is_given_up_in_the_end(
    launch: Callable[..., Appliance],
) -> None:
    appliance = launch(SIZE, append="user-timeout=1")
    with Wire(appliance) as stalled:
        stalled.go()
        stalled.send(request_bytes(Command.READ, 0, SIZE) * ALL_THAT_THE_HOST_BUFFERS)
        appliance.wait_for_console("has not taken in 1000 ms what was sent to it: given up")
        appliance.wait_until_idle()
        with Wire(appliance) as other:
            other.go()
            assert other.read(0, 64 * KIB).data == bytes(64 * KIB)


def test_clients_with_which_nothing_moves_cost_next_to_nothing(
    launch: Callable[..., Appliance],
) -> None:
    """Some of them have left, some have not; both sides ask each other for room now and then."""
    appliance = launch(SIZE)
    stalled: list[Wire] = []
    try:
        for _ in range(8):
            stalled.append(Wire(appliance))
            stalled[-1].go()
            stalled[-1].send(request_bytes(Command.READ, 0, SIZE) * ALL_THAT_THE_HOST_BUFFERS)
            time.sleep(0.2)
        for wire in stalled[::2]:
            wire.close()
        time.sleep(STALL_S)

        frames = appliance.counter("net: received")
        time.sleep(1)
        assert appliance.counter("net: received") - frames < 200
    finally:
        for wire in stalled:
            wire.close()


def test_many_clients_that_never_read_their_answers_stop_nobody(victim: Victim) -> None:
    greedy: list[Wire] = []
    try:
        for _ in range(16):
            greedy.append(Wire(victim))
            greedy[-1].go()
            greedy[-1].send(request_bytes(Command.READ, 0, SIZE) * 64)
            time.sleep(0.05)  # until it holds what it can get
        for _ in range(5):
            victim.expect_served()
    finally:
        for wire in greedy:
            wire.close()


def test_many_clients_in_the_middle_of_a_write_stop_nobody(victim: Victim) -> None:
    """Each keeps received packets for a write whose last byte never comes."""
    stuck = [Wire(victim) for _ in range(48)]
    try:
        for wire in stuck:
            wire.go()
            payload = PATTERN[: WRITE_WHOLE_BYTES - 1]
            wire.send(request_bytes(Command.WRITE, 0, WRITE_WHOLE_BYTES, payload))
        for _ in range(5):
            victim.expect_served()
        with Wire(victim) as writer:
            writer.go()
            assert writer.write(MIB, PATTERN[MIB : 3 * MIB]) == Error.NONE
    finally:
        for wire in stuck:
            wire.close()


# Garbage, from seeds


@pytest.mark.parametrize("seed", range(20))
def test_garbage_instead_of_a_handshake_harms_nobody(victim: Victim, seed: int) -> None:
    luck = random.Random(seed)
    with Wire(victim) as raw:
        raw.send(luck.randbytes(luck.choice([1, 4, 20, 100, 5000])))
    with Wire(victim) as wire:
        wire.greet()
        try:
            for _ in range(20):
                data = luck.randbytes(luck.choice([0, 1, 5, 6, 9, 64, 500]))
                option = luck.choice([0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, luck.getrandbits(32)])
                try:
                    wire.option(option, data)
                except Refused:
                    pass
            wire.send(luck.randbytes(300))
        except Closed:
            pass


@pytest.mark.parametrize("seed", range(20))
def test_garbage_among_requests_harms_nobody(open_wire: Wire, seed: int) -> None:
    luck = random.Random(seed)
    for _ in range(100):
        command = luck.choice([0, 0, 3, 3, 4, 5, 6, luck.randrange(7, 65536)])
        flags = luck.choice([0, 0, 1, 1 << luck.randrange(16), luck.getrandbits(16)])
        offset = luck.choice([0, 512, SIZE - 512, luck.randrange(SIZE), luck.getrandbits(64)])
        length = luck.choice([0, 1, 512, 64 * KIB, luck.randrange(MIB), luck.getrandbits(32)])
        if command in (Command.TRIM, Command.WRITE_ZEROES):
            offset |= 1  # else it might be a good one
        if command == Command.READ and flags in (0, 1):
            is_good = offset % 512 == length % 512 == 0 and 0 < length <= SIZE - offset
            reply = open_wire.read(offset, length, flags=flags)
            if is_good:
                assert reply.data == PATTERN[offset : offset + length]
            else:
                assert reply.error == Error.EINVAL or length == 0
        else:
            open_wire.request(command, offset, length, flags=flags)
    open_wire.send(luck.randbytes(28))
    assert open_wire.expect_closed() == b""
