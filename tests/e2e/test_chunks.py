"""Replies in chunks, structured and extended, and what a disk's allocation is told as.

Most tests run twice, with either kind of header, on one appliance that they share; each takes a range
of the disk for itself.
"""

from __future__ import annotations

import contextlib
import json
import random
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbd  # type: ignore[import]
import pytest

from appliance import Appliance, make_disk
from nbd_chunks import (
    ALLOCATION,
    HOLE,
    ZERO,
    Answer,
    ChunkWire,
    Kind,
    context_bytes,
    filter_bytes,
    take_chunk,
)
from nbd_wire import (
    Closed,
    Command,
    CommandFlag,
    Error,
    Export,
    Option,
    Rep,
    TransmissionFlag,
    Wire,
)

pytestmark = pytest.mark.deadline(60)

KIB = 1024
MIB = 1024 * 1024
GIB = 1024 * MIB
SIZE = 64 * MIB
EXTENTS_MAX = 128  # told in one reply

Launch = Callable[..., Appliance]
places = iter(range(0, SIZE, MIB))


@pytest.fixture(params=["structured", "extended"])
def wire(appliance: Appliance, request: pytest.FixtureRequest) -> Iterator[ChunkWire]:
    """A connection that may send requests."""
    with ChunkWire(appliance, request.param == "extended") as wire:
        wire.go()
        yield wire


@pytest.fixture
def place() -> int:
    """A MiB of the shared disk for this test, with other data around it."""
    return next(places)


def fill(wire: ChunkWire, place: int, seed: int = 40) -> bytes:
    data = random.Random(seed).randbytes(MIB)
    assert wire.request(Command.WRITE, place, MIB, data) == Error.NONE
    return data


def disk_reads(appliance: Appliance) -> int:
    return appliance.counter("vda read:")


# Handshake


def test_flags_follow_what_was_agreed_on(appliance: Appliance) -> None:
    told: dict[str, Export] = {}
    with Wire(appliance) as simple:
        told["simple"] = simple.go()
    for kind in ("structured", "extended"):
        with ChunkWire(appliance, kind == "extended") as wire:
            told[kind] = wire.go()
    with ChunkWire(appliance, True) as wire:
        wire.agree()
        told["without context"] = wire.export()
    has_df = {kind: TransmissionFlag.SEND_DF in export.flags for kind, export in told.items()}
    assert has_df == {"simple": False, "structured": True, "extended": True, "without context": True}
    filters = {
        kind
        for kind, export in told.items()
        if TransmissionFlag.BLOCK_STATUS_PAYLOAD in export.flags
    }
    assert filters == {"extended"}
    assert all(TransmissionFlag.SEND_FAST_ZERO in export.flags for export in told.values())


@pytest.mark.parametrize("option", [Option.STRUCTURED_REPLY, Option.EXTENDED_HEADERS])
def test_info_tells_the_flags_of_go(appliance: Appliance, option: Option) -> None:
    with ChunkWire(appliance, option == Option.EXTENDED_HEADERS) as wire:
        wire.agree()
        wire.choose()
        assert wire.export(b"", Option.INFO) == wire.export(b"", Option.GO)


def test_extended_headers_take_precedence_over_structured_replies(appliance: Appliance) -> None:
    with ChunkWire(appliance, True) as wire:
        wire.greet()
        assert wire.option(Option.STRUCTURED_REPLY) == []
        assert wire.option(Option.EXTENDED_HEADERS) == []
        wire.expect_refused(Rep.ERR_EXT_HEADER_REQD, Option.STRUCTURED_REPLY)
        wire.export()
        assert wire.ask(Command.FLUSH).kinds == [Kind.NONE]


def test_a_list_tells_names_and_descriptions(appliance: Appliance) -> None:
    with Wire(appliance) as wire:
        wire.greet()
        (reply,) = wire.option(Option.LIST)
        (name_bytes,) = struct.unpack_from(">I", reply.data)
        told = wire.export()
        assert reply.data[4 : 4 + name_bytes].decode() == told.name
        assert reply.data[4 + name_bytes :].decode() == told.description


