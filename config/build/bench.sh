# shellcheck shell=bash
# `bench`: measures the appliance beside others, in one run.

bench_usage() {
  cat <<'END'
usage: ./build.sh bench load [--rounds N] [--seconds N] [--net tap|user] [--json FILE]
       ./build.sh bench boot [--rounds N] [--net tap|user] [--no-peer] [--json FILE]

  load   fio against the appliance and a Linux guest with nbdkit on the same QEMU, alternating:
         medians, spread and ratios
  boot   time from the command to the first NBD greeting, beside QEMU alone

Needs root: it works in a network namespace of its own. The Linux guest is fetched and built once, in
build/peer. docs/benchmarks.md says what is measured and how.
END
}

bench_main() {
  local kind=${1:-}
  case $kind in
    -h | --help) bench_usage && return ;;
    load | boot) shift ;;
    *) die "bench: load or boot; see ./build.sh bench --help" ;;
  esac
  need packages build
  packages_main build run bench
  build_main
  local net=tap argument previous=
  for argument in "$@"; do
    [[ $previous != --net ]] || net=$argument
    previous=$argument
  done
  local appliance='./build.sh run --disk {image} --memory {memory}'
  case $net in
    tap) appliance+=' --net tap --tap {tap} --ip {ip} --gw {gw}' ;;
    user) appliance+=' --port {port}' ;;
    *) die "bench: --net $net: it is tap or user" ;;
  esac
  exec /usr/bin/python3 tests/bench/side_by_side.py "$kind" --net "$net" --appliance "$appliance" "$@"
}
