"""TCP as no kernel speaks it: frame by frame, with windows, losses and options of the test's choice."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest

from appliance import Appliance
from ethernet import Ethernet, FrameClient
from nbd_wire import Command, Option, go_bytes, option_bytes, request_bytes

pytestmark = pytest.mark.deadline(60)

KIB = 1024
MIB = 1024 * 1024
SIZE = 4 * MIB
PATTERN = random.Random(77).randbytes(SIZE)
GREETING_BYTES = 18
REPLY_BYTES = 16
OPTION_MSS = 2

Launch = Callable[..., Appliance]


def serve(launch: Launch, ethernet: Ethernet) -> Appliance:
    appliance = launch(SIZE, ready=False, socket_path=ethernet.path)
    appliance.image.write_bytes(PATTERN)
    ethernet.connect()
    appliance.wait_for_console("nbd: 1 exports at port")
    return appliance


def open_client(ethernet: Ethernet, number: int) -> FrameClient:
    client = FrameClient(ethernet, "10.0.2.30", 41000 + number)
    client.wait(lambda: len(client.received) == GREETING_BYTES)
    client.received = b""
    client.say(struct.pack(">I", 3) + option_bytes(Option.GO, go_bytes()))
    client.wait(lambda: client.received.endswith(struct.pack(">QIII", 0x3E889045565A9, 7, 1, 0)))
    client.received = b""
    return client


def expect_replies(client: FrameClient, reads: list[tuple[int, int]]) -> None:
    """Each read answered once, in whatever order, with the bytes of the disk."""
    total = sum(REPLY_BYTES + length for _, length in reads)
    client.wait(lambda: len(client.received) >= total or client.is_reset)
    assert not client.is_reset
    left = dict(enumerate(reads))
    at = 0
    while left:
        magic, error, cookie = struct.unpack_from(">IIQ", client.received, at)
        assert (magic, error) == (0x67446698, 0)
        offset, length = left.pop(cookie)
        at += REPLY_BYTES
        assert client.received[at : at + length] == PATTERN[offset : offset + length]
        at += length
    assert at == len(client.received)
    client.received = b""


def read(client: FrameClient, reads: list[tuple[int, int]], first: int = 0) -> None:
    requests = [
        request_bytes(Command.READ, offset, length, cookie=cookie)
        for cookie, (offset, length) in enumerate(reads, first)
    ]
    client.say(b"".join(requests))


def random_reads(luck: random.Random, count: int, length_max: int) -> list[tuple[int, int]]:
    reads = []
    for _ in range(count):
        length = luck.randrange(1, length_max // 512 + 1) * 512
        reads.append((luck.randrange((SIZE - length) // 512) * 512, length))
    return reads


@pytest.mark.parametrize("window", [600, 1460, 3000, 10000, 65535])
@pytest.mark.parametrize("lose_one_in", [0, 7])
def test_replies_survive_small_windows_and_losses(
    launch: Launch, ethernet: Ethernet, window: int, lose_one_in: int
) -> None:
    """Replies that were gathered in one segment are cut to the window, and sent again when lost."""
    serve(launch, ethernet)
    client = open_client(ethernet, 1)
    luck = random.Random(window)
    client.window = window
    client.lose_one_in = lose_one_in
    client.acknowledge()
    for _ in range(3):
        reads = random_reads(luck, 12, 2 * KIB)
        read(client, reads)
        expect_replies(client, reads)


def test_an_mss_after_the_handshake_is_not_tcp(launch: Launch, ethernet: Ethernet) -> None:
    """It belongs into a SYN only. Taken seriously it would make the limit smaller than segments that
    are waiting already, which TCP stacks have died of."""
    appliance = serve(launch, ethernet)
    client = open_client(ethernet, 0)
    client.window = 2000
    client.acknowledge()
    reads = [(8 * KIB * i, 8 * KIB) for i in range(8)]
    read(client, reads[:4])
    client.wait(lambda: len(client.received) > 4 * KIB)
    for number, mss in enumerate((65535, 0, 1, 40)):
        client.acknowledge(options=struct.pack(">BBH", OPTION_MSS, 4, mss))
        read(client, reads[4 + number : 5 + number], first=4 + number)
    client.window = 65535
    client.acknowledge()
    expect_replies(client, reads)
    assert appliance.is_alive()
