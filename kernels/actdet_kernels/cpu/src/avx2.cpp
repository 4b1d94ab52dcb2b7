// The operations for x86-64 with AVX2. The standard headers are included before the target is set, so that their inline
// functions, which other files share, are not compiled for it.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "operations.hpp"
#include "threads.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif

#define ACTDET_ISA avx2
#define ACTDET_TABLE kAvx2
#include "isa.inc"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
