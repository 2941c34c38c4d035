"""The image that breaks the walls dies as it should, and says how: one start for each death."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from appliance import ROOT, free_port, make_disk

pytestmark = pytest.mark.deadline(60)

KERNEL = ROOT / "build" / "riscv64" / "deaths.elf"
MIB = 1024 * 1024
RUN_S = 40
STATUS_PANIC = 100
STATUS_WATCHDOG = 101
SCREEN_LINES = 40
SCREEN_COLUMNS = 160


def die(folder: Path, death: str, *options: str) -> tuple[int, str, str]:
    """Exit status of `run`, what the console showed and what `run` said itself."""
    disk = make_disk(folder / "disk.img", MIB)
    command = [ROOT / "build.sh", "run", "--kernel", KERNEL, "--disk", disk, *options]
    command += ["--port", str(free_port()), "--append", f"die={death} watchdog=2"]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    return done.returncode, done.stdout.replace("\r", ""), done.stderr


def report_of(text: str) -> str:
    """The last report in `text`, from its rule to its end."""
    found = re.findall(r"^---\n(PANIC: .*?)^--- end of report", text, re.DOTALL | re.MULTILINE)
    assert found, text
    return str(found[-1])


# What was done, what lies there, and the function that did it.
DEATHS = {
    "write-code": (r"write to 0x\w+: code, appliance_main\+0x0 ", "write_code"),
    "write-constant": (r"write to 0x\w+: constants ", "write_constant"),
    "write-device-tree": (r"write to 0x\w+: memory that is nobody's ", "write_device_tree"),
    "run-data": (r"jump to 0x\w+: data, \d+ bytes behind ", "appliance_main"),
    "run-stack": (r"jump to 0x\w+: the stack of task main, \d+ bytes from its end ", "run_stack"),
    "run-heap": (r"jump to 0x\w+: heap, byte 0 of 16 bytes in use ", "appliance_main"),
    "overflow-stack": (
        r"write to 0x\w+: the guard page below the stack of task main, whose 32768 bytes are used ",
        r"overflow\+\w+, \d\d times",
    ),
    "overflow-second-stack": (
        r"write to 0x\w+: the guard page below the stack of task second, ",
        "overflow_in_task",
    ),
    "smash-stack": (r"stack smashed", "smash_stack"),
    "read-null": (r"read from 0xc: page 0, which is never mapped: a null pointer ", "read_null"),
    "read-nothing": (r"read from 0x40000000: nothing at all ", "read_nothing"),
    "read-firmware": (r"read from 0x80000000: nothing at all ", "read_firmware"),
    "read-released": (r"read from 0xdbdb\w+: no address but the filling of rel", "read_released"),
    "write-released": (
        r"memory: 0x78 at 0x\w+ was written there after the release",
        "write_released",
    ),
    "write-released-run": (
        r"memory: 0x78 at 0x\w+ was written there after the release",
        "write_released_run",
    ),
    "release-twice": (r"memory: 0x\w+, an object of 64 bytes, released twice", "appliance_main"),
    "overflow-buffer": (r"io_buffer: byte 4096 of the 4096 bytes at 0x\w+ was written", "overflow_buffer"),
    "deadlock": (r"deadlock: no task is ready, none waits for a time", "scheduler_run"),
    "fail-assertion": (
        r"assertion failed: constant == variable \(apps/deaths/deaths\.c:\d+\)",
        "fail_assertion",
    ),
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_death_is_told(tmp_path: Path, death: str) -> None:
    what, who = DEATHS[death]
    status, console, said = die(tmp_path, death)
    assert status == STATUS_PANIC, console + said
    report = report_of(console)
    assert re.match(f"PANIC: {what}", report), report
    assert re.search(rf"^  (at|from) +[0-9a-f]{{16}} .*\b{who}\b", report, re.MULTILINE), report
    task = {"deadlock": "scheduler", "overflow-second-stack": "second"}.get(death, "main")
    assert re.search(rf"^  task  {task}, up \d+ ms, stack pointer in ", report, re.MULTILINE)
    assert re.search(r"^ +pc [0-9a-f]{16} +ra [0-9a-f]{16} +sp ", report, re.MULTILINE)
    assert f"death: {death}\n" in report  # the last lines of the log
    assert len(report.splitlines()) <= SCREEN_LINES
    assert max(len(line) for line in report.splitlines()) <= SCREEN_COLUMNS


def test_run_prints_the_report_again_with_source_lines(tmp_path: Path) -> None:
    _, console, said = die(tmp_path, "write-constant")
    again = report_of(said)
    assert re.search(r"write_constant\+0x\w+  apps/deaths/deaths\.c:\d+\n", again), said
    plain = re.sub(r"  [\w./-]+:[\d?]+$", "", again, flags=re.MULTILINE)
    assert plain == report_of(console)


def test_a_task_that_never_yields_is_ended_by_the_watchdog(tmp_path: Path) -> None:
    status, console, _ = die(tmp_path, "never-yield")
    assert status == STATUS_WATCHDOG, console
    report = report_of(console)
    assert report.startswith("PANIC: watchdog: the scheduler has not turned")
    assert re.search(r"^  at +[0-9a-f]{16} never_yield\+", report, re.MULTILINE), report


def test_the_watchdog_ends_a_report_that_hangs(tmp_path: Path) -> None:
    status, console, _ = die(tmp_path, "hang-in-report")
    assert status == STATUS_WATCHDOG, console
    assert console.endswith("PANIC while reporting a panic: watchdog\n"), console


def test_the_watchdog_ends_a_kernel_that_cannot_end_itself(tmp_path: Path) -> None:
    """The third strike is the firmware's own."""
    status, console, _ = die(tmp_path, "hang-at-the-end")
    assert status == STATUS_WATCHDOG, console
    assert "PANIC: a machine that does not switch off" in console


