/* A QEMU plugin that counts the guest's instructions, by the place where they stand, into a file
 * that others may map and read while the guest runs:
 *
 *   qemu-system-riscv64 ... -plugin ./instructions.so,counts=/dev/shm/counts
 *
 * What is declared here is what QEMU's documentation of its plugin interface
 * (docs/devel/tcg-plugins) says of version 1; Debian ships no header. */
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_info;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
typedef void qemu_plugin_vcpu_tb_trans_cb(qemu_plugin_id_t id, struct qemu_plugin_tb *tb);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, qemu_plugin_vcpu_tb_trans_cb *call);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *tb, enum qemu_plugin_op op,
                                              void *counter, uint64_t value);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *instruction);

#define EXPORTED __attribute__((visibility("default")))
EXPORTED int qemu_plugin_version = 1;
EXPORTED int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info *info, int argc,
                                 char **argv);

enum { BLOCKS_MAX = 1 << 18 };

/* The file: little-endian 64-bit words. A piece of code that is translated again gets another
 * block. Beyond BLOCKS_MAX only the total counts. */
struct counts {
    uint64_t total;
    uint64_t used; /* blocks */
    struct {
        uint64_t address;
        uint64_t instructions; /* executed in this block */
        uint64_t bytes;        /* of code */
    } blocks[BLOCKS_MAX];
};

static struct counts *counts;

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
    (void)id;
    size_t instructions = qemu_plugin_tb_n_insns(tb);
    qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &counts->total,
                                             instructions);
    if (counts->used < BLOCKS_MAX) {
        uint64_t block = counts->used++;
        counts->blocks[block].address = qemu_plugin_tb_vaddr(tb);
        for (size_t index = 0; index < instructions; index++) {
            counts->blocks[block].bytes +=
                qemu_plugin_insn_size(qemu_plugin_tb_get_insn(tb, index));
        }
        qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64,
                                                 &counts->blocks[block].instructions, instructions);
    }
}

int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info *info, int argc, char **argv) {
    static const char key[] = "counts=";
    (void)info;
    if (argc != 1 || strncmp(argv[0], key, sizeof key - 1) != 0) {
        (void)fprintf(stderr, "instructions: say counts=PATH\n");
        return -1;
    }
    int file = open(argv[0] + sizeof key - 1, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (file < 0 || ftruncate(file, sizeof *counts) != 0) {
        perror(argv[0]);
        return -1;
    }
    counts = mmap(NULL, sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    (void)close(file); /* the mapping stays */
    if (counts == MAP_FAILED) {
        perror(argv[0]);
        return -1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    return 0;
}
