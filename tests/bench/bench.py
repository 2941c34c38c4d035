#!/usr/bin/python3
"""Measures the appliance beside others: same machine, same minute, taking turns.

Absolute figures of an emulated machine on a shared host mean little; the ratio of two contestants
that take turns does. Called by `./build.sh bench`, which builds what is needed beforehand.
"""

from __future__ import annotations

import argparse
import os
import platform
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import counting
import enclosure
import load
import peer_linux
import picture
from contestants import (
    BOOT_QUEUE_PACKETS,
    KINDS,
    LOAD_QUEUE_PACKETS,
    MEMORY_MIB,
    STOP_TIMEOUT_S,
    Contestant,
    Failure,
    Kind,
    stop,
)
from enclosure import MEMORY_FOLDER, Place
from figures import Figures

ROOT = Path(__file__).resolve().parents[2]
APPLIANCE_IMAGES = (ROOT / "build/riscv64/platter.elf", ROOT / "build/riscv64/start.bin")
REFERENCE = "platter"
OURS = ("platter", "platter-native")
QUICK_PEERS = ("linux-nbdkit", "host-nbdkit", "host-qemu-nbd")
# Whose guest's instructions are counted, and how many times fewer requests are sent to those who
# need minutes for what others do in seconds. They are left out of the quick form.
COUNTED = {"platter": 1, "platter-native": 1, "linux-nbdkit": 8}
MTU_LEAST, MTU_MOST = 576, 65521  # of a tap that carries IPv4
SPARE_MIB = 256  # of the memory disk, beside the disks

READY = "first greeting, ms"
IMAGE_SIZE = "image, KiB"
MEMORY_FLOOR = "smallest memory that serves, MiB"
OVERLOAD_SHARE = "share of the peak at lower load, %"
QEMU_ALONE = "QEMU alone"
FLOOR_MAX_MIB = 64
FLOOR_PATIENCE_S = 15.0
VERIFY_TIMEOUT_S = 60

# lui t0, 0x100; li t1, 0x5555; sw t1, (t0): the test device of QEMU's virt machine ends it.
FIRMWARE = """
.globl _start
_start:
    lui t0, 0x100
    li t1, 0x5555
    sw t1, 0(t0)
1:  j 1b
"""

METRICS = (
    load.OPERATIONS,
    load.THROUGHPUT,
    load.latency_metric("p50"),
    load.latency_metric("p99"),
    load.latency_metric("p99.9"),
    load.FLUSH,
    OVERLOAD_SHARE,
    load.LEAST_SHARE,
    load.CPU_PER_OPERATION,
    load.CPU_PER_GIB,
    counting.PER_REQUEST,
    READY,
    MEMORY_FLOOR,
    IMAGE_SIZE,
)
PANELS = (
    *((it.title, it.metric) for it in (load.READ_DEPTH_1, load.READ_DEPTH_32, load.PEAK)),
    *((it.title, it.metric) for it in (load.BARE_READ_DEPTH_1, load.BARE_READ_DEPTH_32)),
    *((it.title, it.metric) for it in (load.OVERLOAD, load.WRITE_DEPTH_1, load.WRITE_DEPTH_32)),
    *((it.title, it.metric) for it in (load.SEQUENTIAL_READ, load.SEQUENTIAL_WRITE)),
    (load.READ_DEPTH_32.title, load.latency_metric("p99")),
    (load.FLUSHED.title, load.FLUSH),
)


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    is_quick: bool
    loads: tuple[load.Load, ...]
    turns: int
    boot_turns: int
    count_times: int
    seconds: float
    disk_mib: int


@dataclass
class Run:
    """One run: who takes part, what was found, and where it is written."""

    plan: Plan
    contestants: list[Contestant]
    figures: Figures
    about: dict[str, object]
    work: Path
    out: Path
    net: str

    def names(self) -> list[str]:
        present = [it.name for it in self.contestants]
        return present + [it for it in self.figures.contestants() if it not in present]

    def tables(self) -> str:
        parts = []
        for metric in METRICS:
            having = {it.contestant for it in self.figures.taken if it.metric == metric}
            if having:
                names = [name for name in self.names() if name in having]
                parts.append(self.figures.as_table(metric, names, REFERENCE))
        return "\n".join(parts)

    def write(self) -> None:
        """Everything so far: after each part however it ended, and each turn of the loads."""
        self.out.mkdir(parents=True, exist_ok=True)
        about = "".join(f"- {key}: {value}\n" for key, value in self.about.items())
        (self.out / "figures.csv").write_text(self.figures.as_csv())
        (self.out / "figures.json").write_text(self.figures.as_json(self.about))
        (self.out / "figures.md").write_text(f"{about}\n{self.tables()}")
        drawn = picture.draw(
            f"Medians and ranges, {self.net} network", self.figures, PANELS, self.names(), OURS
        )
        (self.out / "figures.svg").write_text(drawn)


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def in_turns(contestants: Sequence[Contestant], turn: int) -> Sequence[Contestant]:
    """Whoever goes second inherits the other's heat: take turns at that as well."""
    return contestants if turn % 2 == 0 else contestants[::-1]


