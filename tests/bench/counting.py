"""Guest instructions per request: exact where the clock is noisy.

QEMU counts them with a plugin (instructions.c) while qemu-img bench sends a fixed number of
requests. A short run is subtracted from a long one, so that connecting does not count.
"""

from __future__ import annotations

import collections
import json
import mmap
import os
import re
import statistics
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from contestants import Contestant, Failure

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DEBUG_IMAGE = ROOT / "build/riscv64/platter.debug.elf"
PER_REQUEST = "guest instructions per request"
HEADER_BYTES = 16
BLOCK_BYTES = 24
BENCH_TIMEOUT_S = 120
SYMBOLS_TIMEOUT_S = 120
PT_LOAD = 1
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


@dataclass(frozen=True)
class Block:
    """Code that QEMU has translated as one piece, without a branch in it."""

    address: int
    size: int


class Counter:
    """The counts of a guest that runs with the plugin."""

    def __init__(self, file: Path) -> None:
        with file.open("rb") as opened:
            self._memory = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)

    def total(self) -> int:
        return int(struct.unpack_from("<Q", self._memory, 0)[0])

    def by_block(self) -> collections.Counter[Block]:
        """Instructions by the block of code that they stand in."""
        used = struct.unpack_from("<Q", self._memory, 8)[0]
        counts: collections.Counter[Block] = collections.Counter()
        for index in range(used):
            where = HEADER_BYTES + index * BLOCK_BYTES
            address, executed, size = struct.unpack_from("<QQQ", self._memory, where)
            counts[Block(address, size)] += executed
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
    """The contestant, running with the plugin. Ours sleeps whenever it has nothing to do: how often
    it would look at its rings instead depends on how long others take."""
    file = work / "counts"
    plugin = build_plugin(work)
    more = ("--append", "spin=0") if contestant.kind.runs_on == "platter" else ()
    with contestant.running(qemu=f"-plugin {plugin},counts={file}", more=more):
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
    ("TCP in", r"^net/tcp_input|/lwip/.*(tcp_in|/ip4\.c:ip4_input|ethernet\.c:ethernet_input)"),
    ("TCP out", r"^net/tcp_output|/lwip/.*(tcp_out|/ip4\.c:ip4_output|ethernet\.c:ethernet_output)|^net/checksum"),
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
    name: str
    file: str


class Image:
    """An ELF image with symbols, at the addresses where it runs."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._content = file.read_bytes()
        assert self._content[:6] == b"\x7fELF\x02\x01", f"{file}: not a 64-bit little-endian ELF"
        first, size, count = (
            struct.unpack_from("<Q", self._content, 32)[0],
            *struct.unpack_from("<HH", self._content, 54),
        )
        headers = (
            struct.unpack_from("<IIQQQQ", self._content, first + index * size)
            for index in range(count)
        )
        # Type, flags, place in the file, virtual and physical address, bytes in the file.
        self._segments = [
            (address, offset, length)
            for kind, _, offset, address, _, length in headers
            if kind == PT_LOAD
        ]

    def instructions(self, block: Block) -> list[int]:
        """The addresses of a block's instructions; that of the block if they are not in here."""
        for address, offset, length in self._segments:
            if address <= block.address and block.address + block.size <= address + length:
                place = offset - address
                break
        else:
            return [block.address]
        found = []
        at = block.address
        while at < block.address + block.size:
            found.append(at)
            # The two lowest bits tell a long instruction from a compressed one.
            at += 4 if self._content[place + at] & 3 == 3 else 2
        return found

    def functions(self, addresses: Iterable[int]) -> dict[int, Function]:
        """Where each instruction was written. One that came by way of an inline function of a
        header counts for the function that uses it; one of another source file, which the linker
        has inlined, for that."""
        asked = list(addresses)
        with tempfile.NamedTemporaryFile(suffix=".elf") as named:
            # The labels of branches would be taken for names of functions.
            discard = ["llvm-objcopy-14", "--discard-locals", str(self._file), named.name]
            subprocess.run(discard, check=True, timeout=SYMBOLS_TIMEOUT_S)
            command = ["llvm-symbolizer-14", f"--obj={named.name}", "--inlines"]
            answer = subprocess.run(
                [*command, "--output-style=JSON"],
                input="".join(f"{address:#x}\n" for address in asked),
                capture_output=True,
                text=True,
                check=True,
                timeout=SYMBOLS_TIMEOUT_S,
            ).stdout
        found = {}
        for address, line in zip(asked, answer.splitlines(), strict=True):
            frames = json.loads(line).get("Symbol") or [{}]
            written = [it for it in frames if not it.get("FileName", "").endswith(".h")]
            frame = (written or frames)[0]
            file = os.path.normpath(frame.get("FileName") or "?").removeprefix(f"{ROOT}/")
            # The linker numbers functions of the same name.
            name = re.sub(r"\.\d+$", "", frame.get("FunctionName") or "?")
            found[address] = Function(name, file)
        return found


def profile(counter: Counter, uri: str, requests: Requests, image: Path = DEBUG_IMAGE) -> str:
    """Tables of instructions per request, by stage and by function."""
    requests.send(uri, requests.count // 4)
    short = max(requests.count // 10, requests.depth)
    requests.send(uri, short)
    start = counter.by_block()
    requests.send(uri, short)
    middle = counter.by_block()
    requests.send(uri, short + requests.count)
    end = counter.by_block()
    elf = Image(image)
    by_address: dict[int, float] = collections.defaultdict(float)
    for block, executed in end.items():
        taken = (executed - middle[block]) - (middle[block] - start[block])
        places = elf.instructions(block)
        for address in places:
            by_address[address] += taken / len(places)
    functions = elf.functions(by_address)
    by_function: dict[Function, float] = collections.defaultdict(float)
    for address, taken in by_address.items():
        by_function[functions[address]] += taken
    return profile_text(requests, by_function)


def profile_text(requests: Requests, by_function: dict[Function, float]) -> str:
    total = sum(by_function.values())
    by_stage: dict[str, float] = collections.defaultdict(float)
    for function, instructions in by_function.items():
        by_stage[stage_of(function.file, function.name)] += instructions

    def row(instructions: float, name: str) -> str:
        share = 100 * instructions / total
        return f"{instructions / requests.count:10.1f} {share:5.1f} %  {name}"

    lines = [f"{requests.title}: {total / requests.count:.1f} guest instructions per request", ""]
    lines += [row(by_stage[it], it) for it in sorted(by_stage, key=by_stage.__getitem__)[::-1]]
    lines += ["", "by function:"]
    for function in sorted(by_function, key=by_function.__getitem__)[::-1]:
        if by_function[function] * 1000 > total:
            stage = stage_of(function.file, function.name)
            name = f"{function.name}  {function.file}  [{stage}]"
            lines.append(row(by_function[function], name))
    return "\n".join(lines) + "\n"
