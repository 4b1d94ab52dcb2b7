// What each instruction set is compiled for, and how Python's module finds it.
#pragma once

#include <cstdint>

namespace actdet {

class Counter;

// Pointers as numbers, as Python has them; 0 for none. Strides in elements.
struct AssignArguments {
    uintptr_t cost;
    int64_t batch, rows, columns;
    int64_t stride_p, stride_n, stride_m;
    uintptr_t counts;
    int64_t samples;
    bool maximize;
    uintptr_t row_of_column, column_of_row, row_dual, column_dual, status;
};

struct Operations {
    // Solves problems that `next` hands out, until there are no more.
    void (*assign_float)(const AssignArguments&, Counter& next);
    void (*assign_double)(const AssignArguments&, Counter& next);
};

extern const Operations kBaseline;
#if defined(__x86_64__) && defined(__GNUC__)
extern const Operations kAvx2;
extern const Operations kAvx512;
#endif

}  // namespace actdet