@pytest.mark.parametrize(
    ("queries", "listed", "chosen"),
    [
        ((), True, False),
        ((b"base:",), True, False),
        ((ALLOCATION,), True, True),
        ((ALLOCATION, ALLOCATION, b"base:"), True, True),
        ((b"qemu:", b"x-other:thing", b"base:other", b"base:allocation2"), False, False),
        ((b"x-other:thing", ALLOCATION), True, True),
    ],
)
def test_contexts_are_listed_and_chosen_as_asked_for(
    appliance: Appliance, queries: tuple[bytes, ...], listed: bool, chosen: bool
) -> None:
    with ChunkWire(appliance) as wire:
        wire.agree()
        replies = wire.option(Option.LIST_META_CONTEXT, context_bytes(b"vda", queries))
        assert [reply.data for reply in replies] == [bytes(4) + ALLOCATION] * listed
        wire.choose(b"vda", queries)
        assert list(wire.contexts) == [ALLOCATION] * chosen
        wire.export()
        error = wire.request(Command.BLOCK_STATUS, 0, 512)
        assert error == (Error.NONE if chosen else Error.EINVAL)


def test_the_last_choice_of_contexts_counts_even_if_it_fails(appliance: Appliance) -> None:
    good = context_bytes(b"", (ALLOCATION,))
    failures = [
        (Rep.ERR_UNKNOWN, context_bytes(b"nobody", (ALLOCATION,))),
        (Rep.ERR_INVALID, context_bytes(b"", (b"without a colon",))),
        (Rep.ERR_INVALID, good + b"!"),
        (Rep.ERR_TOO_BIG, good + bytes(4096)),
    ]
    for kind, data in failures:
        with ChunkWire(appliance) as wire:
            wire.agree()
            wire.choose()
            wire.expect_refused(kind, Option.SET_META_CONTEXT, data)
            wire.export()
            assert wire.request(Command.BLOCK_STATUS, 0, 512) == Error.EINVAL


def test_a_context_chosen_for_one_export_is_not_another_s(launch: Launch) -> None:
    appliance = launch(MIB, MIB)
    for chosen, opened, error in [
        (b"vda", b"vdb", Error.EINVAL),
        (b"vdb", b"vdb", Error.NONE),
        (b"", b"vda", Error.NONE),
    ]:
        with ChunkWire(appliance) as wire:
            wire.agree()
            wire.choose(chosen)
            wire.export(opened)
            assert wire.request(Command.BLOCK_STATUS, 0, 512) == error


# Reading


@pytest.mark.parametrize("length", [512, 4 * KIB, 128 * KIB, 128 * KIB + 512, MIB])
def test_a_read_comes_in_chunks_that_cover_it_once(
    wire: ChunkWire, place: int, length: int
) -> None:
    data = fill(wire, place)
    answer = wire.ask(Command.READ, place, length)
    assert answer.bytes_of(place, length) == data[:length]
    assert set(answer.kinds) == {Kind.OFFSET_DATA}


@pytest.mark.parametrize("length", [512, 64 * KIB, MIB, 32 * MIB])
def test_a_read_that_must_not_be_fragmented_is_one_chunk(wire: ChunkWire, length: int) -> None:
    whole = wire.get(0, length)
    answer = wire.ask(Command.READ, 0, length, flags=CommandFlag.DF)
    assert list(answer.data) == [0]
    assert set(answer.kinds) <= {Kind.OFFSET_DATA, Kind.NONE}
    # Not compared in the assertion: it would print all of it.
    is_same = answer.data[0] == whole
    assert is_same


def test_many_reads_in_flight_are_told_apart(wire: ChunkWire, place: int) -> None:
    data = fill(wire, place)
    count = 300
    luck = random.Random(41)
    asked = [(512 * luck.randrange(1024), 512 * luck.randrange(1, 512)) for _ in range(count)]
    words = [
        wire.request_words(Command.READ, place + at, size, cookie=cookie)
        for cookie, (at, size) in enumerate(asked)
    ]
    wire.send(b"".join(words))
    parts: dict[int, dict[int, bytes]] = {cookie: {} for cookie in range(count)}
    open_cookies = set(parts)
    while open_cookies:
        chunk = wire.chunk()
        parts[chunk.cookie][struct.unpack_from(">Q", chunk.payload)[0]] = chunk.payload[8:]
        if chunk.flags:
            open_cookies.remove(chunk.cookie)
    for cookie, (at, size) in enumerate(asked):
        whole = b"".join(parts[cookie][start] for start in sorted(parts[cookie]))
        assert whole == data[at : at + size]


