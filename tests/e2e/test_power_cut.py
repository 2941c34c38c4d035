"""The emulator is killed in the middle of writing, and the disk's image then compared with what the
clients know.

Each block says which write it came from, so that the image can be held against the log: no block holds
anything that was not written to it, none is torn, and none is older than what was promised. What is
promised is a write acknowledged with FUA, or acknowledged before a flush was sent, by whichever
client, that was acknowledged in turn.

SIGKILL does not lose the host's page cache. With a raw image, whatever the emulator has taken is
therefore there, and the test is as strict as that: every acknowledged write. What makes flushes matter is
a disk of our own below the emulator, whose cache goes with the power (volatile_disk.py); and, less so, a
qcow2 image: the emulator keeps its tables in memory until it is told to flush, and a write to a cluster
that no table on disk knows of is lost, acknowledged or not.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from appliance import ROOT, Appliance
from nbd_wire import Closed, Command, CommandFlag, Error, Wire, request_bytes
from volatile_disk import VolatileDisk

KIB = 1024
MIB = 1024 * KIB
BLOCK = 512
SIZE = 32 * MIB
CLIENTS = 2
SLOT = 256 * KIB  # what one write in flight has for itself
SLOTS = SIZE // SLOT // CLIENTS
CUT_AFTER_S = 0.6  # at most, once a write has been acknowledged
FIRST_ANSWER_S = 20
# Rounds of each case. The long form: POWER_CUTS=100 ./build.sh test e2e -k power
ROUNDS = int(os.environ.get("POWER_CUTS", "2"))
ROUND_S = 25  # far more than one takes

Launch = Callable[..., Appliance]


@dataclass(frozen=True)
class Case:
    cache: str
    aio: str
    format: str  # "volatile" is no file
    # An acknowledged write is there even if nobody asked for it to be durable.
    keeps_all: bool

    def __str__(self) -> str:
        return f"{self.format}-{self.cache}-{self.aio}"


CASES = [
    Case("writeback", "threads", "raw", True),
    Case("none", "native", "raw", True),
    Case("directsync", "threads", "raw", True),
    Case("writeback", "threads", "qcow2", False),
    Case("directsync", "threads", "qcow2", True),
    Case("writeback", "threads", "volatile", False),
    # The appliance itself flushes behind every write: the device's mode cannot be switched.
    Case("writethrough", "threads", "volatile", True),
]
EXPORT = b"volatile"


@dataclass
class Log:
    """What the clients of one round know. A write is known by its number; 0 is the empty disk."""

    writes: dict[int, list[int]] = field(default_factory=dict)  # of each block, in their order
    acknowledged: list[tuple[int, range]] = field(default_factory=list)  # number, blocks
    durable: dict[int, int] = field(default_factory=dict)  # the newest of each block
    flushed: int = 0  # so many of those acknowledged
    lock: threading.Lock = field(default_factory=threading.Lock)
    has_answer: threading.Event = field(default_factory=threading.Event)
    has_promise: threading.Event = field(default_factory=threading.Event)  # a new one

    def sent(self, number: int, blocks: range) -> None:
        for block in blocks:
            self.writes.setdefault(block, [0]).append(number)

    def acknowledge(self, number: int, blocks: range, is_durable: bool) -> None:
        with self.lock:
            self.acknowledged.append((number, blocks))
            if is_durable:
                self._make_durable(number, blocks)
                self.has_promise.set()
        self.has_answer.set()

    def flush_begins(self) -> int:
        with self.lock:
            return len(self.acknowledged)

    def flush_ends(self, covers: int) -> None:
        with self.lock:
            for number, blocks in self.acknowledged[self.flushed : covers]:
                self._make_durable(number, blocks)
            self.flushed = max(self.flushed, covers)
        self.has_promise.set()

    def promise_all(self) -> None:
        for number, blocks in self.acknowledged:
            self._make_durable(number, blocks)

    def _make_durable(self, number: int, blocks: range) -> None:
        for block in blocks:
            # In one slot writes follow each other, so of two numbers the larger is the newer.
            self.durable[block] = max(self.durable.get(block, 0), number)


def block_bytes(block: int, number: int) -> bytes:
    return struct.pack(">QQ", block, number) * (BLOCK // 16)


def judge(image: bytes, log: Log) -> int:
    """Raises what is wrong; returns how many blocks of acknowledged writes are older than those."""
    newest = {block: number for number, blocks in log.acknowledged for block in blocks}
    lost = 0
    for block in range(len(image) // BLOCK):
        data = image[block * BLOCK : (block + 1) * BLOCK]
        written, number = struct.unpack_from(">QQ", data)
        if not any(data):
            number = 0
        else:
            assert data == data[:16] * (BLOCK // 16), f"block {block} is torn"
            assert written == block, f"block {block} holds what was written to {written}"
        assert number in log.writes.get(block, [0]), f"block {block}: nobody wrote {number}"
        promised = log.durable.get(block, 0)
        assert number >= promised, f"block {block} holds write {number}, promised was {promised}"
        lost += number < newest.get(block, 0)
    return lost


class Writer:
    """One client: random writes, each in a slot where no other is in flight, and flushes."""

    def __init__(self, wire: Wire, log: Log, index: int, luck: random.Random) -> None:
        self.wire = wire
        self.log = log
        self.luck = luck
        self.first_slot = index * SLOTS
        self.depth = luck.choice([1, 4, 16, 48])
        self.fua_share = luck.choice([0, 0.1, 1])
        self.flush_share = luck.choice([0.02, 0.2])
        self.cookie = 0
        self.writes: dict[int, tuple[int, range, bool]] = {}  # in flight: slot, blocks, is durable
        self.flushes: dict[int, int] = {}
        self.free = list(range(self.first_slot, self.first_slot + SLOTS))

    def run(self) -> None:
        try:
            while True:
                batch = b""
                while len(self.writes) + len(self.flushes) < self.depth:
                    batch += self.next_request()
                self.wire.send(batch)
                self.take_reply()
        except (Closed, OSError):
            # What was acknowledged before the end is all in the socket, and has been taken.
            pass

    def next_request(self) -> bytes:
        self.cookie += 1
        if self.luck.random() < self.flush_share:
            self.flushes[self.cookie] = self.log.flush_begins()
            return request_bytes(Command.FLUSH, cookie=self.cookie)
        slot = self.free.pop(self.luck.randrange(len(self.free)))
        first = self.luck.randrange(SLOT // BLOCK)
        count = min(self.luck.choice([1, 8, 8, 8, 64, 128, 500]), SLOT // BLOCK - first)
        start = slot * (SLOT // BLOCK) + first
        blocks = range(start, start + count)
        is_fua = self.luck.random() < self.fua_share
        self.writes[self.cookie] = (slot, blocks, is_fua)
        self.log.sent(self.cookie, blocks)
        return request_bytes(
            Command.WRITE,
            start * BLOCK,
            count * BLOCK,
            b"".join(block_bytes(block, self.cookie) for block in blocks),
            flags=CommandFlag.FUA if is_fua else 0,
            cookie=self.cookie,
        )

    def take_reply(self) -> None:
        reply = self.wire.reply()
        assert reply.error == Error.NONE
        if reply.cookie in self.flushes:
            self.log.flush_ends(self.flushes.pop(reply.cookie))
        else:
            slot, blocks, is_fua = self.writes.pop(reply.cookie)
            self.log.acknowledge(reply.cookie, blocks, is_fua)
            self.free.append(slot)


@pytest.fixture
def disk_folder() -> Iterator[Path]:
    """On a disk: in memory there is no writing past the page cache."""
    place = ROOT / "build" / "test"
    place.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix="power-", dir=place))
    yield path
    shutil.rmtree(path)


def make_image(path: Path, case: Case) -> None:
    # Small clusters: more of the tables that are lost without a flush.
    options = ["-o", "cluster_size=4096"] if case.format == "qcow2" else []
    command = ["qemu-img", "create", "-q", "-f", case.format, *options, str(path), str(SIZE)]
    subprocess.run(command, check=True, timeout=30)


def start(
    launch: Launch, case: Case, path: Path, luck: random.Random
) -> tuple[Appliance, VolatileDisk | None]:
    if case.format != "volatile":
        make_image(path, case)
        options = ["--format", case.format, "--cache", case.cache, "--aio", case.aio]
        return launch(path, size=SIZE, run_options=options), None
    disk = VolatileDisk(path, SIZE, luck)
    name = EXPORT.decode()
    drive = f"if=none,id={name},format=raw,cache=writeback,file=nbd+unix:///?socket={path}"
    device = f"virtio-blk-device,drive={name},serial={name},config-wce=off"
    append = f"disk.cache={case.cache}" if case.cache == "writethrough" else ""
    return launch(BLOCK, qemu=f"-drive {drive} -device {device}", append=append), disk


def content(path: Path, case: Case, disk: VolatileDisk | None) -> bytes:
    if disk is not None:
        disk.close()
        return disk.cut()
    if case.format == "raw":
        return path.read_bytes()
    raw = path.with_suffix(".raw")
    command = ["qemu-img", "convert", "-f", case.format, "-O", "raw", str(path), str(raw)]
    subprocess.run(command, check=True, timeout=60)
    return raw.read_bytes()


def cut(appliance: Appliance, export: bytes, log: Log, luck: random.Random) -> None:
    """Writes until the emulator is dead."""
    wires = [Wire(appliance) for _ in range(CLIENTS)]
    writers = []
    for index, wire in enumerate(wires):
        assert wire.go(export).size == SIZE
        writers.append(Writer(wire, log, index, random.Random(luck.random())))
    threads = [threading.Thread(target=writer.run) for writer in writers]
    for thread in threads:
        thread.start()
    try:
        assert log.has_answer.wait(FIRST_ANSWER_S), "no write is answered"
        threading.Event().wait(luck.random() * CUT_AFTER_S)
        if luck.random() < 0.5:
            # What was promised too early is kept a moment later.
            log.has_promise.clear()
            log.has_promise.wait(CUT_AFTER_S)
        assert all(thread.is_alive() for thread in threads), "a client has stopped before the cut"
    finally:
        appliance.kill()
        for thread in threads:
            thread.join()
        for wire in wires:
            wire.close()


@pytest.mark.deadline(60 + ROUNDS * ROUND_S)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_was_promised_survives_a_power_cut(
    case: Case, launch: Launch, disk_folder: Path
) -> None:
    seed = int(os.environ.get("PLATTER_SEED", random.SystemRandom().randrange(1 << 32)))
    luck = random.Random(seed)
    lost = 0
    acknowledged = 0
    for number in range(ROUNDS):
        path = disk_folder / f"{number}.{case.format}"
        appliance, disk = start(launch, case, path, luck)
        log = Log()
        cut(appliance, b"" if disk is None else EXPORT, log, luck)
        appliance.expect_no_errors()
        if case.keeps_all:
            log.promise_all()
        try:
            lost += judge(content(path, case, disk), log)
        except AssertionError as failure:
            raise AssertionError(f"PLATTER_SEED={seed}, round {number}") from failure
        acknowledged += len(log.acknowledged)
        path.unlink()
    print(f"{case}: {acknowledged} writes acknowledged, {lost} blocks were not durable and are lost")


# The judge itself


def log_of(*acknowledged: tuple[int, range, bool]) -> Log:
    log = Log()
    for number, blocks, is_fua in acknowledged:
        log.sent(number, blocks)
        log.acknowledge(number, blocks, is_fua)
    return log


def image_of(*numbers: int) -> bytes:
    return b"".join(block_bytes(at, n) if n else bytes(BLOCK) for at, n in enumerate(numbers))


def test_the_judge_of_power_cuts_lets_pass_what_was_not_promised() -> None:
    log = log_of((1, range(0, 2), True), (2, range(1, 3), False))
    assert judge(image_of(1, 2, 2), log) == 0
    assert judge(image_of(1, 1, 0), log) == 2
    log.sent(3, range(0, 1))  # in flight when it was cut
    assert judge(image_of(3, 2, 2), log) == 0


@pytest.mark.parametrize("numbers", [(0, 2, 2), (1, 0, 2), (1, 4, 2), (1, 2, 1)])
def test_the_judge_of_power_cuts_misses_what_was_promised(numbers: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        judge(image_of(*numbers), log_of((1, range(0, 2), True), (2, range(1, 3), False)))


def test_the_judge_of_power_cuts_knows_what_a_flush_covers() -> None:
    log = log_of((1, range(0, 1), False))
    covers = log.flush_begins()
    log.sent(2, range(1, 2))
    log.acknowledge(2, range(1, 2), False)  # while the flush is under way
    log.flush_ends(covers)
    assert judge(image_of(1, 0), log) == 1
    with pytest.raises(AssertionError):
        judge(image_of(0, 2), log)


def test_the_judge_of_power_cuts_sees_torn_and_misplaced_blocks() -> None:
    log = log_of((1, range(0, 2), False), (2, range(0, 2), False))
    torn = block_bytes(0, 2)[: BLOCK // 2] + block_bytes(0, 1)[BLOCK // 2 :]
    for image in (torn + block_bytes(1, 2), block_bytes(1, 2) * 2):
        with pytest.raises(AssertionError):
            judge(image, log)
