"""The fixture `victim`: an appliance with a small disk of known content, for whatever a client sends.

After the test another client must read that content, the image must be as the test left it in
`victim.content`, the appliance must not have logged an error, and of those who have left it must have
kept nothing. Of some it only finds out by their taking nothing: where it has little memory, its window
may be closed when they leave, and then QEMU's user network never tells.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from appliance import Appliance, part
from nbd_wire import Error, Wire
from shared import Shared

KIB = 1024
MIB = 1024 * 1024
SIZE = 8 * MIB
PATTERN = random.Random(20).randbytes(SIZE)
OTHER_READS_AT = 4 * MIB
USER_TIMEOUT_S = 5  # twice that is less than the patience of Appliance.wait_until_idle
PAST_THE_END = [
    (SIZE, 512),
    (SIZE - 512, 1024),
    (0, SIZE + 512),
    (SIZE + 512, 512),
    (2**63, 512),
    (2**64 - 512, 512),
    (2**64 - 512, 1024),
    (2**64 - 4096, MIB),
]


@dataclass
class Victim:
    appliance: Appliance
    content: bytearray

    def __post_init__(self) -> None:
        self.host = self.appliance.host
        self.port = self.appliance.port

    def put(self, offset: int, data: bytes) -> None:
        """The disk is to have this data there from now on."""
        self.content[offset : offset + len(data)] = data

    def expect_served(self) -> None:
        """Another client reads what is there."""
        with Wire(self) as other:
            other.go()
            reply = other.read(OTHER_READS_AT, 64 * KIB)
            assert reply.error == Error.NONE
            assert reply.data == part(self.content, OTHER_READS_AT, 64 * KIB)
            other.disconnect()

    def expect_unharmed(self) -> None:
        assert self.appliance.is_alive(), self.appliance.logs()
        self.expect_served()
        # Not compared in the assertion: it would print 8 MiB.
        is_same = self.appliance.image.read_bytes() == self.content
        assert is_same, "the disk has changed"
        self.appliance.wait_until_idle()
        self.appliance.expect_no_errors()


@pytest.fixture(scope="module")
def _shared_victim() -> Iterator[Shared]:
    shared = Shared(PATTERN, SIZE, append=f"user-timeout={USER_TIMEOUT_S}")
    yield shared
    shared.end()


@pytest.fixture
def victim(_shared_victim: Shared) -> Iterator[Victim]:
    if _shared_victim.disk.read_bytes() != PATTERN:
        _shared_victim.disk.write_bytes(PATTERN)
    victim = Victim(_shared_victim.get(), bytearray(PATTERN))
    yield victim
    try:
        victim.expect_unharmed()
    except BaseException:
        victim.appliance.kill()  # the next test gets another one
        raise