def test_zeroes_are_told_as_holes_without_the_disk(
    wire: ChunkWire, place: int, appliance: Appliance
) -> None:
    data = bytearray(fill(wire, place))
    at, size = 64 * KIB, 256 * KIB
    assert wire.request(Command.WRITE_ZEROES, place + at, size) == Error.NONE
    data[at : at + size] = bytes(size)

    reads = disk_reads(appliance)
    answer = wire.ask(Command.READ, place + at, size)
    assert (answer.holes, answer.data) == ({place + at: size}, {})
    assert disk_reads(appliance) == reads

    answer = wire.ask(Command.READ, place, MIB)
    assert answer.bytes_of(place, MIB) == data
    assert answer.holes == {place + at: size}
    whole = wire.ask(Command.READ, place, MIB, flags=CommandFlag.DF)
    assert whole.data[place] == data


def test_crumbs_of_zeroes_do_not_break_a_read_to_pieces(wire: ChunkWire, place: int) -> None:
    data = bytearray(fill(wire, place))
    for at in range(0, 64 * KIB, KIB):
        assert wire.request(Command.WRITE_ZEROES, place + at, 512) == Error.NONE
        data[at : at + 512] = bytes(512)
    answer = wire.ask(Command.READ, place, 64 * KIB)
    assert answer.bytes_of(place, 64 * KIB) == data[: 64 * KIB]
    assert answer.kinds == [Kind.OFFSET_DATA]


@pytest.mark.parametrize("extended", [False, True])
def test_an_error_in_the_middle_of_a_read_is_told_with_its_offset(
    launch: Launch, folder: Path, extended: bool
) -> None:
    pattern = random.Random(42).randbytes(2 * MIB)
    bad_at = MIB + 300 * KIB
    disk = {
        "driver": "blkdebug",
        "node-name": "failing",
        "image": {"driver": "file", "filename": str(make_disk(folder / "bad", 2 * MIB, pattern))},
        "inject-error": [
            {"event": "none", "errno": 5, "iotype": "read", "sector": bad_at // 512}
        ],
    }
    words = f"-blockdev {json.dumps(disk, separators=(',', ':'))}"
    words += " -device virtio-blk-device,drive=failing,request-merging=off"
    appliance = launch(MIB, qemu=words)
    with ChunkWire(appliance, extended) as wire:
        wire.go(b"vdb")
        answer = wire.ask(Command.READ, 0, 2 * MIB)
        assert (answer.error, answer.kinds[-1]) == (Error.EIO, Kind.ERROR_OFFSET)
        assert answer.error_offset is not None
        assert answer.error_offset <= bad_at < answer.error_offset + 128 * KIB
        assert sum(map(len, answer.data.values())) <= answer.error_offset
        for at, data in answer.data.items():
            assert data == pattern[at : at + len(data)]

        # As one piece: all of it, with zeroes where it failed, and then the error.
        whole = wire.ask(Command.READ, 0, 2 * MIB, flags=CommandFlag.DF)
        assert (whole.error, whole.error_offset) == (Error.EIO, answer.error_offset)
        if whole.data:
            start = answer.error_offset
            end = min(2 * MIB, start + 128 * KIB)
            expected = pattern[:start] + bytes(end - start) + pattern[end:]
            assert whole.data[0] == expected
        # One that begins with it.
        short = wire.ask(Command.READ, bad_at, 512)
        assert (short.error, short.error_offset, short.data) == (Error.EIO, bad_at, {})
        assert wire.request(Command.CACHE, bad_at, 512) == Error.EIO
        # And the connection goes on.
        assert wire.get(0, 4 * KIB) == pattern[: 4 * KIB]


def test_an_error_comes_with_words(wire: ChunkWire) -> None:
    answer = wire.ask(Command.WRITE, SIZE, 512, bytes(512))
    assert (answer.error, answer.kinds) == (Error.ENOSPC, [Kind.ERROR])
    assert answer.message == "past the end of the export"


def test_the_longest_reads_of_many_stream_through_little_memory(launch: Launch) -> None:
    """32 MiB each, whole or in chunks, four at once in 16 MiB of memory."""
    appliance = launch(32 * MIB, memory_mib=16)
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(ChunkWire(appliance, n % 2 == 0)) for n in range(4)]
        data = random.Random(46).randbytes(MIB)
        for number, wire in enumerate(wires):
            wire.go()
            if number == 0:
                for at in range(0, 32 * MIB, MIB):
                    assert wire.request(Command.WRITE, at, MIB, data) == Error.NONE
        results: list[bool] = []

        def read(number: int) -> None:
            flags = CommandFlag.DF if number < 2 else 0
            whole = wires[number].get(0, 32 * MIB, flags=flags)
            results.append(whole == data * 32)

        threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [True] * 4


