/* A plugin for QEMU: instructions that run in named functions, and in all others, printed whenever one function begins.
 *
 * Arguments: functions=PATH, a line "BEGIN END" in hexadecimal for each function, of which the first prints. It prints
 * "counted" with the instructions of no named function, then for each "instructions:calls". The declarations are those
 * of QEMU's plugin interface, version 1 (https://www.qemu.org/docs/master/devel/tcg-plugins.html).
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

struct qemu_plugin_tb;
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*callback)(uint64_t, struct qemu_plugin_tb*));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb* block, int operation, void* counter, uint64_t by);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb* block, void (*callback)(unsigned, void*), int flags,
                                          void* data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb* block);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb* block);

enum { MOST = 256 };
struct function {
    uint64_t begin, end, instructions, calls;
};

int qemu_plugin_version = 1;
static struct function functions[MOST];
static int known;
static uint64_t others;

static void report(unsigned processor, void* data) {
    (void)processor, (void)data;
    fprintf(stderr, "counted %" PRIu64, others);
    for (int i = 0; i < known; ++i) {
        fprintf(stderr, " %" PRIu64 ":%" PRIu64, functions[i].instructions, functions[i].calls);
    }
    fprintf(stderr, "\n");
}

static void translated(uint64_t id, struct qemu_plugin_tb* block) {
    const int add = 0, no_registers = 0;
    const uint64_t at = qemu_plugin_tb_vaddr(block);
    uint64_t* counter = &others;
    (void)id;
    for (int i = 0; i < known; ++i) {
        if (at < functions[i].begin || at >= functions[i].end) continue;
        counter = &functions[i].instructions;
        if (at == functions[i].begin) {
            qemu_plugin_register_vcpu_tb_exec_inline(block, add, &functions[i].calls, 1);
            if (i == 0) qemu_plugin_register_vcpu_tb_exec_cb(block, report, no_registers, NULL);
        }
    }
    qemu_plugin_register_vcpu_tb_exec_inline(block, add, counter, qemu_plugin_tb_n_insns(block));
}

int qemu_plugin_install(uint64_t id, const void* info, int argc, char** argv) {
    FILE* file = NULL;
    (void)info;
    for (int i = 0; i < argc; ++i) {
        if (strncmp(argv[i], "functions=", 10) == 0) file = fopen(argv[i] + 10, "r");
    }
    if (!file) return 1;
    while (known < MOST && fscanf(file, "%" SCNx64 " %" SCNx64, &functions[known].begin, &functions[known].end) == 2)
        ++known;
    fclose(file);
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    return 0;
}
