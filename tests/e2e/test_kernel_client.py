"""The Linux kernel's own NBD client keeps an ext4 on the served disk, and the disk keeps it too.

The client is a User Mode Linux guest (see kernel_client/), so nothing is loaded into the host's
kernel. Every promise is checked twice: by the guest, and on the raw image behind the server.
"""

import hashlib
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import nbd  # type: ignore[import]
import pytest

from kernel_client import guest as uml
from kernel_client import initramfs
from kernel_client.guest import Guest

DEVICE = "/dev/nbd0"
MOUNT = "/mnt"
CONNECT = f"nbd-client {uml.GATEWAY} {uml.SERVER_PORT} {DEVICE}"
DISCONNECT = f"nbd-client -d {DEVICE}"
# e2fsck: 0 is clean, 1 is "errors corrected"; from 2 on something was not.
CLEAN = 0
CLEAN_OR_REPAIRED = range(2)

# One byte below, at and above the sizes of sectors, pages and requests; and, where time allows,
# more.
EDGES = (512, 1024, 4096, 65536, 131072, 1048576)
EDGE_SIZES = sorted({0, 1} | {edge + off for edge in EDGES for off in (-1, 0, 1)})
ALL_SIZES = EDGE_SIZES + [5000000, 8388611]
SMALL_FILES = 64
NEW_CLIENT_TIMEOUT_S = 10
LOAD_WRITERS = 4
LOAD_STARTED_BYTES = 4 * 1024 * 1024


class Server(Protocol):
    """What these tests need to know of the server."""

    host: str
    port: int
    export: str
    image: Path
    size: int


@pytest.fixture(scope="session")
def kernel_initramfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    reason = uml.why_impossible()
    if reason is not None:
        pytest.skip(reason)
    try:
        output = tmp_path_factory.mktemp("kernel_client") / "initramfs.cpio"
        return initramfs.build(output, f"{uml.GUEST_ADDRESS}/{uml.PREFIX_BITS}")
    except initramfs.MissingTool as missing:
        pytest.skip(str(missing))


@pytest.fixture
def boot(kernel_initramfs: Path, server: Server, tmp_path: Path) -> Iterator[Callable[[], Guest]]:
    """Boots a kernel that reaches the server; all of them are gone after the test."""
    guests: list[Guest] = []

    def boot_one() -> Guest:
        folder = tmp_path / f"guest{len(guests)}"
        folder.mkdir()
        guests.append(Guest.start(kernel_initramfs, folder, (server.host, server.port)))
        return guests[-1]

    yield boot_one
    for guest in guests:
        guest.kill()


@pytest.fixture
def kernel(boot: Callable[[], Guest]) -> Guest:
    return boot()


def connect(kernel: Guest, server: Server, connections: int = 1) -> None:
    name = f" -N {server.export}" if server.export else ""
    several = f" -C {connections}" if connections > 1 else ""
    kernel.run(CONNECT + name + several)
    sectors = int(kernel.run("cat /sys/block/nbd0/size").output)
    assert sectors * 512 == server.size
    established = kernel.run(f"netstat -tn 2>&1 | grep -c ':{uml.SERVER_PORT} *ESTABLISHED'")
    assert int(established.output) == connections


def write_files(kernel: Guest, folder: str, sizes_bytes: list[int]) -> dict[str, str]:
    """Writes a file of each size and many tiny ones; returns their checksums in the guest."""
    sizes = " ".join(str(size) for size in sizes_bytes)
    kernel.run(f"mkdir -p {folder}/small && head -c {max(sizes_bytes)} /dev/urandom > /tmp/random")
    kernel.run(f"for n in {sizes}; do tail -c $n /tmp/random > {folder}/$n || exit 1; done")
    kernel.run(
        f"for n in $(seq {SMALL_FILES}); do echo $n $n $n > {folder}/small/$n || exit 1; done;"
        " rm /tmp/random"
    )
    sums = checksums(kernel, folder)
    assert len(sums) == len(sizes_bytes) + SMALL_FILES
    return sums