def test_power_off_tells_those_who_wait_that_it_shuts_down(launch: Launch) -> None:
    """Half a write keeps the connection open; the rest of it comes when all is ending."""
    appliance = launch(MIB)
    with ChunkWire(appliance) as wire:
        wire.go()
        words = wire.request_words(Command.WRITE, 0, 512, b"l" * 512, cookie=2)
        wire.send(words[:-1])
        while ", 1 in flight" not in appliance.status():
            pass  # the test's deadline ends it
        appliance.signal()
        appliance.wait_for_console("shutting down")
        late = wire.request_words(Command.READ, 0, 512, cookie=3)
        wire.send(words[-1:] + late)
        answers = {}
        with contextlib.suppress(Closed):
            for _ in range(2):
                chunk = wire.chunk()
                answer = answers.setdefault(chunk.cookie, Answer())
                take_chunk(answer, chunk, False)
        assert answers[2].error == Error.NONE
        assert answers[3].error == Error.ESHUTDOWN
        assert answers[3].message == "shutting down"
    assert appliance.wait() == 0
    assert appliance.image.read_bytes()[:512] == b"l" * 512


# Writing, with 64-bit lengths


@pytest.mark.parametrize("flags", [0, CommandFlag.FUA])
def test_every_command_that_writes_does_so(wire: ChunkWire, place: int, flags: int) -> None:
    data = bytearray(fill(wire, place))
    piece = random.Random(43).randbytes(4 * KIB)
    assert wire.request(Command.WRITE, place + KIB, 4 * KIB, piece, flags=flags) == Error.NONE
    data[KIB : 5 * KIB] = piece
    assert wire.request(Command.WRITE_ZEROES, place + 8 * KIB, KIB, flags=flags) == Error.NONE
    data[8 * KIB : 9 * KIB] = bytes(KIB)
    no_hole = flags | CommandFlag.NO_HOLE
    assert wire.request(Command.WRITE_ZEROES, place + 9 * KIB, KIB, flags=no_hole) == Error.NONE
    data[9 * KIB : 10 * KIB] = bytes(KIB)
    assert wire.request(Command.TRIM, place + 16 * KIB, 64 * KIB, flags=flags) == Error.NONE
    assert wire.request(Command.CACHE, place, MIB) == Error.NONE
    assert wire.request(Command.FLUSH) == Error.NONE
    for start, end in [(0, 16 * KIB), (80 * KIB, MIB)]:
        assert wire.get(place + start, end - start) == data[start:end]


