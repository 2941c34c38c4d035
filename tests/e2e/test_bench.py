"""The benchmark's own arithmetic: what it makes of figures, of fio's answer and of counts."""

from __future__ import annotations

import csv
import io
import json
import re
import select
import socket
import struct
import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))

import counting  # noqa: E402
import load  # noqa: E402
import picture  # noqa: E402
from appliance import Appliance  # noqa: E402
from bench import OVERLOAD_SHARE, Plan, Run, relate_overload  # noqa: E402
from figures import Figures, number  # noqa: E402
from nbd_wire import SIMPLE_REPLY_MAGIC, Command  # noqa: E402

REQUEST_BYTES = 28
SVG = "{http://www.w3.org/2000/svg}"


def three_turns() -> Figures:
    figures = Figures()
    for turn, (ours, theirs) in enumerate(((90.0, 10.0), (120.0, 30.0), (100.0, 20.0))):
        figures.add("ours", "read", "operations/s", turn, ours)
        figures.add("<theirs>", "read", "operations/s", turn, theirs)
    return figures


def test_a_summary_is_median_least_and_most() -> None:
    summary = three_turns().summary("ours", "read", "operations/s")
    assert summary is not None
    assert (summary.median, summary.least, summary.most, summary.turns) == (100, 90, 120, 3)


def test_a_ratio_is_that_of_medians_and_needs_both() -> None:
    figures = three_turns()
    assert figures.ratio("<theirs>", "ours", "read", "operations/s") == 0.2
    assert figures.ratio("ours", "nobody", "read", "operations/s") is None


def test_a_table_has_a_cell_for_everybody() -> None:
    table = three_turns().as_table("operations/s", ["ours", "<theirs>", "nobody"], "ours")
    assert table.splitlines()[2] == "| read | 100 [90.0–120] | 20.0 [10.0–30.0] ×0.200 | – |"


def test_csv_and_json_carry_every_turn() -> None:
    figures = three_turns()
    rows = list(csv.DictReader(io.StringIO(figures.as_csv())))
    assert [float(row["value"]) for row in rows if row["contestant"] == "ours"] == [90, 120, 100]
    told = json.loads(figures.as_json({"host": "h"}))
    assert told["about"] == {"host": "h"}
    assert told["figures"][1]["values"] == [10, 30, 20]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (12345.6, "12346"), (100, "100"), (1.5, "1.50"), (0.0123, "0.0123")],
)
def test_numbers_have_three_digits_that_count(value: float, text: str) -> None:
    assert number(value) == text


def test_the_picture_is_xml_with_bars_as_long_as_their_medians() -> None:
    names = ["ours", "<theirs>", "nobody"]
    panels = [("read", "operations/s"), ("write", "operations/s")]
    root = ElementTree.fromstring(picture.draw("t", three_turns(), panels, names, ["ours"]))
    bars = {rect.get("fill"): float(rect.get("width", "0")) for rect in root.iter(f"{SVG}rect")}
    assert bars[picture.OURS] == pytest.approx(5 * bars[picture.OTHERS], rel=0.01)
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "<theirs>" in texts
    assert not [text for text in texts if text and "write" in text], "a panel without figures"


def test_instructions_of_a_block_are_told_apart_by_their_length(tmp_path: Path) -> None:
    # c.nop, nop, c.nop, c.nop, nop; loaded at 0x80200000 from 120 bytes into the file.
    code = bytes.fromhex("0100 13000000 0100 0100 13000000")
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQ", 2, 243, 1, 0, 64, 0)
    header += struct.pack("<IHHHHHH", 0, 64, 56, 1, 0, 0, 0)
    size = len(code)
    program = struct.pack("<IIQQQQQQ", 1, 5, 120, 0x80200000, 0x80200000, size, size, 4096)
    file = tmp_path / "image.elf"
    file.write_bytes(header + program + code)
    image = counting.Image(file)
    found = image.instructions(counting.Block(0x80200000, size))
    assert [address - 0x80200000 for address in found] == [0, 2, 6, 8, 10]
    outside = counting.Block(0x80000000, 8)
    assert image.instructions(outside) == [0x80000000], "the firmware's is not in the image"


