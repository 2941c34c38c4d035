"""A disk that fails: its client is told, and everything else goes on. And a console that takes nothing.

QEMU's blkdebug driver makes the disks fail. The first disk of each appliance is a good one, the second
fails as the test says.
"""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbd  # type: ignore[import]
import pytest

from appliance import Appliance, make_disk, part
from nbd_wire import Closed, Command, CommandFlag, Error, Wire, request_bytes
from qmp import Qmp, qmp_words

pytestmark = pytest.mark.deadline(30)

KIB = 1024
MIB = 1024 * 1024
SIZE = 8 * MIB
PATTERN = random.Random(30).randbytes(SIZE)
GOOD, BAD = b"vda", b"vdb"
BAD_AT = 2 * MIB
EIO = 5

Launch = Callable[..., Appliance]
LaunchFailing = Callable[..., Appliance]


@pytest.fixture
def launch_failing(launch: Launch, folder: Path) -> LaunchFailing:
    """Starts an appliance whose second disk fails by these rules of blkdebug."""

    def launch_one(*rules: dict[str, Any]) -> Appliance:
        good = make_disk(folder / "good", SIZE, PATTERN)
        bad = make_disk(folder / "bad", SIZE, PATTERN)
        disk = {
            "driver": "blkdebug",
            "node-name": "failing",
            "image": {"driver": "file", "filename": str(bad), "discard": "unmap"},
            "discard": "unmap",
            "inject-error": [{"event": "none", "errno": EIO, **rule} for rule in rules],
        }
        words = f"-blockdev {json.dumps(disk, separators=(',', ':'))}"
        # Merged with its neighbours, a read that fails would make them fail too.
        words += " -device virtio-blk-device,drive=failing,request-merging=off"
        appliance = launch(good, qemu=words)
        appliance.expected_errors = r"\bvdb\b"
        if {"iotype": "flush"} in rules:
            appliance.expected_status = 1  # for the last flush
        return appliance

    return launch_one


def expect_good_disk_served(appliance: Appliance) -> None:
    with Wire(appliance) as other:
        other.go(GOOD)
        data = random.Random(31).randbytes(64 * KIB)
        assert other.write(0, data) == Error.NONE
        assert other.request(Command.FLUSH) == Error.NONE
        assert other.read(0, 64 * KIB).data == data


