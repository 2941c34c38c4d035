# The fast way to boot: a few hundred bytes of machine-mode start, given to QEMU as -bios.
#
# The reset vector hands over a0 = hart, a1 = device tree, a2 = the dynamic information record of
# the OpenSBI boot protocol ("fw_dynamic"), which names the next stage's address. This start opens
# all memory to supervisor mode, delegates every trap and interrupt to it, lets it use the counters
# and the supervisor timer compare register (Sstc), and jumps there. What stays resident is one
# trap handler that answers SBI calls (only "who are you", "which memory is yours", "feed the
# watchdog", "end the machine" and the legacy console's character are known, everything else is "not
# supported") and is the watchdog.
#
# It has no timer for the kernel: a processor without Sstc is refused by the kernel with a message
# that says to boot under OpenSBI instead. The machine timer is the watchdog's.

#define FW_DYNAMIC_MAGIC       0x4942534f  /* "OSBI", OpenSBI fw_dynamic_info */
#define FW_DYNAMIC_NEXT        16
#define FW_DYNAMIC_BOOT_HART   40

#define SBI_EXT_BASE           0x10
#define SBI_BASE_IMPL_ID       1
#define SBI_EXT_START          0x0a504c41  /* firmware-specific space, "PLA" */
#define SBI_ERR_NOT_SUPPORTED  -2
#define START_IMPL_ID          0x504c41

#define START_OWN_MEMORY       0
#define START_WATCHDOG         1
#define START_END              2
#define SBI_CONSOLE_PUTCHAR    1           /* legacy; for a kernel that cannot drive the UART */

#define CAUSE_ECALL_S          9
#define CAUSE_TIMER            7           /* with the interrupt bit */
#define CAUSE_WATCHDOG         24          /* what the kernel finds in scause; custom use from 24 on */
#define MIE_TIMER              0x80
#define SSTATUS_SIE            0x2
#define SSTATUS_SPP            0x100

/* QEMU's virt board, hw/riscv/virt.c: UART, CLINT and test finisher. */
#define UART_TRANSMIT          0x10000000
#define CLINT_MTIMECMP         0x02004000
#define CLINT_MTIME            0x0200bff8
#define FINISHER               0x00100000
#define FINISHER_FAIL          0x3333
#define WATCHDOG_STATUS        101         /* as POWER_WATCHDOG in core/panic.h */

/* What the trap handler keeps. */
#define KEPT_T1                0
#define KEPT_T2                8
#define WATCHDOG_PERIOD        16          /* half of what the kernel asked for, in ticks */
#define WATCHDOG_STRIKES       24          /* expiries since it was fed */
#define KEPT_DEADLINE          32
#define CSR_MENVCFG            0x30a

# The machine timer expires one period from now. Uses t1 and t2; t0 = what the handler keeps.
    .macro watchdog_arm
    li      t1, CLINT_MTIME
    ld      t1, 0(t1)
    ld      t2, WATCHDOG_PERIOD(t0)
    add     t1, t1, t2
    csrr    t2, mhartid
    slli    t2, t2, 3
    sd      t1, KEPT_DEADLINE(t0)
    li      t1, CLINT_MTIMECMP
    add     t2, t2, t1
    ld      t1, KEPT_DEADLINE(t0)
    sd      t1, 0(t2)
    .endm

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
    csrw    satp, zero              # a reset need not clear it: page tables of the life before

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

# A call from supervisor mode clobbers only a0 and a1, the results, as SBI says; the watchdog's timer
# clobbers nothing. Any other trap into machine mode has no meaning here: the hart stops, which is
# all that can be done.
    .balign 4
trap:
    csrrw   t0, mscratch, t0
    sd      t1, KEPT_T1(t0)
    sd      t2, KEPT_T2(t0)
    csrr    t1, mcause
    bltz    t1, interrupt
    addi    t1, t1, -CAUSE_ECALL_S
    bnez    t1, park
    csrr    t1, mepc
    addi    t1, t1, 4
    csrw    mepc, t1

    li      t1, SBI_EXT_BASE
    beq     a7, t1, base
    li      t1, SBI_CONSOLE_PUTCHAR
    beq     a7, t1, putchar
    li      t1, SBI_EXT_START
    bne     a7, t1, unknown
    li      t1, START_OWN_MEMORY
    beq     a6, t1, own_memory
    li      t1, START_WATCHDOG
    beq     a6, t1, watchdog_feed
    li      t1, START_END
    beq     a6, t1, end
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
putchar:                            # the emulated UART takes it at once
    li      t1, UART_TRANSMIT
    sb      a0, 0(t1)
    li      a0, 0
    j       out
end:                                # a0 = exit status
    slli    t2, a0, 16
    li      t1, FINISHER_FAIL
    or      t2, t2, t1
    li      t1, FINISHER
    sw      t2, 0(t1)
    j       park
own_memory:                         # the resident range: a0 = first byte, a1 = bytes
    la      a0, start
    la      a1, start_end
    sub     a1, a1, a0
    j       out

# a0 = ticks until the first strike, 0 for none.
watchdog_feed:
    sd      a0, WATCHDOG_PERIOD(t0)
    sd      zero, WATCHDOG_STRIKES(t0)
    li      t1, MIE_TIMER
    csrc    mie, t1
    beqz    a0, 1f
    watchdog_arm
    li      t1, MIE_TIMER
    csrs    mie, t1
1:
    li      a0, 0
    li      a1, 0
out:
    ld      t1, KEPT_T1(t0)
    ld      t2, KEPT_T2(t0)
    csrrw   t0, mscratch, t0
    mret

# The watchdog was not fed. The first strike is noted: the emulator may have been stopped. The second
# enters the kernel's trap handler as if the instruction that runs had trapped, so that it can tell
# what it was doing. The third means that it could not: the machine ends.
interrupt:
    slli    t1, t1, 1
    li      t2, CAUSE_TIMER << 1
    bne     t1, t2, park
    ld      t1, WATCHDOG_STRIKES(t0)
    addi    t1, t1, 1
    sd      t1, WATCHDOG_STRIKES(t0)
    li      t2, 3
    bge     t1, t2, watchdog_end
    watchdog_arm
    ld      t1, WATCHDOG_STRIKES(t0)
    li      t2, 1
    beq     t1, t2, out
    csrr    t1, mepc
    csrw    sepc, t1
    li      t1, CAUSE_WATCHDOG
    csrw    scause, t1
    csrw    stval, zero
    csrci   sstatus, SSTATUS_SIE
    li      t1, SSTATUS_SPP
    csrs    sstatus, t1
    csrr    t1, stvec
    csrw    mepc, t1
    j       out

watchdog_end:
    li      t1, FINISHER
    li      t2, WATCHDOG_STATUS << 16 | FINISHER_FAIL
    sw      t2, 0(t1)
    j       park

    .section .data.start, "aw"
    .balign 8
trap_frame:
    .zero   40
