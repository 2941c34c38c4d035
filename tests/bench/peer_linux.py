#!/usr/bin/python3
"""Builds and starts peers that benchmarks compare with: Linux and an NBD server on the same board.

The guest is Debian's own riscv64 kernel with one server on /dev/vda, from an initramfs that holds
nothing else. The packages come through apt with a configuration of its own (architecture, lists,
state), derived from the system's sources; nothing is installed and the system's apt is untouched.
All of it is kept in build/peer/, and a second build does nothing.
"""

import argparse
import hashlib
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path.append(str(HERE.parents[1] / "e2e"))

from kernel_client.cpio import Archive  # noqa: E402

BUILD_FOLDER = HERE.parents[2] / "build" / "peer"
ARCHITECTURE = "riscv64"
SUITE = "trixie"
TRIPLET = "riscv64-linux-gnu"
# What the host needs, as Debian names it.
DEBIAN_PACKAGES = ("qemu-system-misc", "llvm-14", "apt", "dpkg", "iproute2")
KERNEL_PACKAGE = "linux-image-riscv64"
DRIVERS = ("virtio_mmio", "virtio_blk", "virtio_net")
PORT = 10809
DOWNLOAD_TIMEOUT_S = 600


@dataclass(frozen=True)
class Server:
    """An NBD server for the guest: where it is, what else it loads, and how init starts it."""

    package: str
    program: str
    plugins: tuple[str, ...]
    export: str
    start: str


# Each is set up as one would who wants speed from it. nbdkit with its defaults, 16 threads and the
# kernel's page cache: cache=none, fadvise=random and other numbers of threads (1, 4, 32) were tried
# in two alternating rounds, and none was faster beyond the noise.
SERVERS = {
    "nbdkit": Server(
        package="nbdkit",
        program="usr/bin/nbdkit",
        plugins=(f"usr/lib/{TRIPLET}/nbdkit/plugins/nbdkit-file-plugin.so",),
        export="",
        # nbdkit reserves 192 MiB of zeroes that it never touches; without this it ends at once.
        start="""echo 1 > /proc/sys/vm/overcommit_memory
exec /usr/bin/nbdkit -f -p @PORT@ file /dev/vda""",
    ),
    "qemu-nbd": Server(
        package="qemu-utils",
        program="usr/bin/qemu-nbd",
        plugins=(),
        export="",
        start="""exec /usr/bin/qemu-nbd --persistent --shared=0 --format=raw --discard=unmap \\
    --cache=none --aio=native --bind=0.0.0.0 --port=@PORT@ /dev/vda""",
    ),
    "nbd-server": Server(
        package="nbd-server",
        program="usr/bin/nbd-server",
        plugins=(),
        export="disk",
        # It goes into the background by itself; in the foreground it serves one client only.
        start="""$bb cat > /tmp/config <<END
[generic]
port = @PORT@
listenaddr = 0.0.0.0
max_threads = 16
[disk]
exportname = /dev/vda
flush = true
fua = true
trim = true
END
/usr/bin/nbd-server -C /tmp/config
while :; do $bb sleep 3600; done""",
    ),
}
GUEST_PACKAGES = ("busybox-static", *(server.package for server in SERVERS.values()))

# No scheduler: the disk has the host's behind it.
INIT = """#!/bin/busybox sh
bb=/bin/busybox
$bb mount -t devtmpfs dev /dev
$bb mount -t proc proc /proc
$bb mount -t sysfs sys /sys
for module in @MODULES@; do $bb insmod /modules/$module; done
for word in $($bb cat /proc/cmdline); do
    case $word in
        peer.ip=*) ip=${word#*=} ;;
        peer.gw=*) gw=${word#*=} ;;
    esac
done
$bb ip link set lo up
$bb ip addr add "$ip" dev eth0
$bb ip link set eth0 up
$bb ip route add default via "$gw"
echo none > /sys/block/vda/queue/scheduler
ulimit -n 65536
@START@
"""


@dataclass(frozen=True)
class Network:
    """What QEMU is told of a network, and of the guest's card on it."""

    netdev: str
    card: str = ""


@dataclass(frozen=True)
class Peer:
    """The files a peer is started from."""

    kernel: Path
    initramfs: Path
    versions: dict[str, str]
    export: str

    def command(
        self, network: Network, image: Path, address: str, gateway: str, memory_mib: int
    ) -> list[str]:
        """QEMU's command line; `network` from tap() or user(), `address` as in 10.0.2.15/24."""
        append = f"console=ttyS0 quiet peer.ip={address} peer.gw={gateway}"
        return [
            *machine(network, image, memory_mib),
            *("-kernel", str(self.kernel), "-initrd", str(self.initramfs), "-append", append),
        ]


def tap(name: str, mtu: int) -> Network:
    """QEMU's network over an existing tap with this MTU, which the guest takes over."""
    return Network(f"tap,ifname={name},script=no,downscript=no", f",host_mtu={mtu}")


