"""Real clients use a running appliance: what they write is what they and the host read."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbd  # type: ignore[import]
import pytest

from appliance import Appliance, make_disk, part
from nbd_wire import Command, Error, TransmissionFlag, Wire

pytestmark = pytest.mark.deadline(30)

KIB = 1024
MIB = 1024 * 1024
REQUEST_BYTES_MAX = 32 * MIB  # as announced
CLIENT_S = 25  # for one run of a client
IN_FLIGHT = 400
IN_FLIGHT_ROUNDS = 4
ATTEMPTS = 5

Launch = Callable[..., Appliance]


# Helpers


def run(*command: str | Path) -> str:
    """Runs a client that must succeed; returns what it printed."""
    # nbdsh takes the first Python that it finds; the library belongs to Debian's.
    path = f"/usr/bin:{os.environ['PATH']}"
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=CLIENT_S,
        check=False,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def qemu_io(appliance: Appliance, *commands: str) -> str:
    words = [word for command in commands for word in ("-c", command)]
    output = run("qemu-io", "-f", "raw", "-d", "unmap", *words, appliance.uri())
    assert "failed" not in output, output
    return output


def connect(appliance: Appliance, export: str = "", strict: bool = True) -> Any:
    client = nbd.NBD()
    if not strict:
        client.set_strict_mode(0)
    client.connect_uri(appliance.uri(export))
    return client


def finish(client: Any) -> None:
    """Lets everything in flight come back."""
    while client.aio_in_flight():
        client.poll(-1)


def random_bytes(seed: int, count: int) -> bytes:
    return random.Random(seed).randbytes(count)


def image_bytes(image: Path, offset: int, count: int) -> bytes:
    with image.open("rb") as disk:
        disk.seek(offset)
        return disk.read(count)


def fio(appliance: Appliance, name: str, **options: str | int) -> None:
    """fio's own engine, with a checksum in each block that it reads back."""
    words = [f"--{key}={value}" for key, value in options.items()]
    run(
        "fio",
        f"--name={name}",
        "--ioengine=nbd",
        f"--uri={appliance.uri()}",
        "--rw=randwrite",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--randseed=1",
        "--thread",
        "--verify_state_save=0",
        *words,
    )


# nbdinfo


def test_nbdinfo_tells_what_is_true_of_the_disk(appliance: Appliance) -> None:
    told = json.loads(run("nbdinfo", "--json", appliance.uri()))
    export = told["exports"][0]

    assert told["protocol"] == "newstyle-fixed"
    assert export["export-size"] == appliance.size
    assert not export["is_read_only"]
    for ability in ("flush", "fua", "multi_conn", "trim", "zero", "cache"):
        assert export[f"can_{ability}"], ability
    assert (export["block_size_minimum"], export["block_size_maximum"]) == (512, REQUEST_BYTES_MAX)
    assert export["block_size_preferred"] == 4 * KIB
    assert "64 MiB" in export["description"]


def test_nbdinfo_lists_both_disks_by_name(launch: Launch) -> None:
    appliance = launch(3 * MIB, 5 * MIB)

    listed = json.loads(run("nbdinfo", "--list", "--json", appliance.uri()))["exports"]

    sizes = {export["export-name"]: export["export-size"] for export in listed}
    assert sizes == {"disk0": 3 * MIB, "disk1": 5 * MIB}
    for name, size in (("vda", "3 MiB"), ("disk0", "3 MiB"), ("vdb", "5 MiB")):
        export = json.loads(run("nbdinfo", "--json", appliance.uri(name)))["exports"][0]
        assert size in export["description"]


# nbdcopy, qemu-img, qemu-io, nbdsh


def test_nbdcopy_brings_a_file_to_the_disk_and_back(appliance: Appliance, folder: Path) -> None:
    data = random_bytes(1, appliance.size)
    original = make_disk(folder / "original", appliance.size, data)

    run("nbdcopy", original, appliance.uri())
    assert appliance.image.read_bytes() == data
    run("nbdcopy", appliance.uri(), folder / "copy")
    assert (folder / "copy").read_bytes() == data


