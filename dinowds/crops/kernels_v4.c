/* kernels.c once more, for processors with AVX-512. */
#define GENERATION 4
#if defined(__x86_64__) && !defined(__clang__) && __GNUC__ >= 12
#pragma GCC target("arch=x86-64-v4")
#include "kernels.c"
#else
typedef int no_declaration_is_no_file;
#endif
