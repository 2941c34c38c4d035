# Reset to C, the context switch, and the one trap entry.

# What the calling convention says a callee keeps, on the stack; arch.c builds such a frame too.
    .macro save_callee_kept
    addi    sp, sp, -112
    sd      ra, 0(sp)
    sd      s0, 8(sp)
    sd      s1, 16(sp)
    sd      s2, 24(sp)
    sd      s3, 32(sp)
    sd      s4, 40(sp)
    sd      s5, 48(sp)
    sd      s6, 56(sp)
    sd      s7, 64(sp)
    sd      s8, 72(sp)
    sd      s9, 80(sp)
    sd      s10, 88(sp)
    sd      s11, 96(sp)
    .endm
    .macro load_callee_kept
    ld      ra, 0(sp)
    ld      s0, 8(sp)
    ld      s1, 16(sp)
    ld      s2, 24(sp)
    ld      s3, 32(sp)
    ld      s4, 40(sp)
    ld      s5, 48(sp)
    ld      s6, 56(sp)
    ld      s7, 64(sp)
    ld      s8, 72(sp)
    ld      s9, 80(sp)
    ld      s10, 88(sp)
    ld      s11, 96(sp)
    addi    sp, sp, 112
    .endm

#define SBI_CONSOLE_PUTCHAR 1           /* SBI 2.0, 5: legacy */
#define SBI_EXT_RESET       0x53525354  /* SBI 2.0, 10 */
#define SBI_EXT_START       0x0a504c41  /* boot/riscv64/start */
#define START_END           2
#define STATUS_PANIC        100         /* POWER_PANIC in core/panic.h */

    .section .text.start, "ax"
    .globl _start
_start:
    # From the firmware: a0 = hart, a1 = physical address of the device tree (SBI, boot protocol).
    csrw    sie, zero
    csrci   sstatus, 2              # SIE off: interrupts only ever end the idle wait
    # Everything in C is compiled for Zba and Zbb, the report of a trap, too.
    la      t0, lacks_instructions
    csrw    stvec, t0
    sh1add  t0, zero, zero
    rev8    t0, zero
    la      t0, trap_entry
    csrw    stvec, t0
    la      sp, boot_stack_end

    la      t0, bss_start
    la      t1, bss_end
1:  bgeu    t0, t1, 2f
    sd      zero, 0(t0)
    sd      zero, 8(t0)
    addi    t0, t0, 16
    j       1b
2:
    call    riscv_start
3:  wfi
    j       3b

# Says so by the firmware's console, and ends the machine by the first firmware that can.
    .balign 4
lacks_instructions:
    la      s1, lacks_message
1:  lbu     a0, 0(s1)
    beqz    a0, 2f
    li      a7, SBI_CONSOLE_PUTCHAR
    ecall
    addi    s1, s1, 1
    j       1b
2:  li      a7, SBI_EXT_START
    li      a6, START_END
    li      a0, STATUS_PANIC
    ecall
    li      a7, SBI_EXT_RESET
    li      a6, 0
    li      a0, 0                   # shut down
    li      a1, 1                   # because the system failed
    ecall
3:  wfi
    j       3b

    .section .rodata
lacks_message:
    .asciz  "PANIC: this processor lacks the instructions of Zba and Zbb, which are part of RVA22\r\n"

    .text
# void riscv_context_switch(void **save_sp, void *load_sp)
# Keeps what the calling convention says a callee keeps; everything else is the caller's affair.
    .globl riscv_context_switch
    .balign 4
riscv_context_switch:
    save_callee_kept
    sd      sp, 0(a0)
    mv      sp, a1
    load_callee_kept
    ret

# The first thing a new context runs: s1 = entry, s2 = its argument (see arch_context_init).
    .globl riscv_context_begin
    .balign 4
riscv_context_begin:
    mv      a0, s2
    jalr    s1
    ebreak                          # entry must not return

# bool riscv_try(void (*access)(void *), void *arg)
# Calls access(arg). A trap meanwhile comes back here with the stack as it was and returns false.
    .globl riscv_try
    .balign 4
riscv_try:
    save_callee_kept
    la      t0, try_stack
    sd      sp, 0(t0)
    mv      t1, a0
    mv      a0, a1
    jalr    t1
    li      a0, 1
try_out:
    la      t0, try_stack
    sd      zero, 0(t0)
    load_callee_kept
    ret

# Every trap is an exception, for interrupts are masked: either riscv_try expects it, or it is the
# end. The registers are kept in a frame of its own and the report runs on a stack of its own.
# arch_stop comes here too, by way of ebreak.
    .globl trap_entry
    .balign 4
trap_entry:
    csrw    sscratch, t0
    la      t0, try_stack
    ld      t0, 0(t0)
    beqz    t0, 1f
    mv      sp, t0
    li      a0, 0
    j       try_out
1:
    la      t0, trap_frame
    sd      x1, 8(t0)
    sd      x2, 16(t0)
    sd      x3, 24(t0)
    sd      x4, 32(t0)
    sd      x6, 48(t0)
    sd      x7, 56(t0)
    sd      x8, 64(t0)
    sd      x9, 72(t0)
    sd      x10, 80(t0)
    sd      x11, 88(t0)
    sd      x12, 96(t0)
    sd      x13, 104(t0)
    sd      x14, 112(t0)
    sd      x15, 120(t0)
    sd      x16, 128(t0)
    sd      x17, 136(t0)
    sd      x18, 144(t0)
    sd      x19, 152(t0)
    sd      x20, 160(t0)
    sd      x21, 168(t0)
    sd      x22, 176(t0)
    sd      x23, 184(t0)
    sd      x24, 192(t0)
    sd      x25, 200(t0)
    sd      x26, 208(t0)
    sd      x27, 216(t0)
    sd      x28, 224(t0)
    sd      x29, 232(t0)
    sd      x30, 240(t0)
    sd      x31, 248(t0)
    csrr    t1, sscratch
    sd      t1, 40(t0)
    csrr    t1, sepc
    sd      t1, 0(t0)
    csrr    a1, scause
    csrr    a2, stval
    mv      a0, t0
    la      sp, fault_stack_end
    call    riscv_trap_report
2:  wfi
    j       2b

    .bss
    .balign 8
try_stack:
    .zero   8
trap_frame:
    .zero   256