def test_nbdcopy_copies_one_disk_to_the_other(launch: Launch, folder: Path) -> None:
    data = random_bytes(2, 16 * MIB)
    source = make_disk(folder / "source.raw", 16 * MIB, data)
    appliance = launch(source, 16 * MIB)

    run("nbdcopy", "--flush", appliance.uri("vda"), appliance.uri("vdb"))

    assert (source.parent / "appliance0" / "disk1.raw").read_bytes() == data


def test_qemu_img_converts_onto_the_disk_and_finds_no_difference(
    appliance: Appliance, folder: Path
) -> None:
    data = random_bytes(3, 8 * MIB) + bytes(8 * MIB) + random_bytes(4, 8 * MIB)
    original = make_disk(folder / "original", appliance.size, data)

    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", original, appliance.uri())
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", original, appliance.uri())
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", original, appliance.image)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", appliance.uri(), folder / "copy.qcow2")
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", original, folder / "copy.qcow2")


def test_qemu_io_reads_the_patterns_that_it_wrote(appliance: Appliance) -> None:
    qemu_io(
        appliance,
        "write -P 0x11 0 4M",
        "write -P 0x22 512 512",
        "write -P 0x33 1M 64k",
        "write -f -P 0x44 2M 4k",
        "write -z 3M 512k",
        "flush",
        "read -P 0x11 0 512",
        "read -P 0x22 512 512",
        "read -P 0x11 1k 1023k",
        "read -P 0x33 1M 64k",
        "read -P 0x44 2M 4k",
        "read -P 0 3M 512k",
        "read -P 0x11 3584k 512k",
    )
    assert image_bytes(appliance.image, 2 * MIB, 4 * KIB) == b"\x44" * 4 * KIB


def test_a_discard_leaves_what_lies_around_it(appliance: Appliance) -> None:
    qemu_io(
        appliance,
        "write -P 0x55 0 3M",
        "discard 1M 1M",
        "flush",
        "read -P 0x55 0 1M",
        "read -P 0x55 2M 1M",
        "write -P 0x66 1M 1M",
        "read -P 0x66 1M 1M",
    )


def test_nbdsh_knows_every_command(appliance: Appliance) -> None:
    run(
        "nbdsh",
        "--uri",
        appliance.uri(),
        "-c",
        """
h.pwrite(b"1" * 65536, 0)
h.pwrite(b"2" * 4096, 4096, nbd.CMD_FLAG_FUA)
h.zero(4096, 8192)
h.zero(4096, 16384, nbd.CMD_FLAG_NO_HOLE)
h.zero(4096, 20480, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE)
h.trim(4096, 32768)
h.trim(4096, 36864, nbd.CMD_FLAG_FUA)
h.cache(65536, 0)
h.flush()
assert h.pread(8192, 0) == b"1" * 4096 + b"2" * 4096
assert h.pread(4096, 8192) == bytes(4096)
assert h.pread(8192, 16384) == bytes(8192)
assert h.pread(8192, 24576) == b"1" * 8192
assert h.pread(24576, 40960) == b"1" * 24576
""",
    )
    assert image_bytes(appliance.image, 4 * KIB, 8 * KIB) == b"2" * 4 * KIB + bytes(4 * KIB)


# The nbd library


@pytest.mark.parametrize("count", [512, 1024, 4096, 65536 - 512, 65536, 65536 + 512, MIB])
def test_a_write_of_any_whole_sectors_is_read_back(appliance: Appliance, count: int) -> None:
    client = connect(appliance)
    data = random_bytes(count, count)
    for offset in (0, 512, 4096 - 512, appliance.size - count):
        client.pwrite(bytes(count), offset)
        client.pwrite(data, offset)
        assert client.pread(count, offset) == data
        assert image_bytes(appliance.image, offset, count) == data
    client.shutdown()


