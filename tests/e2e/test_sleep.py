"""One client with one request in flight: between two requests everything sleeps, QEMU, the processor, the
client; so each request has to wake a sleeper, and each answer another. A wake-up that is lost shows as a
gap until some timer comes to the rescue.

    SLEEPS=2000000 ./build.sh test e2e -k idle_transition

The data is checked with each read. A gap of over a second fails the test, unless the host itself stood
still meanwhile, which a process beside us notices.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import struct
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import pytest

from appliance import Appliance
from nbd_wire import Command, CommandFlag, Error, Wire

BLOCK = 512
BLOCKS = 4096
BLOCKS_AT_ONCE = 8
SLEEPS = int(os.environ.get("SLEEPS", "20000"))
SLEEPS_A_SECOND_AT_LEAST = 500
LOOK_EVERY = 1000  # requests
GAP_MAX_S = 1.0
TICK_S = 0.01
PAUSE_S = 0.1  # a tick that takes longer counts as a pause of the host
THINK_TURNS_MAX = 2000  # of an empty loop: up to some ten microseconds

Launch = Callable[..., Appliance]


def watch(pauses: Connection) -> None:
    """Sends when the host stood still: from, to."""
    before = time.monotonic()
    while not pauses.poll():
        time.sleep(TICK_S)
        now = time.monotonic()
        if now - before > PAUSE_S:
            pauses.send((before, now))
        before = now


class Host:
    """Knows when the host stood still."""

    def __enter__(self) -> Host:
        self._pauses: list[tuple[float, float]] = []
        self._ours, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.Process(target=watch, args=(theirs,), daemon=True)
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.send("end")
        self._process.join()

    def stood_still(self, start: float, end: float) -> float:
        """Seconds of this time."""
        time.sleep(5 * TICK_S)  # what happens now is not told yet
        while self._ours.poll():
            self._pauses.append(self._ours.recv())
        return sum(max(0.0, min(end, b) - max(start, a)) for a, b in self._pauses)


class Client:
    """Writes and reads a few blocks at a time; each says which write it is from."""

    def __init__(self, wire: Wire, luck: random.Random) -> None:
        self.wire = wire
        self.luck = luck
        self.content = bytearray(BLOCK * BLOCKS)
        self.writes = 0

    def turn(self) -> None:
        first = self.luck.randrange(BLOCKS - BLOCKS_AT_ONCE)
        count = self.luck.randrange(1, BLOCKS_AT_ONCE + 1)
        at, length = first * BLOCK, count * BLOCK
        kind = self.luck.randrange(8)
        if kind == 0:
            assert self.wire.request(Command.FLUSH) == Error.NONE
        elif kind < 4:
            self.writes += 1
            data = b"".join(
                struct.pack(">QQ", block, self.writes) * (BLOCK // 16)
                for block in range(first, first + count)
            )
            flags = CommandFlag.FUA if kind == 1 else 0
            assert self.wire.write(at, data, flags=flags) == Error.NONE
            self.content[at : at + length] = data
        else:
            reply = self.wire.read(at, length)
            assert reply.error == Error.NONE
            assert reply.data == self.content[at : at + length], f"wrong bytes at {at}"
        for _ in range(self.luck.randrange(THINK_TURNS_MAX)):
            pass  # so that the next one comes at any moment of falling asleep


@pytest.mark.parametrize(
    ("manner", "share"),
    [
        ("spin=0 notify=twice", 1),  # frames go out in the guest's own thread
        ("spin=auto", 10),  # a sleep now and then, where a spin was in vain
    ],
)
@pytest.mark.deadline(60 + SLEEPS // SLEEPS_A_SECOND_AT_LEAST)
def test_no_idle_transition_is_a_stall(launch: Launch, manner: str, share: int) -> None:
    seed = int(os.environ.get("PLATTER_SEED", random.SystemRandom().randrange(1 << 32)))
    appliance = launch(BLOCK * BLOCKS, append=manner)
    longest = 0.0
    requests = 0
    with Host() as host, Wire(appliance) as wire:
        wire.go()
        client = Client(wire, random.Random(seed))
        end = sleeps_of(appliance) + SLEEPS // share
        while sleeps_of(appliance) < end:
            before = time.monotonic()
            for _ in range(LOOK_EVERY):
                client.turn()
                now = time.monotonic()
                if now - before > GAP_MAX_S:
                    gap = now - before - host.stood_still(before, now)
                    assert gap <= GAP_MAX_S, f"PLATTER_SEED={seed}: {gap:.3f} s\n{appliance.status()}"
                    now = time.monotonic()
                longest = max(longest, now - before)
                before = now
            requests += LOOK_EVERY
        wire.disconnect()
    print(f"{requests} requests, {SLEEPS // share} sleeps, longest gap {longest * 1000:.1f} ms")
    # Timers hide what is lost after some milliseconds; this counter tells.
    assert appliance.counter("rescued") == 0


def sleeps_of(appliance: Appliance) -> int:
    found = appliance.status().split(" sleeps,")[0].rsplit(" ", 1)[-1]
    return int(found)
