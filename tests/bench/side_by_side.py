#!/usr/bin/python3
r"""Measures the appliance beside Linux with nbdkit: same machine, same minute, alternating.

    side_by_side.py load --appliance \
        './build.sh run --net tap --tap {tap} --ip {ip} --gw {gw} --disk {image}'
    side_by_side.py boot --net user --appliance \
        './build.sh run --disk {image} --port {port}'

Absolute figures of an emulated machine on a shared host mean little; the ratio of two contestants
that take turns does. Without --appliance the peer runs against itself, which shows the noise.

Everything runs in network and process namespaces of this run, so taps and addresses cannot collide
and every process, QEMU included, is gone when it ends in whatever way. It needs root for that, and
whatever the appliance's command would download must be there beforehand.
"""

import argparse
import contextlib
import json
import os
import select
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import peer_linux

# What this needs on the host, as Debian names it, beside what the peer needs.
DEBIAN_PACKAGES = ("fio", "clang-14", "llvm-14", "qemu-system-misc", "util-linux")

TAP = "tap0"
MEMORY_FOLDER = "/dev/shm"
LOOPBACK = "127.0.0.1"
GUEST_IP = "10.0.2.15"
HOST_IP = "10.0.2.2"
PREFIX_BITS = 24
# QEMU's default for the first network card. Known beforehand, so that no lookup of the host's, once
# a second, stands between a guest that is ready and our noticing it.
GUEST_MAC = "52:54:00:12:34:56"

MEMORY_MIB = 256
DISK_MIB = 1024
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
FIO_GRACE_S = 30.0

# An attempt to connect each millisecond, of which the oldest few stay open: their SYNs wait in the
# tap's queue and are what the guest sees first. The queue is kept as short, or the guest would
# have to wade through hundreds of them when it wakes. Later attempts are rarer, one per hundredth
# of the time gone by: a thousand refusals a second might slow a guest that boots for seconds.
RETRY_INTERVAL_MIN_S = 0.001
RETRY_SHARE = 0.01
PENDING_MAX = 4
LOAD_QUEUE_PACKETS = 1000  # the default of a tap
GREETING_BYTES = 18
GREETING_MAGIC = b"NBDMAGICIHAVEOPT"

# lui t0, 0x100; li t1, 0x5555; sw t1, (t0): the test device of QEMU's virt machine ends it.
FIRMWARE = """
.globl _start
_start:
    lui t0, 0x100
    li t1, 0x5555
    sw t1, 0(t0)
1:  j 1b
"""


@dataclass(frozen=True)
class Workload:
    """One measurement with fio's nbd engine."""

    title: str
    pattern: str
    block: str
    depth: int
    unit: str


WORKLOADS = (
    Workload("4 KiB random read, depth 1", "randread", "4k", 1, "IOPS"),
    Workload("4 KiB random read, depth 32", "randread", "4k", 32, "IOPS"),
    Workload("1 MiB sequential read, depth 8", "read", "1m", 8, "MB/s"),
    Workload("1 MiB sequential write, depth 8", "write", "1m", 8, "MB/s"),
)


class Failure(Exception):
    """A contestant did not do what it was started for."""


