"""Who may do what, how much, and for how long: access, limits, idle and vanished clients, fairness."""

from __future__ import annotations

import contextlib
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable

import pytest

from appliance import Appliance
from ethernet import Ethernet, FrameClient
from nbd_chunks import ChunkWire
from nbd_wire import (
    Closed,
    Command,
    Error,
    Option,
    TransmissionFlag,
    Wire,
    go_bytes,
    option_bytes,
    request_bytes,
)

pytestmark = pytest.mark.deadline(60)

KIB = 1024
MIB = 1024 * 1024
CONNECTIONS_MAX = 64
# All clients on QEMU's user network have this address.
CLIENT = "10.0.2.2"

Launch = Callable[..., Appliance]


# Access


def test_only_those_on_the_list_are_served(launch: Launch) -> None:
    appliance = launch(MIB, append=f"allow=10.9.0.0/16,{CLIENT}")
    with Wire(appliance) as wire:
        wire.go()
        assert wire.write(0, b"w" * 512) == Error.NONE


def test_those_not_on_the_list_are_closed_without_a_word(launch: Launch) -> None:
    appliance = launch(MIB, ready=False, append="allow=10.9.0.0/16,10.0.2.3,10.0.2.1")
    appliance.wait_for_console(r"nbd: 1 exports at port")
    for _ in range(3):
        with pytest.raises((Closed, ConnectionResetError)):
            Wire(appliance)
    appliance.wait_for_console(rf"nbd: {CLIENT}:\d+ refused: not on the list")
    assert "opens export" not in appliance.console()


def test_some_clients_may_only_read(launch: Launch) -> None:
    appliance = launch(MIB, append=f"readonly-from={CLIENT}/32")
    with ChunkWire(appliance) as wire:
        flags = wire.go().flags
        assert TransmissionFlag.READ_ONLY in flags
        assert not flags & (TransmissionFlag.SEND_TRIM | TransmissionFlag.SEND_WRITE_ZEROES)
        assert wire.get(0, 512) == bytes(512)
        assert wire.request(Command.WRITE, 0, 512, b"w" * 512) == Error.EPERM
        assert wire.request(Command.TRIM, 0, 512) == Error.EPERM
        assert wire.request(Command.WRITE_ZEROES, 0, 512) == Error.EPERM
        assert wire.request(Command.FLUSH) == Error.NONE
    assert appliance.image.read_bytes() == bytes(MIB)


def test_others_may_write_where_some_may_only_read(launch: Launch) -> None:
    appliance = launch(MIB, append="readonly-from=10.0.2.3")
    with Wire(appliance) as wire:
        assert TransmissionFlag.READ_ONLY not in wire.go().flags
        assert wire.write(0, b"w" * 512) == Error.NONE


@pytest.mark.parametrize(
    "word",
    ["allow=everybody", "allow=", "readonly-from=10.0.2.2/33", "limit-bytes=vda:fast"]
    + ["limit-requests=vdx:10"],
)
def test_a_list_that_makes_no_sense_serves_nobody(launch: Launch, word: str) -> None:
    appliance = launch(MIB, ready=False, append=word)
    appliance.expected_errors = "."
    assert appliance.wait() != 0
    assert f"config: {word} refused" in appliance.console()
    assert "nothing is served" in appliance.console()


# Limits


def hammer(wire: Wire, length: int, until: float) -> int:
    """Reads of this length, one after the other, until then; returns how many."""
    count = 0
    while time.monotonic() < until:
        assert wire.read(0, length).error == Error.NONE
        count += 1
    return count