def test_a_task_that_keeps_the_processor_is_named(tmp_path: Path) -> None:
    _, console, _ = die(tmp_path, "stall")
    assert re.search(r"warning: task main kept the processor for 5\d\d ms", console), console


def test_a_panic_starts_anew_when_told(tmp_path: Path) -> None:
    status, console, _ = die(tmp_path, "fail-late-once", "--restart")
    assert status == 0, console
    assert console.count("death: fail-late-once") == 3, console  # once in the report
    assert "--- end of report; starting anew\n" in console
    assert console.endswith("death: survived\n"), console


def test_a_panic_at_once_does_not_start_anew_for_ever(tmp_path: Path) -> None:
    status, console, _ = die(tmp_path, "fail-assertion", "--restart")
    assert status == STATUS_PANIC, console
    assert console.count("PANIC") == 1, console


def test_under_opensbi_the_walls_stand_and_the_missing_watchdog_is_told(tmp_path: Path) -> None:
    status, console, _ = die(tmp_path, "write-code", "--bios", "opensbi")
    assert status == STATUS_PANIC, console
    assert "watchdog: this firmware has none" in console
    assert "write to 0x" in report_of(console)


def test_the_walls_stand_where_three_levels_of_tables_do_not_reach(tmp_path: Path) -> None:
    """300 GiB: with Sv39 addresses end at 256."""
    memory = "-object memory-backend-ram,id=m,size=300G,reserve=off -machine memory-backend=m"
    options = ("--memory", str(300 * 1024), "--qemu", memory)
    status, console, _ = die(tmp_path, "overflow-second-stack", *options)
    assert status == STATUS_PANIC, console
    assert "the guard page below the stack of task second" in report_of(console)


@pytest.mark.parametrize("bios", ["start", "opensbi"])
@pytest.mark.parametrize("missing", ["zba", "zbb"])
def test_a_processor_that_lacks_instructions_is_told_so(
    tmp_path: Path, missing: str, bios: str
) -> None:
    """Before any C runs, which would need them."""
    options = ("--bios", bios, "--qemu", f"-cpu rv64,{missing}=false")
    status, console, _ = die(tmp_path, "write-code", *options)
    assert "PANIC: this processor lacks the instructions of Zba and Zbb" in console
    if bios == "start":
        assert status == STATUS_PANIC, console