def test_lengths_of_64_bits_are_honoured(launch: Launch, folder: Path) -> None:
    size = 12 * GIB  # a hole of the host's; more than 32 bits of length
    disk = make_disk(folder / "large", size, b"x" * MIB)
    with disk.open("r+b") as image:
        image.seek(6 * GIB)
        image.write(b"y" * MIB)
    appliance = launch(disk)
    with ChunkWire(appliance, True) as wire:
        assert wire.go().size == size
        length = 2**32 + 512
        assert wire.status(0, size) == [(size, 0)]
        assert wire.request(Command.TRIM, 2 * GIB, length) == Error.NONE
        assert wire.status(0, size) == [
            (2 * GIB, 0),
            (length, HOLE),
            (size - 2 * GIB - length, 0),
        ]
        assert wire.request(Command.WRITE_ZEROES, MIB, size - MIB, flags=CommandFlag.FUA) == 0
        assert wire.status(0, size) == [(MIB, 0), (size - MIB, HOLE | ZERO)]
        assert wire.status(0, size, flags=CommandFlag.REQ_ONE) == [(MIB, 0)]
        assert wire.get(6 * GIB, MIB) == bytes(MIB)
        for command in (Command.TRIM, Command.WRITE_ZEROES, Command.CACHE, Command.BLOCK_STATUS):
            assert wire.request(command, 512, size) != Error.NONE
            assert wire.request(command, 0, 2**64 - 512) != Error.NONE
    with disk.open("rb") as image:
        assert image.read(MIB) == b"x" * MIB
        image.seek(6 * GIB)
        assert image.read(MIB) == bytes(MIB)


def test_a_long_zeroing_where_the_disk_cannot(launch: Launch, folder: Path) -> None:
    """The zeroes are written, in steps; asked to be fast, it refuses at once and changes nothing."""
    disk = make_disk(folder / "disk", 24 * MIB, b"z" * 24 * MIB)
    device = "-global virtio-blk-device."
    appliance = launch(disk, qemu=f"{device}discard=off {device}write-zeroes=off")
    with ChunkWire(appliance, True) as wire:
        flags = wire.go().flags
        assert TransmissionFlag.SEND_WRITE_ZEROES in flags
        assert TransmissionFlag.SEND_TRIM not in flags
        writes = appliance.status().count("vda write zeroes")
        fast = wire.request(Command.WRITE_ZEROES, 0, 20 * MIB, flags=CommandFlag.FAST_ZERO)
        assert fast == Error.ENOTSUP
        assert appliance.status().count("vda write zeroes") == writes
        flushes = appliance.counter("device flushes")
        assert wire.request(Command.WRITE_ZEROES, 512, 20 * MIB, flags=CommandFlag.FUA) == 0
        assert appliance.counter("device flushes") == flushes + 1  # one, behind all steps
        assert wire.request(Command.WRITE_ZEROES, 512, 20 * MIB) == 0
        assert appliance.counter("device flushes") == flushes + 1
        assert wire.status(0, 24 * MIB) == [(512, 0), (20 * MIB, ZERO), (4 * MIB - 512, 0)]
    content = disk.read_bytes()
    is_right = content == b"z" * 512 + bytes(20 * MIB) + b"z" * (4 * MIB - 512)
    assert is_right


def test_a_disconnect_waits_for_a_zeroing_as_long_as_the_disk_takes(
    launch: Launch, folder: Path
) -> None:
    """Longer than a client may take for its last replies."""
    size = 112 * MIB
    slow = make_disk(folder / "slow", size, b"z" * size)
    disk = {
        "driver": "throttle",
        "node-name": "slow",
        "throttle-group": "rate",
        "file": {"driver": "file", "filename": str(slow)},
    }
    words = "-object throttle-group,id=rate,x-bps-write=16777216"
    words += f" -blockdev {json.dumps(disk, separators=(',', ':'))}"
    words += " -device virtio-blk-device,drive=slow,write-zeroes=off"
    appliance = launch(MIB, qemu=words)
    with ChunkWire(appliance, True) as wire:
        wire.go(b"vdb")
        wire.send(wire.request_words(Command.WRITE_ZEROES, 0, size, cookie=1))
        wire.send(wire.request_words(Command.DISC))
        assert wire.answer(1).error == Error.NONE
        assert wire.expect_closed() == b""
    is_zero = not any(slow.read_bytes())
    assert is_zero