def user(port: int, guest_ip: str) -> Network:
    """QEMU's own user network, with the guest's server at 127.0.0.1:`port`."""
    return Network(f"user,hostfwd=tcp:127.0.0.1:{port}-{guest_ip}:{PORT}")


def machine(network: Network, image: Path, memory_mib: int) -> list[str]:
    """The QEMU machine that every contestant gets: one vCPU, modern virtio-mmio, raw disk."""
    drive = f"if=none,id=disk,file={image},format=raw,aio=native,cache=none"
    return [
        *("qemu-system-riscv64", "-machine", "virt", "-smp", "1", "-m", str(memory_mib)),
        *("-nodefaults", "-display", "none", "-serial", "stdio", "-monitor", "none"),
        *("-global", "virtio-mmio.force-legacy=false"),
        *("-drive", drive, "-device", "virtio-blk-device,drive=disk"),
        *("-netdev", f"{network.netdev},id=net"),
        *("-device", f"virtio-net-device,netdev=net{network.card}"),
    ]


def build(server: str = "nbdkit", folder: Path = BUILD_FOLDER) -> Peer:
    """Builds what is missing in `folder`. Needs the network the first time only."""
    manifest = folder / "manifest.json"
    recipe = hashlib.sha256(HERE.read_bytes()).hexdigest()
    built = json.loads(manifest.read_text()) if manifest.exists() else {}
    if built.get("recipe") != recipe:
        versions = _build_all(folder)
        built = {"recipe": recipe, "versions": versions}
        manifest.write_text(json.dumps(built, indent=1))
    initramfs = folder / f"initramfs-{server}.cpio"
    return Peer(folder / "Image", initramfs, built["versions"], SERVERS[server].export)


def _build_all(folder: Path) -> dict[str, str]:
    """The kernel and an initramfs for each server; gives the versions of what is in them."""
    folder.mkdir(parents=True, exist_ok=True)
    packages = _download(folder / "apt")
    with tempfile.TemporaryDirectory(dir=folder) as unpacked:
        root = Path(unpacked)
        for package in packages:
            subprocess.run(["dpkg-deb", "-x", package, root], check=True, timeout=120)
        (image,) = root.glob("boot/vmlinu*")
        content = image.read_bytes()
        if content[0x30:0x35] != b"RISCV":
            raise SystemExit(f"{image.name}: not the flat image that QEMU can start")
        (folder / "Image").write_bytes(content)
        for name, server in SERVERS.items():
            (folder / f"initramfs-{name}.cpio").write_bytes(_initramfs(root, server))
    names = [package.name.split("_") for package in packages]
    return {name: version.replace("%3a", ":") for name, version, _ in names}