def test_the_longest_request_is_served_both_ways(appliance: Appliance) -> None:
    client = connect(appliance)
    data = random_bytes(5, REQUEST_BYTES_MAX)

    client.pwrite(data, 512)

    assert client.pread(REQUEST_BYTES_MAX, 512) == data
    assert image_bytes(appliance.image, 512, REQUEST_BYTES_MAX) == data
    client.shutdown()


def test_a_request_beyond_the_longest_is_refused_both_ways(appliance: Appliance) -> None:
    with Wire(appliance) as wire:
        wire.go()
        assert wire.read(0, REQUEST_BYTES_MAX + 512).error == Error.EINVAL
        assert wire.write(0, bytes(REQUEST_BYTES_MAX + 512)) == Error.EINVAL
        assert wire.read(0, 512).error == Error.NONE


def test_hundreds_of_requests_in_flight_each_get_their_own_answer(appliance: Appliance) -> None:
    client = connect(appliance)
    luck = random.Random(6)
    places = luck.sample(range(appliance.size // (64 * KIB)), IN_FLIGHT)
    counts = [luck.choice([512, 4 * KIB, 20 * KIB, 64 * KIB]) for _ in places]
    for turn in range(IN_FLIGHT_ROUNDS):
        data = [random_bytes(turn * IN_FLIGHT + i, count) for i, count in enumerate(counts)]
        for place, piece in zip(places, data):
            client.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(piece)), place * 64 * KIB)
        finish(client)
        buffers = [nbd.Buffer(count) for count in counts]
        for place, buffer in zip(places, buffers):
            client.aio_pread(buffer, place * 64 * KIB)
        finish(client)
        assert [bytes(buffer.to_bytearray()) for buffer in buffers] == data
    client.shutdown()


def test_reads_and_writes_mixed_in_flight_do_not_touch_each_other(appliance: Appliance) -> None:
    client = connect(appliance)
    kept = random_bytes(7, 16 * MIB)
    client.pwrite(kept, 0)
    buffers = []
    for turn in range(512):
        client.aio_pwrite(
            nbd.Buffer.from_bytearray(bytearray(32 * KIB)), 16 * MIB + turn * 32 * KIB
        )
        buffers.append(nbd.Buffer(32 * KIB))
        client.aio_pread(buffers[-1], turn * 32 * KIB)
        if turn % 64 == 63:
            client.aio_flush()
    finish(client)
    assert b"".join(bytes(buffer.to_bytearray()) for buffer in buffers) == kept
    assert client.pread(16 * MIB, 16 * MIB) == bytes(16 * MIB)
    client.shutdown()


def test_a_flush_on_one_connection_covers_what_another_has_written(appliance: Appliance) -> None:
    clients = [connect(appliance) for _ in range(4)]
    assert all(client.can_multi_conn() for client in clients)
    data = random_bytes(8, 4 * 256 * KIB)
    for index, client in enumerate(clients):
        client.pwrite(part(data, index * 256 * KIB, 256 * KIB), index * 256 * KIB)

    clients[0].flush()

    assert image_bytes(appliance.image, 0, len(data)) == data
    for client in clients:
        assert client.pread(len(data), 0) == data
        client.shutdown()


def test_whole_sectors_are_not_copied(appliance: Appliance) -> None:
    client = connect(appliance)
    data = random_bytes(9, 64 * KIB)
    copied = appliance.counter("bytes copied")
    headers = appliance.counter("header bytes")

    client.pwrite(data, 0)
    assert client.pread(64 * KIB, 0) == data

    assert appliance.counter("bytes copied") == copied
    # Headers are read where they lie; two requests of 28 bytes, if packets end in them.
    assert appliance.counter("header bytes") - headers in (0, 28, 56)
    client.shutdown()


