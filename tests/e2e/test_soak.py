"""The command `soak` and its judge; hours of it are for people (`./build.sh soak --hours 8`)."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from appliance import ROOT

sys.path.insert(0, str(ROOT / "tests" / "soak"))

from soak import NEVER, WATCHED, Result, judge, surprises  # noqa: E402

SHORT_MINUTES = 0.05
SHORT_S = 90


def result_of(*memory_kib: float) -> Result:
    idle = {name: 0.0 for name in WATCHED}
    samples = [{**idle, "memory_kib": kib} for kib in memory_kib]
    return Result(samples=samples, idle_before=dict(idle), idle_after=dict(idle))


def test_the_judge_of_soaks_lets_flat_memory_pass() -> None:
    assert judge(result_of(900, 1000, 950, 1000, 990, 1100)) == []


def test_the_judge_of_soaks_sees_memory_rise_under_load() -> None:
    (found,) = judge(result_of(1000, 1000, 1000, 1400, 1500, 1600))
    assert "1000 to 1600" in found


def test_the_judge_of_soaks_sees_what_is_kept_in_the_end() -> None:
    result = result_of()
    result.idle_after["memory_kib"] = 4096
    result.idle_after["ios_free"] = -1
    assert len(judge(result)) == 2


@pytest.mark.parametrize("name", NEVER)
def test_the_judge_of_soaks_sees_what_must_never_be(name: str) -> None:
    result = result_of()
    result.idle_after[name] = 1
    (found,) = judge(result)
    assert name in found


def test_the_judge_of_soaks_knows_which_lines_nobody_asked_for() -> None:
    log = "[ 1.0] nbd: 10.0.2.2:1 lost: closed\n[ 2.0] vda: warning: late\n[ 3.0] vda: 0 errors\n"
    assert surprises(log) == ["[ 2.0] vda: warning: late"]


@pytest.mark.deadline(SHORT_S)
def test_a_short_soak_passes_and_tells_what_it_saw(folder: Path) -> None:
    command = [str(ROOT / "build.sh"), "soak", "--minutes", str(SHORT_MINUTES), "--out", str(folder)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SHORT_S - 5
    )
    assert done.returncode == 0, done.stdout
    assert "Passed." in (folder / "report.md").read_text()
    with (folder / "samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows and all(int(row["turns"]) >= 0 for row in rows)