class Contestant:
    """A server that can be started; `command` gives what to run to have it serve an image."""

    def __init__(
        self, name: str, command: Callable[[Path], list[str]], server: tuple[str, int], log: Path
    ) -> None:
        self.name = name
        self.command = command
        self.server = server
        self._log = log

    @contextlib.contextmanager
    def running(self, image: Path) -> Iterator[float]:
        """Starts it, gives the seconds until its first greeting, and stops it at the end."""
        with self._log.open("wb") as log:
            started = time.monotonic()
            process = subprocess.Popen(
                self.command(image),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield self._await_greeting(process, started)
        finally:
            _stop(process)

    def _await_greeting(self, process: subprocess.Popen[bytes], started: float) -> float:
        pending: list[socket.socket] = []
        try:
            while (now := time.monotonic()) < started + READY_TIMEOUT_S:
                if process.poll() is not None:
                    raise Failure(
                        f"{self.name} ended with {process.returncode}:\n{self.log_tail()}"
                    )
                if len(pending) == PENDING_MAX:
                    pending.pop().close()
                pending.append(_begin_connect(self.server))
                next_s = now + max(RETRY_INTERVAL_MIN_S, (now - started) * RETRY_SHARE)
                while (wait_s := next_s - time.monotonic()) > 0:
                    # Refused and reset ones are readable too, and are dropped; greeted ones end it.
                    for connection in select.select(pending, [], [], wait_s)[0]:
                        if _has_greeting(connection):
                            return time.monotonic() - started
                        pending.remove(connection)
                        connection.close()
        finally:
            for connection in pending:
                connection.close()
        raise Failure(f"{self.name} did not answer in {READY_TIMEOUT_S} s:\n{self.log_tail()}")

    def log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])


def _begin_connect(server: tuple[str, int]) -> socket.socket:
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    connection.setblocking(False)
    # Not connected yet, or refused at once: either shows when it is read.
    connection.connect_ex(server)
    return connection


def _has_greeting(connection: socket.socket) -> bool:
    try:
        connection.setblocking(True)
        connection.settimeout(1)
        greeting = connection.recv(GREETING_BYTES, socket.MSG_WAITALL)
    except OSError:
        return False
    if greeting and not greeting.startswith(GREETING_MAGIC):
        raise Failure(f"not an NBD server: {greeting!r}")
    return len(greeting) == GREETING_BYTES


