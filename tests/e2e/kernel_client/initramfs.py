"""Builds the initramfs that the User Mode Linux guest boots.

It holds busybox, nbd-client, the ext4 tools with the libraries they need (taken from this host),
the nbd module of the UML kernel, and an agent as /init. Nothing is run here but ldd, and no root is
needed: device nodes come from the guest's own devtmpfs.
"""

import re
import shutil
import subprocess
from pathlib import Path

from .cpio import Archive

# What a guest needs beside Python, as Debian names it.
DEBIAN_PACKAGES = (
    "user-mode-linux",
    "busybox-static",
    "nbd-client",
    "e2fsprogs",
    "iproute2",
    "util-linux",
)

KERNEL = "linux.uml"
MODULES_ROOT = Path("/usr/lib/uml/modules")
NBD_MODULE = "kernel/drivers/block/nbd.ko"
TOOLS = ("mkfs.ext4", "e2fsck", "filefrag", "nbd-client")
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# The agent reads "NUMBER COMMAND" lines from the first serial line, which is a socket of ours, and
# ends each answer with "@@ NUMBER STATUS". The kernel's own messages go to the console, so they
# never mix.
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/sbin HOME=/
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
ln -sf /proc/mounts /etc/mtab
insmod /nbd.ko nbds_max=4
ip link set lo up
ip addr add @ADDRESS@ dev vec0
ip link set vec0 up
exec 3<>/dev/ttyS0
stty raw -echo <&3
printf '@@ 0 0\\n' >&3
while read -r number command <&3; do
    sh -c "$command" </dev/null >&3 2>&1
    printf '\\n@@ %s %s\\n' "$number" "$?" >&3
done
poweroff -f
"""


class MissingTool(Exception):
    """A program or file that a Debian package would bring is not on this host."""


def find_tool(name: str) -> Path:
    found = shutil.which(name, path=SEARCH_PATH)
    if found is None:
        raise MissingTool(f"{name} is missing; install: {' '.join(DEBIAN_PACKAGES)}")
    return Path(found)


def _nbd_module() -> Path:
    release = subprocess.run(
        [find_tool(KERNEL), "--version"], capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()
    module = MODULES_ROOT / release / NBD_MODULE
    if not module.exists():
        raise MissingTool(f"{module} is missing; the {KERNEL} here has no nbd client")
    return module


def _libraries(program: Path) -> set[Path]:
    listing = subprocess.run(
        ["ldd", program], capture_output=True, text=True, check=True, timeout=10
    )
    return {Path(path) for path in re.findall(r"(/\S+) \(0x", listing.stdout)}


def build(output: Path, address: str) -> Path:
    """Writes the initramfs for a guest whose interface has `address` (ADDRESS/BITS) to `output`."""
    archive = Archive()
    for folder in ("dev", "proc", "sys", "tmp", "mnt", "run", "var/run", "var/lock", "sbin"):
        archive.folder(folder)
    archive.file("init", INIT.replace("@ADDRESS@", address).encode())
    archive.file("bin/busybox", find_tool("busybox").read_bytes())
    archive.file("nbd.ko", _nbd_module().read_bytes(), 0o644)
    archive.file("etc/mke2fs.conf", Path("/etc/mke2fs.conf").read_bytes(), 0o644)
    libraries: set[Path] = set()
    for tool in TOOLS:
        program = find_tool(tool)
        archive.file(f"sbin/{tool}", program.read_bytes())
        libraries |= _libraries(program)
    for library in sorted(libraries):
        archive.file(str(library).lstrip("/"), library.read_bytes())
    output.write_bytes(archive.finish())
    return output