def test_a_limit_in_bytes_is_shared_by_all_clients_of_the_export_only(launch: Launch) -> None:
    """Told by ratios: with twice the limit twice as much, and without one far more."""
    appliance = launch(MIB, MIB, MIB, append="limit-bytes=vda:2M,vdb:4M")
    until = time.monotonic() + 3
    counts: dict[bytes, list[int]] = {b"vda": [], b"vdb": [], b"vdc": []}

    def run(name: bytes) -> None:
        with Wire(appliance) as wire:
            wire.go(name)
            counts[name].append(hammer(wire, 16 * KIB, until))

    threads = [threading.Thread(target=run, args=(name,)) for name in counts for _ in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    total = {name: sum(each) for name, each in counts.items()}
    assert all(len(each) == 2 for each in counts.values())
    assert 1.5 < total[b"vdb"] / total[b"vda"] < 2.7
    assert total[b"vdc"] > 2 * total[b"vdb"]
    # Those who share a limit take turns.
    for name in (b"vda", b"vdb"):
        assert min(counts[name]) > 0.7 * max(counts[name])


def test_a_limit_in_requests_holds_back_and_refuses_nothing(launch: Launch) -> None:
    appliance = launch(MIB, append="limit-requests=vda:50")
    started = time.monotonic()
    with Wire(appliance) as wire:
        wire.go()
        wire.send(b"".join(request_bytes(Command.READ, 0, 512, cookie=n) for n in range(100)))
        cookies = {wire.reply(512).cookie for _ in range(100)}
        assert cookies == set(range(100))
    # A hundred at fifty a second, less one burst: that it waits at all, not for how long exactly.
    assert time.monotonic() - started > 1.5


def test_a_client_that_leaves_while_it_waits_for_its_turn_stops_nobody(launch: Launch) -> None:
    appliance = launch(MIB, append="limit-requests=vda:100")
    for _ in range(3):
        with Wire(appliance) as greedy:
            greedy.go()
            greedy.send(request_bytes(Command.READ, 0, 512) * 1000)
            with Wire(appliance) as other:
                other.go()
                for _ in range(5):
                    assert other.read(0, 512).error == Error.NONE
            greedy.reset()
    appliance.wait_until_idle()


# Idle and vanished clients


def test_a_client_that_asks_for_nothing_is_closed_when_so_configured(launch: Launch) -> None:
    appliance = launch(MIB, append="idle=2")
    with Wire(appliance) as silent, Wire(appliance) as busy:
        silent.go()
        busy.go()
        for _ in range(8):
            assert busy.read(0, 512).error == Error.NONE
            time.sleep(0.5)
        assert silent.expect_closed(1) == b""
        assert busy.read(0, 512).error == Error.NONE
    appliance.wait_for_console("has been idle: closed")


def open_client(ethernet: Ethernet, number: int) -> FrameClient:
    client = FrameClient(ethernet, f"10.0.2.{20 + number % 4}", 40000 + number)
    client.wait(lambda: len(client.received) >= 18 or client.is_reset)
    if not client.is_reset:
        client.say(struct.pack(">I", 3) + option_bytes(Option.GO, go_bytes()))
        client.wait(lambda: len(client.received) >= 18 + 20)
    return client


def test_the_limit_frees_itself_when_clients_vanish_without_a_word(
    launch: Launch, ethernet: Ethernet
) -> None:
    appliance = launch(MIB, ready=False, append="keepalive=1", socket_path=ethernet.path)
    ethernet.connect()
    appliance.wait_for_console("nbd: 1 exports at port")
    clients = [open_client(ethernet, number) for number in range(CONNECTIONS_MAX)]
    assert not any(client.is_reset for client in clients)
    # One more is refused; and while they are there, they stay, however silent.
    assert open_client(ethernet, CONNECTIONS_MAX).is_reset
    until = time.monotonic() + 3
    while time.monotonic() < until:
        ethernet.serve(0.1)
    assert appliance.counter("nbd:") == CONNECTIONS_MAX

    # Half of them vanish with data for them on its way.
    for number, client in enumerate(clients):
        client.vanish()
        if number % 2 == 0:
            client.say(request_bytes(Command.READ, 0, 64 * KIB) * 4)
    deadline = time.monotonic() + 15
    while appliance.counter("nbd:") > 0:
        assert time.monotonic() < deadline, appliance.status()
        ethernet.serve(0.1)
    appliance.wait_until_idle()
    late = open_client(ethernet, 1000)
    assert not late.is_reset
    late.vanish()


# Fairness


def test_a_greedy_client_does_not_starve_a_small_one(launch: Launch) -> None:
    """64 reads of 1 MiB in flight against one of 4 KiB: the small one gets an answer for at most every
    few of the greedy one's."""
    appliance = launch(64 * MIB)
    luck = random.Random(50)
    stop = threading.Event()
    greedy_replies = [0]

    def be_greedy() -> None:
        with Wire(appliance) as wire:
            wire.go()
            wire.send(request_bytes(Command.READ, 0, MIB) * 64)
            while not stop.is_set():
                assert wire.reply(MIB).error == Error.NONE
                greedy_replies[0] += 1
                wire.send(request_bytes(Command.READ, luck.randrange(63) * MIB, MIB))

    with Wire(appliance) as small:
        small.go()
        greedy = threading.Thread(target=be_greedy)
        greedy.start()
        while greedy_replies[0] < 4:
            time.sleep(0.01)
        worst = 0
        started = greedy_replies[0]
        for count in range(100):
            before = greedy_replies[0]
            assert small.read(luck.randrange(1024) * 4 * KIB, 4 * KIB).error == Error.NONE
            worst = max(worst, greedy_replies[0] - before)
        in_all = greedy_replies[0] - started
        stop.set()
        greedy.join()
    assert count == 99
    # On an idle machine it is two dozen, and two.
    assert in_all < 200, f"worst {worst}"
    assert worst < 32, f"in all {in_all}"


def test_clients_of_a_disk_that_takes_little_take_turns(launch: Launch) -> None:
    """A depth of eight pieces makes turns of two requests: one who asks two things at a time comes in
    between those who have asked for sixty, and nobody's reply is lost."""
    greedy, each, rounds, depth = 6, 60, 40, 8
    appliance = launch(MIB, append=f"depth={depth}")
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(appliance)) for _ in range(greedy)]
        for wire in wires:
            wire.go()
            wire.send(request_bytes(Command.READ, 0, 512) * each)
        small = stack.enter_context(Wire(appliance))
        small.go()
        for _ in range(rounds):
            small.send(request_bytes(Command.READ, 512, 512) * 2)
            assert [small.reply(512).error for _ in range(2)] == [Error.NONE] * 2
        for wire in wires:
            assert [wire.reply(512).error for _ in range(each)] == [Error.NONE] * each
    status = appliance.status()
    found = re.search(rf"vda: at most {depth} pieces of requests at a time, has 0, waits (\d+)", status)
    # On a busy host they may come one after another; then each waits for its own pieces only.
    assert found is not None and int(found[1]) >= greedy * (each // depth - 1), status