def _sources() -> str:
    """The system's Debian sources, with its suite replaced by ours."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text(), re.M))
    codename = release["VERSION_CODENAME"]
    lines: list[str] = []
    files = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    for file in (file for file in files if file.is_file()):
        if file.suffix == ".list":
            entry = rf"^deb\s+(\[[^]]*\]\s+)?(\S+)\s+{codename}\s+(.*)$"
            for options, uri, components in re.findall(entry, file.read_text(), re.M):
                options = re.sub(r"arch=[^\] ]*", "", options)
                signer = re.search(r"signed-by=(\S+?)[\]\s]", options)
                lines += [*_stanza(uri, components, signer.group(1) if signer else None), ""]
        elif file.suffix == ".sources":
            for stanza in re.split(r"\n\s*\n", file.read_text()):
                field = dict(re.findall(r"^(\S+):[ \t]*(.*(?:\n[ \t].*)*)", stanza, re.M))
                is_binary = "deb" in field.get("Types", "").split()
                if is_binary and codename in field.get("Suites", "").split():
                    signer_file = field.get("Signed-By")
                    lines += [*_stanza(field["URIs"], field["Components"], signer_file), ""]
    if not lines:
        raise SystemExit(f"no apt source for {codename} on this host to derive {SUITE} from")
    return "\n".join(lines)


def _stanza(uris: str, components: str, signed_by: str | None) -> list[str]:
    signed = [f"Signed-By: {signed_by}"] if signed_by else []
    return ["Types: deb", f"URIs: {uris}", f"Suites: {SUITE}", f"Components: {components}", *signed]


def _download(apt: Path) -> list[Path]:
    """Fetches the packages, and what the servers depend on, into `apt`; keeps what is there."""
    complete = apt / "complete"
    wanted = " ".join((KERNEL_PACKAGE, *GUEST_PACKAGES))
    archives = apt / "cache/archives"
    if complete.exists() and complete.read_text() == wanted:
        return sorted(archives.glob("*.deb"))
    shutil.rmtree(apt, ignore_errors=True)
    for folder in ("lists/partial", "cache/archives/partial", "state", "parts"):
        (apt / folder).mkdir(parents=True)
    (apt / "state/status").touch()
    (apt / "our.sources").write_text(_sources())
    settings = {
        "Dir::State": apt / "state",
        "Dir::State::lists": apt / "lists",
        "Dir::State::status": apt / "state/status",
        "Dir::Cache": apt / "cache",
        "Dir::Cache::archives": apt / "cache/archives",
        "Dir::Etc::sourcelist": apt / "our.sources",
        "Dir::Etc::sourceparts": apt / "parts",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": apt / "parts",
        "APT::Architecture": ARCHITECTURE,
        "APT::Architectures": ARCHITECTURE,
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "Debug::NoLocking": "true",
    }
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]

    def run(*command: str) -> str:
        done = subprocess.run(
            [command[0], *options, *command[1:]],
            cwd=archives,
            env={**os.environ, "LC_ALL": "C"},
            stdout=subprocess.PIPE,
            text=True,
            timeout=DOWNLOAD_TIMEOUT_S,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}")
        return done.stdout

    run("apt-get", "-q", "update")
    # The metapackage names the current kernel; its own dependencies (an init system, a generator of
    # initramfs) are of no use here, so only that one package is fetched.
    kernel = re.search(r"Depends: (linux-image-\S+)", run("apt-cache", "depends", KERNEL_PACKAGE))
    if kernel is None:
        raise SystemExit(f"{KERNEL_PACKAGE} names no kernel in {SUITE}")
    run("apt-get", "-q", "download", kernel.group(1))
    run("apt-get", "-q", "-y", "--download-only", "install", *GUEST_PACKAGES)
    complete.write_text(wanted)
    return sorted(archives.glob("*.deb"))


def _initramfs(root: Path, server: Server) -> bytes:
    archive = Archive()
    for folder in ("dev", "proc", "sys", "tmp", "run"):
        archive.folder(folder)
    modules = _modules(root)
    init = INIT.replace("@MODULES@", " ".join(modules))
    init = init.replace("@START@", server.start).replace("@PORT@", str(PORT))
    archive.file("init", init.encode())
    for name, content in modules.items():
        archive.file(f"modules/{name}", content, 0o644)
    archive.file(
        "bin/busybox", next(root.glob("*/*/busybox"), root / "usr/bin/busybox").read_bytes()
    )
    programs = [root / name for name in (server.program, *server.plugins)]
    for program in programs:
        archive.file(str(program.relative_to(root)), program.read_bytes())
    for library in _libraries(root, programs):
        archive.file(f"usr/lib/{TRIPLET}/{library.name}", library.read_bytes())
    archive.link("lib", "usr/lib")
    archive.link("usr/lib/ld-linux-riscv64-lp64d.so.1", f"{TRIPLET}/ld-linux-riscv64-lp64d.so.1")
    return archive.finish()


def _modules(root: Path) -> dict[str, bytes]:
    """The drivers and what they depend on, uncompressed, in the order in which to load them."""
    loaded: dict[str, bytes] = {}
    for driver in DRIVERS:
        _add_module(root, driver, loaded)
    return loaded


def _add_module(root: Path, name: str, loaded: dict[str, bytes]) -> None:
    if f"{name}.ko" in loaded:
        return
    (path,) = root.glob(f"usr/lib/modules/*/kernel/**/{name.replace('_', '[_-]')}.ko*")
    content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    depends = re.search(rb"\0depends=([^\0]*)\0", content)
    for dependency in filter(None, depends.group(1).decode().split(",") if depends else []):
        _add_module(root, dependency, loaded)
    loaded[f"{name}.ko"] = content


def _libraries(root: Path, programs: list[Path]) -> list[Path]:
    """Everything that the programs are linked with, found by name in the unpacked packages."""
    found: dict[str, Path] = {}
    queue = list(programs)
    while queue:
        read = ["llvm-readelf-14", "--needed-libs", str(queue.pop())]
        listing = subprocess.run(
            read, capture_output=True, text=True, check=True, timeout=30
        ).stdout
        for name in re.findall(r"^ +(\S+\.so\S*)$", listing, re.M):
            if name not in found:
                found[name] = root / f"usr/lib/{TRIPLET}" / name
                if not found[name].exists():
                    raise SystemExit(f"{name} is in none of the packages")
                queue.append(found[name])
    return sorted(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("build", help="build what is missing in build/peer/ and name its versions")
    run = verbs.add_parser("run", help="start it on an existing tap, in the foreground")
    run.add_argument("--server", choices=sorted(SERVERS), default="nbdkit")
    run.add_argument("--tap", required=True)
    run.add_argument("--mtu", default=1500, type=int, help="the tap's (default: %(default)s)")
    run.add_argument("--image", required=True, type=Path)
    run.add_argument("--ip", default="10.0.2.15/24", help="address/bits (default: %(default)s)")
    run.add_argument("--gw", default="10.0.2.2", help="gateway (default: %(default)s)")
    run.add_argument("--memory", default=256, type=int, help="in MiB (default: %(default)s)")
    given = parser.parse_args()
    peer = build(given.server if given.verb == "run" else "nbdkit")
    if given.verb == "build":
        for package in sorted(peer.versions):
            if package in GUEST_PACKAGES or package.startswith("linux-image"):
                print(f"{package} {peer.versions[package]}")
        return
    command = peer.command(tap(given.tap, given.mtu), given.image, given.ip, given.gw, given.memory)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
