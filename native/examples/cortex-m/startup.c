/* Vectors and the way to main, for any Cortex-M; what is printed goes to the debugger or emulator (semihosting). */
#include "board.h"

extern uint32_t data_begin[], data_end[], data_stored[], bss_begin[], bss_end[], end[], stack_top[];

void reset(void);

static volatile uint32_t wraps;

static void stop(void) {
    print("stopped by a fault\n");
    leave(1);
}

static void tick(void) {
    ++wraps;
}

union vector {
    void (*run)(void);
    const void* address;
};

__attribute__((section(".vectors"), used)) static const union vector vectors[16] = {
    {.address = stack_top},
    {reset},
    {stop},
    {stop},
    {stop},
    {stop},
    {stop},
    {0},
    {0},
    {0},
    {0},
    {stop},
    {stop},
    {0},
    {stop},
    {tick},
};

static void host(uint32_t operation, const void* argument) {
    register uint32_t r0 __asm__("r0") = operation;
    register const void* r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
}

void print(const char* text) {
    host(0x04, text);
}

void leave(int failed) {
    host(0x18, (const void*)(uintptr_t)(failed ? 0x20023 : 0x20026));
    for (;;) {
    }
}

void print_hex(uint32_t number) {
    char text[9];
    for (int i = 0; i < 8; ++i) text[i] = "0123456789abcdef"[number >> (28 - 4 * i) & 15];
    text[8] = 0;
    print(text);
}

/* The system timer counts down from 2^24 − 1. */
uint64_t ticks(void) {
    volatile uint32_t* const timer = (uint32_t*)0xE000E010;
    uint32_t before, left;
    do {
        before = wraps;
        left = timer[2];
    } while (before != wraps);
    return ((uint64_t)before << 24) + (0xFFFFFF - left);
}

/* Fill the free stack with a pattern; stack_used counts how much of it was overwritten since. */
#define PATTERN 0x5AA5C33Cu

static uintptr_t here(void) {
    return (uintptr_t)__builtin_frame_address(0);
}

__attribute__((noinline)) void paint_stack(void) {
    for (volatile uint32_t* from = end; (uintptr_t)from < here() - 128; ++from) *from = PATTERN;
}

__attribute__((noinline)) uint32_t stack_used(void) {
    const volatile uint32_t* from = end;
    while (*from == PATTERN) ++from;
    return (uint32_t)(here() - (uintptr_t)from);
}

void reset(void) {
    volatile uint32_t* const timer = (uint32_t*)0xE000E010;
    *(volatile uint32_t*)0xE000ED88 |= 0xFu << 20; /* the floating-point unit */
    __asm__ volatile("dsb\nisb");
    for (uint32_t *to = data_begin, *from = data_stored; to < data_end;) *to++ = *from++;
    for (uint32_t* to = bss_begin; to < bss_end;) *to++ = 0;
    timer[1] = 0xFFFFFF;
    timer[2] = 0;
    timer[0] = 7; /* on, with its interrupt, at the processor's clock */
    leave(main());
}
