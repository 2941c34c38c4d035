# shellcheck shell=bash
# `bench`: measures the appliance beside others, in one run.

bench_usage() {
  cat <<'END'
usage: ./build.sh bench [PART] [--quick] [--net tap|user] [--mtu N] [--peers NAMES] [--only WORDS]
                        [--rounds N] [--seconds N] [--disk-mib N] [--out FOLDER]

Measures the appliance beside others that take turns with it, and prints medians, ranges and ratios.
Without a PART, all but the profile:

  load          fio, and a client that costs little: 4 KiB random and 1 MiB sequential, depths 1 to 128,
                1 to 64 connections
  boot          time from the command to the first greeting, beside QEMU alone
  instructions  guest instructions for each request
  memory        the smallest memory that still serves
  size          what QEMU is given to start
  profile       guest instructions of a 4 KiB read by stage and by function

  --quick       few loads, few peers, one round: about four minutes
  --net KIND    how guests are reached: tap (default) or user
  --mtu N       of the taps, and so of the guests on them (default 1500)
  --peers NAMES all (default), none, or some of, with commas between them: linux-nbdkit,
                linux-qemu-nbd, linux-nbd-server (guests on the same QEMU and board), host-nbdkit,
                host-qemu-nbd, host-qemu-nbd-native (on this machine itself)
  --only WORDS  the loads that have these words in their title: --only "random read, depth 32"
  --rounds N    turns of each contestant
  --seconds N   of each load
  --disk-mib N  size of the disks, which are in memory (default 256)
  --out FOLDER  where figures.csv, .json, .md and .svg go (default build/bench)

Needs root: it works in network and process namespaces of its own. The Linux guests' packages are fetched
once, into build/peer. docs/benchmarks.md says what is measured and how.
END
}

bench_main() {
  local word
  for word in "$@"; do
    if [[ $word == -h || $word == --help ]]; then
      bench_usage
      return
    fi
  done
  need packages build
  packages_main build run bench
  build_main
  exec /usr/bin/python3 -B tests/bench/bench.py "$@"
}
