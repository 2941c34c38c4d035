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
