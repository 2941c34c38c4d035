"""The loads: what fio or the bare client (client.c) is told, and what is taken from its answer."""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from contestants import Contestant, Failure
from enclosure import MEMORY_FOLDER

GRACE_S = 60.0
LOG_INTERVAL_MS = 100
MICROSECOND_NS = 1000.0
PERCENTILES = (("50.000000", "p50"), ("99.000000", "p99"), ("99.900000", "p99.9"))
GIB = 1024.0**3
BLOCK_BYTES = {"4k": 4096, "1m": 1024 * 1024}
HERE = Path(__file__).resolve().parent

# Metrics, named with their units.
OPERATIONS = "operations/s"
THROUGHPUT = "MB/s"
CPU_PER_OPERATION = "server CPU, µs per operation"
CPU_PER_GIB = "server CPU, s per GiB"
FLUSH = "flush, µs"
LEAST_SHARE = "least job's share of the mean, %"


@dataclass(frozen=True)
class Load:
    """One measurement with a client; depth is that of each connection."""

    title: str
    pattern: str
    block: str
    depth: int
    connections: int = 1
    more: tuple[str, ...] = ()
    is_quick: bool = False
    # Many connections at once, each looked at by itself; not for emulated Linux, which takes
    # minutes to get through what is in flight.
    is_overload: bool = False
    # fio's nbd engine is what people have, and takes as much of a processor as a good server. The
    # bare client takes little, so that the server is what is measured.
    is_bare: bool = False

    @property
    def metric(self) -> str:
        return THROUGHPUT if self.block == "1m" else OPERATIONS

    def suits(self, contestant: Contestant) -> bool:
        """QEMU's user network accepts one connection at a time: of 64 that come together many wait
        for their greeting until the host's kernel has given up."""
        is_able = contestant.kind.runs_on != "linux" and contestant.place.kind != "user"
        return is_able or not self.is_overload


def _random(pattern: str, word: str, depth: int, connections: int, is_quick: bool) -> Load:
    across = f", {connections} connections" if connections > 1 else ""
    title = f"4 KiB random {word}, depth {depth}{across}"
    return Load(title, pattern, "4k", depth, connections, is_quick=is_quick)


PEAK = _random("randread", "read", 32, 4, True)
OVERLOAD = Load(
    "4 KiB random read, depth 64, 64 connections",
    "randread",
    "4k",
    64,
    64,
    is_quick=True,
    is_overload=True,
)
READ_DEPTH_1 = _random("randread", "read", 1, 1, True)
READ_DEPTH_32 = _random("randread", "read", 32, 1, True)
WRITE_DEPTH_1 = _random("randwrite", "write", 1, 1, True)
WRITE_DEPTH_32 = _random("randwrite", "write", 32, 1, True)
SEQUENTIAL_READ = Load("1 MiB sequential read, depth 8", "read", "1m", 8, is_quick=True)
SEQUENTIAL_WRITE = Load("1 MiB sequential write, depth 8", "write", "1m", 8, is_quick=True)
FLUSHED = Load(
    "4 KiB random write, flush after each",
    "randwrite",
    "4k",
    1,
    more=("--fsync=1",),
    is_quick=True,
)
FIO_LOADS = (
    READ_DEPTH_1,
    _random("randread", "read", 4, 1, False),
    READ_DEPTH_32,
    _random("randread", "read", 128, 1, False),
    _random("randread", "read", 1, 4, False),
    _random("randread", "read", 4, 4, False),
    PEAK,
    _random("randread", "read", 128, 4, False),
    # Beside those in time with which it is compared.
    OVERLOAD,
    WRITE_DEPTH_1,
    _random("randwrite", "write", 4, 1, False),
    WRITE_DEPTH_32,
    _random("randwrite", "write", 128, 1, False),
    _random("randwrite", "write", 1, 4, False),
    _random("randwrite", "write", 4, 4, False),
    _random("randwrite", "write", 32, 4, False),
    _random("randwrite", "write", 128, 4, False),
    Load(
        "4 KiB random, 70 % read, depth 32",
        "randrw",
        "4k",
        32,
        more=("--rwmixread=70",),
        is_quick=True,
    ),
    SEQUENTIAL_READ,
    SEQUENTIAL_WRITE,
    FLUSHED,
)


def _bare(load: Load, is_quick: bool = True) -> Load:
    return replace(load, title=f"{load.title}, bare client", is_quick=is_quick, is_bare=True)


BARE_READ_DEPTH_1 = _bare(READ_DEPTH_1)
BARE_READ_DEPTH_32 = _bare(READ_DEPTH_32)
BARE_OVERLOAD = _bare(OVERLOAD, False)
BARE_SEQUENTIAL_READ = _bare(SEQUENTIAL_READ)
LOADS = (
    *FIO_LOADS,
    BARE_READ_DEPTH_1,
    BARE_READ_DEPTH_32,
    _bare(PEAK, False),
    BARE_OVERLOAD,
    _bare(WRITE_DEPTH_1, False),
    _bare(WRITE_DEPTH_32),
    BARE_SEQUENTIAL_READ,
    _bare(SEQUENTIAL_WRITE),
)


def build_client(work: Path) -> Path:
    """Compiled for each run: it takes a second, and must match this machine."""
    client = work / "client"
    command = ["clang-14", "-O2", "-o", str(client), str(HERE / "client.c")]
    subprocess.run(command, check=True, timeout=60)
    return client