# The parts of a run


def measure_load(run: Run) -> None:
    client = load.build_client(run.work)
    for contestant in run.contestants:
        contestant.place.set_queue_length(LOAD_QUEUE_PACKETS)
        contestant.start()
        progress(f"{contestant.name} serves")
    try:
        for turn in range(run.plan.turns):
            for one in run.plan.loads:
                suited = [it for it in run.contestants if one.suits(it)]
                for contestant in in_turns(suited, turn):
                    measure_one(run, one, contestant, client, turn)
            for contestant in run.contestants:
                relate_overload(run, contestant.name, turn)
            run.write()
    finally:
        for contestant in run.contestants:
            contestant.stop()
    restarts = [f"{it.name} {it.restarts}" for it in run.contestants if it.restarts]
    run.about["failed and started anew"] = ", ".join(restarts) or "nobody"


def measure_one(
    run: Run, one: load.Load, contestant: Contestant, client: Path, turn: int
) -> None:
    """Who fails is started anew and tried once more; that is told with the results."""
    for is_last in (False, True):
        try:
            taken = load.measure(
                one, contestant, client, run.plan.seconds, run.plan.disk_mib
            )
        except Failure as failure:
            progress(f"{contestant.name}: {failure}\n{contestant.log_tail()}")
            contestant.stop()
            contestant.restarts += 1
            contestant.start()
            if is_last:
                progress(f"{contestant.name}: no figure for {one.title}")
            continue
        for metric, value in taken.items():
            run.figures.add(contestant.name, one.title, metric, turn, value)
        first = taken[one.metric]
        progress(
            f"{turn + 1}/{run.plan.turns} {contestant.name}: {one.title}: {first:.0f} {one.metric}"
        )
        return


def relate_overload(run: Run, name: str, turn: int) -> None:
    """Throughput under overload, as a share of the best that the same client read at lower load in
    the same turn."""
    at_turn = [it for it in run.figures.taken if (it.contestant, it.turn) == (name, turn)]
    rates = {it.load: it.value for it in at_turn if it.metric == load.OPERATIONS}
    reads = [it for it in run.plan.loads if it.pattern == "randread" and it.title in rates]
    for under in (it for it in reads if it.is_overload):
        lower = [it for it in reads if it.is_bare == under.is_bare and not it.is_overload]
        if lower:
            share = 100 * rates[under.title] / max(rates[it.title] for it in lower)
            run.figures.add(name, under.title, OVERLOAD_SHARE, turn, share)


def measure_boot(run: Run) -> None:
    place = next(it.place for it in run.contestants if it.kind.runs_on != "host")
    network = guest_network(place)
    image = run.contestants[0].image
    machine = peer_linux.machine(network, image, MEMORY_MIB)
    alone = [*machine, "-bios", str(build_firmware(run.work))]
    title = "from the command on"
    for contestant in run.contestants:
        contestant.place.set_queue_length(BOOT_QUEUE_PACKETS)
    for turn in range(run.plan.boot_turns):
        said = []
        run.figures.add(QEMU_ALONE, title, READY, turn, time_to_exit_s(alone) * 1000)
        for contestant in in_turns(run.contestants, turn):
            with contestant.running() as ready_s:
                run.figures.add(contestant.name, title, READY, turn, ready_s * 1000)
                said.append(f"{contestant.name} {ready_s * 1000:.0f}")
        progress(f"{turn + 1}/{run.plan.boot_turns} {', '.join(said)} ms")


def guest_network(place: Place) -> peer_linux.Network:
    if place.kind == "tap":
        return peer_linux.tap(place.tap, place.mtu)
    return peer_linux.user(place.server[1], place.guest_ip)


