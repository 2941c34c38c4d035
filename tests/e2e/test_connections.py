"""Clients come and go by the thousand, some at odd moments: everything they used is there again."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable

import pytest

from appliance import Appliance
from nbd_wire import Command, Error, HandshakeFlag, Rep, Wire, go_bytes, request_bytes

MIB = 1024 * 1024
SIZE = 8 * MIB
# The long form: CONNECTIONS=10000 ./build.sh test e2e -k connections_leave
CONNECTIONS = int(os.environ.get("CONNECTIONS", "1000"))
ODD_ONE_IN = 10
CONNECTIONS_A_SECOND_AT_LEAST = 20
CLOSE_S = 15
# What the README promises: as little as QEMU can start, and as many as there may be.
LEAST_MEMORY_MIB = 5
CLIENTS_MAX = 64
WRITE_BYTES = 64 * 1024
READS = 4

pytestmark = pytest.mark.deadline(60 + CONNECTIONS // CONNECTIONS_A_SECOND_AT_LEAST)


def leave_at_once(wire: Wire) -> None:
    del wire


def leave_in_the_flags(wire: Wire) -> None:
    wire.send(b"\0\0")


def leave_in_an_option(wire: Wire) -> None:
    wire.greet()
    wire.send(go_bytes()[:-1])


def leave_before_the_answer(wire: Wire) -> None:
    wire.greet()
    wire.send(go_bytes())


def leave_in_a_header(wire: Wire) -> None:
    wire.go()
    wire.send(request_bytes(Command.READ, 0, 512)[:13])


def leave_in_a_payload(wire: Wire) -> None:
    wire.go()
    wire.send(request_bytes(Command.WRITE, 0, 65536) + bytes(1000))


def leave_before_the_reply(wire: Wire) -> None:
    wire.go()
    wire.send(request_bytes(Command.READ, 0, 4096) * 3)


def leave_after_a_refusal(wire: Wire) -> None:
    wire.greet(HandshakeFlag.FIXED_NEWSTYLE)
    wire.expect_refused(Rep.ERR_UNSUP, 77)


MOMENTS: list[Callable[[Wire], None]] = [
    leave_at_once,
    leave_in_the_flags,
    leave_in_an_option,
    leave_before_the_answer,
    leave_in_a_header,
    leave_in_a_payload,
    leave_before_the_reply,
    leave_after_a_refusal,
]


def use_and_leave(wire: Wire) -> None:
    wire.go()
    assert wire.read(0, 512).error == Error.NONE
    wire.disconnect()


def kept(appliance: Appliance) -> dict[str, str]:
    """What must be as it was: by the words of the status dump."""
    appliance.wait_until_idle()
    # A connection that was closed may wait for its last acknowledgement a while.
    deadline = time.monotonic() + CLOSE_S
    while appliance.counter("net: connections") != 0 and time.monotonic() < deadline:
        time.sleep(0.2)
    status = appliance.status()
    wanted = {
        "heap": r"^memory: (\d+) of \d+ KiB in use",
        "failures": r"^memory: .*failures (\d+)",
        "objects": r"^(  objects of .*(?:\n  objects of .*)*)",
        "walls": r"^walls: (\d+ pages of tables, \d+ guards)",
        "tasks": r"^(task .*?):",
        "stacks": r"^task .* stack \d+ of (\d+)",
    }
    found = {name: re.findall(pattern, status, re.MULTILINE) for name, pattern in wanted.items()}
    assert all(found.values()), status
    return {name: " ".join(values) for name, values in found.items()}


def test_connections_leave_nothing_behind(launch: Callable[..., Appliance]) -> None:
    appliance = launch(SIZE)
    chance = random.Random(CONNECTIONS)
    for warm_up in range(2 * len(MOMENTS)):
        with Wire(appliance) as wire:
            MOMENTS[warm_up % len(MOMENTS)](wire)
    before = kept(appliance)
    for number in range(CONNECTIONS):
        with Wire(appliance) as wire:
            if number % ODD_ONE_IN == 0:
                chance.choice(MOMENTS)(wire)
                if chance.random() < 0.5:
                    wire.reset()
            else:
                use_and_leave(wire)
    assert kept(appliance) == before


def piece(client: int) -> bytes:
    return random.Random(client).randbytes(WRITE_BYTES)


def test_as_many_clients_as_there_may_be_read_and_write_in_the_least_memory(
    launch: Callable[..., Appliance],
) -> None:
    """All at once: each writes a piece of its own, then asks for what the others have written."""
    appliance = launch(CLIENTS_MAX * WRITE_BYTES, memory_mib=LEAST_MEMORY_MIB)
    appliance.wait_until_idle()  # what looked for the greeting is gone then
    wires = [Wire(appliance) for _ in range(CLIENTS_MAX)]
    try:
        for wire in wires:
            wire.go()
        for client, wire in enumerate(wires):
            offset = client * WRITE_BYTES
            wire.send(request_bytes(Command.WRITE, offset, WRITE_BYTES, piece(client)))
        for wire in wires:
            assert wire.reply().error == Error.NONE
        for client, wire in enumerate(wires):
            for other in range(client, client + READS):
                offset = other % CLIENTS_MAX * WRITE_BYTES
                wire.send(request_bytes(Command.READ, offset, WRITE_BYTES, cookie=other))
        for wire in wires:
            for _ in range(READS):
                reply = wire.reply(WRITE_BYTES)
                assert reply.error == Error.NONE
                assert reply.data == piece(reply.cookie % CLIENTS_MAX), reply.cookie
    finally:
        for wire in wires:
            wire.close()
    appliance.wait_until_idle()
    status = appliance.status()
    assert re.search(r"^memory: .*failures 0\b", status, re.MULTILINE), status
    assert re.search(rf"^nbd: .*\(peak {CLIENTS_MAX}, .*refused 0\)", status, re.MULTILINE), status