# fio


@pytest.mark.parametrize("depth", [1, 8, 64])
@pytest.mark.parametrize(
    ("block", "size"), [("512", "1m"), ("4k", "8m"), ("64k", "32m"), ("1m", "48m")]
)
def test_fio_verifies_what_it_wrote(
    appliance: Appliance, block: str, size: str, depth: int
) -> None:
    fio(appliance, "verify", bs=block, size=size, iodepth=depth)


def test_fio_verifies_mixed_block_sizes_with_flushes(appliance: Appliance) -> None:
    fio(appliance, "mixed", bsrange="512-128k", size="16m", iodepth=16, fsync=16)


# Several at once


def test_different_clients_at_once_each_read_what_they_wrote(
    appliance: Appliance, folder: Path
) -> None:
    """Each in its own range: fio twice, qemu-io, and the library."""
    fios = [
        subprocess.Popen(
            ["fio", f"--name=at{start}", "--ioengine=nbd", f"--uri={appliance.uri()}"]
            + ["--rw=randwrite", "--verify=crc32c", "--verify_fatal=1", f"--bs={block}", "--thread"]
            + [
                "--verify_state_save=0",
                "--iodepth=16",
                f"--offset={start}m",
                "--size=12m",
                f"--output={folder}/{start}",
            ]
        )
        for start, block in ((0, "4k"), (16, "64k"))
    ]
    io = [f"write -P {n} {32 * MIB + n * 65536} 64k" for n in range(100)]
    io += [f"read -P {n} {32 * MIB + n * 65536} 64k" for n in range(100)]
    words = [word for command in io for word in ("-c", command)]
    patterns = subprocess.Popen(
        ["qemu-io", "-f", "raw", *words, appliance.uri()], stdout=subprocess.PIPE, text=True
    )
    try:
        client = connect(appliance)
        for turn in range(50):
            data = random_bytes(turn, 256 * KIB)
            client.pwrite(data, 48 * MIB + turn * 256 * KIB)
            assert client.pread(256 * KIB, 48 * MIB + turn * 256 * KIB) == data
        client.shutdown()
        assert "failed" not in patterns.communicate(timeout=CLIENT_S)[0]
        assert patterns.returncode == 0
        assert [process.wait(CLIENT_S) for process in fios] == [0, 0]
    finally:
        for process in [*fios, patterns]:
            process.kill()
            process.wait()


def test_two_disks_are_two_exports_and_the_first_is_the_default(
    launch: Launch, folder: Path
) -> None:
    disks = [make_disk(folder / name, 4 * MIB) for name in ("first", "second")]
    appliance = launch(*disks)
    first, second = random_bytes(10, 64 * KIB), random_bytes(11, 64 * KIB)

    connect(appliance, "vda").pwrite(first, 0)
    connect(appliance, "vdb").pwrite(second, 0)

    assert connect(appliance).pread(64 * KIB, 0) == first
    assert connect(appliance, "vdb").pread(64 * KIB, 0) == second
    assert [image_bytes(disk, 0, 64 * KIB) for disk in disks] == [first, second]


def test_an_export_that_there_is_not_is_refused_by_name(appliance: Appliance) -> None:
    with pytest.raises(nbd.Error, match="vdz|ENOENT|unknown|not available"):
        connect(appliance, "vdz")


def test_a_read_only_disk_says_so_and_refuses_to_be_changed(launch: Launch, folder: Path) -> None:
    data = random_bytes(12, MIB)
    disk = make_disk(folder / "disk", MIB, data)
    appliance = launch(disk, read_only=True)
    client = connect(appliance, strict=False)

    assert client.is_read_only()
    assert run("nbdinfo", "--is", "read-only", appliance.uri()) == ""
    for change in (
        lambda: client.pwrite(bytes(512), 0),
        lambda: client.pwrite(bytes(MIB), 0),
        lambda: client.zero(4096, 0),
        lambda: client.trim(4096, 0),
    ):
        with pytest.raises(nbd.Error) as refused:
            change()
        assert refused.value.errno == "EPERM"
    assert client.pread(MIB, 0) == data
    client.flush()
    client.shutdown()
    assert disk.read_bytes() == data