def test_a_fast_zeroing_is_done_or_refused_at_once(wire: ChunkWire, place: int) -> None:
    data = fill(wire, place)
    fast = CommandFlag.FAST_ZERO
    slow = wire.ask(Command.WRITE_ZEROES, place, MIB, flags=fast | CommandFlag.NO_HOLE)
    assert slow.error == Error.ENOTSUP
    assert wire.get(place, MIB) == data
    assert wire.request(Command.WRITE_ZEROES, place, MIB, flags=fast) == Error.NONE
    assert wire.get(place, MIB) == bytes(MIB)


# Allocation


def test_what_was_zeroed_or_trimmed_is_told_and_what_was_written_is_data(
    wire: ChunkWire, place: int
) -> None:
    fill(wire, place)
    assert wire.status(place, MIB) == [(MIB, 0)]
    assert wire.request(Command.WRITE_ZEROES, place + 64 * KIB, 64 * KIB) == Error.NONE
    no_hole = CommandFlag.NO_HOLE
    assert wire.request(Command.WRITE_ZEROES, place + 128 * KIB, 64 * KIB, flags=no_hole) == 0
    assert wire.request(Command.TRIM, place + 192 * KIB, 64 * KIB) == Error.NONE
    assert wire.status(place, MIB) == [
        (64 * KIB, 0),
        (64 * KIB, HOLE | ZERO),
        (64 * KIB, ZERO),
        (64 * KIB, HOLE),
        (768 * KIB, 0),
    ]
    one = wire.status(place + 96 * KIB, 512, flags=CommandFlag.REQ_ONE)
    assert one == [(512, HOLE | ZERO)]
    assert wire.request(Command.WRITE, place + 96 * KIB, 512, bytes(512)) == Error.NONE
    assert wire.status(place + 64 * KIB, 64 * KIB) == [
        (32 * KIB, HOLE | ZERO),
        (512, 0),
        (32 * KIB - 512, HOLE | ZERO),
    ]


def test_all_clients_are_told_the_same(appliance: Appliance, place: int) -> None:
    with ChunkWire(appliance) as first, ChunkWire(appliance, True) as second:
        first.go()
        second.go()
        assert first.request(Command.WRITE_ZEROES, place, MIB) == Error.NONE
        assert second.status(place, MIB) == [(MIB, HOLE | ZERO)]
        with Wire(appliance) as third:
            third.go()
            assert third.write(place + 512, b"d" * 512) == Error.NONE
        assert first.status(place, 2 * KIB) == [(512, HOLE | ZERO), (512, 0), (KIB, HOLE | ZERO)]
        assert second.get(place, KIB) == bytes(512) + b"d" * 512


def test_more_extents_than_one_reply_tells_come_with_the_next(
    wire: ChunkWire, place: int
) -> None:
    fill(wire, place)
    for at in range(0, 400 * KIB, 2 * KIB):
        assert wire.request(Command.WRITE_ZEROES, place + at, KIB) == Error.NONE
    told: list[tuple[int, int]] = []
    position = 0
    while position < 400 * KIB:
        extents = wire.status(place + position, 400 * KIB - position)
        assert len(extents) <= EXTENTS_MAX
        told += extents
        position += sum(size for size, _ in extents)
    assert told == [(KIB, HOLE | ZERO), (KIB, 0)] * 200


def test_after_a_restart_everything_is_data(launch: Launch, folder: Path) -> None:
    disk = make_disk(folder / "disk", MIB)
    appliance = launch(disk)
    with ChunkWire(appliance) as wire:
        wire.go()
        assert wire.request(Command.WRITE_ZEROES, 0, MIB) == Error.NONE
        assert wire.status(0, MIB) == [(MIB, HOLE | ZERO)]
    appliance.stop()
    with ChunkWire(launch(disk)) as wire:
        wire.go()
        assert wire.status(0, MIB) == [(MIB, 0)]


def test_allocation_can_be_switched_off(launch: Launch) -> None:
    with ChunkWire(launch(MIB, append="allocation=off")) as wire:
        wire.go()
        assert wire.request(Command.WRITE_ZEROES, 0, MIB) == Error.NONE
        assert wire.status(0, MIB) == [(MIB, 0)]
        assert wire.ask(Command.READ, 0, 4 * KIB).holes == {}


