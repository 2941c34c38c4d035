"""Guest instructions per request: exact where the clock is noisy.

QEMU counts them with a plugin (instructions.c) while qemu-img bench sends a fixed number of
requests. A short run is subtracted from a long one, so that connecting does not count.
"""

from __future__ import annotations

import bisect
import collections
import json
import mmap
import os
import re
import statistics
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from contestants import Contestant, Failure

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DEBUG_IMAGE = ROOT / "build/riscv64/platter.debug.elf"
PER_REQUEST = "guest instructions per request"
HEADER_BYTES = 16
BLOCK_BYTES = 16
BENCH_TIMEOUT_S = 120
KIB, MIB = 1024, 1024 * 1024
# Between requests of 4 KiB, so that no two are neighbours and could be merged.
STRIDE_BYTES = 17 * 4 * KIB


@dataclass(frozen=True)
class Requests:
    """A fixed number of requests of one kind."""

    size: int
    depth: int
    is_write: bool
    count: int

    def fewer(self, times: int) -> Requests:
        return replace(self, count=max(self.count // times, 1))

    @property
    def title(self) -> str:
        size = f"{self.size // MIB} MiB" if self.size >= MIB else f"{self.size // KIB} KiB"
        return f"{size} {'write' if self.is_write else 'read'}, depth {self.depth}"

    def send(self, uri: str, count: int) -> None:
        command = ["qemu-img", "bench", "-f", "raw", "-c", str(count), "-d", str(self.depth)]
        command += ["-s", str(self.size), "-S", str(max(self.size, STRIDE_BYTES))]
        command += ["-w"] if self.is_write else []
        done = subprocess.run(
            [*command, uri], capture_output=True, text=True, timeout=BENCH_TIMEOUT_S
        )
        if done.returncode:
            raise Failure(f"qemu-img bench: {done.stderr.strip()}")


REQUESTS = tuple(
    Requests(size, depth, is_write, count)
    for size, depth, count in (
        (4 * KIB, 1, 2000),
        (4 * KIB, 32, 8000),
        (MIB, 1, 100),
        (MIB, 32, 200),
    )
    for is_write in (False, True)
)


class Counter:
    """The counts of a guest that runs with the plugin."""

    def __init__(self, file: Path) -> None:
        with file.open("rb") as opened:
            self._memory = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)

    def total(self) -> int:
        return int(struct.unpack_from("<Q", self._memory, 0)[0])

    def by_address(self) -> collections.Counter[int]:
        """Instructions by the address of the block of code that they stand in."""
        used = struct.unpack_from("<Q", self._memory, 8)[0]
        counts: collections.Counter[int] = collections.Counter()
        for index in range(used):
            where = HEADER_BYTES + index * BLOCK_BYTES
            address, executed = struct.unpack_from("<QQ", self._memory, where)
            counts[address] += executed
        return counts


def build_plugin(work: Path) -> Path:
    """Compiled for each run: it takes a second, and must match this machine."""
    plugin = work / "instructions.so"
    # Debian ships no header and no library of QEMU's to link with: QEMU itself has the symbols.
    flags = ["-O2", "-shared", "-fPIC", "-fvisibility=hidden"]
    flags += ["-Wl,--unresolved-symbols=ignore-all"]
    command = ["clang-14", *flags, "-o", str(plugin), str(HERE / "instructions.c")]
    subprocess.run(command, check=True, timeout=60)
    return plugin


@contextmanager
def counted(contestant: Contestant, work: Path) -> Iterator[Counter]:
    """The contestant, running with the plugin."""
    file = work / "counts"
    plugin = build_plugin(work)
    with contestant.running(qemu=f"-plugin {plugin},counts={file}"):
        yield Counter(file)
    file.unlink()


def per_request(counter: Counter, uri: str, requests: Requests, times: int) -> float:
    """The median of some takings; the first requests, which warm things up, are not counted."""
    base = max(requests.count // 10, requests.depth)
    requests.send(uri, base)
    taken = []
    for _ in range(times):
        start = counter.total()
        requests.send(uri, base)
        middle = counter.total()
        requests.send(uri, base + requests.count)
        end = counter.total()
        taken.append(((end - middle) - (middle - start)) / requests.count)
    return statistics.median(taken)


# Which stage of a request a function belongs to, by its file and name. The first that matches
# counts: where one file serves two directions, the functions are told apart first.
STAGES = (
    ("tasks, clock, idle", r"^core/task/|^boot/|^core/dev/"),
    ("receive", r"^net/virtio_net.*:(.*receive|take_frame|take_rest|refill|packet_)"),
    ("send", r"^net/virtio_net|^net/offload|^net/stack.c:link_output|etharp"),
    ("TCP in", r"/lwip/.*(tcp_in|/ip4\.c:ip4_input|ethernet\.c:ethernet_input)"),
    ("TCP out", r"/lwip/.*(tcp_out|/ip4\.c:ip4_output|ethernet\.c:ethernet_output)|^net/checksum"),
    ("TCP, both ways", r"/lwip/"),
    ("receive", r"^net/stack"),
    ("streams", r"^net/"),
    ("NBD", r"^apps/"),
    ("completion", r"^blk/.*:(reap|release_slot|result_of|block_queue_done|complete_list|finish)"),
    ("completion", r"^blk/.*:(in_flight_remove|histogram)"),
    ("block", r"^blk/"),
    ("rings, both devices", r"^core/virtio/"),
    ("memory", r"^core/mem/|:(memcpy|memset|memmove|memcmp)$|^core/lib/mem"),
)
OTHER_STAGE = "other"


def stage_of(file: str, function: str) -> str:
    place = f"{file}:{function}"
    return next((stage for stage, pattern in STAGES if re.search(pattern, place)), OTHER_STAGE)


@dataclass(frozen=True)
class Function:
    address: int
    name: str
    file: str


def functions_of(image: Path) -> list[Function]:
    """Those of an image with symbols, by address. The file is relative to the tree where it can."""
    listing = subprocess.run(
        ["llvm-nm-14", "--numeric-sort", str(image)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    found: list[tuple[int, str]] = []
    for line in listing.splitlines():
        words = line.split()
        if len(words) == 3 and words[1] in "tTwW" and words[2][0] not in ".$":
            found.append((int(words[0], 16), words[2]))
    addresses = "\n".join(hex(address) for address, _ in found) + "\n"
    command = ["llvm-symbolizer-14", f"--obj={image}", "--inlines", "--output-style=JSON"]
    answer = subprocess.run(
        command, input=addresses, capture_output=True, text=True, check=True, timeout=120
    ).stdout
    functions = []
    for (address, name), line in zip(found, answer.splitlines(), strict=True):
        # The last frame is the function itself; those before it were inlined into it.
        frames = json.loads(line).get("Symbol") or [{}]
        file = os.path.normpath(frames[-1].get("FileName", "")).removeprefix(f"{ROOT}/")
        functions.append(Function(address, name, file))
    return functions


def profile(counter: Counter, uri: str, requests: Requests, image: Path = DEBUG_IMAGE) -> str:
    """Tables of instructions per request, by stage and by function."""
    requests.send(uri, requests.count // 4)
    short = max(requests.count // 10, requests.depth)
    requests.send(uri, short)
    start = counter.by_address()
    requests.send(uri, short)
    middle = counter.by_address()
    requests.send(uri, short + requests.count)
    end = counter.by_address()
    functions = functions_of(image)
    starts = [function.address for function in functions]
    by_function: collections.Counter[Function] = collections.Counter()
    for address, executed in end.items():
        instructions = (executed - middle[address]) - (middle[address] - start[address])
        index = bisect.bisect_right(starts, address) - 1
        function = functions[index] if index >= 0 else Function(0, "firmware", "boot/")
        by_function[function] += instructions
    return profile_text(requests, by_function)


def profile_text(requests: Requests, by_function: collections.Counter[Function]) -> str:
    total = sum(by_function.values())
    by_stage: collections.Counter[str] = collections.Counter()
    for function, instructions in by_function.items():
        by_stage[stage_of(function.file, function.name)] += instructions

    def row(instructions: int, name: str) -> str:
        share = 100 * instructions / total
        return f"{instructions / requests.count:10.1f} {share:5.1f} %  {name}"

    lines = [f"{requests.title}: {total / requests.count:.1f} guest instructions per request", ""]
    lines += [row(instructions, stage) for stage, instructions in by_stage.most_common()]
    lines += ["", "by function:"]
    for function, instructions in by_function.most_common():
        if instructions * 1000 > total:
            stage = stage_of(function.file, function.name)
            lines.append(row(instructions, f"{function.name}  {function.file}  [{stage}]"))
    return "\n".join(lines) + "\n"