def test_a_client_that_comes_back_from_the_same_port_is_served_at_once(
    appliance: Appliance,
) -> None:
    """To the appliance all who come through QEMU's user network have one address, and the host uses
    a port again as soon as it likes."""
    for _ in range(ATTEMPTS):  # another program of the host may take the port in between
        try:
            come_back_from_the_same_port(appliance)
            return
        except OSError as problem:
            if problem.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                raise
    pytest.fail(f"no port of the host stays free, {ATTEMPTS} tries")


def come_back_from_the_same_port(appliance: Appliance) -> None:
    port = 0
    for _ in range(5):
        with Wire(appliance, port) as wire:
            port = wire.socket.getsockname()[1]
            wire.go()
            assert wire.read(0, 512).error == Error.NONE
            wire.disconnect()


def test_what_the_disk_does_not_offer_is_neither_told_nor_done(launch: Launch) -> None:
    device = "-global virtio-blk-device."
    appliance = launch(MIB, qemu=f"{device}discard=off {device}write-zeroes=off")
    with Wire(appliance) as wire:
        told = wire.go().flags
        assert not told & TransmissionFlag.SEND_TRIM
        assert wire.request(Command.TRIM, 0, 4 * KIB) == Error.EINVAL
        assert wire.write(0, b"w" * 8 * KIB) == Error.NONE
        # Zeroes can always be written.
        assert told & TransmissionFlag.SEND_WRITE_ZEROES
        assert wire.request(Command.WRITE_ZEROES, 0, 4 * KIB) == Error.NONE
        assert wire.read(0, 8 * KIB).data == bytes(4 * KIB) + b"w" * 4 * KIB


def test_a_disk_of_4_kib_blocks_says_so_and_takes_nothing_smaller(launch: Launch) -> None:
    device = "-global virtio-blk-device."
    size = f"{device}logical_block_size=4096 {device}physical_block_size=4096"
    appliance = launch(MIB, qemu=size)
    with Wire(appliance) as wire:
        assert wire.go().block_sizes == (4 * KIB, 4 * KIB, REQUEST_BYTES_MAX)
        assert wire.write(4 * KIB, b"b" * 4 * KIB) == Error.NONE
        assert wire.write(512, b"s" * 4 * KIB) == Error.EINVAL
        assert wire.write(0, b"s" * 512) == Error.EINVAL
        assert wire.read(512, 512).error == Error.EINVAL
        assert wire.read(0, 8 * KIB).data == bytes(4 * KIB) + b"b" * 4 * KIB
    qemu_io(appliance, "write -P 0x88 0 64k", "read -P 0x88 0 64k")


# The appliance around them


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_power_off_with_clients_connected_is_clean_and_keeps_their_data(
    launch: Launch, number: signal.Signals
) -> None:
    appliance = launch(8 * MIB)
    clients = [connect(appliance) for _ in range(3)]
    data = random_bytes(13, MIB)
    for index, client in enumerate(clients):
        client.pwrite(data, index * MIB)

    appliance.signal(number)

    assert appliance.wait() == 0
    appliance.expect_no_errors()
    assert image_bytes(appliance.image, 0, 3 * MIB) == data * 3