def job(operations: int, runtime_ms: int = 1000) -> dict[str, Any]:
    percentile = {"50.000000": 5000, "99.000000": 9000, "99.900000": 20000}
    read = {
        "total_ios": operations,
        "io_bytes": operations * 4096,
        "iops": operations * 1000 / runtime_ms,
        "runtime": runtime_ms,
        "clat_ns": {"percentile": percentile},
    }
    return {"read": read, "write": {"total_ios": 0}}


def test_fio_answers_become_rates_latencies_and_cost() -> None:
    taken = load.evaluate(load.READ_DEPTH_1, {"jobs": [job(3000, 1500)]}, 0, 0.6)
    assert taken[load.OPERATIONS] == 2000
    assert taken[load.CPU_PER_OPERATION] == pytest.approx(200)
    assert taken[load.latency_metric("p99.9")] == 20


def test_jobs_begin_late_by_the_first_stamps_of_their_logs() -> None:
    early = "1000100, 5, 0, 0, 0\n1005200, 5, 0, 0, 0\n"
    late = "1000900, 5, 0, 0, 0\n1001000, 5, 0, 0, 0\n"
    assert load.late_s([late, early, ""]) == 0.8


def test_a_starved_job_shows_and_late_ones_do_not_inflate_the_sum() -> None:
    answer = {"jobs": [job(100), job(300), job(200, 500)]}
    taken = load.evaluate(load.OVERLOAD, answer, 1.0, 1.0)
    assert taken[load.OPERATIONS] == 300
    assert taken[load.LEAST_SHARE] == pytest.approx(100 * 100 / 266.67, rel=0.01)
    answer["jobs"].append(job(0))
    assert load.evaluate(load.OVERLOAD, answer, 1.0, 1.0)[load.LEAST_SHARE] == 0


def test_the_bare_clients_answer_becomes_rates_and_cost() -> None:
    answer = {"elapsed_ns": 1_500_000_000, "operations": [3000]}
    taken = load.evaluate_bare(load.BARE_READ_DEPTH_32, answer, 0.6)
    assert taken == {load.OPERATIONS: 2000, load.CPU_PER_OPERATION: pytest.approx(200)}
    streams = load.evaluate_bare(load.BARE_SEQUENTIAL_READ, answer, 0.6)
    assert streams[load.THROUGHPUT] == pytest.approx(2000 * 1.048576)
    many = {"elapsed_ns": 10**9, "operations": [100, 300]}
    assert load.evaluate_bare(load.BARE_OVERLOAD, many, 1.0)[load.LEAST_SHARE] == 50


def test_an_overload_is_related_to_what_the_same_client_read_at_lower_load(tmp_path: Path) -> None:
    figures = Figures()
    rates = {load.PEAK: 100, load.READ_DEPTH_32: 80, load.OVERLOAD: 90, load.WRITE_DEPTH_1: 500}
    rates |= {load.BARE_READ_DEPTH_32: 200, load.BARE_OVERLOAD: 160}
    for one, rate in rates.items():
        figures.add("ours", one.title, load.OPERATIONS, 0, rate)
    plan = Plan(False, tuple(rates), 1, 1, 1, 1.0, 1)
    relate_overload(Run(plan, [], figures, {}, tmp_path, tmp_path, "tap"), "ours", 0)
    shares = {it.load: it.value for it in figures.taken if it.metric == OVERLOAD_SHARE}
    assert shares == {load.OVERLOAD.title: 90, load.BARE_OVERLOAD.title: 80}


@pytest.fixture(scope="module")
def bare_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return load.build_client(tmp_path_factory.mktemp("client"))


