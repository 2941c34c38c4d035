# riscv64: QEMU's `virt` board.
#
# -mcmodel=medany: memory begins at 2 GiB, out of reach of medlow.
TARGET_FLAGS   := --target=riscv64-none-elf -march=rv64imac_zba_zbb -mabi=lp64 -mcmodel=medany
TARGET_LDFLAGS := -m elf64lriscv -z max-page-size=4096

# What meson is told about the machine when it builds picolibc.
TARGET_CPU_FAMILY := riscv64
