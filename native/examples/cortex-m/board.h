#ifndef BOARD_H
#define BOARD_H

#include <stdint.h>

int main(void);
void print(const char* text);
void print_hex(uint32_t number);
void leave(int failed); /* ends the emulation */
uint64_t ticks(void);   /* of the system timer */
void paint_stack(void);
uint32_t stack_used(void); /* bytes, since it was painted */

#endif
