/* kernels.c once more, for processors with AVX-512. */
#define GENERATION 4
#if defined(__x86_64__) && !defined(__clang__)
#pragma GCC target("avx2,avx512f,avx512bw,avx512dq,avx512vl")
#include "kernels.c"
#else
typedef int no_declaration_is_no_file;
#endif