def run_client(client: Path, port: int, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(client), "127.0.0.1", str(port), "", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def disk_bytes(appliance: Appliance, word: str) -> int:
    """What the status dump counts; it leaves out what has never been done."""
    found = re.search(rf"vda {word}: \d+ requests, (\d+) bytes", appliance.status())
    return int(found.group(1)) if found is not None else 0


@pytest.mark.parametrize("pattern", ["randread", "randwrite", "read", "write"])
@pytest.mark.parametrize("connections", [1, 3])
@pytest.mark.parametrize("block", [4096, 1 << 20])
def test_the_bare_client_counts_what_was_served(
    appliance: Appliance, bare_client: Path, pattern: str, connections: int, block: int
) -> None:
    word = "write" if pattern.endswith("write") else "read"
    appliance.wait_until_idle()
    before = disk_bytes(appliance, word)
    said_before = len(appliance.console())
    done = run_client(
        bare_client, appliance.port, pattern, str(block), "8", str(connections), "200"
    )
    assert done.returncode == 0, done.stderr
    operations = json.loads(done.stdout)["operations"]
    assert len(operations) == connections
    assert min(operations) > 0
    appliance.wait_until_idle()
    assert disk_bytes(appliance, word) - before == sum(operations) * block
    assert "without a disconnect" not in appliance.console()[said_before:]


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        (struct.pack(">IIQ", SIMPLE_REPLY_MAGIC, 5, 0), "request failed with error 5"),
        (struct.pack(">IIQ", SIMPLE_REPLY_MAGIC, 0, 1), "not the reply to a request"),
        (struct.pack(">IIQ", SIMPLE_REPLY_MAGIC + 1, 0, 0), "not the reply to a request"),
        (b"", "nothing received: closed"),
    ],
)
def test_the_bare_client_does_not_count_what_is_wrong(
    bare_client: Path, reply: bytes, complaint: str
) -> None:
    def answer(connection: socket.socket) -> None:
        take(connection, REQUEST_BYTES)
        connection.sendall(reply)

    done = run_against(answer, bare_client, "1000")
    assert done.returncode != 0
    assert complaint in done.stderr


def test_the_bare_client_asks_anew_when_a_reply_is_whole(bare_client: Path) -> None:
    early = []

    def answer(connection: socket.socket) -> None:
        while (head := take(connection, REQUEST_BYTES))[6:8] == Command.READ.to_bytes(2, "big"):
            connection.sendall(struct.pack(">II", SIMPLE_REPLY_MAGIC, 0) + head[8:16])
            connection.sendall(bytes(100))
            early.append(bool(select.select([connection], [], [], 0.1)[0]))
            connection.sendall(bytes(4096 - 100))

    done = run_against(answer, bare_client, "150")
    assert done.returncode == 0, done.stderr
    assert not any(early)
    assert json.loads(done.stdout)["operations"] == [len(early)]


def take(connection: socket.socket, count: int) -> bytes:
    taken = b""
    while len(taken) < count:
        piece = connection.recv(count - len(taken))
        assert piece, "the client has closed"
        taken += piece
    return taken


def run_against(
    answer: Callable[[socket.socket], None], client: Path, milliseconds: str
) -> subprocess.CompletedProcess[str]:
    """The bare client with one request at a time, and a server that answers as it is told."""

    def serve_once(listening: socket.socket) -> None:
        connection = listening.accept()[0]
        with connection:
            connection.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
            take(connection, 4 + 16)
            connection.sendall(struct.pack(">QH", 1 << 20, 1))
            answer(connection)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = threading.Thread(target=serve_once, args=(listening,), daemon=True)
        server.start()
        port = listening.getsockname()[1]
        done = run_client(client, port, "randread", "4096", "1", "1", milliseconds)
        server.join(10)
    return done


@pytest.mark.parametrize(
    ("place", "stage"),
    [
        ("net/virtio_net.c:virtio_net_receive", "receive"),
        ("net/virtio_net.c:virtio_net_send", "send"),
        ("build/deps/lwip/src/core/tcp_in.c:tcp_input", "TCP in"),
        ("build/deps/lwip/src/core/pbuf.c:pbuf_free", "TCP, both ways"),
        ("apps/nbd/transmission.c:decode", "NBD"),
        ("blk/queue.c:block_submit", "block"),
        ("blk/virtio_blk.c:reap", "completion"),
        ("core/virtio/queue.c:virtqueue_add", "rings, both devices"),
        ("core/lib/mem_copy.c:memcpy", "memory"),
        ("unknown.c:f", counting.OTHER_STAGE),
    ],
)
def test_functions_belong_to_stages(place: str, stage: str) -> None:
    assert counting.stage_of(*place.split(":")) == stage
