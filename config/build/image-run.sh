#!/bin/sh
# Serves a disk with Platter on this machine: ./run.sh DISK [PORT], then nbd://localhost:PORT (10809).
# Needs qemu-system-@TARGET@ 7.2 or newer. On a terminal, Ctrl-C asks the guest to flush and power off.
set -eu
if [ $# -lt 1 ] || [ $# -gt 2 ] || [ "$1" = --help ]; then
  echo "usage: $0 DISK [PORT]   (DISK: a raw image or a block device)" >&2
  exit 2
fi
disk=$(printf '%s' "$1" | sed 's/,/,,/g')
port=${2:-10809}
here=$(dirname "$0")
exec qemu-system-@TARGET@ -M virt -cpu rv64 -smp 1 -m 256 -nodefaults -no-user-config -display none \
  -bios "$here/start.bin" -kernel "$here/platter.elf" -append "ip=10.0.2.15/24 gw=10.0.2.2 segment=64240 notify=twice" \
  -global virtio-mmio.force-legacy=false \
  -chardev stdio,id=console,signal=off -serial chardev:console \
  -netdev "user,id=net0,hostfwd=tcp:127.0.0.1:$port-10.0.2.15:10809" \
  -device virtio-net-device,netdev=net0,tx=timer,x-txtimer=1000000000 \
  -drive "if=none,id=disk0,file=$disk,format=raw" -device virtio-blk-device,drive=disk0,serial=disk0