def test_a_failed_read_is_an_io_error_and_only_that(launch_failing: LaunchFailing) -> None:
    appliance = launch_failing({"iotype": "read", "sector": BAD_AT // 512})
    with Wire(appliance) as wire:
        wire.go(BAD)
        assert wire.read(BAD_AT, 4 * KIB).error == Error.EIO
        assert wire.read(BAD_AT - 4 * KIB, 4 * KIB).data == PATTERN[BAD_AT - 4 * KIB : BAD_AT]
        assert wire.read(BAD_AT + 512, 512).data == part(PATTERN, BAD_AT + 512, 512)
        assert wire.read(BAD_AT, 512).error == Error.EIO
        assert wire.write(BAD_AT, bytes(512)) == Error.NONE
        assert wire.request(Command.FLUSH) == Error.NONE
    expect_good_disk_served(appliance)


@pytest.mark.parametrize("bad_at", [0, 64 * KIB, MIB, 4 * MIB - 512])
def test_a_long_read_over_a_bad_sector_fails_or_ends_but_never_lies(
    launch_failing: LaunchFailing, bad_at: int
) -> None:
    appliance = launch_failing({"iotype": "read", "sector": bad_at // 512})
    with Wire(appliance) as wire:
        wire.go(BAD)
        try:
            assert wire.read(0, 4 * MIB).error == Error.EIO
        except Closed as closed:
            # Once its beginning is sent, the protocol leaves only this.
            received = closed.args[0]
            assert len(received) <= bad_at and PATTERN.startswith(received)
    with Wire(appliance) as again:
        again.go(BAD)
        assert again.read(4 * MIB, MIB).data == PATTERN[4 * MIB : 5 * MIB]
    expect_good_disk_served(appliance)


@pytest.mark.parametrize("flags", [0, CommandFlag.FUA])
@pytest.mark.parametrize("length", [512, 64 * KIB, MIB])
def test_a_failed_write_is_an_io_error_and_only_that(
    launch_failing: LaunchFailing, length: int, flags: int
) -> None:
    appliance = launch_failing({"iotype": "write", "sector": BAD_AT // 512})
    with Wire(appliance) as wire:
        wire.go(BAD)
        assert wire.write(BAD_AT + 512 - length, bytes(length), flags=flags) == Error.EIO
        assert wire.write(BAD_AT + 512, bytes(length), flags=flags) == Error.NONE
        assert wire.read(BAD_AT + 512, length).data == bytes(length)
        assert wire.read(BAD_AT, 512).data == part(PATTERN, BAD_AT, 512)
    expect_good_disk_served(appliance)


def test_a_failed_flush_is_an_io_error_and_so_is_fua(launch_failing: LaunchFailing) -> None:
    appliance = launch_failing({"iotype": "flush"})
    with Wire(appliance) as wire:
        wire.go(BAD)
        assert wire.write(0, bytes(4 * KIB)) == Error.NONE
        assert wire.request(Command.FLUSH) == Error.EIO
        assert wire.write(0, bytes(4 * KIB), flags=CommandFlag.FUA) == Error.EIO
        assert wire.write(0, bytes(MIB), flags=CommandFlag.FUA) == Error.EIO
        zeroes = wire.request(Command.WRITE_ZEROES, 0, 4 * KIB, flags=CommandFlag.FUA)
        assert zeroes == Error.EIO
        assert wire.read(MIB, 4 * KIB).data == part(PATTERN, MIB, 4 * KIB)
    expect_good_disk_served(appliance)


def test_a_flush_that_failed_once_succeeds_when_the_disk_does(
    launch_failing: LaunchFailing,
) -> None:
    appliance = launch_failing({"iotype": "flush", "once": True})
    with Wire(appliance) as wire:
        wire.go(BAD)
        assert wire.write(0, bytes(512)) == Error.NONE  # else QEMU has nothing to flush
        assert wire.request(Command.FLUSH) == Error.EIO
        assert wire.request(Command.FLUSH) == Error.NONE
        assert wire.write(0, bytes(512), flags=CommandFlag.FUA) == Error.NONE


@pytest.mark.parametrize(
    ("command", "iotype"), [(Command.WRITE_ZEROES, "write-zeroes"), (Command.TRIM, "discard")]
)
def test_a_failed_zero_or_trim_is_an_io_error(
    launch_failing: LaunchFailing, command: Command, iotype: str
) -> None:
    appliance = launch_failing({"iotype": iotype})
    with Wire(appliance) as wire:
        wire.go(BAD)
        assert wire.request(command, 0, 64 * KIB) == Error.EIO
        assert wire.read(MIB, 4 * KIB).data == part(PATTERN, MIB, 4 * KIB)
    expect_good_disk_served(appliance)


def test_of_many_in_flight_only_those_that_fail_do(launch_failing: LaunchFailing) -> None:
    bad_sectors = [{"iotype": "read", "sector": n * 128} for n in range(0, 128, 8)]
    appliance = launch_failing(*bad_sectors)
    with Wire(appliance) as wire:
        wire.go(BAD)
        wire.send(
            b"".join(
                request_bytes(Command.READ, n * 64 * KIB, 64 * KIB, cookie=n) for n in range(128)
            )
        )
        failed = set()
        for _ in range(128):
            reply = wire.reply(64 * KIB)
            if reply.error:
                assert reply.error == Error.EIO
                failed.add(reply.cookie)
            else:
                assert reply.data == part(PATTERN, reply.cookie * 64 * KIB, 64 * KIB)
    assert failed == set(range(0, 128, 8))
    expect_good_disk_served(appliance)


def test_a_client_that_leaves_while_its_requests_fail_harms_nobody(
    launch_failing: LaunchFailing,
) -> None:
    appliance = launch_failing({"iotype": "read"}, {"iotype": "write"}, {"iotype": "flush"})
    for _ in range(20):
        with Wire(appliance) as wire:
            wire.go(BAD)
            wire.send(request_bytes(Command.READ, 0, 4 * MIB) * 4)
            wire.send(request_bytes(Command.WRITE, 0, MIB, bytes(MIB), flags=CommandFlag.FUA))
            wire.reset()
    with Wire(appliance) as patient:
        patient.go(BAD)
        # Of the others' writes perhaps nothing has come to the disk, and then its last flush is none.
        assert patient.write(0, bytes(4 * KIB)) == Error.EIO
    expect_good_disk_served(appliance)


def test_a_library_client_sees_the_same_error(launch_failing: LaunchFailing) -> None:
    appliance = launch_failing({"iotype": "write"}, {"iotype": "read"}, {"iotype": "flush"})
    client = nbd.NBD()
    client.connect_uri(appliance.uri("vdb"))
    for request in (
        lambda: client.pread(4096, 0),
        lambda: client.pwrite(bytes(4096), 0),
        client.flush,
    ):
        with pytest.raises(nbd.Error) as failed:
            request()
        assert failed.value.errno == "EIO"
    client.shutdown()


def test_power_off_tells_that_the_last_flush_failed(launch_failing: LaunchFailing) -> None:
    appliance = launch_failing({"iotype": "flush"})
    with Wire(appliance) as wire:
        wire.go(BAD)
        assert wire.write(0, bytes(4 * KIB)) == Error.NONE

        appliance.stop()

        appliance.wait_for_console("power off: a disk could not be flushed")


def test_a_console_that_nobody_reads_holds_up_nobody(launch: Launch, folder: Path) -> None:
    """QEMU's chardev goes over to a socket whose other end reads nothing. Its transmitter is not ready
    then for as long as that lasts; what there is to say waits, and the clients do not."""
    control, console = folder / "qmp", folder / "console"
    appliance = launch(MIB, qemu=qmp_words(control))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(console))
    listener.listen()
    with Qmp(control) as qmp, listener, Wire(appliance) as wire:
        wire.go()
        address = {"type": "unix", "data": {"path": str(console)}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        qmp("chardev-change", id="console", backend=backend)
        reader, _ = listener.accept()
        with reader:
            reader.sendall(b"ssss")
            for _ in range(200):
                assert wire.read(0, 512).error == Error.NONE
            reader.settimeout(10)
            told = b""
            while told.count(b"--- end of status") < 1:
                told += reader.recv(65536)
            assert wire.read(0, 512).error == Error.NONE
            reader.sendall(b"\x03")
            while said := reader.recv(65536):
                told += said
    assert b"power off" in told
    appliance.wait()
