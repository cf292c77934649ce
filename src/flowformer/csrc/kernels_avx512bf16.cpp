#if defined(__AVX512F__) && defined(__AVX512BF16__)
#define FF_ISA avx512bf16
#define FF_BYTES 64
#define FF_PAIRS  // calls of bfloat16 alone
#include "kernels.h"
#endif
