"""Real TCP clients of this kernel, over a wire that loses, delays, doubles and spoils frames, with
connections cut and made again, and the cable pulled: no wrong byte, no stall, no memory gone.

    LOSSY_S=60 ./build.sh test e2e -k lossy     # seconds of each phase; 1 otherwise
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance import GUEST_ADDRESS, Appliance
from kernel_client.guest import unshare_words, why_impossible
from lossy_load import BLOCK, BLOCKS, CLIENTS, PHASES
from qmp import Qmp, qmp_words

PHASE_S = float(os.environ.get("LOSSY_S", "1"))
CABLE_OUT_S = 0.4
CLOSE_S = 15
LAST_WORD_S = 30
SLACK_KIB = 64  # pages that a size of objects was given while there were many

Launch = Callable[..., Appliance]


class Enclosed:
    """The wire and its clients, in namespaces of their own."""

    def __init__(self, path: Path, seed: int) -> None:
        program = str(Path(__file__).with_name("lossy_load.py"))
        command = ["setpriv", "--pdeathsig", "KILL", *unshare_words(), "--kill-child=KILL"]
        command += [sys.executable, program, str(path), str(seed), str(PHASE_S)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def next_line(self) -> list[str]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        word, _, rest = line.partition(" ")
        assert word not in ("", "failed"), rest.replace(" | ", "\n") or "it has ended"
        return [word, rest]

    def expect(self, word: str) -> None:
        assert self.next_line()[0] == word

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.mark.deadline(120 + PHASE_S * 2 * len(PHASES))
def test_a_lossy_wire_costs_time_and_nothing_else(launch: Launch, folder: Path) -> None:
    if reason := why_impossible():
        pytest.skip(reason)
    seed = int(os.environ.get("PLATTER_SEED", random.SystemRandom().randrange(1 << 32)))
    enclosed = Enclosed(folder / "wire", seed)
    try:
        enclosed.expect("listening")
        appliance = launch(
            BLOCK * BLOCKS * CLIENTS,
            ready=False,
            append="keepalive=2",  # a reset may be lost, too: then only silence tells
            socket_path=folder / "wire",
            qemu=qmp_words(folder / "qmp"),
        )
        enclosed.expect("ready")
        objects, heap_kib = memory(appliance)
        enclosed.go()
        follow(enclosed, folder / "qmp", seed)
        # The last word to a client that is gone may have been lost, and waits for its time-out.
        deadline = time.monotonic() + LAST_WORD_S
        while True:
            objects_now, heap_kib_now = memory(appliance)
            if objects_now == objects or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        assert objects_now == objects and heap_kib_now <= heap_kib + SLACK_KIB
    finally:
        enclosed.end()
    log = appliance.console()
    assert log.count("link is down") == 1 and log.count("link is up") == 2


def memory(appliance: Appliance) -> tuple[dict[str, str], int]:
    """When nobody is there: objects by size, as far as there are any, and KiB in use."""
    appliance.wait_until_idle()
    deadline = time.monotonic() + CLOSE_S
    while appliance.counter("net: connections") != 0:
        assert time.monotonic() < deadline, appliance.status()
        time.sleep(0.2)
    objects = re.findall(r"objects of (\d+) bytes: (\d+) in", appliance.status())
    assert appliance.counter("failures") == 0
    return {size: count for size, count in objects if count != "0"}, appliance.counter("memory:")


def follow(enclosed: Enclosed, qmp: Path, seed: int) -> None:
    """Until it is done; pulls the cable when that is due."""
    name = ""
    while True:
        try:
            word, rest = enclosed.next_line()
        except AssertionError as failure:
            raise AssertionError(f"PLATTER_SEED={seed}, phase {name}") from failure
        if word == "phase":
            name = rest
        elif word == "counts":
            print(rest)
        elif word == "done":
            print(rest)
            return
        if name == "link":
            with Qmp(qmp) as monitor:
                time.sleep(PHASE_S / 4)
                monitor("set_link", name="net0", up=False)
                time.sleep(CABLE_OUT_S)
                monitor("set_link", name="net0", up=True)
            name = "after the link was down"
