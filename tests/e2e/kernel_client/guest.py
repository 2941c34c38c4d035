"""Starts the User Mode Linux guest and runs commands in it, one step at a time.

    with Guest.start(initramfs, folder, ("127.0.0.1", 10809)) as guest:
        guest.run(f"nbd-client {GATEWAY} {SERVER_PORT} /dev/nbd0")

The guest sees the given server as GATEWAY:SERVER_PORT and nothing else of the world. Each step is
also written as one JSON line to folder/steps.jsonl; the kernel's messages are in
folder/console.log.
"""

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from .initramfs import KERNEL, find_tool
from .relay import Relay

# Addresses live in the guest's own network namespace, so they cannot collide with the host's.
GATEWAY = "10.200.0.1"
GUEST_ADDRESS = "10.200.0.2"
PREFIX_BITS = 24
SERVER_PORT = 10809

MEMORY = "256M"
BOOT_TIMEOUT_S = 30.0
STEP_TIMEOUT_S = 30.0
CONSOLE_TAIL_LINES = 25


class StepFailed(AssertionError):
    """A step ended with another status than the one expected, or not in time."""


@dataclass(frozen=True)
class Step:
    """What one command did: exit status, output without the last line end, and how long it took."""

    command: str
    status: int
    output: str
    seconds: float


class Guest:
    """One booted guest. All of it is gone after kill(), or when this process dies."""

    def __init__(
        self, process: subprocess.Popen[bytes], channel: socket.socket, folder: Path
    ) -> None:
        self._process = process
        self._channel = channel
        self._relay: Relay | None = None
        self._folder = folder
        self._number = 0
        self._received = bytearray()

    @staticmethod
    def start(initramfs: Path, folder: Path, server: tuple[str, int]) -> "Guest":
        """Boots a guest that can reach `server`; its files go to `folder`, which must exist."""
        channel, guest_channel = socket.socketpair()
        hand_over, guest_hand_over = socket.socketpair()
        console = (folder / "console.log").open("ab")
        kernel = [
            str(find_tool(KERNEL)),
            f"mem={MEMORY}",
            f"initrd={initramfs}",
            f"uml_dir={folder}/",
            "con=null",
            "con0=null,fd:1",
            f"ssl0=fd:{guest_channel.fileno()}",
            # Without gro the driver drops the 64 KiB frames that the host's side of a tap sends.
            "vec0:transport=tap,ifname=tap0,depth=128,gro=1",
            "panic=-1",
        ]
        # setpriv ties unshare to us, --kill-child ties the guest to unshare, and the guest is
        # process 1 of its namespace, so the processes that UML makes for itself end with it.
        enclosed = ["setpriv", "--pdeathsig", "KILL", *unshare_words(), "--kill-child=KILL"]
        enclosed += [sys.executable, str(Path(__file__).with_name("enclosure.py"))]
        enclosed += [str(guest_hand_over.fileno()), f"{GATEWAY}/{PREFIX_BITS}", str(SERVER_PORT)]
        process = subprocess.Popen(
            [*enclosed, "--", *kernel],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            pass_fds=(guest_channel.fileno(), guest_hand_over.fileno()),
            start_new_session=True,
        )
        guest_channel.close()
        guest_hand_over.close()
        console.close()
        guest = Guest(process, channel, folder)
        try:
            with hand_over:
                hand_over.settimeout(BOOT_TIMEOUT_S)
                _, descriptors, _, _ = socket.recv_fds(hand_over, 64, 1)
            if not descriptors:
                raise StepFailed(f"no network for the guest\n{guest.console_tail()}")
            guest._relay = Relay(socket.socket(fileno=descriptors[0]), server)
            guest._await_answer("boot", BOOT_TIMEOUT_S)
        except BaseException:
            guest.kill()
            raise
        return guest

    def __enter__(self) -> "Guest":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def run(self, command: str, expect: int | range = 0, timeout_s: float = STEP_TIMEOUT_S) -> Step:
        """Runs a one-line shell command; raises StepFailed unless its status is as expected."""
        step = self.attempt(command, timeout_s)
        allowed = expect if isinstance(expect, range) else (expect,)
        if step.status not in allowed:
            raise StepFailed(
                f"`{command}` ended with {step.status}, expected {expect}:\n{step.output}\n"
                f"--- guest console\n{self.console_tail()}"
            )
        return step

    def attempt(self, command: str, timeout_s: float = STEP_TIMEOUT_S) -> Step:
        """Runs a one-line shell command whatever its status; raises StepFailed when it is late."""
        assert "\n" not in command, "the agent reads one line per command"
        self._number += 1
        self._channel.sendall(f"{self._number} {command}\n".encode())
        return self._await_answer(command, timeout_s)

    def _await_answer(self, command: str, timeout_s: float) -> Step:
        started = time.monotonic()
        mark = f"@@ {self._number} ".encode()
        while True:
            at = self._received.find(mark)
            end = self._received.find(b"\n", at) if at >= 0 else -1
            if end >= 0:
                break
            remaining_s = started + timeout_s - time.monotonic()
            readable = select.select([self._channel], [], [], max(remaining_s, 0))[0]
            piece = self._channel.recv(65536) if readable else b""
            if not piece:
                reason = "the guest ended" if readable else f"no answer within {timeout_s} s"
                raise StepFailed(f"`{command}`: {reason}\n--- guest console\n{self.console_tail()}")
            self._received += piece
        step = Step(
            command,
            int(self._received[at + len(mark) : end]),
            self._received[:at].decode(errors="replace").replace("\r\n", "\n").strip("\n"),
            round(time.monotonic() - started, 3),
        )
        del self._received[: end + 1]
        with (self._folder / "steps.jsonl").open("a") as report:
            report.write(json.dumps(vars(step)) + "\n")
        return step

    def console_tail(self) -> str:
        """The last lines that the guest's kernel wrote."""
        lines = (self._folder / "console.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-CONSOLE_TAIL_LINES:])

    def die(self) -> None:
        """Kills the guest between two instructions; its connections stay open, half finished."""
        if self._process.poll() is not None and self._channel.fileno() < 0:
            return
        self._process.kill()  # unshare; the guest and its helpers follow
        self._process.wait(10)
        self._channel.settimeout(10)
        with contextlib.suppress(OSError):
            while self._channel.recv(65536):  # ends when the last holder of the other end is gone
                pass

    def kill(self) -> None:
        """Kills the guest and resets its connections. May be called twice."""
        self.die()
        self._channel.close()
        if self._relay is not None:
            self._relay.close()


def unshare_words() -> list[str]:
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, "--net", "--pid", "--fork", "--mount-proc"]


def why_impossible() -> str | None:
    """The reason why no guest can run on this host, or None."""
    probe = [*unshare_words(), "ip", "tuntap", "add", "tap0", "mode", "tap"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        tried = subprocess.run(probe, capture_output=True, text=True, timeout=10)
        if tried.returncode == 0:
            return None
        return f"no network namespace with a tap for this user: {tried.stderr.strip()}"
    return "unshare or ip cannot be run here (packages util-linux, iproute2)"
