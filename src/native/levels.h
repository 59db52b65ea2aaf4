// The parts of the kernel table that each level of vector instructions fills in.
#pragma once

#include "kernels.h"

#ifdef NDTORCH_LEVEL
namespace ndtorch::NDTORCH_LEVEL {
void fill_casts(Kernels& table);
void fill_moves(Kernels& table);
void fill_pixels(Kernels& table);
}  // namespace ndtorch::NDTORCH_LEVEL
#endif
