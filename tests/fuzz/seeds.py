"""Inputs that the fuzzers begin with: sound ones of every kind, for mutation to spoil.

    seeds.py FOLDER    writes FOLDER/TARGET/NAME
"""

from __future__ import annotations

import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

Seed = tuple[str, bytes]

BLOCKS = 64  # of fuzz_partition.c's disk
LINUX = bytes.fromhex("af3dc60f838472478e793d69d8477de4")


def device_trees() -> Iterator[Seed]:
    """What QEMU hands to its guests, and a small one of every structure that is looked at."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "virt.dtb"
        command = ["qemu-system-riscv64", "-machine", f"virt,dumpdtb={path}", "-m", "64", "-display", "none"]
        subprocess.run(command, check=True, capture_output=True)
        whole = path.read_bytes()
        yield "virt", whole[: struct.unpack_from(">I", whole, 4)[0]]
    yield "small", small_tree()


class Tree:
    """Writes a flattened device tree (Devicetree Specification, chapter 5)."""

    def __init__(self) -> None:
        self.nodes = b""
        self.names = b""

    def begin(self, name: str) -> None:
        self.nodes += struct.pack(">I", 1) + padded(name.encode() + b"\0")

    def end(self) -> None:
        self.nodes += struct.pack(">I", 2)

    def put(self, name: str, value: bytes) -> None:
        self.nodes += struct.pack(">III", 3, len(value), len(self.names)) + padded(value)
        self.names += name.encode() + b"\0"

    def cells(self, name: str, *cells: int) -> None:
        self.put(name, struct.pack(f">{len(cells)}I", *cells))

    def finish(self) -> bytes:
        reservations = struct.pack(">QQQQ", 0x80010000, 0x1000, 0, 0)
        nodes = self.nodes + struct.pack(">I", 9)
        at = 40 + len(reservations)
        total = at + len(nodes) + len(self.names)
        sizes = (at, at + len(nodes), 40, 17, 16, 0, len(self.names), len(nodes))
        return struct.pack(">10I", 0xD00DFEED, total, *sizes) + reservations + nodes + self.names


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def small_tree() -> bytes:
    tree = Tree()
    tree.begin("")
    tree.cells("#address-cells", 2)
    tree.cells("#size-cells", 2)
    tree.cells("interrupt-parent", 1)
    tree.begin("aliases")
    tree.put("serial0", b"/soc/serial@1000\0")
    tree.end()
    tree.begin("chosen")
    tree.put("stdout-path", b"serial0:115200\0")
    tree.put("bootargs", b"log=debug\0")
    tree.end()
    tree.begin("cpus")
    tree.cells("timebase-frequency", 10000000)
    tree.end()
    tree.begin("memory@80000000")
    tree.put("device_type", b"memory\0")
    tree.cells("reg", 0, 0x80000000, 0, 0x8000000)
    tree.end()
    tree.begin("reserved-memory")
    tree.cells("#address-cells", 2)
    tree.cells("#size-cells", 2)
    tree.put("ranges", b"")
    tree.begin("firmware@80000000")
    tree.cells("reg", 0, 0x80000000, 0, 0x2000)
    tree.end()
    tree.end()
    tree.begin("soc")
    tree.cells("#address-cells", 1)
    tree.cells("#size-cells", 1)
    tree.put("compatible", b"simple-bus\0")
    tree.cells("ranges", 0, 0, 0x10000000, 0x100000)
    tree.begin("plic@c000")
    tree.cells("phandle", 1)
    tree.cells("#interrupt-cells", 1)
    tree.put("compatible", b"riscv,plic0\0")
    tree.cells("reg", 0xC000, 0x1000)
    tree.end()
    tree.begin("serial@1000")
    tree.put("compatible", b"other\0ns16550a\0")
    tree.cells("interrupts", 10)
    tree.cells("reg", 0x1000, 0x100)
    tree.end()
    tree.begin("test@2000")
    tree.put("compatible", b"test\0")
    tree.cells("interrupts-extended", 1, 3)
    tree.cells("reg", 0x2000, 0x100, 0x3000, 0x100)
    tree.end()
    tree.end()
    tree.end()
    return tree.finish()


def piece(block: int, offset: int, data: bytes) -> bytes:
    """As fuzz_partition.c reads it; up to 255 bytes at once."""
    pieces = b""
    for at in range(0, len(data), 254):
        part = data[at : at + 254]
        pieces += bytes([block, (offset + at) // 2, len(part)]) + part
    return pieces


def mbr(*entries: tuple[int, int, int]) -> bytes:
    """The end of a boot record: type, first block and count of each partition."""
    data = b"".join(struct.pack("<4xB3xII", *entry) for entry in entries)
    return data.ljust(64, b"\0") + b"\x55\xaa"


def gpt(block: int, other: int, entries: int, count: int = 4) -> bytes:
    fields = (block, other, 8, 50, b"\x11" * 16, entries, count, 128, 0)
    return struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, *fields)


def gpt_entry(first: int, last: int, name: str) -> bytes:
    return struct.pack("<16s16sQQQ", LINUX, bytes([first]) * 16, first, last, 0) + name.encode("utf-16-le")


def partitions() -> Iterator[Seed]:
    table = piece(0, 446, mbr((0x83, 8, 20), (0x07, 30, 10)))
    yield "mbr", b"\0" + table
    logical = piece(0, 446, mbr((0x83, 2, 4), (0x05, 10, 40)))
    logical += piece(10, 446, mbr((0x83, 1, 5), (0x05, 10, 10))) + piece(20, 446, mbr((0x83, 1, 5)))
    yield "logical", b"\0" + logical
    yield "logical4k", b"\1" + logical
    protective = piece(0, 446, mbr((0xEE, 1, 63)))
    entries = [gpt_entry(8, 20, "boot"), gpt_entry(21, 50, "größe \U0001f4be")]
    first = piece(1, 0, gpt(1, 63, 2))
    backup = piece(128, 0, gpt(63, 1, 52))
    for index, entry in enumerate(entries):
        first += piece(2, 128 * index, entry)
        backup += piece(52, 128 * index, entry)
    yield "gpt", b"\6" + protective + first + backup
    yield "gpt4k", b"\7" + protective + first + backup
    yield "backup", b"\4" + protective + first + backup
    yield "unreadable", b"\x0e\x30" + protective + first + backup


def configurations() -> Iterator[Seed]:
    yield "all", (
        b"ip=10.0.2.15/24 port=10810 list=off allocation=off idle=60 allow=10.0.0.0/8,1.2.3.4 "
        b"readonly-from=10.0.0.1 limit-bytes=vda:2M,data:4096 limit-requests=vda:300 n=12K log=debug\0"
        b"default=data n=17\tallow=192.168.0.0/16\nother"
    )
    yield "numbers", b"n=3 n=1000000\0n=976K"
    yield "words", b"n " * 63


def rings() -> Iterator[Seed]:
    add = bytes([0, 2, 1, 15, 99, 0])
    for options in (0, 5, 14):
        serve = bytes([3, 0, 1, 0, 4])
        yield f"served{options}", bytes([options]) + (add + b"\2" + serve) * 3
        yield f"lies{options}", bytes([options]) + add * 4 + b"\2" + bytes([3, 9, 1, 0, 4, 7]) + add + b"\6"
    yield "scribbles", b"\7" + add * 3 + b"\2" + bytes([5, 2, 2, 3, 1, 0, 0, 4, 5, 0, 4, 7, 1, 2, 3, 4, 4, 7])


def disk_config(sectors: int) -> bytes:
    """VIRTIO 1.3, 5.2.4."""
    config = struct.pack("<QIIHBBI", sectors, 65536, 8, 100, 16, 63, 512)
    config += struct.pack("<BBHI", 3, 0, 1, 8) + struct.pack("<BxH", 1, 1)
    config += struct.pack("<IIIII", 4096, 1, 8, 16384, 1) + struct.pack("<B3x", 1)
    return config.ljust(72, b"\0")[:72]


def disks() -> Iterator[Seed]:
    features = 1 << 1 | 1 << 2 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 13 | 1 << 14 | 1 << 28 | 1 << 29
    serve = b"\1\0"
    for name, options in (("served", 0), ("silent", 1), ("never", 2), ("small", 4), ("slow", 8)):
        head = bytes([options]) + struct.pack("<IB", features, 72) + disk_config(4096)
        load = b"".join(bytes([kind, 8 * kind, 0, 7]) + serve for kind in range(8))
        yield name, head + load * 3
        lies = b"\1\4\1\5\0\0\0\0\0\0\0" + b"\1\3\7\7" + b"\1\6\x40" + b"\1\5\0\1" + b"\1\2\1" + b"\1\4\2\9"
        yield name + "-lies", head + load + lies + load
    yield "bare", bytes([0]) + struct.pack("<IB", 0, 8) + struct.pack("<Q", 4096) + load


def option(number: int, data: bytes = b"", length: int | None = None) -> bytes:
    """NBD protocol, newstyle negotiation."""
    return struct.pack(">8sII", b"IHAVEOPT", number, len(data) if length is None else length) + data


def named(name: bytes, *infos: int, claims: int | None = None) -> bytes:
    """What GO and INFO ask for."""
    words = struct.pack(">I", len(name) if claims is None else claims) + name
    return words + struct.pack(f">H{len(infos)}H", len(infos), *infos)


def contexts(name: bytes, *queries: bytes) -> bytes:
    words = struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries))
    return words + b"".join(struct.pack(">I", len(query)) + query for query in queries)


def said(data: bytes, run: bytes) -> bytes:
    """Steps of fuzz_nbd.c that say this, by the first client, which is there."""
    pieces = [data[at : at + 250] for at in range(0, len(data), 250)]
    return b"".join(b"\0" + bytes([len(piece)]) + piece + run for piece in pieces)


def handshakes() -> Iterator[Seed]:
    """Options of every kind, right and wrong, each in a handshake that goes on."""
    run = b"\x0b"
    many = contexts(b"", *[b"base:allocation"] * 20)
    questions = {
        "infos": [option(n, named(name, 0, 1, 2, 3, 77)) for n in (6, 7) for name in (b"", b"ro", b"nobody")],
        "names": [option(n, named(b"x" * 80)) for n in (6, 7)] + [option(7, named(b"ro", claims=99))],
        "short": [option(n, b"\0\0\0") for n in (6, 7, 9, 10)] + [option(7, named(b"", 1, 2) + b"?")],
        "modes": [option(8), option(8, b"?"), option(8), option(11, b"?"), option(11), option(11), option(8)],
        "early": [option(n, contexts(b"", b"base:allocation")) for n in (9, 10)],
        "contexts": [option(8)]
        + [option(n, contexts(name, *queries)) for n in (9, 10) for name in (b"", b"ro", b"nobody")
           for queries in ((), (b"base:",), (b"base:allocation", b"other:x"))]
        + [option(10, many), option(10, contexts(b"", b"q" * 200)), option(9, contexts(b"")[:-1] + b"\5")],
        "list": [option(3), option(3, b"?"), option(5), option(77, b"?"), option(2)],
        "long": [option(3, bytes(5000)), option(7, bytes(4097)), option(3)],
        "endless": [option(7, b"", 0xFFFFFFFF)],
        "magic": [b"IHAVEOPS" + bytes(8)],
    }
    for name, options in questions.items():
        for flags in (b"\0\0\0\3", b"\0\0\0\1"):
            begin = b"\x7c\0\x15\4" + flags + run
            whole = begin + b"".join(said(words, run) for words in options)
            yield f"hands-{name}-{flags[3]}", whole + said(option(7, named(b"")), run)
    for flags in (0, 1, 2, 3, 4):
        for name in (b"", b"ro", b"nobody", b"n" * 70):
            begin = b"\x7c\0\x15\4" + bytes([0, 0, 0, flags]) + run
            yield f"export-name-{flags}-{len(name)}", begin + said(option(1, name), run)
    # A status that names its contexts, and payload where there must be none.
    extended = b"\x7c\1\x15\x08" + run
    for ids in ((), (0,), (1,), (0, 1, 2), (9,) * 30):
        payload = struct.pack(f">Q{len(ids)}I", 65536, *ids)
        for command, extra in ((7, b""), (7, b"?"), (0, b""), (4, b"")):
            header = struct.pack(">IHHQQQ", 0x21E41C71, 32, command, 1, 0, len(payload + extra))
            seed = extended + said(header + payload + extra, run) + b"\2\0\0\1\1" + run + b"\7\0" + run
            yield f"filter-{len(ids)}-{command}-{len(extra)}", seed


def clients() -> Iterator[Seed]:
    """Steps as fuzz_nbd.c reads them: 1 shake hands, 2 request, 4 acknowledge, 7 to 9 the disk, 11 run."""
    run = b"\x0b"
    answer = b"\x07\0"
    for disk in (0x00, 0x7C, 0x3D, 0x82):
        for hands in range(12):
            seed = bytes([disk]) + b"\1\x15" + bytes([hands]) + run
            for command in range(8):
                flags = b"\x80" if command % 2 else b"\x81"
                payload = b"\7" if command == 1 else b""
                seed += bytes([2, command]) + flags + bytes([command, 2 * command + 1]) + payload + run
                seed += b"\2\0\0\x01\x01" + answer + run + b"\x04\xff\xff"
            yield f"commands-{disk:02x}-{hands:02x}", seed
    long = b"\x7c\1\x15\1" + run + b"\2\0\0\0\xa0\0\4" + run + (answer + run + b"\4\0\xf0") * 8
    yield "long-read", long
    yield "long-write", b"\x7c\1\x15\0" + run + b"\2\1\1\0\xa0\0\4\5" + (run + answer) * 8
    options = b"".join(struct.pack(">8sII", b"IHAVEOPT", option, 0) for option in (3, 8, 11, 5, 77, 2))
    yield "options", b"\0\0\x15\4\0\0\0\3" + (b"\0" + bytes([len(options)]) + options) + run * 2
    rough = b"".join(bytes([1, 0x40, option, 6, 0]) + bytes(6) for option in (1, 3, 6, 7, 8, 9, 10, 11, 12))
    yield "rough", b"\0\0\x15\4\0\0\0\3" + rough + run * 2
    yield from handshakes()
    four = b"".join(bytes([1 | who << 6, 0x15, who]) for who in range(4)) + run
    load = b"".join(bytes([2 | who << 6, who % 2, 0, who, 1, 9]) for who in range(4)) + run + b"\x09\x08\x2a"
    yield "four", b"\x7c" + four + load * 4 + b"\5\0" + load + b"\x45\1" + load


def network_step(kind: int, word: int, *more: int, data: bytes = b"") -> bytes:
    """As fuzz_net.c reads it; words of 16 bits follow, then bytes."""
    return bytes([kind, word]) + struct.pack(f"<{len(more)}H", *more) + data


def networks() -> Iterator[Seed]:
    mss, scale, sack = b"\2\4\5\xb4", b"\3\3\7", b"\4\2"
    plain, offloads = 1 << 16, 1 << 16 | 1 << 15 | 1 << 11 | 1 << 7 | 1 << 1 | 1 << 0 | 1 << 28 | 1 << 29
    options = {"none": b"", "mss": mss, "scaled": mss + b"\1" + scale + sack, "small": b"\2\4\0\x58"}
    for feature_name, features in (("plain", plain), ("offloads", offloads)):
        vouch = b"\2" if features & 2 else b""
        for option_name, option in options.items():
            for kind, name in enumerate(("echo", "silent", "late", "talker")):
                word = 3 * kind
                connect = bytes([0, word, len(option)]) + struct.pack("<H", 8000) + option
                acknowledge = network_step(1, word, 60000, data=vouch)
                seed = bytes([6, 0]) + struct.pack("<I", features) + connect + acknowledge
                turn = network_step(3, word, 3000) + network_step(12, 0) + acknowledge
                seed += turn * 4 + network_step(12, 0) * 8 + acknowledge * 4
                yield f"{feature_name}-{option_name}-{name}", seed + network_step(8, word) + acknowledge
                loss = network_step(11, word) + network_step(5, word, data=b"\xff\x00\3")
                loss += network_step(6, word, 60, data=b"\7") + network_step(1, 0xC0 | word, 900, data=4 * vouch)
                loss += network_step(13, 1) + turn + network_step(15, 9) + network_step(13, 0xFE)
                loss += network_step(14, 6, data=b"\0") + turn + network_step(14, 6, data=b"\1") + network_step(15, 13)
                yield f"{feature_name}-{option_name}-{name}-lossy", seed + loss * 2 + network_step(8, 0x80 | word)
    offer = b"\x35\1\2\x36\4\x0a\0\2\2\1\4\xff\xff\xff\0\3\4\x0a\0\2\2\x33\4\0\0\0\x78\xff"
    reply = network_step(10, 0, len(offer), data=offer) + network_step(15, 6)
    accepted = offer.replace(b"\x35\1\2", b"\x35\1\5")
    head = bytes([6, 1]) + struct.pack("<I", plain)
    yield "dhcp", head + reply + network_step(10, 0, len(offer), data=accepted) + network_step(15, 13) * 12
    refused = offer.replace(b"\x35\1\2", b"\x35\1\6")
    yield "dhcp-refused", head + reply + network_step(10, 0, len(offer), data=refused) + reply
    echo = bytes.fromhex("525400123456525400123457080045000020000100004001000000000000") + bytes([10, 0, 2, 2])
    echo = echo[:26] + bytes([10, 0, 2, 2, 10, 0, 2, 15]) + bytes.fromhex("0800000000010001") + b"ping"
    who = b"\xff" * 6 + bytes.fromhex("5254001234570806" "0001080006040001" "525400123457") + bytes([10, 0, 2, 2])
    who += bytes(6) + bytes([10, 0, 2, 15])
    for name, frame in (("ping", echo), ("arp", who)):
        yield name, bytes([6, 0]) + struct.pack("<I", offloads) + network_step(9, 1, len(frame), data=frame) * 2
    for ip, gw in ((b"10.0.2.15/24", b"10.0.2.2"), (b"10.0.2.15", b""), (b"10.0.2.15/33", b"x"), (b"0.0.0.0/8", b"1.2.3.4"),
                   (b"1.2.3.4/24x", b"1.2"), (b"10.0.2.15/24", b"1.2.3.400")):
        text = bytes([len(ip)]) + ip + bytes([len(gw)]) + gw
        yield f"ip-{ip.hex()}-{gw.hex()}", bytes([6, 8]) + struct.pack("<I", plain) + text + network_step(15, 6)
    lies = bytes([15, 0x80, 1, 0, 20, 0]) + bytes([15, 0x80, 0x84, 2, 3, 0, 60, 0]) + bytes([15, 0x80, 2, 9])
    for name, word in (("lies", 6), ("lies-never-resets", 0x0E), ("lies-small", 0x11)):
        yield name, bytes([word, 0]) + struct.pack("<I", offloads) + connect + lies + turn
    # The server says FIN first; the same port comes again.
    close = network_step(12, 0x80) + network_step(1, 0, 60000) + network_step(8, 0) + network_step(1, 0, 60000)
    first = bytes([0, 0, 4]) + struct.pack("<H", 8000) + mss + network_step(1, 0, 60000) + network_step(3, 0, 900)
    again = bytes([0, 0x81, 4]) + struct.pack("<H", 8000) + mss
    for words in (0, 4):
        head = bytes([6, words]) + struct.pack("<I", plain)
        yield f"again{words}", head + first + close + again.replace(b"\x81", b"\x84") + turn + first
        late = bytes([0, 6, 4]) + struct.pack("<H", 8000) + mss + network_step(1, 6, 60000)
        yield f"late{words}", head + late + network_step(3, 6, 8000) * 6 + network_step(5, 6, data=b"\1\xb4\5") * 9 + turn
    config = bytes.fromhex("525400123456") + struct.pack("<HHH", 1, 1, 1400)
    yield "config", bytes([0x26, 0]) + struct.pack("<I", offloads | 8) + config + bytes([12]) + connect + turn


def fw_cfg_file(name: bytes, size: int, selector: int) -> bytes:
    """QEMU, docs/specs/fw_cfg: an entry of the directory."""
    return struct.pack(">IHH56s", size, selector, 0, name)


def registers() -> Iterator[Seed]:
    """As fuzz_registers.c reads them: which device, bytes of its registers."""
    for name, size in (("virtio", 0x140), ("bare", 0x100), ("short", 0x80)):
        yield name, struct.pack("<BH", 0, size)
        yield f"{name}-lies", struct.pack("<BH", 0, size) + bytes(range(1, 120)) * 2
    yield "interrupts", struct.pack("<BH", 0, 0x140) + bytes([1] * 20 + [4, 8, 2, 0, 1, 3, 3, 2, 1] * 9)
    files = fw_cfg_file(b"etc/other", 7, 0x20) + fw_cfg_file(b"opt/file", 40, 0x21)
    for name, room in (("file", 100), ("file-fits", 40), ("file-too-long", 39)):
        yield name, struct.pack("<BHH", 1, 16, room) + struct.pack(">I", 2) + files
    yield "no-file", struct.pack("<BHH", 1, 16, 10) + struct.pack(">I", 1) + files
    yield "endless", struct.pack("<BHH", 1, 16, 10) + struct.pack(">I", 2**32 - 1)
    for shift in range(4):
        keys = bytes([1, 8, 1, ord("s"), 1, 8, 1, 3]) * 20
        yield f"keys{shift}", struct.pack("<BBH", 2, 0x80 | shift, 256) + keys


def main() -> None:
    targets = {
        "device_tree": device_trees,
        "partition": partitions,
        "config": configurations,
        "virtqueue": rings,
        "virtio_blk": disks,
        "nbd": clients,
        "net": networks,
        "registers": registers,
    }
    for target, seeds in targets.items():
        folder = Path(sys.argv[1]) / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in seeds():
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