def measure(
    load: Load, contestant: Contestant, client: Path, seconds: float, disk_mib: int
) -> dict[str, float]:
    """Figures by the name of their metric. `client` is the bare one."""
    if load.is_bare:
        return _measure_bare(load, contestant, client, seconds)
    return _measure_with_fio(load, contestant, seconds, disk_mib)


def _measure_bare(
    load: Load, contestant: Contestant, client: Path, seconds: float
) -> dict[str, float]:
    address, port = contestant.place.server
    command = [str(client), address, str(port), contestant.kind.export, load.pattern]
    command += [str(BLOCK_BYTES[load.block]), str(load.depth), str(load.connections)]
    before_s = contestant.cpu_s()
    done = _run(load, [*command, str(round(seconds * 1000))], seconds)
    return evaluate_bare(load, json.loads(done), contestant.cpu_s() - before_s)


def _run(load: Load, command: list[str], seconds: float) -> str:
    """What the client says when it has done its work."""
    name = Path(command[0]).name
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + GRACE_S)
    except subprocess.TimeoutExpired:
        raise Failure(f"{name}: {load.title}: no end") from None
    if done.returncode:
        raise Failure(f"{name}: {load.title}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _measure_with_fio(
    load: Load, contestant: Contestant, seconds: float, disk_mib: int
) -> dict[str, float]:
    command = ["fio", "--name=load", "--ioengine=nbd", "--output-format=json", "--randrepeat=0"]
    command += [f"--uri={contestant.uri}", f"--rw={load.pattern}", f"--bs={load.block}"]
    command += [f"--iodepth={load.depth}", f"--numjobs={load.connections}", "--norandommap"]
    command += ["--time_based", f"--runtime={round(seconds * 1000)}ms", f"--size={disk_mib}m"]
    command += ["--percentile_list=50:99:99.9", *load.more]
    command += [] if load.is_overload else ["--group_reporting"]
    with tempfile.TemporaryDirectory(dir=MEMORY_FOLDER) as folder:
        command += [f"--write_iops_log={folder}/log", f"--log_avg_msec={LOG_INTERVAL_MS}"]
        command += ["--log_unix_epoch=1"]
        before_s = contestant.cpu_s()
        said = _run(load, command, seconds)
        cpu_s = contestant.cpu_s() - before_s
        logs = [file.read_text() for file in Path(folder).glob("log_iops.*")]
    answer = json.loads(said[said.index("{") :])
    return evaluate(load, answer, late_s(logs), cpu_s)


def late_s(logs: list[str]) -> float:
    """How much later than the first job the last one began, by the first time stamps in their logs.
    Of 64 jobs on a few processors some begin when others are done, and fio does not tell. Further
    stamps are of no use: fio's logs stop before the end."""
    firsts = [int(log.split(",", maxsplit=1)[0]) for log in logs if log]
    return (max(firsts) - min(firsts)) / 1000 if firsts else 0.0


def evaluate(
    load: Load, answer: dict[str, Any], begun_late_s: float, cpu_s: float
) -> dict[str, float]:
    """The figures in fio's answer: the last job began `begun_late_s` after the first, and the
    server took `cpu_s` of processor time."""
    jobs = answer["jobs"]
    sides = [job[side] for job in jobs for side in ("read", "write") if job[side]["total_ios"]]
    operations = sum(side["total_ios"] for side in sides)
    size = sum(side["io_bytes"] for side in sides)
    # A group's `runtime` is its longest job's. What each job did in its own time would not add up.
    elapsed_s = begun_late_s + max((side["runtime"] for side in sides), default=0) / 1000
    if operations == 0 or elapsed_s == 0:
        raise Failure(f"fio: {load.title}: nothing was done")
    figures = _rates(load, operations, size, elapsed_s, cpu_s)
    if load.is_overload:
        each = [side["iops"] for side in sides] + [0.0] * (len(jobs) - len(sides))
        figures[LEAST_SHARE] = _least_share(each)
    else:
        # Of a mixture, the readers: they are who waits.
        latency = sides[0]["clat_ns"]["percentile"]
        for key, name in PERCENTILES:
            figures[latency_metric(name)] = latency[key] / MICROSECOND_NS
    if "--fsync=1" in load.more:
        figures[FLUSH] = jobs[0]["sync"]["lat_ns"]["percentile"]["50.000000"] / MICROSECOND_NS
    return figures


def evaluate_bare(load: Load, answer: dict[str, Any], cpu_s: float) -> dict[str, float]:
    """The same of the bare client's answer. Its connections begin and end together."""
    each = [float(operations) for operations in answer["operations"]]
    size = sum(each) * BLOCK_BYTES[load.block]
    if size == 0:
        raise Failure(f"client: {load.title}: nothing was done")
    figures = _rates(load, sum(each), size, answer["elapsed_ns"] / 1e9, cpu_s)
    if load.is_overload:
        figures[LEAST_SHARE] = _least_share(each)
    return figures


def _rates(
    load: Load, operations: float, size: float, elapsed_s: float, cpu_s: float
) -> dict[str, float]:
    """By operation or by size, whichever says more of this load."""
    if load.metric == THROUGHPUT:
        return {THROUGHPUT: size / elapsed_s / 1e6, CPU_PER_GIB: cpu_s * GIB / size}
    return {OPERATIONS: operations / elapsed_s, CPU_PER_OPERATION: cpu_s * 1e6 / operations}


def _least_share(each: list[float]) -> float:
    return 100 * min(each) * len(each) / sum(each)


def latency_metric(percentile: str) -> str:
    return f"latency {percentile}, µs"
