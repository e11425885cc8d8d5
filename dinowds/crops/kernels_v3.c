/* kernels.c once more, for processors with AVX2. */
#define GENERATION 3
#if defined(__x86_64__) && !defined(__clang__)
#pragma GCC target("avx2")
#include "kernels.c"
#else
typedef int no_declaration_is_no_file;
#endif
