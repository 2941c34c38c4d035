"""Hours of mixed load on one appliance, with every byte verified and memory and counters sampled.

The clients are those of tests/e2e/test_mixed.py, with others that come and go beside them. See
`./build.sh soak --help`.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from appliance import GUEST_ADDRESS, Appliance, make_disk  # noqa: E402
from kernel_client.guest import unshare_words, why_impossible  # noqa: E402
from nbd_wire import Closed, Wire  # noqa: E402
from shared import new_folder  # noqa: E402
from test_connections import MOMENTS, use_and_leave  # noqa: E402
from test_mixed import CLIENTS, RANGE, Load  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
MARK = "PLATTER_SOAK_ENCLOSED"
TAP = "tap0"
HOST_NETWORK = "10.0.2.2/24"
PORT = 10809
SAMPLES_MAX = 2000
SAMPLE_S_MIN = 2.0
STILL_S_MAX = 60.0  # without a turn of any client
SLACK_KIB = 256  # pages that a size of objects was given while there were many
LEAVE_EVERY_S = 0.2
READY_S = 30.0

# Numbers of the status dump, by the words before them or a pattern.
WATCHED = {
    "memory_kib": r"^memory: (\d+) of",
    "memory_peak_kib": r"^memory: .*\(peak (\d+)\)",
    "largest_free_kib": r"largest free run (\d+)",
    "failures": r"^memory: .*failures (\d+)",
    "sleeps": r"(\d+) sleeps",
    "rescued": r"rescued (\d+)",
    "stalls": r"stalls (\d+)",
    "log_lines_dropped": r"log lines dropped: (\d+)",
    "frames_sent": r"^net: received .* sent (\d+)",
    "frames_received": r"^net: received (\d+)",
    "frames_dropped": r"^net: received .* dropped (\d+)",
    "checksum_errors": r"checksum errors (\d+)",
    "memory_errors": r"memory errors (\d+)",
    "bytes_copied": r"bytes copied (\d+)",
    "connections": r"^nbd: (\d+) connections",
    "connections_total": r"^nbd: .* total (\d+)",
    "ios_free": r"^nbd: .* ios (\d+) of",
    "payload_free_kib": r"^nbd: .* payload (\d+) of",
}
# These must stay as they are.
NEVER = ("failures", "rescued", "log_lines_dropped", "checksum_errors")


@dataclass
class Result:
    """What a run was like. `wrong` is empty when all is well."""

    samples: list[dict[str, float]] = field(default_factory=list)
    idle_before: dict[str, float] = field(default_factory=dict)
    idle_after: dict[str, float] = field(default_factory=dict)
    turns: dict[str, int] = field(default_factory=dict)
    surprises: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def judge(result: Result) -> list[str]:
    """What is not as it should be, besides what clients have seen."""
    found = []
    before, after = result.idle_before, result.idle_after
    if after["memory_kib"] > before["memory_kib"] + SLACK_KIB:
        found.append(f"memory in use rose from {before['memory_kib']} to {after['memory_kib']} KiB")
    for name in ("ios_free", "payload_free_kib"):
        if after[name] != before[name]:
            found.append(f"{name} was {before[name]}, is {after[name]}")
    for name in NEVER:
        if after[name] != 0:
            found.append(f"{name} is {after[name]}")
    half = len(result.samples) // 2
    if half > 2:
        first = max(sample["memory_kib"] for sample in result.samples[:half])
        last = max(sample["memory_kib"] for sample in result.samples[half:])
        if last > first + SLACK_KIB:
            found.append(f"under load, memory rose from {first} to {last} KiB")
    found += [f"log: {line}" for line in result.surprises]
    return found


def read_numbers(status: str) -> dict[str, float]:
    numbers = {}
    for name, pattern in WATCHED.items():
        match = re.search(pattern, status, re.MULTILINE)
        assert match is not None, f"no {name} in the status dump:\n{status}"
        numbers[name] = float(match[1])
    return numbers


class Tapped(Appliance):
    """One that is reached over a tap."""

    def start(self, ready: bool = True) -> Appliance:
        self.host, self.port = GUEST_ADDRESS, PORT
        self._spawn()
        deadline = time.monotonic() + READY_S
        while ready:
            try:
                Wire(self).close()
                return self
            except (OSError, Closed):
                assert self.is_alive() and time.monotonic() < deadline, self.logs()
                time.sleep(0.1)
        return self


def enter_namespaces() -> None:
    """Starts this program again where a tap may be made, unless that has been done."""
    if os.environ.get(MARK) == "1":
        for step in (
            "ip link set lo up",
            f"ip tuntap add {TAP} mode tap vnet_hdr",
            f"ip addr add {HOST_NETWORK} dev {TAP}",
            f"ip link set {TAP} up",
        ):
            subprocess.run(step.split(), check=True, timeout=10)
        return
    if reason := why_impossible():
        print(f"on the user network: {reason}", flush=True)
        return
    os.environ[MARK] = "1"
    command = [*unshare_words(), "--kill-child=KILL", sys.executable, "-B", *sys.argv]
    os.execvp(command[0], command)


def come_and_go(load: Load, _base: int, luck: random.Random) -> None:
    """Connects, and leaves at some odd moment."""
    while load.goes_on():
        with Wire(load.appliance) as wire:
            if luck.random() < 0.5:
                use_and_leave(wire)
            else:
                luck.choice(MOMENTS)(wire)
        load.count("come and go")
        time.sleep(luck.random() * 2 * LEAVE_EVERY_S)


class Sampler:
    """Reads the status dump now and then, until it is ended."""

    def __init__(self, load: Load, result: Result, path: Path, every_s: float) -> None:
        self.load = load
        self.result = result
        self.path = path
        self.every_s = every_s
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        try:
            self.sample()
        except BaseException as failure:
            self.load.failures.append(failure)

    def sample(self) -> None:
        started = time.monotonic()
        last_turns, last_progress = -1, started
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["seconds", "turns", *WATCHED])
            writer.writeheader()
            while not self.is_over.wait(self.every_s):
                now = time.monotonic()
                turns = sum(self.load.turns.values())
                numbers = read_numbers(self.load.appliance.status())
                row = {"seconds": round(now - started, 1), "turns": turns, **numbers}
                self.result.samples.append(row)
                writer.writerow(row)
                file.flush()
                if turns != last_turns:
                    last_turns, last_progress = turns, now
                assert now - last_progress < STILL_S_MAX, "no client has got on"

    def end(self) -> None:
        self.is_over.set()
        self.thread.join()


def soak(appliance: Appliance, seed: int, minutes: float, out: Path) -> Result:
    result = Result()
    clients = [*CLIENTS, come_and_go]
    # Once each, so that what is taken for good is taken; on a disk of zeroes, as the models begin.
    Load(appliance, seed, 0).run(clients)
    for moment in 2 * MOMENTS:
        with Wire(appliance) as wire:
            moment(wire)
    appliance.wait_until_idle()
    result.idle_before = read_numbers(appliance.status())
    said_before = len(appliance.console())
    load = Load(appliance, seed, minutes)
    every_s = max(SAMPLE_S_MIN, minutes * 60 / SAMPLES_MAX)
    sampler = Sampler(load, result, out / "samples.csv", every_s)
    try:
        load.run(clients)
    except AssertionError as failure:
        result.wrong.append(f"{failure}: {failure.__cause__!r}")
    finally:
        sampler.end()
    result.turns = load.turns
    if not appliance.is_alive():
        result.wrong.append("the appliance has ended")
        return result
    appliance.wait_until_idle()
    result.idle_after = read_numbers(appliance.status())
    result.surprises = surprises(appliance.console()[said_before:])
    result.wrong += judge(result)
    return result


def surprises(log: str) -> list[str]:
    """Lines that nobody has asked for; those of the host's doing and of clients that leave aside."""
    words = ("warning", "error:", "refused:", "PANIC", "lost")
    expected = ("0 errors", "kept the processor", "lost: closed", "lost: reset")
    return [
        line
        for line in log.splitlines()
        if any(word in line for word in words) and not any(word in line for word in expected)
    ]


