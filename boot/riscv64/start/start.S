# The fast way to boot: a few hundred bytes of machine-mode start, given to QEMU as -bios.
#
# The reset vector hands over a0 = hart, a1 = device tree, a2 = the dynamic information record of
# the OpenSBI boot protocol ("fw_dynamic"), which names the next stage's address. This start opens
# all memory to supervisor mode, delegates every trap and interrupt to it, lets it use the counters
# and the supervisor timer compare register (Sstc), and jumps there. What stays resident is one
# trap handler of a dozen instructions that answers SBI calls: only "who are you" and "which memory
# is yours" are known, everything else is "not supported".
#
# It has no timer of its own: a processor without Sstc is refused by the kernel with a message that
# says to boot under OpenSBI instead.

#define FW_DYNAMIC_MAGIC       0x4942534f  /* "OSBI", OpenSBI fw_dynamic_info */
#define FW_DYNAMIC_NEXT        16
#define FW_DYNAMIC_BOOT_HART   40

#define SBI_EXT_BASE           0x10
#define SBI_BASE_IMPL_ID       1
#define SBI_EXT_START          0x0a504c41  /* firmware-specific space, "PLA" */
#define SBI_ERR_NOT_SUPPORTED  -2
#define START_IMPL_ID          0x504c41

#define CAUSE_ECALL_S          9
#define CSR_MENVCFG            0x30a

    .section .text.start, "ax"
    .globl start
start:
    # Only the hart that the record names goes on; others sleep for good.
    ld      t0, FW_DYNAMIC_BOOT_HART(a2)
    csrr    t1, mhartid
    bne     t0, t1, park

    lw      t0, 0(a2)
    li      t1, FW_DYNAMIC_MAGIC
    bne     t0, t1, park

    # All of memory for supervisor mode: one region, naturally aligned, read-write-execute.
    la      t0, 1f
    csrw    mtvec, t0               # a hart without protection has no such registers: go on
    li      t0, -1
    csrw    pmpaddr0, t0
    li      t0, 0x1f
    csrw    pmpcfg0, t0
    .balign 4
1:
    # The supervisor timer compare register where there is one; without it this write traps.
    la      t0, 2f
    csrw    mtvec, t0
    li      t0, 1
    slli    t0, t0, 63
    csrs    CSR_MENVCFG, t0
    .balign 4
2:
    la      t0, trap
    csrw    mtvec, t0
    la      t0, trap_frame
    csrw    mscratch, t0
    li      t0, -1
    csrw    mideleg, t0
    csrw    mcounteren, t0
    li      t0, ~(1 << CAUSE_ECALL_S)   # calls stay ours, every other trap is the kernel's
    csrw    medeleg, t0
    csrw    mie, zero

    li      t0, 0x1800              # mstatus.MPP = supervisor; floating point and vectors stay off
    csrc    mstatus, t0
    li      t0, 0x0800
    csrs    mstatus, t0
    ld      t0, FW_DYNAMIC_NEXT(a2)
    csrw    mepc, t0
    mret

park:
    wfi
    j       park

# A call from supervisor mode. Clobbers only a0 and a1, the results, as SBI says. Any other trap
# into machine mode has no meaning here: the hart stops, which is all that can be done.
    .balign 4
trap:
    csrrw   t0, mscratch, t0
    sd      t1, 0(t0)
    csrr    t1, mcause
    addi    t1, t1, -CAUSE_ECALL_S
    bnez    t1, park
    csrr    t1, mepc
    addi    t1, t1, 4
    csrw    mepc, t1

    li      t1, SBI_EXT_BASE
    beq     a7, t1, base
    li      t1, SBI_EXT_START
    beq     a7, t1, own_memory
unknown:
    li      a0, SBI_ERR_NOT_SUPPORTED
    li      a1, 0
    j       out
base:
    li      t1, SBI_BASE_IMPL_ID
    bne     a6, t1, unknown
    li      a0, 0
    li      a1, START_IMPL_ID
    j       out
own_memory:                         # the resident range: a0 = first byte, a1 = bytes
    la      a0, start
    la      a1, start_end
    sub     a1, a1, a0
out:
    ld      t1, 0(t0)
    csrrw   t0, mscratch, t0
    mret

    .section .data.start, "aw"
    .balign 8
trap_frame:
    .dword  0
