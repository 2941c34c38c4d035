"""An appliance as its user has it: `./build.sh run` in a process of its own, on a free port.

The console goes to a file, keys come from a FIFO, power-off is a signal. Whatever happens to the
test, the appliance is gone when its fixture or the whole process is.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNEL = ROOT / "build" / "riscv64" / "platter.elf"
HOST = "127.0.0.1"
GUEST_ADDRESS = "10.0.2.15"
GREETING = b"NBDMAGICIHAVEOPT"  # NBD protocol, newstyle negotiation

START_ATTEMPTS = 5  # another process may take the port between our look and its use
READY_S = 20
STOP_S = 15  # `run` ends a guest that does not stop after 10 s
CONSOLE_LINES_SHOWN = 40
STATUS_S = 5
IDLE_S = 15  # a client that left in its handshake may be noticed only at the deadline
IDLE = r"^nbd: (\d+) connections .*\bios (\d+) of (\d+) free .*\bpayload (\d+) of (\d+) KiB free\b"
STATUS_END = "--- end of status\n"
# What a guest that is not up yet does not answer is asked again by QEMU only after seconds; a new
# connection is quicker.
GREETING_FIRST_S = 0.1
GREETING_LAST_S = 2.0


class Appliance:
    """One running appliance. `host`, `port`, `export`, `image` and `size` are what a client of the
    first disk needs."""

    live: set[Appliance] = set()

    def __init__(
        self,
        folder: Path,
        disks: Sequence[Path],
        *,
        read_only: bool = False,
        memory_mib: int = 64,
        append: str = "",
        bios: str = "start",
        dhcp: bool = False,
        qemu: str = "",
        socket_path: Path | None = None,
        size: int = 0,
        run_options: Sequence[str] = (),
    ) -> None:
        """`append` is for the guest's command line, `qemu` for QEMU's, `run_options` for `run`, before
        the disks; `folder` takes the logs. `size` is the first disk's where it is not its file's. With
        `socket_path` its network is whoever listens there, and it has GUEST_ADDRESS."""
        memory_mib = int(os.environ.get("MEMORY_MIB", memory_mib))
        self.host = HOST
        self.port = 0
        self.export = ""
        self.image = disks[0]
        self.size = size or disks[0].stat().st_size
        # Log lines that are no failure of the test: a regular expression.
        self.expected_errors: str | None = None
        self.expected_status = 0
        # The test knows that it has ended, or made it end.
        self.end_is_known = False

        folder.mkdir(parents=True, exist_ok=True)
        self._console_path = folder / "console.log"
        self._run_path = folder / "run.log"
        keys = folder / "keys"
        os.mkfifo(keys)
        self._keys = os.open(keys, os.O_RDWR)
        self._command = ["setpriv", "--pdeathsig", "KILL", str(ROOT / "build.sh"), "run"]
        self._command += ["--kernel", str(KERNEL), "--memory", str(memory_mib), "--bios", bios]
        self._command += ["--console-in", str(keys), *run_options]
        for disk in disks:
            self._command += ["--disk", str(disk)]
        for option, words in (("--append", append), ("--qemu", qemu)):
            self._command += [option, words] if words else []
        self._command += ["--read-only"] if read_only else []
        self._command += ["--dhcp"] if dhcp else []
        if socket_path is not None:
            self._command += ["--net", "socket", "--socket", str(socket_path)]
            self._command += ["--ip", f"{GUEST_ADDRESS}/24"]
        self._process: subprocess.Popen[bytes] | None = None

    # Starting

    def start(self, ready: bool = True) -> Appliance:
        """Starts it, and returns when it greets clients, or at once if not `ready`."""
        for _ in range(START_ATTEMPTS):
            self.port = free_port()
            self._spawn()
            if not ready or self._wait_for_greeting():
                return self
            if "host forwarding rule" not in self._run_path.read_text():
                break
        self.kill()
        raise RuntimeError(f"the appliance does not greet\n{self.logs()}")

    def _spawn(self) -> None:
        self._keep_nothing()
        with self._console_path.open("wb") as console, self._run_path.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._command, "--port", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=log,
            )
        Appliance.live.add(self)

    def _wait_for_greeting(self) -> bool:
        patience_s = GREETING_FIRST_S
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and self.is_alive():
            try:
                with socket.create_connection((HOST, self.port), patience_s) as connection:
                    connection.settimeout(patience_s)
                    if connection.recv(len(GREETING), socket.MSG_WAITALL) == GREETING:
                        return self.is_alive()
            except TimeoutError:
                patience_s = min(patience_s * 1.5, GREETING_LAST_S)
            except OSError:
                time.sleep(0.01)
        return False

    # Talking to it

    def uri(self, export: str = "") -> str:
        return f"nbd://{self.host}:{self.port}/{export}"

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def console(self) -> str:
        return self._console_path.read_text(errors="replace")

    def logs(self) -> str:
        """What a person needs to see when something went wrong."""
        command = shlex.join(self._command)
        last_lines = "\n".join(self.console().splitlines()[-CONSOLE_LINES_SHOWN:])
        return f"{command}\n{self._run_path.read_text()}\n{last_lines}"

    def wait_for_console(self, pattern: str, timeout_s: float = READY_S) -> re.Match[str]:
        """Waits until a line of the console matches."""
        deadline = time.monotonic() + timeout_s
        while True:
            is_alive = self.is_alive()
            found = re.search(pattern, self.console(), re.MULTILINE)
            if found is not None:
                return found
            if not is_alive or time.monotonic() > deadline:
                raise AssertionError(f'no line with "{pattern}" on the console:\n{self.logs()}')
            time.sleep(0.02)

    def press(self, key: str) -> None:
        os.write(self._keys, key.encode())

    def status(self) -> str:
        """The status dump that the key `s` prints."""
        before = len(self.console())
        self.press("s")
        deadline = time.monotonic() + STATUS_S
        while True:
            dump = self.console()[before:]
            if STATUS_END in dump:
                return dump
            if time.monotonic() > deadline:
                raise AssertionError(f"no whole status dump:\n{dump}")
            time.sleep(0.02)

    def counter(self, name: str) -> int:
        """A number of the status dump by the words before it: "bytes copied"."""
        status = self.status()
        found = re.search(rf"\b{re.escape(name)} (\d+)", status)
        assert found is not None, f'no "{name}" in the status dump:\n{status}'
        return int(found.group(1))

    def wait_until_idle(self, timeout_s: float = IDLE_S) -> None:
        """Waits until no client is there any more, and nothing is kept of those that were."""
        deadline = time.monotonic() + timeout_s
        while True:
            status = self.status()
            found = re.search(IDLE, status, re.MULTILINE)
            assert found is not None, f"no numbers of the server in the status dump:\n{status}"
            connections, ios, ios_all, bytes_free, bytes_all = found.groups()
            if (connections, ios, bytes_free) == ("0", ios_all, bytes_all):
                return
            assert time.monotonic() < deadline, f"never idle:\n{status}"
            time.sleep(0.05)

    # Ending it

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, timeout_s: float = STOP_S) -> int:
        """Waits for its end; returns the exit status of `run`."""
        assert self._process is not None
        self.end_is_known = True
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end within {timeout_s} s:\n{self.logs()}") from None

    def stop(self) -> None:
        """Asks it to power off; it must do so as expected, and must never have logged an error."""
        assert self.is_alive(), f"it has ended by itself\n{self.logs()}"
        self.signal(signal.SIGTERM)
        status = self.wait()
        assert status == self.expected_status, f"exit status {status}\n{self.logs()}"
        self.expect_no_errors()

    def expect_no_errors(self) -> None:
        bad = [line for line in self.console().splitlines() if re.search("PANIC|error: ", line)]
        if self.expected_errors is not None:
            bad = [line for line in bad if not re.search(self.expected_errors, line)]
        assert not bad, f"on the console: {bad}\n{self.logs()}"

    def kill(self) -> None:
        """Ends it whatever its state is. Harmless when it has ended."""
        self.end_is_known = True
        if self._process is not None and self._process.poll() is None:
            # QEMU would end when `run` does; a stuck one would not.
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
            ends = [_kill(int(pid)) for pid in [*children.read_text().split(), self._process.pid]]
            self._process.wait()
            # Of QEMU, too: what it has begun to write may still be under way.
            for end in ends:
                if end >= 0:
                    select.select([end], [], [], STOP_S)
                    os.close(end)

    def close(self) -> None:
        """Kills it and forgets it."""
        self.kill()
        Appliance.live.discard(self)
        if self._keys >= 0:
            os.close(self._keys)
            self._keys = -1

    def _keep_nothing(self) -> None:
        """A second attempt must not find the keys pressed for the first."""
        os.set_blocking(self._keys, False)
        try:
            while os.read(self._keys, 4096):
                pass
        except BlockingIOError:
            pass

    @staticmethod
    def kill_all() -> None:
        for appliance in list(Appliance.live):
            appliance.kill()


def _kill(pid: int) -> int:
    """Returns what can be read as soon as the process is gone; -1 when it is."""
    try:
        end = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        return end
    except ProcessLookupError:
        return -1


def free_port() -> int:
    with socket.create_server((HOST, 0)) as probe:
        return int(probe.getsockname()[1])


def make_disk(path: Path, size: int, content: bytes = b"") -> Path:
    """A raw image of `size` bytes that begins with `content`; the rest is a hole."""
    with path.open("wb") as image:
        image.write(content)
        image.truncate(size)
    return path


def part(data: bytes | bytearray, offset: int, count: int) -> bytes:
    """`count` bytes at `offset`."""
    return bytes(data[offset : offset + count])
