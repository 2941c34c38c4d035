"""Clients of several kinds at once, for as long as asked, against a model of the disk.

    ./build.sh test e2e -k mixed --minutes 10

Each has a range of the disk for itself, in which every byte is known, and all write to one range
together, where every block says whose it is. At the end no memory is missing and the log has nothing
to say. The seed is printed when it fails; PLATTER_SEED=… takes it again.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Callable

import nbd  # type: ignore[import]
import pytest

from appliance import Appliance
from nbd_chunks import DONE, ZERO, Answer, ChunkWire, take_chunk
from nbd_wire import Command, CommandFlag, Error, Wire, request_bytes

KIB = 1024
MIB = 1024 * 1024
BLOCK = 512
SLOT = 64 * KIB
SLOTS = 48
RANGE = SLOT * SLOTS
IN_FLIGHT = 16
SHARED_BLOCKS = 256
CLIENT_S = 60

Launch = Callable[..., Appliance]


class Model:
    """What a range of the disk holds. A trimmed block holds anything until it is written."""

    def __init__(self, base: int) -> None:
        self.base = base
        self.content = bytearray(RANGE)
        self.is_known = bytearray(b"\1" * (RANGE // BLOCK))

    def put(self, at: int, data: bytes) -> None:
        self.content[at : at + len(data)] = data
        self.is_known[at // BLOCK : (at + len(data)) // BLOCK] = b"\1" * (len(data) // BLOCK)

    def forget(self, at: int, length: int) -> None:
        self.is_known[at // BLOCK : (at + length) // BLOCK] = bytes(length // BLOCK)

    def check(self, at: int, data: bytes) -> None:
        if data == self.content[at : at + len(data)]:
            return
        for block in range(0, len(data), BLOCK):
            here = at + block
            if self.is_known[here // BLOCK]:
                is_same = data[block : block + BLOCK] == self.content[here : here + BLOCK]
                assert is_same, f"wrong bytes at {self.base + here}"

    def check_zero(self, at: int, length: int) -> None:
        """This much was told to be zero: it is what was known, and not trimmed."""
        assert not any(self.content[at : at + length]), f"not zero at {self.base + at}"
        known = self.is_known[at // BLOCK : (at + length) // BLOCK]
        assert all(known), f"told to be zero though trimmed at {self.base + at}"


class Operation:
    """One random request within a slot, and what it does to the model."""

    def __init__(self, luck: random.Random, slot: int, knows_status: bool) -> None:
        commands = [Command.READ] * 4 + [Command.WRITE] * 4 + [Command.TRIM, Command.CACHE]
        commands += [Command.WRITE_ZEROES] * 2 + [Command.FLUSH]
        commands += [Command.BLOCK_STATUS] * 2 if knows_status else []
        self.command = luck.choice(commands)
        blocks = SLOT // BLOCK
        first = luck.randrange(blocks)
        count = luck.choice([1, 8, blocks - first, luck.randrange(1, blocks - first + 1)])
        count = min(count, blocks - first)
        self.at = slot * SLOT + first * BLOCK
        self.length = count * BLOCK
        self.payload = b""
        self.flags = luck.choice([0, 0, 0, CommandFlag.FUA])
        if self.command == Command.FLUSH:
            self.at, self.length = 0, 0
        elif self.command == Command.WRITE:
            self.payload = luck.randbytes(self.length)
        elif self.command == Command.WRITE_ZEROES:
            self.flags |= luck.choice([0, CommandFlag.NO_HOLE])
        elif self.command == Command.READ and knows_status:
            self.flags = luck.choice([0, 0, CommandFlag.DF])

    def apply(self, model: Model) -> None:
        """To be called when it is done."""
        if self.command == Command.WRITE:
            model.put(self.at, self.payload)
        elif self.command == Command.WRITE_ZEROES:
            model.put(self.at, bytes(self.length))
        elif self.command == Command.TRIM:
            model.forget(self.at, self.length)

    def check(self, model: Model, answer: Answer) -> None:
        assert answer.error == Error.NONE, (self.command, answer)
        if self.command == Command.READ:
            start = model.base + self.at
            model.check(self.at, answer.bytes_of(start, self.length))
            for at, size in answer.holes.items():
                model.check_zero(at - model.base, size)
        elif self.command == Command.BLOCK_STATUS:
            ((_, extents),) = answer.extents.items()
            at = self.at
            for size, flags in extents:
                if flags & ZERO:
                    model.check_zero(at, size)
                at += size


class Load:
    def __init__(self, appliance: Appliance, seed: int, minutes: float) -> None:
        self.appliance = appliance
        self.seed = seed
        self.until = time.monotonic() + minutes * 60
        self.failures: list[BaseException] = []
        self.turns: dict[str, int] = {}

    def goes_on(self) -> bool:
        return time.monotonic() < self.until and not self.failures

    def run(self, clients: list[Callable[[Load, int, random.Random], None]]) -> None:
        def guarded(index: int) -> None:
            try:
                clients[index](self, (index + 1) * RANGE, random.Random(self.seed * 100 + index))
            except BaseException as failure:
                self.failures.append(failure)

        threads = [threading.Thread(target=guarded, args=(n,)) for n in range(len(clients))]
        for thread in threads:
            thread.start()
            time.sleep(0.05)  # QEMU's user network takes one at a time
        for thread in threads:
            thread.join()
        if self.failures:
            raise AssertionError(f"PLATTER_SEED={self.seed}") from self.failures[0]

    def count(self, name: str) -> None:
        self.turns[name] = self.turns.get(name, 0) + 1


def shared_block(luck: random.Random, index: int) -> bytes:
    """A block that says where it belongs, and is whole."""
    words = struct.pack(">Q", index) + luck.randbytes(BLOCK - 12)
    return words + struct.pack(">I", zlib.crc32(words))


def check_shared(index: int, data: bytes) -> None:
    if any(data):
        assert struct.unpack_from(">Q", data)[0] == index, f"block {index} is another's"
        assert zlib.crc32(data[:-4]) == struct.unpack(">I", data[-4:])[0], f"block {index} is torn"


def on_wire(load: Load, base: int, luck: random.Random, mode: str) -> None:
    """Batches of requests in flight, each in a slot of its own, answered in any order."""
    model = Model(base)
    wire = Wire(load.appliance) if mode == "simple" else ChunkWire(load.appliance, mode == "extended")
    with wire:
        wire.go()
        while load.goes_on():
            slots = luck.sample(range(SLOTS), IN_FLIGHT)
            batch = [Operation(luck, slot, mode != "simple") for slot in slots]
            # What a status tells must hold in the middle of changes elsewhere: all at once.
            answers = ask_all(wire, base, batch)
            for operation, answer in zip(batch, answers):
                operation.check(model, answer)
                operation.apply(model)
            index = luck.randrange(SHARED_BLOCKS)
            shared = Operation(luck, 0, False)
            shared.command, shared.at, shared.length, shared.flags = Command.READ, 0, BLOCK, 0
            shared.payload = b""
            (answer,) = ask_all(wire, index * BLOCK, [shared])
            check_shared(index, answer.bytes_of(index * BLOCK, BLOCK))
            shared.command = luck.choice([Command.WRITE, Command.WRITE, Command.WRITE_ZEROES])
            writes = shared.command == Command.WRITE
            shared.payload = shared_block(luck, index) if writes else b""
            (answer,) = ask_all(wire, index * BLOCK, [shared])
            assert answer.error == Error.NONE
            load.count(mode)
        wire.disconnect() if mode == "simple" else wire.close()


def ask_all(wire: Wire, base: int, batch: list[Operation]) -> list[Answer]:
    """Sends them all, and collects their answers."""
    make = wire.request_words if isinstance(wire, ChunkWire) else request_bytes
    words = []
    for cookie, operation in enumerate(batch):
        at = 0 if operation.command == Command.FLUSH else base + operation.at
        words.append(
            make(
                operation.command,
                at,
                operation.length,
                operation.payload,
                flags=operation.flags,
                cookie=cookie,
            )
        )
    wire.send(b"".join(words))
    answers = [Answer() for _ in batch]
    waiting = set(range(len(batch)))
    while waiting:
        if isinstance(wire, ChunkWire):
            chunk = wire.chunk()
            take_chunk(answers[chunk.cookie], chunk, wire.extended)
            if chunk.flags & DONE:
                waiting.remove(chunk.cookie)
            continue
        magic, error, cookie = struct.unpack(">IIQ", wire.receive(16))
        operation = batch[cookie]
        answers[cookie].error = Error(error)
        if operation.command == Command.READ and not error:
            answers[cookie].data[base + operation.at] = wire.receive(operation.length)
        waiting.remove(cookie)
    return answers


def simple(load: Load, base: int, luck: random.Random) -> None:
    on_wire(load, base, luck, "simple")


def structured(load: Load, base: int, luck: random.Random) -> None:
    on_wire(load, base, luck, "structured")


def extended(load: Load, base: int, luck: random.Random) -> None:
    on_wire(load, base, luck, "extended")


def library(load: Load, base: int, luck: random.Random) -> None:
    """libnbd, one request at a time."""
    model = Model(base)
    handle = nbd.NBD()
    handle.add_meta_context("base:allocation")
    handle.connect_uri(load.appliance.uri())
    while load.goes_on():
        operation = Operation(luck, luck.randrange(SLOTS), True)
        at, length = base + operation.at, operation.length
        if operation.command == Command.READ:
            model.check(operation.at, bytes(handle.pread(length, at)))
        elif operation.command == Command.WRITE:
            handle.pwrite(operation.payload, at, operation.flags)
        elif operation.command == Command.TRIM:
            handle.trim(length, at, operation.flags)
        elif operation.command == Command.WRITE_ZEROES:
            handle.zero(length, at, operation.flags)
        elif operation.command == Command.CACHE:
            handle.cache(length, at)
        elif operation.command == Command.FLUSH:
            handle.flush()
        else:
            told: list[int] = []
            handle.block_status(length, at, lambda _c, _o, entries, _e: told.extend(entries))
            position = operation.at
            for size, flags in zip(told[::2], told[1::2]):
                if flags & ZERO:
                    model.check_zero(position, min(size, SLOT - position % SLOT))
                position += size
        operation.apply(model)
        load.count("library")
    handle.shutdown()


def qemu_io(load: Load, base: int, luck: random.Random) -> None:
    """A process for every few dozen commands; it compares patterns by itself."""
    while load.goes_on():
        commands = []
        for _ in range(30):
            at = base + luck.randrange(SLOTS) * SLOT
            pattern = luck.randrange(1, 256)
            commands += [f"write -P {pattern} {at} 64k", f"write -z {at + 16 * KIB} 16k"]
            commands += [f"discard {at + 32 * KIB} 16k", "flush"]
            commands += [f"read -P {pattern} {at} 16k", f"read -P 0 {at + 16 * KIB} 16k"]
            commands += [f"read -P {pattern} {at + 48 * KIB} 16k"]
        words = [word for command in commands for word in ("-c", command)]
        done = subprocess.run(
            ["qemu-io", "-f", "raw", "-d", "unmap", *words, load.appliance.uri()],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=CLIENT_S,
        )
        assert done.returncode == 0 and "failed" not in done.stdout, done.stdout
        load.count("qemu-io")


CLIENTS = [simple, structured, extended, library, qemu_io]


@pytest.mark.as_long_as_asked
def test_mixed_load_leaves_no_wrong_byte_and_no_memory_behind(
    launch: Launch, minutes: float
) -> None:
    seed = int(os.environ.get("PLATTER_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    appliance = launch((len(CLIENTS) + 1) * RANGE)
    # Once each, so that what is taken for good is taken; on a disk of zeroes, as the models begin.
    Load(appliance, seed, 0).run(CLIENTS)
    appliance.wait_until_idle()
    memory_kib = appliance.counter("memory:")
    said_before = len(appliance.console())

    load = Load(appliance, seed, minutes)
    load.run(CLIENTS)
    assert len(load.turns) == len(CLIENTS), load.turns
    print(f"seed {seed}, turns: {load.turns}")

    appliance.wait_until_idle()
    assert appliance.counter("memory:") <= memory_kib + 64
    surprises = [
        line
        for line in appliance.console()[said_before:].splitlines()
        if any(word in line for word in ("warning", "error:", "refused:", "PANIC", "lost"))
        and "0 errors" not in line
        and "kept the processor" not in line  # the host's doing, when it is busy
    ]
    assert not surprises, surprises
    assert appliance.counter("log lines dropped:") == 0