def measure_instructions(run: Run) -> None:
    for contestant in run.contestants:
        fewer = COUNTED.get(contestant.name, 0)
        if fewer == 0 or (run.plan.is_quick and fewer > 1):
            continue
        contestant.place.set_queue_length(LOAD_QUEUE_PACKETS)
        with counting.counted(contestant, run.work) as counter:
            for requests in counting.REQUESTS:
                taken = counting.per_request(
                    counter, contestant.uri, requests.fewer(fewer), run.plan.count_times
                )
                run.figures.add(contestant.name, requests.title, counting.PER_REQUEST, 0, taken)
                progress(f"{contestant.name}: {requests.title}: {taken:.0f} guest instructions")


def measure_profile(run: Run) -> None:
    contestant = next(it for it in run.contestants if it.name == REFERENCE)
    contestant.place.set_queue_length(LOAD_QUEUE_PACKETS)
    text = []
    with counting.counted(contestant, run.work) as counter:
        for requests in counting.REQUESTS:
            if requests.size == 4 * counting.KIB and not requests.is_write:
                text.append(counting.profile(counter, contestant.uri, requests))
    run.out.mkdir(parents=True, exist_ok=True)
    (run.out / "profile.txt").write_text("\n".join(text))
    print("\n".join(text))


def measure_size(run: Run) -> None:
    """Bytes that QEMU is given to start."""
    for contestant in run.contestants:
        files: Sequence[Path] = ()
        if contestant.kind.runs_on == "platter":
            files = APPLIANCE_IMAGES
        elif contestant.kind.runs_on == "linux":
            peer = peer_linux.build(contestant.name.removeprefix("linux-"))
            files = (peer.kernel, peer.initramfs)
        if files:
            size = sum(file.stat().st_size for file in files) / 1024
            title = "kernel and firmware or initramfs"
            run.figures.add(contestant.name, title, IMAGE_SIZE, 0, size)


def measure_memory(run: Run) -> None:
    """Halves the interval between too little and enough until they are neighbours."""
    contestant = next(it for it in run.contestants if it.name == REFERENCE)
    too_little, enough = 0, FLOOR_MAX_MIB
    while enough - too_little > 1:
        tried = (too_little + enough) // 2
        serves = serves_with(contestant, tried)
        progress(f"{tried} MiB {'serve' if serves else 'do not serve'}")
        too_little, enough = (too_little, tried) if serves else (tried, enough)
    if enough == FLOOR_MAX_MIB:
        raise Failure(f"{contestant.name} does not serve with {FLOOR_MAX_MIB - 1} MiB")
    title = "write and verify 8 MiB, depth 16"
    run.figures.add(contestant.name, title, MEMORY_FLOOR, 0, enough)


def serves_with(contestant: Contestant, memory_mib: int) -> bool:
    command = ["fio", "--name=verify", "--ioengine=nbd", f"--uri={contestant.uri}", "--bs=64k"]
    command += ["--rw=randwrite", "--size=8m", "--iodepth=16", "--verify=crc32c", "--do_verify=1"]
    try:
        with contestant.running(memory_mib, timeout_s=FLOOR_PATIENCE_S):
            done = subprocess.run(
                command, cwd=MEMORY_FOLDER, capture_output=True, timeout=VERIFY_TIMEOUT_S
            )
            return done.returncode == 0
    except (Failure, subprocess.TimeoutExpired):
        return False


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
        stop(process)
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


PARTS = {
    "size": (measure_size,),
    "load": (measure_load,),
    "boot": (measure_boot,),
    "instructions": (measure_instructions,),
    "memory": (measure_memory,),
    "profile": (measure_profile,),
    "all": (measure_size, measure_boot, measure_memory, measure_instructions, measure_load),
}
ALONE = ("memory", "profile")  # parts that only the appliance takes part in


# Setting up


def kinds_of(given: argparse.Namespace) -> list[Kind]:
    peers = [name for name in KINDS if name not in OURS]
    if given.part in ALONE or given.peers == "none":
        chosen = []
    elif given.peers == "all":
        chosen = peers
    elif given.peers is None:
        chosen = [name for name in peers if name in QUICK_PEERS] if given.quick else peers
    else:
        chosen = given.peers.split(",")
        unknown = [name for name in chosen if name not in peers]
        if unknown:
            known = ", ".join(peers)
            raise SystemExit(f"bench: no peer {', '.join(unknown)}; there are: {known}")
    ours = OURS[:1] if given.part in ALONE else OURS
    return [KINDS[name] for name in (*ours, *chosen)]