def test_power_off_under_load_keeps_every_write_that_was_answered(launch: Launch) -> None:
    appliance = launch(32 * MIB)
    client = connect(appliance)
    ended: dict[int, int] = {}

    def piece(turn: int) -> bytes:
        return turn.to_bytes(4, "big") * (4 * KIB // 4)

    def write(turn: int) -> None:
        def done(error: Any) -> int:
            ended[turn] = error.value
            return 1

        buffer = nbd.Buffer.from_bytearray(bytearray(piece(turn)))
        client.aio_pwrite(buffer, turn * 4 * KIB, completion=done)

    try:
        for turn in range(8 * KIB):
            if turn == 1024:
                appliance.signal(signal.SIGTERM)
            write(turn)
            while client.aio_in_flight() > 64:
                client.poll(-1)
            if any(ended.values()):
                break  # the protocol asks for this: a client that is told leaves
        client.shutdown()
    except nbd.Error:
        pass  # the connection may end at any moment

    assert appliance.wait() == 0
    appliance.expect_no_errors()
    assert set(ended.values()) <= {0, errno.ESHUTDOWN, errno.ENOTCONN}
    written = [turn for turn, error in ended.items() if error == 0]
    assert 512 <= len(written) < 8 * KIB
    for turn in written:
        assert image_bytes(appliance.image, turn * 4 * KIB, 4 * KIB) == piece(turn)


def test_16_mib_of_memory_are_enough_for_a_whole_copy_each_way(
    launch: Launch, folder: Path
) -> None:
    data = random_bytes(14, 64 * MIB)
    original = make_disk(folder / "original", 64 * MIB, data)
    appliance = launch(64 * MIB, memory_mib=16)

    run("nbdcopy", original, appliance.uri())
    run("nbdcopy", appliance.uri(), folder / "copy")

    assert (folder / "copy").read_bytes() == data
    assert appliance.image.read_bytes() == data


def test_16_mib_of_memory_survive_the_longest_requests_of_many(launch: Launch) -> None:
    appliance = launch(64 * MIB, memory_mib=16)
    clients = [connect(appliance) for _ in range(8)]
    for client in clients:
        client.aio_pread(nbd.Buffer(REQUEST_BYTES_MAX), 0)
    for client in clients:
        finish(client)
        client.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"x" * 8 * MIB)), 0)
    for client in clients:
        finish(client)
        client.shutdown()
    assert image_bytes(appliance.image, 0, 8 * MIB) == b"x" * 8 * MIB


def test_48_clients_in_the_middle_of_a_write_are_all_served_in_16_mib(launch: Launch) -> None:
    appliance = launch(64 * MIB, memory_mib=16)
    data = random_bytes(15, MIB)
    clients = [connect(appliance) for _ in range(48)]
    for turn, client in enumerate(clients):
        client.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), turn * MIB)
    for client in clients:
        finish(client)
        client.shutdown()
    for turn in range(48):
        assert image_bytes(appliance.image, turn * MIB, MIB) == data


def test_it_gets_its_address_by_dhcp_and_serves(launch: Launch) -> None:
    appliance = launch(8 * MIB, dhcp=True)

    appliance.wait_for_console(r"\b10\.0\.2\.15\b")
    assert (
        json.loads(run("nbdinfo", "--json", appliance.uri()))["exports"][0]["export-size"]
        == 8 * MIB
    )


def test_it_boots_and_serves_under_opensbi(launch: Launch) -> None:
    appliance = launch(8 * MIB, bios="opensbi")
    qemu_io(appliance, "write -P 0x77 0 1M", "flush", "read -P 0x77 0 1M")


def test_a_legacy_device_is_refused_with_the_flag_that_helps(launch: Launch) -> None:
    appliance = launch(8 * MIB, ready=False, qemu="-global virtio-mmio.force-legacy=true")

    appliance.wait_for_console(r"force-legacy=false")
    # Without a device there is nothing to serve: it says so, and ends.
    assert appliance.wait() != 0
    assert "assertion" not in appliance.console()


def test_words_that_it_does_not_know_are_named(launch: Launch) -> None:
    appliance = launch(8 * MIB, append="colour=green frobnicate")

    appliance.wait_for_console(r'warning: .*"colour"')
    appliance.wait_for_console(r'warning: .*"frobnicate"')
