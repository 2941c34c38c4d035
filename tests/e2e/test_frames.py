"""What the image knows of its functions' frames, for backtraces, beside what their code does."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from appliance import ROOT

DEBUG_IMAGE = ROOT / "build/riscv64/platter.debug.elf"
# Written in assembly (boot/riscv64/entry.S): no compiler says anything about their frames, and a
# backtrace ends at them.
IN_ASSEMBLY = re.compile(r"_start|riscv_\w+|trap_entry|try_\w+")
FUNCTIONS_MIN = 250


@dataclass(frozen=True)
class Frame:
    bytes: int
    return_at: int


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def frames_in_table() -> dict[int, Frame]:
    """By the offset of the function from the beginning of the code."""
    table = run(str(ROOT / "config/build/symbols.sh"), str(DEBUG_IMAGE))
    entry = re.compile(r"^ {2}\.word (\d+), \d+\n {2}\.half (\d+), (\d+)$", re.MULTILINE)
    return {int(at): Frame(int(size), int(kept)) for at, size, kept in entry.findall(table)}


def functions() -> Iterator[tuple[str, int, list[str]]]:
    """Name, address and instructions of each."""
    names: dict[int, str] = {}
    for line in run("llvm-nm-14", "--numeric-sort", str(DEBUG_IMAGE)).splitlines():
        address, kind, name = line.split(maxsplit=2)
        if kind in "tT" and not name.startswith((".", "$")):
            names.setdefault(int(address, 16), name)
    code: list[str] = []
    at = None
    listing = run("llvm-objdump-14", "-d", "--no-show-raw-insn", str(DEBUG_IMAGE))
    for address, instruction in re.findall(r"^\s*([0-9a-f]+):\s+(.*)$", listing, re.MULTILINE):
        if int(address, 16) in names:
            if at is not None:
                yield names[at], at, code
            at, code = int(address, 16), []
        code.append(" ".join(instruction.split()))
    assert at is not None
    yield names[at], at, code


def frame_of(code: list[str]) -> Frame:
    """As the instructions make it: steps of the stack pointer, and where the return address goes.
    When that is kept the register is one like others, and may go to the stack again."""
    size = 0
    kept = 0
    for instruction in code:
        if step := re.fullmatch(r"addi sp, sp, -(\d+)", instruction):
            size += int(step[1])
            kept += int(step[1]) if kept else 0
        elif not kept and (place := re.fullmatch(r"sd ra, (\d+)\(sp\)", instruction)):
            kept = int(place[1])
    return Frame(size, kept)


def test_the_table_of_frames_says_what_the_code_does() -> None:
    table = frames_in_table()
    start = int(next(it for it in run("llvm-nm-14", str(DEBUG_IMAGE)).splitlines()
                     if it.endswith(" text_start")).split()[0], 16)
    checked = 0
    for name, address, code in functions():
        if address - start not in table or IN_ASSEMBLY.fullmatch(name):
            continue
        assert table[address - start] == frame_of(code), name
        checked += 1
    assert checked > FUNCTIONS_MIN


def test_whoever_calls_keeps_where_it_returns_to() -> None:
    for name, _address, code in functions():
        calls = any(re.match(r"jalr (ra, |-?\d+\(ra\)|\w+$)|jal ", it) for it in code)
        if calls and not IN_ASSEMBLY.fullmatch(name):
            assert frame_of(code).return_at > 0, name
