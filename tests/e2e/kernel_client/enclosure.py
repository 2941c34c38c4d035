"""Runs inside fresh network and process namespaces: makes the guest's tap, then becomes the guest.

Called by guest.py as `enclosure.py SOCKET_FD ADDRESS/BITS PORT -- COMMAND...`. It listens on
ADDRESS:PORT of the tap and hands that socket to the caller, who stands outside and relays from it;
so the only way out of the namespace is that socket. Nothing needs removing afterwards: tap, address
and processes belong to the namespaces, which end with the last process.
"""

import array
import os
import socket
import subprocess
import sys

TAP = "tap0"


def main() -> None:
    hand_over_fd, address, port, separator, *command = sys.argv[1:]
    assert separator == "--" and command
    for step in (
        "ip link set lo up",
        f"ip tuntap add {TAP} mode tap vnet_hdr",
        f"ip addr add {address} dev {TAP}",
        f"ip link set {TAP} up",
    ):
        subprocess.run(step.split(), check=True, timeout=10)
    listener = socket.create_server((address.split("/")[0], int(port)), backlog=64)
    with socket.socket(fileno=int(hand_over_fd)) as hand_over:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener.fileno()]))]
        hand_over.sendmsg([b"listening"], ancillary)
    listener.close()
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
