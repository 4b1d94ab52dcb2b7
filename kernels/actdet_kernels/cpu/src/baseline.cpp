// The operations for every processor of the architecture that is compiled for.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "operations.hpp"
#include "threads.hpp"

#define ACTDET_ISA baseline
#define ACTDET_TABLE kBaseline
#include "isa.inc"
