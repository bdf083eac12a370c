/* The way to main on QEMU's machine "sim" with an Xtensa core; what is printed goes through the simulator's call. */
#include "board.h"

void start(void);

static int host(int operation, int first, const void* second, int third) {
    register int a2 __asm__("a2") = operation;
    register int a3 __asm__("a3") = first;
    register const void* a4 __asm__("a4") = second;
    register int a5 __asm__("a5") = third;
    __asm__ volatile("simcall" : "+r"(a2), "+r"(a3) : "r"(a4), "r"(a5) : "memory");
    return a2;
}

void print(const char* text) {
    int length = 0;
    while (text[length]) ++length;
    host(4, 1, text, length);
}

void leave(int failed) {
    host(1, failed, 0, 0);
    for (;;) {
    }
}

void print_hex(uint32_t number) {
    char text[9];
    for (int i = 0; i < 8; ++i) text[i] = "0123456789abcdef"[number >> (28 - 4 * i) & 15];
    text[8] = 0;
    print(text);
}

/* The plugin count_functions.c prints what it has counted whenever this begins. */
__attribute__((noinline)) uint64_t ticks(void) {
    __asm__ volatile("" ::: "memory");
    return 0;
}

void paint_stack(void) {}

uint32_t stack_used(void) {
    return 0;
}

/* Of 64 bits by those of 32; an ESP32-S3 has an instruction for the upper half of a product. */
__attribute__((used)) uint64_t __muldi3(uint64_t a, uint64_t b) {
    const uint32_t a0 = a & 0xFFFFu, a1 = (uint32_t)a >> 16, b0 = b & 0xFFFFu, b1 = (uint32_t)b >> 16;
    const uint32_t middle = a1 * b0 + (a0 * b0 >> 16), other = a0 * b1 + (middle & 0xFFFFu);
    const uint32_t high = a1 * b1 + (middle >> 16) + (other >> 16);
    const uint32_t upper = high + (uint32_t)(a >> 32) * (uint32_t)b + (uint32_t)a * (uint32_t)(b >> 32);
    return (uint64_t)upper << 32 | (uint32_t)((uint32_t)a * (uint32_t)b);
}

__attribute__((used, noreturn)) static void begin(void) {
    leave(main());
    for (;;) {
    }
}

/* Interrupts are off and no register window is used, so there is nothing but a stack and the coprocessor to set.
 *
 * The compiler knows no floating-point unit and no division, and its library leaves these functions to a ROM. Here they
 * are the instructions of the processor, as those of an ESP32-S3. The assembler does not know them, so they are bytes.
 */
__asm__(
    ".section .reset, \"ax\"\n"
    "    j away\n"
    "    .align 4\n"
    "    .literal_position\n"
    "away:\n"
    "    movi a1, start\n"
    "    jx a1\n"
    ".section .text.start, \"ax\"\n"
    ".literal_position\n"
    ".global start\n"
    ".type start, @function\n"
    ".align 4\n"
    "start:\n"
    "    movi a1, stack_top\n"
    "    movi a2, 1\n"
    "    .byte 0x20, 0xe0, 0x13\n" /* wsr a2, cpenable */
    "    rsync\n"
    "    call0 begin\n"
    ".macro instruction operation, first, r, s, t\n"
    "    .byte (\\t) * 16, (\\r) * 16 + (\\s), (\\operation) * 16 + (\\first)\n"
    ".endm\n"
    ".macro function name\n"
    "    .section .text.\\name, \"ax\"\n"
    "    .global \\name\n"
    "    .type \\name, @function\n"
    "    .align 4\n"
    "\\name:\n"
    ".endm\n"
    ".macro of_floats name, operation\n"
    "    function \\name\n"
    "    instruction 15, 10, 0, 2, 5\n"          /* wfr f0, a2 */
    "    instruction 15, 10, 1, 3, 5\n"          /* wfr f1, a3 */
    "    instruction \\operation, 10, 0, 0, 1\n" /* add.s, sub.s or mul.s f0, f0, f1 */
    "    instruction 15, 10, 2, 0, 4\n"          /* rfr a2, f0 */
    "    ret\n"
    "    .size \\name, . - \\name\n"
    ".endm\n"
    ".macro of_numbers name, operation\n"
    "    function \\name\n"
    "    instruction \\operation, 2, 2, 2, 3\n" /* quou, quos, remu or rems a2, a2, a3 */
    "    ret\n"
    "    .size \\name, . - \\name\n"
    ".endm\n"
    "    of_floats __addsf3, 0\n"
    "    of_floats __subsf3, 1\n"
    "    of_floats __mulsf3, 2\n"
    "    of_numbers __udivsi3, 12\n"
    "    of_numbers __divsi3, 13\n"
    "    of_numbers __umodsi3, 14\n"
    "    of_numbers __modsi3, 15\n"
    "    function __floatsisf\n"
    "    instruction 12, 10, 0, 2, 0\n" /* float.s f0, a2, 0 */
    "    instruction 15, 10, 2, 0, 4\n" /* rfr a2, f0 */
    "    ret\n"
    "    .size __floatsisf, . - __floatsisf\n"
    "    function __fixunssfsi\n"
    "    instruction 15, 10, 0, 2, 5\n" /* wfr f0, a2 */
    "    instruction 14, 10, 2, 0, 0\n" /* utrunc.s a2, f0, 0 */
    "    ret\n"
    "    .size __fixunssfsi, . - __fixunssfsi\n"
    "    .text\n");