def checksums(kernel: Guest, folder: str) -> dict[str, str]:
    listing = kernel.run(f"cd {folder} && find . -type f | sort | xargs sha256sum").output
    return {
        name: digest for digest, name in (line.split(maxsplit=1) for line in listing.splitlines())
    }


def expect_on_host(server: Server, folder: str, sums: dict[str, str], scratch: Path) -> None:
    """The raw image, without any client, has a clean ext4 whose files have these checksums."""
    subprocess.run(["e2fsck", "-fn", server.image], check=True, capture_output=True, timeout=60)
    expect_files_in(server.image, folder, sums, scratch)


def expect_files_in(image: Path, folder: str, sums: dict[str, str], scratch: Path) -> None:
    scratch.mkdir()
    dump = ["debugfs", "-R", f"rdump {folder} {scratch}", str(image)]
    subprocess.run(dump, check=True, capture_output=True, timeout=60)
    root = scratch / Path(folder).name
    found = {
        f"./{path.relative_to(root)}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }
    assert found == sums


def expect_new_client_is_served(server: Server) -> None:
    """A fresh client, not the kernel's, reads the first megabyte as it is in the image, in time."""
    failure: list[BaseException] = []

    def read_through_server() -> None:
        try:
            client = nbd.NBD()
            client.set_export_name(server.export)
            client.connect_tcp(server.host, str(server.port))
            assert client.get_size() == server.size
            served = client.pread(1048576, 0)
            with server.image.open("rb") as image:
                assert bytes(served) == image.read(1048576)
            client.shutdown()
        except BaseException as error:
            failure.append(error)

    reader = threading.Thread(target=read_through_server, daemon=True)
    reader.start()
    reader.join(NEW_CLIENT_TIMEOUT_S)
    assert not reader.is_alive(), f"a new client was not served within {NEW_CLIENT_TIMEOUT_S} s"
    if failure:
        raise failure[0]


def start_load(kernel: Guest) -> None:
    """Starts writers that go on for ever, and returns when their data is under way to the disk."""
    for writer in range(LOAD_WRITERS):
        once = f"dd if=/dev/urandom of={MOUNT}/load{writer} bs=256k count=64 conv=fsync"
        kernel.run(f"(while {once}; do :; done) >/tmp/load{writer} 2>&1 &")
    sectors_before = sectors_written(kernel)
    deadline = time.monotonic() + 20
    while (sectors_written(kernel) - sectors_before) * 512 < LOAD_STARTED_BYTES:
        assert time.monotonic() < deadline, "the writers write nothing"


def sectors_written(kernel: Guest) -> int:
    return int(kernel.run("cat /sys/block/nbd0/stat").output.split()[6])


def flushes(kernel: Guest) -> int:
    return int(kernel.run("cat /sys/block/nbd0/stat").output.split()[15])


def make_file_system(kernel: Guest) -> None:
    kernel.run(f"mkfs.ext4 -q {DEVICE}")
    kernel.run(f"mount {DEVICE} {MOUNT}")


def expect_repairable(kernel: Guest, sums: dict[str, str]) -> None:
    """The file system can be repaired at once, is clean then, and kept what was synced before."""
    kernel.run(f"e2fsck -fy {DEVICE}", expect=CLEAN_OR_REPAIRED)
    kernel.run(f"e2fsck -fn {DEVICE}", expect=CLEAN)
    kernel.run(f"mount {DEVICE} {MOUNT}")
    assert checksums(kernel, f"{MOUNT}/kept") == sums
    kernel.run(f"umount {MOUNT}")


@pytest.mark.parametrize("connections", [1, 4])
def test_an_ext4_survives_disconnect_and_reconnect(
    kernel: Guest, server: Server, tmp_path: Path, connections: int
) -> None:
    connect(kernel, server, connections)
    make_file_system(kernel)
    sums = write_files(kernel, f"{MOUNT}/files", ALL_SIZES)
    kernel.run(f"umount {MOUNT}")
    kernel.run(f"e2fsck -fn {DEVICE}", expect=CLEAN)
    kernel.run(DISCONNECT)

    connect(kernel, server, connections)
    kernel.run(f"mount {DEVICE} {MOUNT}")
    assert checksums(kernel, f"{MOUNT}/files") == sums
    kernel.run(f"umount {MOUNT}")
    kernel.run(f"e2fsck -fn {DEVICE}", expect=CLEAN)
    kernel.run(DISCONNECT)

    expect_on_host(server, "/files", sums, tmp_path / "dumped")


@pytest.mark.parametrize("connections", [1, 4])
def test_disconnecting_under_load_harms_neither_server_nor_synced_files(
    kernel: Guest, server: Server, tmp_path: Path, connections: int
) -> None:
    connect(kernel, server, connections)
    make_file_system(kernel)
    sums = write_files(kernel, f"{MOUNT}/kept", EDGE_SIZES)
    kernel.run("sync")
    start_load(kernel)

    kernel.run(DISCONNECT)
    expect_new_client_is_served(server)
    # Writers that have lost their disk end by themselves; then nothing holds the dead file system.
    kernel.run(f"for n in $(seq 100); do umount {MOUNT} && exit 0; sleep 0.1; done 2>&1; exit 1")

    connect(kernel, server, connections)
    expect_repairable(kernel, sums)
    kernel.run(DISCONNECT)
    expect_on_host(server, "/kept", sums, tmp_path / "dumped")


def test_a_client_that_dies_under_load_harms_neither_server_nor_synced_files(
    boot: Callable[[], Guest], server: Server, tmp_path: Path
) -> None:
    first = boot()
    connect(first, server, connections=4)
    make_file_system(first)
    sums = write_files(first, f"{MOUNT}/kept", EDGE_SIZES)
    first.run("sync")
    start_load(first)

    first.die()
    expect_new_client_is_served(
        server
    )  # while the dead one's connections stand open, half a request in
    first.kill()
    expect_new_client_is_served(server)  # and after they were reset

    second = boot()
    connect(second, server)
    expect_repairable(second, sums)
    second.run(DISCONNECT)
    expect_on_host(server, "/kept", sums, tmp_path / "dumped")


def test_a_file_is_in_the_image_when_fsync_returns(
    kernel: Guest, server: Server, tmp_path: Path
) -> None:
    connect(kernel, server)
    assert kernel.run("cat /sys/block/nbd0/queue/write_cache").output == "write back"
    make_file_system(kernel)
    kernel.run(f"sync; mkdir {MOUNT}/synced; head -c 3000001 /dev/urandom > /tmp/random")
    flushes_before = flushes(kernel)
    kernel.run(f"dd if=/tmp/random of={MOUNT}/synced/file bs=100k conv=fsync")
    power_cut = tmp_path / "power_cut.raw"
    shutil.copyfile(server.image, power_cut)

    assert flushes(kernel) > flushes_before
    content = read_extents(
        server.image, kernel.run(f"filefrag -v -b512 {MOUNT}/synced/file").output
    )
    sums = checksums(kernel, f"{MOUNT}/synced")
    assert hashlib.sha256(content).hexdigest() == sums["./file"]
    # What a power cut at that moment would have left: the journal is replayed, and the file is
    # there.
    repair = subprocess.run(["e2fsck", "-fy", power_cut], capture_output=True, timeout=60)
    assert repair.returncode in CLEAN_OR_REPAIRED, repair.stdout.decode()
    expect_files_in(power_cut, "/synced", sums, tmp_path / "dumped")


def read_extents(image: Path, filefrag_listing: str) -> bytes:
    """Reads a file from the raw image by the places that `filefrag -v -b512` names."""
    total = re.search(r"is (\d+) \(", filefrag_listing)
    assert total is not None, filefrag_listing
    row = re.compile(r"^ *\d+: +(\d+)\.\. +\d+: +(\d+)\.\. +\d+: +(\d+):", re.MULTILINE)
    content = bytearray()
    with image.open("rb") as disk:
        for logical, physical, length in row.findall(filefrag_listing):
            assert int(logical) * 512 == len(content), filefrag_listing
            disk.seek(int(physical) * 512)
            content += disk.read(int(length) * 512)
    return bytes(content[: int(total.group(1))])