def test_a_status_may_name_its_contexts(appliance: Appliance, place: int) -> None:
    with ChunkWire(appliance, True) as wire:
        wire.go()
        assert wire.request(Command.WRITE_ZEROES, place, MIB) == Error.NONE
        context = wire.contexts[ALLOCATION]
        payload = filter_bytes(MIB, context)
        answer = wire.ask(Command.BLOCK_STATUS, place, len(payload), payload)
        assert answer.extents == {context: [(MIB, HOLE | ZERO)]}


# Real clients


def run(*words: str) -> str:
    return subprocess.run(
        words, check=True, text=True, stdout=subprocess.PIPE, timeout=30
    ).stdout


def test_nbdinfo_maps_and_tells_structured_replies(appliance: Appliance, place: int) -> None:
    with ChunkWire(appliance) as wire:
        wire.go()
        fill(wire, place)
        assert wire.request(Command.WRITE_ZEROES, place + 256 * KIB, 256 * KIB) == Error.NONE
    told = json.loads(run("nbdinfo", "--json", appliance.uri()))
    assert told["structured"] is True
    assert told["exports"][0]["contexts"] == [ALLOCATION.decode()]
    extents: list[dict[str, Any]] = json.loads(
        run("nbdinfo", "--map", "--json", appliance.uri())
    )
    assert sum(extent["length"] for extent in extents) == SIZE
    assert {"offset": place + 256 * KIB, "length": 256 * KIB, "type": 3} in [
        {key: extent[key] for key in ("offset", "length", "type")} for extent in extents
    ]


def test_qemu_img_maps_and_copies_what_is_sparse(launch: Launch, folder: Path) -> None:
    data = random.Random(45).randbytes(MIB)
    source = make_disk(folder / "source", 16 * MIB, data)
    target = launch(make_disk(folder / "target", 16 * MIB, b"o" * 16 * MIB))
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(source), target.uri())
    mapped = json.loads(
        run("qemu-img", "map", "-f", "raw", "--output", "json", target.uri())
    )
    zeroes = sum(extent["length"] for extent in mapped if extent["zero"])
    assert zeroes == 15 * MIB
    copy = folder / "copy"
    run("nbdcopy", target.uri(), str(copy))
    assert copy.read_bytes() == source.read_bytes()
    assert copy.stat().st_blocks * 512 < 2 * MIB  # the holes are holes again
    run("qemu-io", "-d", "unmap", "-f", "raw", "-c", "discard 1M 1M", target.uri())
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", target.uri(), str(source))


def test_libnbd_reads_in_chunks_and_asks_for_extents(appliance: Appliance, place: int) -> None:
    handle = nbd.NBD()
    handle.add_meta_context("base:allocation")
    handle.connect_uri(appliance.uri())
    assert handle.get_structured_replies_negotiated()
    assert handle.can_df() and handle.can_fast_zero()
    handle.pwrite(b"n" * 64 * KIB, place)
    handle.zero(32 * KIB, place + 16 * KIB)
    chunks: list[tuple[int, int]] = []

    def take(data: Any, offset: int, status: int, _error: Any) -> int:
        chunks.append((offset - place, status))
        return 0

    whole = handle.pread_structured(64 * KIB, place, take)
    assert bytes(whole) == b"n" * 16 * KIB + bytes(32 * KIB) + b"n" * 16 * KIB
    assert sorted(chunks) == [
        (0, nbd.READ_DATA),
        (16 * KIB, nbd.READ_HOLE),
        (48 * KIB, nbd.READ_DATA),
    ]
    assert bytes(handle.pread(64 * KIB, place)) == bytes(whole)
    extents: list[int] = []

    def status(_context: str, _offset: int, entries: list[int], _error: Any) -> int:
        extents.extend(entries)
        return 0

    handle.block_status(64 * KIB, place, status)
    assert extents == [16 * KIB, 0, 32 * KIB, HOLE | ZERO, 16 * KIB, 0]
    with pytest.raises(nbd.Error, match="ENOTSUP|Operation not supported"):
        handle.zero(KIB, place, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
    handle.shutdown()