def plan_of(given: argparse.Namespace) -> Plan:
    loads = tuple(
        it
        for it in load.LOADS
        if (it.is_quick or not given.quick) and (given.only or "") in it.title
    )
    if not loads:
        raise SystemExit(f'bench: no load has "{given.only}" in its title')
    turns = given.rounds or (1 if given.quick else 3)
    boot_turns = given.rounds or (3 if given.quick else 5 if given.part == "all" else 15)
    seconds = given.seconds or (1.0 if given.quick else 1.5)
    count_times = 1 if given.quick else 3
    return Plan(given.quick, loads, turns, boot_turns, count_times, seconds, given.disk_mib)


def describe(given: argparse.Namespace, kinds: Sequence[Kind]) -> dict[str, object]:
    def first_line(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        return (done.stdout.splitlines() or ["unknown"])[0]

    about: dict[str, object] = {
        "commit": first_line("git", "describe", "--always", "--dirty"),
        "host": f"Linux {platform.release()}, {os.cpu_count()} processors",
        "QEMU": first_line("qemu-system-riscv64", "--version"),
        "network": f"tap with an MTU of {given.mtu}" if given.net == "tap" else given.net,
        "memory of a guest": f"{MEMORY_MIB} MiB",
        "disk": f"{given.disk_mib} MiB on tmpfs, one image for each contestant",
    }
    for kind in kinds:
        about[kind.name] = kind.what
    if any(kind.runs_on == "linux" for kind in kinds):
        versions = sorted(peer_linux.build().versions.items())
        about["in the Linux guests"] = ", ".join(
            f"{package} {version}"
            for package, version in versions
            if package in peer_linux.GUEST_PACKAGES or package.startswith("linux-image")
        )
    return about


def gather(kinds: Sequence[Kind], given: argparse.Namespace, work: Path) -> list[Contestant]:
    has_direct_io = enclosure.has_direct_io(work)
    contestants = []
    first: Path | None = None
    for index, kind in enumerate(kinds):
        if kind.needs_direct_io and not has_direct_io:
            progress(f"{kind.name} is left out: this kernel has no O_DIRECT on tmpfs")
            continue
        place = Place("host" if kind.runs_on == "host" else given.net, index, given.mtu)
        place.make()
        image = work / f"{kind.name}.raw"
        if first is None:
            enclosure.make_disk(image, given.disk_mib)
            first = image
        else:
            image.write_bytes(first.read_bytes())
        contestants.append(Contestant(kind, place, image, work / f"{kind.name}.log"))
    return contestants


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./build.sh bench",
        description=(__doc__ or "").split("\n\n", maxsplit=1)[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("part", nargs="?", choices=PARTS, default="all")
    parser.add_argument("--quick", action="store_true", help="few loads and peers, short")
    parser.add_argument("--net", choices=("tap", "user"), default="tap", help="of the guests")
    parser.add_argument("--mtu", type=int, default=1500, help="of the taps")
    parser.add_argument("--peers", help="all, none, or names with commas between them")
    parser.add_argument("--only", help="the loads whose title has these words")
    parser.add_argument("--rounds", type=int, help="turns that each contestant takes")
    parser.add_argument("--seconds", type=float, help="of each load")
    parser.add_argument("--disk-mib", type=int, default=256, help="size of the disks")
    parser.add_argument("--out", type=Path, default=ROOT / "build/bench", help="folder of results")
    given = parser.parse_args()
    if not MTU_LEAST <= given.mtu <= MTU_MOST:
        parser.error(f"--mtu must be from {MTU_LEAST} to {MTU_MOST}")
    for name in ("rounds", "seconds", "disk_mib"):
        value = getattr(given, name)
        if value is not None and value <= 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0")
    return given


def main() -> None:
    given = parse()
    kinds = kinds_of(given)
    for kind in kinds:
        if kind.runs_on == "linux":
            peer_linux.build(kind.name.removeprefix("linux-"))  # before the network is gone
    enclosure.enter()
    for number in (signal.SIGTERM, signal.SIGHUP):
        # The first process of a namespace does not get what it has no handler for.
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    enclosure.make_memory_disk(len(kinds) * given.disk_mib + SPARE_MIB)
    with tempfile.TemporaryDirectory(prefix="bench.", dir=MEMORY_FOLDER) as folder:
        work = Path(folder)
        contestants = gather(kinds, given, work)
        about = describe(given, kinds)
        run = Run(plan_of(given), contestants, Figures(), about, work, given.out, given.net)
        try:
            for part in PARTS[given.part]:
                try:
                    part(run)
                finally:
                    if run.figures.taken:
                        run.write()
        except Failure as failure:
            raise SystemExit(f"bench: {failure}") from None
    if run.figures.taken:
        print(run.tables())
        progress(f"Written to {given.out}: figures.csv, figures.json, figures.md, figures.svg")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
