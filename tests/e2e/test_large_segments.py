"""With offloads neither way pays for each of the wire's segments: what leaves is cut by the device,
what comes has been put together before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kernel_client.guest import unshare_words, why_impossible

MIB = 1024 * 1024
WHOLE_S = 90
FRAMES_PER_MIB_MAX = 100  # in segments of the wire they would be more than 700


@pytest.mark.deadline(WHOLE_S + 10)
@pytest.mark.parametrize(
    ("guest_mtu", "client_mtu"), [(1500, 1500), (9000, 9000), (1500, 1300), (9000, 1500)]
)
def test_large_segments_pass_whole_both_ways(
    folder: Path, guest_mtu: int, client_mtu: int
) -> None:
    if reason := why_impossible():
        pytest.skip(reason)
    disk = folder / "disk"
    disk.touch()
    disk.open("r+b").truncate(8 * MIB)
    program = str(Path(__file__).with_name("large_segments.py"))
    done = subprocess.run(
        [
            *unshare_words(),
            "--kill-child=KILL",
            sys.executable,
            program,
            str(folder),
            str(guest_mtu),
            str(client_mtu),
        ],
        capture_output=True,
        text=True,
        timeout=WHOLE_S,
    )
    assert done.returncode == 0, done.stderr
    count = json.loads(done.stdout)
    received, sent, copied = (
        [after - before for before, after in zip(count[start], count[end])]
        for start, end in (("before", "written"), ("written", "read"), ("before", "read"))
    )
    assert received[0] < 8 * FRAMES_PER_MIB_MAX
    assert sent[1] < 8 * FRAMES_PER_MIB_MAX
    assert copied[2] == 0
