"""What test_large_segments.py runs in namespaces of its own: the appliance on a tap with offloads,
and a client that writes and reads a few MiB.

    large_segments.py FOLDER MTU CLIENT-MTU    with a disk FOLDER/disk; prints the frames each way as JSON

The tap has MTU when the appliance starts, CLIENT-MTU when the client connects: what the client takes is
less then than what the appliance's wire carries.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import nbd

from appliance import Appliance

TAP = "tap0"
HOST_ADDRESS = "10.0.2.2/24"
GUEST = "10.0.2.15"
MIB = 1024 * 1024
READY_S = 30.0


def connect() -> nbd.NBD:
    deadline = time.monotonic() + READY_S
    while True:
        client = nbd.NBD()
        try:
            client.connect_uri(f"nbd://{GUEST}")
            return client
        except nbd.Error:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def frames(appliance: Appliance) -> tuple[int, int, int]:
    """Received, sent, and bytes of payload copied."""
    return (
        appliance.counter("net: received"),
        appliance.counter("shed 0, sent"),
        appliance.counter("bytes copied"),
    )


def main() -> None:
    folder = Path(sys.argv[1])
    guest_mtu, client_mtu = sys.argv[2:]
    for step in (
        "ip link set lo up",
        f"ip tuntap add {TAP} mode tap vnet_hdr",
        f"ip addr add {HOST_ADDRESS} dev {TAP}",
        f"ip link set {TAP} mtu {guest_mtu} up",
    ):
        subprocess.run(step.split(), check=True, timeout=10)
    options = ("--net", "tap", "--tap", TAP, "--ip", f"{GUEST}/24")
    appliance = Appliance(folder, [folder / "disk"], run_options=options).start(ready=False)
    try:
        appliance.wait_for_console(f", mtu {guest_mtu},")
        subprocess.run(f"ip link set {TAP} mtu {client_mtu}".split(), check=True, timeout=10)
        client = connect()
        data = random.Random(1).randbytes(MIB)
        before = frames(appliance)
        for index in range(8):
            client.pwrite(data, index * MIB)
        written = frames(appliance)
        for index in range(8):
            assert client.pread(MIB, index * MIB) == data, f"wrong bytes in MiB {index}"
        read = frames(appliance)
        client.shutdown()
        print(json.dumps({"before": before, "written": written, "read": read}))
    finally:
        appliance.kill()


main()
