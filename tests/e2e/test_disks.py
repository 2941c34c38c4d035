"""Whole disks: their names, partitions, size, cache, and what happens when one is slow.

Partition tables are made by the tools that people make them with.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance import Appliance, make_disk, part
from nbd_wire import (
    Command,
    Error,
    Option,
    Rep,
    TransmissionFlag,
    Wire,
    option_bytes,
    request_bytes,
)
from qmp import Qmp, qmp_words
from shared import new_folder

pytestmark = pytest.mark.deadline(40)

KIB = 1024
MIB = 1024 * 1024
SECTOR = 512
SIZE = 32 * MIB
EXPORTS_MAX = 64
PARTITION_NAME_MAX = 36
LISTS = 8
EXTRA_DISK = "-drive if=none,id={id},file={file},format=raw -device virtio-blk-device,drive={id}"

Launch = Callable[..., Appliance]


def tool(*command: str | Path, text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def make_gpt(path: Path, *names: str) -> Path:
    """Partitions of 4 MiB with these names, the last one up to the end of the disk."""
    make_disk(path, SIZE)
    words = []
    for number, name in enumerate(names, 1):
        end = "+4M" if number < len(names) else "0"
        words += ["-n", f"{number}:0:{end}", "-c", f"{number}:{name}"]
    tool("sgdisk", *words, path)
    return path


def damage(path: Path, offset: int) -> None:
    with path.open("r+b") as image:
        image.seek(offset)
        byte = image.read(1)
        image.seek(offset)
        image.write(bytes([byte[0] ^ 0x10]))


def table_of(path: Path) -> list[tuple[int, int, int]]:
    """Number, offset and length of each partition, as sfdisk reads them; without containers."""
    partitions = json.loads(tool("sfdisk", "--json", path))["partitiontable"]["partitions"]
    return [
        (int(re.findall(r"\d+$", at["node"])[0]), at["start"] * SECTOR, at["size"] * SECTOR)
        for at in partitions
        if at["type"] not in ("5", "f")
    ]


def listed(appliance: Appliance) -> dict[str, dict[str, Any]]:
    output = tool("nbdinfo", "--list", "--json", appliance.uri())
    return {export["export-name"]: export for export in json.loads(output)["exports"]}


def name_of(listed_export: bytes) -> str:
    length = int.from_bytes(listed_export[:4], "big")
    return listed_export[4 : 4 + length].decode()


def pattern(seed: int, count: int) -> bytes:
    return random.Random(seed).randbytes(count)


def next_reply(wire: Wire, reads: range, length: int) -> tuple[int, Error, bytes]:
    """Cookie, error and data of the next reply, which has data when its cookie is one of `reads`."""
    _, error, cookie = struct.unpack(">IIQ", wire.receive(16))
    return cookie, Error(error), wire.receive(length) if cookie in reads and not error else b""


# Partitions: one appliance for all


class Partitioned:
    """An appliance with disks of every kind."""

    def __init__(self, folder: Path) -> None:
        self.gpt = make_gpt(folder / "gpt", "boot", "data", "a name with blanks")
        self.backup = make_gpt(folder / "backup", "old-boot", "twice")
        damage(self.backup, SECTOR + 60)
        self.broken = make_gpt(folder / "broken", "nobody")
        damage(self.broken, SECTOR + 60)
        damage(self.broken, SIZE - SECTOR + 60)
        self.mbr = make_disk(folder / "mbr", SIZE)
        lines = ["2048,8192,83", "20480,36864,5", "22528,8192,83", "34816,8192,82", "45056,4096,83"]
        tool("sfdisk", "-q", self.mbr, text="label: dos\n" + "\n".join(lines))
        self.loop = make_disk(folder / "loop", SIZE, self.mbr.read_bytes()[:MIB])
        self.make_loop()
        self.other = make_gpt(folder / "other", "twice", "vda")
        self.images = [self.gpt, self.backup, self.broken, self.mbr, self.loop, self.other]
        self.appliance = Appliance(folder / "appliance", self.images).start()

    def make_loop(self) -> None:
        """An EBR whose link leads to itself."""
        ebr = bytearray(SECTOR)
        ebr[462 + 4] = 5
        ebr[462 + 12 : 462 + 16] = (64).to_bytes(4, "little")
        ebr[510:512] = b"\x55\xaa"
        with self.loop.open("r+b") as image:
            image.seek(20480 * SECTOR)
            image.write(ebr)


@pytest.fixture(scope="module")
def partitioned() -> Iterator[Partitioned]:
    folder = new_folder()
    started = Partitioned(folder)
    yield started
    try:
        started.appliance.stop()
    finally:
        started.appliance.close()
        shutil.rmtree(folder)


def test_disks_are_listed_by_serial_and_partitions_by_name(partitioned: Partitioned) -> None:
    exports = listed(partitioned.appliance)

    places = {"boot": "vda1", "data": "vda2", "vda3": "vda3", "old-boot": "vdb1"}
    places |= {name: name for name in ("vdb2", "vdd1", "vdd5", "vdd6", "vdd7", "vdf1", "vdf2")}
    assert set(exports) == {f"disk{n}" for n in range(6)} | set(places)
    for name, place in places.items():
        image = partitioned.images["abcdef".index(place[2])]
        lengths = {number: length for number, _, length in table_of(image)}
        assert exports[name]["export-size"] == lengths[int(place[3:])], name
        with Wire(partitioned.appliance) as wire:  # by its place as well
            export = wire.go(place.encode())
            assert export.name == name
            assert export.size == exports[name]["export-size"]
            assert f"partition {place[3:]} of {place[:3]}, " in export.description
            assert ("Linux swap" if name == "vdd6" else "Linux") in export.description
    for number in range(6):
        assert exports[f"disk{number}"]["export-size"] == SIZE


def test_lists_of_as_many_exports_as_there_may_be_are_told_however_often(
    launch: Launch, folder: Path
) -> None:
    """The longest answers to one option, asked for in one go: there is room for one of them."""
    names = [f"{number:02}-{'n' * (PARTITION_NAME_MAX - 3)}" for number in range(EXPORTS_MAX + 2)]
    words = [word for name in names for word in ("-n", "0:0:+1M", "-c", f"0:{name}")]
    tool("sgdisk", *words, make_disk(folder / "many", (EXPORTS_MAX + 4) * MIB))
    appliance = launch(folder / "many")
    appliance.expected_errors = f"left out: {EXPORTS_MAX} exports are the limit"

    with Wire(appliance) as wire:
        wire.greet()
        wire.send(option_bytes(Option.LIST) * LISTS)
        for _ in range(LISTS):
            told = [wire.option_reply() for _ in range(EXPORTS_MAX)]
            assert {reply.kind for reply in told} == {Rep.SERVER}
            assert [name_of(reply.data) for reply in told] == ["disk0", *names[: EXPORTS_MAX - 1]]
            assert wire.option_reply().kind == Rep.ACK
        assert wire.export(names[0].encode()).size == MIB



def test_what_is_wrong_with_a_table_is_in_the_log(partitioned: Partitioned) -> None:
    for line in (
        "vdb: GPT read from its backup: of the first, the checksum of its header is wrong",
        "vdc: GPT refused: the checksum of its header is wrong; only the whole disk",
        "vde: MBR refused: the chain of logical partitions does not end",
        'vdb2: "twice" is also vdf1: listed as vdb2',
        'vdf2: "vda" is also vda: listed as vdf2',
    ):
        partitioned.appliance.wait_for_console(re.escape(line))


@pytest.mark.parametrize(
    ("image", "place"), [("gpt", "vda2"), ("backup", "vdb2"), ("mbr", "vdd1"), ("mbr", "vdd6")]
)
def test_a_partition_is_where_its_table_says_and_nowhere_else(
    partitioned: Partitioned, image: str, place: str
) -> None:
    path: Path = getattr(partitioned, image)
    number = int(place[3:])
    [(offset, length)] = [(at, size) for n, at, size in table_of(path) if n == number]
    before = path.read_bytes()
    ends = pattern(number, 64 * KIB), pattern(number + 100, 64 * KIB)
    with Wire(partitioned.appliance) as wire:
        assert wire.go(place.encode()).size == length
        assert wire.write(0, ends[0]) == Error.NONE
        assert wire.write(length - 64 * KIB, ends[1]) == Error.NONE
        assert wire.request(Command.FLUSH) == Error.NONE
        assert wire.read(length - 64 * KIB, 64 * KIB).data == ends[1]
        assert wire.write(length - SECTOR, bytes(2 * SECTOR)) == Error.ENOSPC
        assert wire.write(length, bytes(SECTOR)) == Error.ENOSPC
        assert wire.read(length - SECTOR, 2 * SECTOR).error == Error.EINVAL
        assert wire.read(2**64 - offset, SECTOR).error == Error.EINVAL
    expected = bytearray(before)
    expected[offset : offset + 64 * KIB] = ends[0]
    expected[offset + length - 64 * KIB : offset + length] = ends[1]
    assert path.read_bytes() == bytes(expected)
    with Wire(partitioned.appliance) as wire:  # the disk and its partition are one
        wire.go(place[:3].encode())
        assert wire.read(offset, 64 * KIB).data == ends[0]


def test_a_long_read_of_a_partition_begins_where_it_begins(partitioned: Partitioned) -> None:
    [(offset, length)] = [at[1:] for at in table_of(partitioned.gpt) if at[0] == 3]
    data = pattern(5, 4 * MIB)
    with Wire(partitioned.appliance) as wire:
        wire.go(b"vda3")
        assert wire.write(length - 4 * MIB, data) == Error.NONE
        assert wire.request(Command.FLUSH) == Error.NONE
        assert wire.read(length - 4 * MIB, 4 * MIB).data == data
    assert part(partitioned.gpt.read_bytes(), offset + length - 4 * MIB, 4 * MIB) == data


def test_the_key_d_tells_all_about_every_disk(partitioned: Partitioned) -> None:
    partitioned.appliance.press("d")
    partitioned.appliance.wait_for_console("^--- end of devices")
    console = partitioned.appliance.console()
    for name in ("vda", "vdf"):
        assert re.search(rf"^  {name}: block 512, physical 512, .* geometry \d+/", console, re.M)
    assert re.search(r"status 0xf, interrupts \d+", console)
    assert re.search(r"accepted: SEG_MAX GEOMETRY .*CONFIG_WCE", console)
    assert re.search(r"queue 0: ready 1, at most 1024 entries", console)


def test_a_disk_that_does_not_tell_its_table_is_served_whole(launch: Launch, folder: Path) -> None:
    """QEMU's throttle lets the first read pass, and the second one only after a minute."""
    image = make_disk(folder / "slow", SIZE)
    tool("sfdisk", "-q", image, text="label: dos\n2048,63488,5\n4096,8192,83\n")
    extra = EXTRA_DISK.format(id="slow", file=image)
    extra = extra.replace("format=raw", "format=raw,throttling.bps-total=512")
    appliance = launch(MIB, qemu=f"{extra},serial=slow")
    appliance.wait_for_console("vdb: not a word about its content within")
    assert set(listed(appliance)) == {"disk0", "vdb"}
    with Wire(appliance) as wire:
        wire.go(b"vda")
        assert wire.write(0, bytes(512)) == Error.NONE


