"""What `run` and the keys offer to whom speed matters: that each does what it says, not how fast it is."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance import KERNEL, ROOT, Appliance, free_port, make_disk

MIB = 1024 * 1024
# What `run` gives QEMU's device, and tells the guest.
SENDS_WHEN_TOLD_TWICE = ",tx=timer,x-txtimer=1000000000"
TELLS_TWICE = " notify=twice"

Launch = Callable[..., Appliance]


def qemu_of(appliance: Appliance) -> int:
    """The process that `run` has started for it."""
    (pid,) = (int(it.name) for it in Path("/proc").glob("[0-9]*") if is_qemu_of(it, appliance))
    return pid


def is_qemu_of(process: Path, appliance: Appliance) -> bool:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False  # gone meanwhile
    forwards = any(f":{appliance.port}-".encode() in word for word in words)
    return words[0].startswith(b"qemu-system-") and forwards


def test_the_main_loop_keeps_to_its_processors_and_the_guest_has_all(launch: Launch) -> None:
    first = min(os.sched_getaffinity(0))
    appliance = launch(MIB, run_options=("--main-loop-cpus", str(first)))

    qemu = qemu_of(appliance)
    assert os.sched_getaffinity(qemu) == {first}
    tasks = Path(f"/proc/{qemu}/task").iterdir()
    (guest,) = (int(it.name) for it in tasks if (it / "comm").read_text().startswith("CPU "))
    assert os.sched_getaffinity(guest) == os.sched_getaffinity(0)


def dry_run(*options: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "build.sh"), "run", "--dry-run", *options]
    environment = {**os.environ, "PATH": path}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def test_processors_that_are_not_there_are_refused() -> None:
    done = dry_run("--main-loop-cpus", "9999")

    assert done.returncode == 1
    assert "--main-loop-cpus 9999: no such processors" in done.stderr


def test_device_and_guest_agree_on_who_sends() -> None:
    line = dry_run().stdout

    assert re.search(rf"'-device' 'virtio-net-device,netdev=net0[^']*{SENDS_WHEN_TOLD_TWICE}'", line)
    assert re.search(rf"'-append' '[^']*{TELLS_TWICE}'", line)


def has_greeted(uri: str) -> bool:
    try:
        return subprocess.run(["nbdinfo", uri], capture_output=True, timeout=5).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def test_a_device_that_sends_by_itself_serves_too(tmp_path: Path) -> None:
    """QEMU as somebody starts it who knows of neither, or with KVM."""
    port = free_port()
    disk = make_disk(tmp_path / "disk", MIB, b"y" * MIB)
    line = dry_run("--kernel", str(KERNEL), "--port", str(port), "--disk", str(disk)).stdout
    line = re.sub(r",logfile=[^']*", "", line)
    command = shlex.split(line.replace(SENDS_WHEN_TOLD_TWICE, "").replace(TELLS_TWICE, ""))
    assert not any("tx=" in word or "notify" in word for word in command)
    uri = f"nbd://127.0.0.1:{port}"
    copy = tmp_path / "copy"
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdin=pipe, stdout=null, cwd=ROOT) as qemu:
        try:
            deadline = time.monotonic() + 20
            while not has_greeted(uri) and time.monotonic() < deadline:
                time.sleep(0.05)
            subprocess.run(["nbdcopy", uri, str(copy)], check=True, timeout=30)
            assert copy.read_bytes() == b"y" * MIB
            assert qemu.stdin is not None
            qemu.stdin.write(b"\x03")
            qemu.stdin.flush()
            assert qemu.wait(20) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                qemu.kill()


@pytest.mark.parametrize(("status", "aio"), [(0, "io_uring"), (1, "threads")])
def test_io_uring_is_used_where_qemu_can(tmp_path: Path, status: int, aio: str) -> None:
    qemu = tmp_path / "qemu-system-riscv64"
    qemu.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/asked\nexit {status}\n')
    qemu.chmod(0o755)
    changed_s = random.randrange(1 << 31)
    os.utime(qemu, (changed_s, changed_s))  # another QEMU than any before
    for _ in range(2):
        line = dry_run("--kernel", str(KERNEL), path=f"{tmp_path}:{os.environ['PATH']}").stdout
        assert f"format=raw,aio={aio}'" in line
    # It is asked once, and remembered.
    (asked,) = (tmp_path / "asked").read_text().splitlines()
    assert "aio=io_uring" in asked


@pytest.mark.parametrize("word", ["spin=often", "spin=10001", "notify=thrice"])
def test_a_value_that_makes_no_sense_is_named(launch: Launch, word: str) -> None:
    appliance = launch(MIB, append=word)

    appliance.wait_for_console(rf"warning: config: {word} ")
