# shellcheck shell=bash
# QEMU's command line for a guest of ours, as the array QEMU. Callers begin with `qemu_machine`, add
# disks and one network, and end with what is theirs.
#
# Devices take virtio-mmio slots in the order of creation, and `virt` lists its slots in the device
# tree in that same order: the first disk given is the first that the guest finds.

# What is set here is read by those who load this file; commas are QEMU's.
# shellcheck disable=SC2034,SC2054

QEMU_DISKS_MAX=7 # of the board's 8 slots; the network takes one

qemu_machine() { # kernel memory-MiB accel bios append [options of the console]
  local firmware
  case $4 in
    start) firmware=$BUILD/$TARGET/start.bin ;;
    opensbi) firmware=default ;;
    *) die "--bios $4: it is start or opensbi" ;;
  esac
  QEMU=("qemu-system-$TARGET" -M virt -cpu rv64 -smp 1 -m "$2" -accel "$3"
    -nodefaults -no-user-config -display none
    -bios "$firmware" -kernel "$1" -append "$5"
    -global virtio-mmio.force-legacy=false
    -chardev "stdio,id=console,signal=off${6:-}" -serial chardev:console)
}

# Adds a disk. Options are what -drive takes, each with a comma before it.
qemu_disk() { # index file format options
  # A comma in a file's name is written twice for QEMU.
  QEMU+=(-drive "if=none,id=disk$1,file=${2//,/,,},format=$3$4"
    -device "virtio-blk-device,drive=disk$1,serial=disk$1")
}

# Options are what the device takes, each with a comma before it.
qemu_network() { # netdev [options]
  QEMU+=(-netdev "$1,id=net0" -device "virtio-net-device,netdev=net0${2:-}")
}
