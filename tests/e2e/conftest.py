"""Fixtures of the end-to-end tests: appliances to talk to, and a deadline for each test."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from appliance import KERNEL, Appliance, make_disk
from ethernet import Ethernet
from shared import Shared, new_folder
from victim import _shared_victim, victim  # fixtures for all files

__all__ = ["_shared_victim", "victim"]

MIB = 1024 * 1024
# What libslirp 4.7 dies of when a client resets its connection while the network's buffer for it is
# full: it reads on, though there is no room.
USER_NETWORK_CRASH = "soread: Assertion `buf_len != 0' failed"
MINUTES = 0.3
DEADLINE_S = 120  # of a test with its fixtures, unless its mark `deadline(seconds)` says otherwise


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--minutes",
        type=float,
        default=MINUTES,
        help="how long the mixed load lasts (default: %(default)s)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "deadline(seconds): how long this test may take")
    config.addinivalue_line("markers", "as_long_as_asked: lasts as long as --minutes says")
    if not KERNEL.exists():
        raise pytest.UsageError(f"{KERNEL} is missing: run ./build.sh build, or ./build.sh test")
    # What `timeout` sends: fixtures still clean up.
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated", 143))


def pytest_unconfigure() -> None:
    Appliance.kill_all()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Shows what the appliances said when a test fails."""
    outcome: Any = yield
    report = outcome.get_result()
    if not report.failed:
        return
    logs = [appliance.logs() for appliance in Appliance.live]
    if any(USER_NETWORK_CRASH in text for text in [report.longreprtext, *logs]):
        # Nothing can be said about the appliance then, neither good nor bad.
        path, line, _ = item.location
        report.outcome = "skipped"
        report.longrepr = (
            path,
            (line or 0) + 1,
            f"QEMU's user network has crashed: {USER_NETWORK_CRASH}",
        )
    for text in logs:
        report.sections.append(("appliance", text))


@pytest.fixture(autouse=True)
def deadline(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ends a test that hangs. The alarm interrupts Python; a client library that waits in C goes on
    waiting, until its server is gone."""
    mark = request.node.get_closest_marker("deadline")
    seconds = mark.args[0] if mark else DEADLINE_S
    if request.node.get_closest_marker("as_long_as_asked"):
        seconds += 60 * request.config.getoption("--minutes")
    main = threading.main_thread().ident
    assert main is not None

    def fail(_number: int, _frame: FrameType | None) -> None:
        pytest.fail(f"not done after {seconds} s")

    expired = threading.Event()

    def expire() -> None:
        expired.set()
        signal.pthread_kill(main, signal.SIGALRM)
        Appliance.kill_all()

    before = signal.signal(signal.SIGALRM, fail)
    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    yield
    timer.cancel()
    timer.join()
    signal.signal(signal.SIGALRM, before)
    # Where the exception of an interrupted call was on its way, that of the alarm may have got lost.
    assert not expired.is_set(), f"not done after {seconds} s"


@pytest.fixture
def minutes(request: pytest.FixtureRequest) -> float:
    """How long a test that may be short or long is to last."""
    return float(request.config.getoption("--minutes"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory, for disks."""
    path = new_folder()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def ethernet(folder: Path) -> Iterator[Ethernet]:
    """A network for one appliance, of which the test makes the frames."""
    ethernet = Ethernet(folder / "ethernet")
    yield ethernet
    ethernet.close()


Launch = Callable[..., Appliance]


@pytest.fixture
def launch(folder: Path) -> Iterator[Launch]:
    """Starts appliances of the test's own: `launch(*disks, ready=True, …)`, options as Appliance has
    them. A disk given as a number is a new one of so many bytes. Those that still run when the test
    is over are powered off, and must end well."""
    started: list[Appliance] = []

    def launch_one(*disks: Path | int, ready: bool = True, **options: Any) -> Appliance:
        place = folder / f"appliance{len(started)}"
        place.mkdir()
        images = [
            make_disk(place / f"disk{index}.raw", disk) if isinstance(disk, int) else disk
            for index, disk in enumerate(disks)
        ]
        started.append(Appliance(place, images, **options))
        return started[-1].start(ready)

    yield launch_one
    try:
        for appliance in started:
            if not appliance.end_is_known:
                appliance.stop()
    finally:
        for appliance in started:
            appliance.close()


@pytest.fixture(scope="session")
def _shared() -> Iterator[Shared]:
    shared = Shared(b"", 64 * MIB)
    yield shared
    shared.end()


@pytest.fixture
def appliance(_shared: Shared) -> Appliance:
    """One with a disk of 64 MiB, shared: each test writes what it reads, and leaves what it likes."""
    return _shared.get()


@pytest.fixture
def server(launch: Launch) -> Appliance:
    """One with an empty disk of its own for each test."""
    return launch(256 * MIB, memory_mib=256)