def report(result: Result, seed: int, minutes: float, network: str) -> str:
    lines = ["# Soak", "", f"{minutes:g} minutes over {network}, seed {seed}.", ""]
    lines += ["| client | turns |", "|---|---|"]
    lines += [f"| {name} | {count} |" for name, count in sorted(result.turns.items())]
    lines += ["", "| | idle before | most under load | idle after |", "|---|---|---|---|"]
    for name in WATCHED:
        most = max((sample[name] for sample in result.samples), default=0.0)
        before, after = result.idle_before.get(name, 0.0), result.idle_after.get(name, 0.0)
        lines.append(f"| {name} | {before:.0f} | {most:.0f} | {after:.0f} |")
    lines += ["", "Failed:" if result.wrong else "Passed."]
    lines += [f"- {what}" for what in result.wrong]
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./build.sh soak", add_help=False)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "soak")
    return parser.parse_args()


def main() -> int:
    options = parse()
    enter_namespaces()
    minutes = options.minutes if options.minutes is not None else options.hours * 60
    seed = options.seed or random.SystemRandom().randrange(1, 10**6)
    options.out.mkdir(parents=True, exist_ok=True)
    folder = new_folder()
    disk = make_disk(folder / "disk.raw", (len(CLIENTS) + 2) * RANGE)
    if os.environ.get(MARK) == "1":
        words = ["--net", "tap", "--tap", TAP, "--ip", f"{GUEST_ADDRESS}/24"]
        appliance: Appliance = Tapped(folder, [disk], run_options=words)
        network = "a tap"
    else:
        appliance, network = Appliance(folder, [disk]), "QEMU's user network"
    try:
        appliance.start()
        result = soak(appliance, seed, minutes, options.out)
        if appliance.is_alive():
            appliance.stop()
    finally:
        appliance.close()
        (options.out / "console.log").write_text(appliance.console())
        subprocess.run(["rm", "-rf", str(folder)], check=True)
    text = report(result, seed, minutes, network)
    (options.out / "report.md").write_text(text)
    print(text, end="")
    return 1 if result.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