# Names


def test_a_serial_that_is_no_name_or_another_s_is_not_used(launch: Launch, folder: Path) -> None:
    words = []
    for number, serial in enumerate(("disk0", "vda", "a/b", "12345678901234567890")):
        image = make_disk(folder / f"extra{number}", (2 + number) * MIB)
        words.append(EXTRA_DISK.format(id=f"x{number}", file=image) + f",serial={serial}")
    words.append(EXTRA_DISK.format(id="x9", file=make_disk(folder / "none", 9 * MIB)))
    appliance = launch(MIB, qemu=" ".join(words))
    sizes = {name: export["export-size"] // MIB for name, export in listed(appliance).items()}
    names = {"vda": 1, "vdb": 2, "vdc": 3, "vdd": 4, "12345678901234567890": 5, "vdf": 9}
    assert sizes == names
    appliance.wait_for_console('vda: "disk0" is also vdb')
    appliance.wait_for_console('vdc: "vda" is also vda')


def test_a_read_only_disk_has_read_only_partitions(launch: Launch, folder: Path) -> None:
    disks = [make_gpt(folder / name, f"{name}-1", f"{name}-2") for name in ("one", "two")]
    appliance = launch(*disks, append="readonly=vda,two-2 rotational=disk1 default=two-1")
    read_only = {"disk0", "one-1", "one-2", "two-2"}
    for name in ("disk0", "disk1", "one-1", "one-2", "two-1", "two-2", ""):
        with Wire(appliance) as wire:
            flags = wire.go(name.encode()).flags
            assert bool(flags & TransmissionFlag.READ_ONLY) == (name in read_only), name
            rotates = name in ("disk1", "two-1", "two-2", "")
            assert bool(flags & TransmissionFlag.ROTATIONAL) == rotates, name
            expected = Error.EPERM if name in read_only else Error.NONE
            assert wire.write(MIB, bytes(512)) == expected, name


def test_partitions_can_be_left_alone(launch: Launch, folder: Path) -> None:
    appliance = launch(make_gpt(folder / "gpt", "boot"), append="partitions=off")
    assert set(listed(appliance)) == {"disk0"}


def test_a_name_that_there_is_not_serves_nothing(launch: Launch) -> None:
    appliance = launch(MIB, append="readonly=vda1", ready=False)
    appliance.wait_for_console("config: readonly=vda1 refused: there is no disk vda1")
    appliance.wait()


# Size


def test_a_disk_that_changes_its_size_is_served_with_the_new_one(
    launch: Launch, folder: Path
) -> None:
    image = make_gpt(folder / "gpt", "first", "last")
    socket = folder / "qmp"
    appliance = launch(image, MIB, qemu=qmp_words(socket))
    end = pattern(7, 64 * KIB)
    with Qmp(socket) as qmp, Wire(appliance) as wire, Wire(appliance) as last:
        assert wire.go(b"vda").size == SIZE
        length = last.go(b"last").size
        assert wire.read(2 * SIZE - 512, 512).error == Error.EINVAL

        qmp("block_resize", device="disk0", size=2 * SIZE)
        appliance.wait_for_console(f"vda: changes its size from {SIZE} to {2 * SIZE} bytes")
        with Wire(appliance) as other:
            export = other.go(b"disk0")
            assert export.size == 2 * SIZE
            assert f"{2 * SIZE // MIB} MiB" in export.description
        # A connection that was open before may use what there is.
        assert wire.write(2 * SIZE - 64 * KIB, end) == Error.NONE
        assert wire.read(2 * SIZE - 64 * KIB, 64 * KIB).data == end
        assert last.write(length, bytes(512)) == Error.ENOSPC
        qmp("block_resize", device="disk0", size=SIZE // 2)
        appliance.wait_for_console(f"vda: changes its size from {2 * SIZE} to {SIZE // 2} bytes")
        assert wire.write(SIZE // 2, bytes(512)) == Error.ENOSPC
        assert wire.read(SIZE // 2 - 512, 1024).error == Error.EINVAL
        assert wire.write(SIZE // 2 - 64 * KIB, end) == Error.NONE
        assert wire.read(SIZE // 2 - 64 * KIB, 64 * KIB).data == end
        assert last.write(length - 512, bytes(512)) == Error.ENOSPC
        assert last.write(0, end) == Error.NONE
        assert last.request(Command.FLUSH) == Error.NONE
        with Wire(appliance) as other:
            assert other.go(b"vda").size == SIZE // 2
    assert image.stat().st_size == SIZE // 2
    assert part(image.read_bytes(), SIZE // 2 - 64 * KIB, 64 * KIB) == end


def test_qemu_takes_no_disk_off_this_board(launch: Launch, folder: Path) -> None:
    """What an appliance does without its disk is tested in unit tests: here QEMU refuses."""
    socket = folder / "qmp"
    extra = EXTRA_DISK.format(id="x", file=make_disk(folder / "x", MIB)) + ",id=gone"
    appliance = launch(MIB, qemu=f"{qmp_words(socket)} {extra}")
    with Qmp(socket) as qmp, Wire(appliance) as wire:
        wire.go(b"vdb")
        refusal = qmp.answer("device_del", id="gone")["error"]["desc"]
        assert "does not support hotplugging" in refusal
        assert wire.write(0, bytes(512)) == Error.NONE


# The write cache


@pytest.mark.parametrize(
    ("words", "has_cache"),
    [("", True), ("disk.cache=writethrough", False), ("disk.vda.cache=writeback", True)],
)
def test_the_cache_mode_reaches_the_device(
    launch: Launch, folder: Path, words: str, has_cache: bool
) -> None:
    socket = folder / "qmp"
    appliance = launch(MIB, append=words, qemu=qmp_words(socket))
    with Qmp(socket) as qmp, Wire(appliance) as wire:
        [block] = [at for at in qmp("query-block") if at["device"] == "disk0"]
        assert block["inserted"]["cache"]["writeback"] == has_cache
        wire.go()
        assert wire.write(0, b"c" * 4096) == Error.NONE
        assert wire.request(Command.FLUSH) == Error.NONE
    assert appliance.counter("device flushes") == has_cache
    assert ("write cache" if has_cache else "no cache") in appliance.status()


def test_without_a_switch_writes_are_made_durable_by_flushes(launch: Launch) -> None:
    appliance = launch(
        MIB, append="disk.cache=writethrough", qemu="-global virtio-blk-device.config-wce=off"
    )
    with Wire(appliance) as wire:
        wire.go()
        for number in range(3):
            assert wire.write(4096 * number, b"w" * 4096) == Error.NONE
        assert wire.read(0, 4096).data == b"w" * 4096
        assert appliance.counter("device flushes") == 3
    assert "cache flushed by every write" in appliance.status()


# Merging


def test_neighbours_in_flight_are_merged_and_each_gets_its_own(launch: Launch) -> None:
    appliance = launch(8 * MIB)
    data = pattern(9, 4 * MIB)
    count = 100
    with Wire(appliance) as wire:
        wire.go()
        for start in range(0, MIB // (4 * KIB), count):
            numbers = range(start, min(start + count, MIB // (4 * KIB)))
            wire.send(
                b"".join(
                    request_bytes(
                        Command.WRITE, n * 4096, 4096, part(data, n * 4096, 4096), cookie=n
                    )
                    for n in numbers
                )
            )
            assert {wire.reply().cookie for _ in numbers} == set(numbers)
            wire.send(
                b"".join(request_bytes(Command.READ, n * 4096, 4096, cookie=n) for n in numbers)
            )
            for _ in numbers:
                reply = wire.reply(4096)
                assert reply.data == part(data, reply.cookie * 4096, 4096)
        assert wire.read(0, MIB).data == part(data, 0, MIB)
    assert appliance.counter("merges") > 0


# A disk that is slow


def test_a_request_that_is_not_answered_in_time_is_repeated_after_a_reset(
    launch: Launch, folder: Path
) -> None:
    """QEMU's throttle holds requests back for minutes; a reset makes it let go of them."""
    socket = folder / "qmp"
    image = make_disk(folder / "slow", 8 * MIB, pattern(11, MIB))
    extra = EXTRA_DISK.format(id="slow", file=image)
    extra = extra.replace("format=raw", "format=raw,throttling.bps-total=1000000000")
    appliance = launch(MIB, append="disk.vdb.timeout=1", qemu=f"{qmp_words(socket)} {extra},id=vdb")
    limits = {name: 0 for name in ("bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")}
    with Qmp(socket) as qmp, Wire(appliance) as wire, Wire(appliance) as good:
        wire.go(b"vdb")
        good.go(b"vda")
        qmp("block_set_io_throttle", id="vdb", bps=512, **limits)
        wire.send(
            b"".join(
                request_bytes(Command.READ, 64 * KIB * n, 64 * KIB, cookie=n) for n in range(8)
            )
        )
        wire.send(request_bytes(Command.WRITE, 2 * MIB, 4096, b"L" * 4096, cookie=8))
        wire.send(request_bytes(Command.FLUSH, cookie=9))
        appliance.wait_for_console("vdb: a request was not answered in time: reset with")
        assert good.write(0, b"g" * 4096) == Error.NONE
        assert good.read(0, 4096).data == b"g" * 4096
        qmp("block_set_io_throttle", id="vdb", bps=0, **limits)
        for _ in range(10):
            cookie, error, data = next_reply(wire, range(8), 64 * KIB)
            assert error == Error.NONE
            if cookie < 8:
                assert data == part(pattern(11, MIB), cookie * 64 * KIB, 64 * KIB)
        assert wire.read(2 * MIB, 4096).data == b"L" * 4096
        assert wire.request(Command.FLUSH) == Error.NONE
    status = appliance.status()
    assert re.search(r"vdb: resets [1-3], timeouts [1-9]\d*, retries [1-9]", status), status
    assert part(image.read_bytes(), 2 * MIB, 4096) == b"L" * 4096
    console = appliance.console()
    assert re.search(r"oldest in flight: \w+ of \d+ at \d+", console)
    assert "vda: reset" not in console


def test_a_disk_that_stays_silent_fails_its_requests_and_no_others(
    launch: Launch, folder: Path
) -> None:
    socket = folder / "qmp"
    image = make_disk(folder / "slow", 8 * MIB)
    extra = EXTRA_DISK.format(id="slow", file=image)
    extra = extra.replace("format=raw", "format=raw,throttling.bps-total=1000000000")
    appliance = launch(MIB, append="disk.vdb.timeout=1", qemu=f"{qmp_words(socket)} {extra},id=vdb")
    limits = {name: 0 for name in ("bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")}
    with Qmp(socket) as qmp, Wire(appliance) as wire, Wire(appliance) as good:
        wire.go(b"vdb")
        good.go(b"vda")
        qmp("block_set_io_throttle", id="vdb", bps=16, **limits)
        wire.send(request_bytes(Command.READ, 0, 64 * KIB) * 2)
        errors = [next_reply(wire, range(1), 64 * KIB)[1] for _ in range(2)]
        assert Error.EIO in errors
        assert good.write(0, b"g" * 4096) == Error.NONE
        qmp("block_set_io_throttle", id="vdb", bps=0, **limits)