def _reap_orphans() -> None:
    """This is process 1 of its namespace: what its children leave behind is for it to bury."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a contestant and whatever it has started, and waits until the tap is free again."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        deadline = time.monotonic() + STOP_TIMEOUT_S / 2
        while time.monotonic() < deadline:
            process.poll()
            _reap_orphans()
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.005)
    raise Failure(f"process group {process.pid} does not end")


def measure(workload: Workload, server: tuple[str, int], seconds: int) -> float:
    command = ["fio", f"--name={workload.pattern}", "--ioengine=nbd", "--output-format=json"]
    command += [f"--uri=nbd://{server[0]}:{server[1]}/", f"--rw={workload.pattern}"]
    command += [f"--bs={workload.block}", f"--iodepth={workload.depth}", "--randrepeat=0"]
    command += ["--time_based", f"--runtime={seconds}", f"--size={DISK_MIB}m"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + FIO_GRACE_S)
    if done.returncode:
        raise Failure(f"fio: {workload.title}: {done.stderr.strip()}")
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    side: dict[str, float] = job["write" if "write" in workload.pattern else "read"]
    return side["iops"] if workload.unit == "IOPS" else side["bw_bytes"] / 1e6


def run_load(contestants: list[Contestant], image: Path, rounds: int, seconds: int) -> object:
    figures: dict[str, dict[str, list[float]]] = {}
    for turn in range(rounds):
        # Whoever goes second inherits the other's heat: take turns at that as well.
        for contestant in contestants if turn % 2 == 0 else contestants[::-1]:
            with contestant.running(image):
                for workload in WORKLOADS:
                    figure = measure(workload, contestant.server, seconds)
                    by_contestant = figures.setdefault(workload.title, {})
                    by_contestant.setdefault(contestant.name, []).append(figure)
                    _progress(
                        f"{turn + 1}/{rounds} {contestant.name}: {workload.title}: {figure:.0f}"
                    )
    names = [contestant.name for contestant in contestants]
    print_table(
        [(f"{load.title}, {load.unit}", figures[load.title]) for load in WORKLOADS], names, 0
    )
    return figures


def run_boot(contestants: list[Contestant], floor: list[str], image: Path, rounds: int) -> object:
    figures: dict[str, list[float]] = {}
    for turn in range(rounds):
        figures.setdefault("QEMU alone", []).append(time_to_exit_s(floor) * 1000)
        for contestant in contestants if turn % 2 == 0 else contestants[::-1]:
            with contestant.running(image) as ready_s:
                figures.setdefault(contestant.name, []).append(ready_s * 1000)
        latest = ", ".join(f"{name} {taken[-1]:.0f}" for name, taken in figures.items())
        _progress(f"{turn + 1}/{rounds} {latest} ms")
    names = [contestants[0].name, "QEMU alone"]
    print_table([("first greeting, ms", figures)], names, 1)
    for other in contestants[1:]:
        print_table([("first greeting, ms", figures)], [other.name, "QEMU alone"], 1)
    return figures


def time_to_exit_s(command: list[str]) -> float:
    started = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    # Popen.wait() with a deadline looks every 50 ms; a descriptor of the process tells at once.
    exited = os.pidfd_open(process.pid)
    try:
        if not select.select([exited], [], [], STOP_TIMEOUT_S)[0]:
            raise Failure(f"`{shlex.join(command)}` does not end")
        taken_s = time.monotonic() - started
    finally:
        os.close(exited)
        _stop(process)
    if process.returncode:
        raise Failure(f"`{shlex.join(command)}` ended with {process.returncode}")
    return taken_s


def build_firmware(work: Path) -> Path:
    """The smallest guest: its first instructions power the machine off."""
    source, built, flat = work / "off.S", work / "off.o", work / "off.bin"
    source.write_text(FIRMWARE)
    target = ["--target=riscv64-none-elf", "-march=rv64imac", "-mabi=lp64", "-mno-relax"]
    compile_it = ["clang-14", *target, "-c", str(source), "-o", str(built)]
    subprocess.run(compile_it, check=True, timeout=30)
    extract = ["llvm-objcopy-14", "-O", "binary", "--only-section=.text", str(built), str(flat)]
    subprocess.run(extract, check=True, timeout=30)
    return flat


def print_table(
    rows: list[tuple[str, dict[str, list[float]]]], names: list[str], places: int
) -> None:
    """Medians with their range, one row each, and the ratio of the first name to the second."""
    width = max(len(title) for title, _ in rows)
    print(f"{'':{width}} | {names[0]:^24} | {names[1]:^24} | ratio")
    for title, figures in rows:
        cells = []
        for name in names:
            taken = figures[name]
            span = f"[{min(taken):.{places}f}-{max(taken):.{places}f}]"
            cells.append(f"{statistics.median(taken):.{places}f} {span}")
        ratio = statistics.median(figures[names[0]]) / statistics.median(figures[names[1]])
        print(f"{title:{width}} | {cells[0]:>24} | {cells[1]:>24} | {ratio:.2f}")


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def enter_namespaces() -> None:
    """Starts this program again where the tap is its own, unless that has been done."""
    if os.environ.get("SIDE_BY_SIDE_ENCLOSED") == "1":
        return
    if os.geteuid() != 0:
        raise SystemExit("needs root: it makes a tap in a network namespace of its own")
    os.environ["SIDE_BY_SIDE_ENCLOSED"] = "1"
    enclose = ["unshare", "--net", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
    os.execvp(enclose[0], [*enclose, sys.executable, *sys.argv])


def make_tap_and_memory_disk() -> None:
    """Both belong to the namespaces: the memory is given back even if this process is killed."""
    for step in (
        f"mount -t tmpfs -o size={2 * DISK_MIB}m side_by_side {MEMORY_FOLDER}",
        "ip link set lo up",
        f"ip tuntap add {TAP} mode tap vnet_hdr",
        f"ip link set {TAP} txqueuelen {PENDING_MAX}",
        f"ip addr add {HOST_IP}/{PREFIX_BITS} dev {TAP}",
        f"ip link set {TAP} up",
        f"ip neigh replace {GUEST_IP} lladdr {GUEST_MAC} dev {TAP} nud permanent",
    ):
        subprocess.run(step.split(), check=True, timeout=10)


def set_queue_length(packets: int) -> None:
    """Of the tap, from the host to the guest. It takes effect when the guest opens the tap."""
    command = ["ip", "link", "set", TAP, "txqueuelen", str(packets)]
    subprocess.run(command, check=True, timeout=10)


def make_disk(image: Path) -> None:
    """A disk without holes, which neither side could answer from nothing."""
    piece = os.urandom(1024 * 1024)
    with image.open("wb") as disk:
        for _ in range(DISK_MIB):
            disk.write(piece)


def contestants_of(given: argparse.Namespace, network: str, work: Path) -> list[Contestant]:
    address = f"{GUEST_IP}/{PREFIX_BITS}"
    port = peer_linux.PORT
    server = (GUEST_IP if given.net == "tap" else LOOPBACK, port)

    def start_peer(image: Path) -> list[str]:
        return peer_linux.build().command(network, image, address, HOST_IP, MEMORY_MIB)

    def start_appliance(image: Path) -> list[str]:
        places = {"tap": TAP, "port": port, "image": image, "ip": address, "gw": HOST_IP}
        template = shlex.split(given.appliance)
        return [word.format(**places, memory=MEMORY_MIB) for word in template]

    linux = Contestant("Linux, nbdkit", start_peer, server, work / "peer.log")
    if given.appliance is None:
        return [Contestant("Linux again", start_peer, server, work / "appliance.log"), linux]
    appliance = Contestant("appliance", start_appliance, server, work / "appliance.log")
    return [appliance] if given.no_peer else [appliance, linux]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    load = verbs.add_parser("load", help="reads and writes with fio")
    boot = verbs.add_parser("boot", help="time from start to the first greeting, beside QEMU alone")
    for verb, rounds in ((load, 3), (boot, 15)):
        verb.add_argument(
            "--appliance",
            metavar="COMMAND",
            help="serves {image} as {ip} (address/bits, gateway {gw}) on {tap}, or on the user"
            " network at 127.0.0.1:{port}; {memory} in MiB; without it the peer meets itself",
        )
        verb.add_argument(
            "--net",
            choices=("tap", "user"),
            default="tap",
            help="how the contestants are reached, and what QEMU alone has; default: %(default)s",
        )
        verb.add_argument("--rounds", type=int, default=rounds, help="default: %(default)s")
        verb.add_argument("--json", type=Path, help="write every figure to this file")
    load.add_argument(
        "--seconds", type=int, default=5, help="each measurement; default: %(default)s"
    )
    load.set_defaults(no_peer=False)
    boot.add_argument("--no-peer", action="store_true", help="only the appliance and QEMU alone")
    given = parser.parse_args()
    if given.no_peer and given.appliance is None:
        parser.error("--no-peer leaves nobody to measure without --appliance")

    if not given.no_peer:
        peer_linux.build()  # before the network is gone
    enter_namespaces()
    make_tap_and_memory_disk()
    with tempfile.TemporaryDirectory(prefix="side_by_side.", dir=MEMORY_FOLDER) as folder:
        work = Path(folder)
        image = work / "disk.raw"
        make_disk(image)
        by_net = {"tap": peer_linux.tap(TAP), "user": peer_linux.user(peer_linux.PORT, GUEST_IP)}
        network = by_net[given.net]
        contestants = contestants_of(given, network, work)
        try:
            if given.verb == "load":
                set_queue_length(LOAD_QUEUE_PACKETS)
                figures = run_load(contestants, image, given.rounds, given.seconds)
            else:
                machine = peer_linux.machine(network, image, MEMORY_MIB)
                floor = [*machine, "-bios", str(build_firmware(work))]
                figures = run_boot(contestants, floor, image, given.rounds)
        except Failure as failure:
            raise SystemExit(str(failure)) from None
        if given.json:
            given.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
