/*
 * SHA-256 (FIPS 180-4) of two messages at once, by the SHA instructions of x86 processors: Intel 64 and IA-32
 * Architectures Software Developer's Manual, volume 2, SHA256RNDS2.
 *
 * Each round waits for the one before it, so that one message leaves the unit half idle; two fill it.
 */

#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>

#define SHA __attribute__((target("sha,sse4.1")))

static const uint32_t CONSTANTS[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

/* The words A to H of a hash in the order of the instructions; all vectors have their first word last. */
typedef struct {
    __m128i abef, cdgh;
} State;

/* The last 16 words of the schedule of a block. */
typedef struct {
    __m128i words[4];
} Schedule;

#define INLINE static inline __attribute__((always_inline)) SHA

INLINE State load_state(const uint32_t words[8]) {
    State state = {
        _mm_set_epi32((int)words[0], (int)words[1], (int)words[4], (int)words[5]),
        _mm_set_epi32((int)words[2], (int)words[3], (int)words[6], (int)words[7]),
    };
    return state;
}

INLINE void store_state(State state, uint32_t words[8]) {
    uint32_t abef[4], cdgh[4];
    _mm_storeu_si128((void *)abef, state.abef);
    _mm_storeu_si128((void *)cdgh, state.cdgh);
    for (int i = 0; i < 2; i++) {
        words[i] = abef[3 - i];
        words[2 + i] = cdgh[3 - i];
        words[4 + i] = abef[1 - i];
        words[6 + i] = cdgh[1 - i];
    }
}

INLINE Schedule load_block(const uint8_t *bytes) {
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    Schedule schedule;
    for (int i = 0; i < 4; i++)
        schedule.words[i] = _mm_shuffle_epi8(_mm_loadu_si128((const void *)(bytes + 16 * i)), big_endian);
    return schedule;
}

/* Rounds 4i to 4i + 3. */
INLINE void four_rounds(State *state, const Schedule *schedule, int i) {
    __m128i keyed = _mm_add_epi32(schedule->words[i % 4], _mm_loadu_si128((const void *)(CONSTANTS + 4 * i)));
    state->cdgh = _mm_sha256rnds2_epu32(state->cdgh, state->abef, keyed);
    state->abef = _mm_sha256rnds2_epu32(state->abef, state->cdgh, _mm_shuffle_epi32(keyed, 0x0e));
}

/* The words of rounds 4i to 4i + 3 give way to those of 16 rounds later. */
INLINE void extend(Schedule *schedule, int i) {
    __m128i *words = schedule->words, newest = words[(i + 3) % 4];
    __m128i sum = _mm_sha256msg1_epu32(words[i % 4], words[(i + 1) % 4]);
    sum = _mm_add_epi32(sum, _mm_alignr_epi8(newest, words[(i + 2) % 4], 4));
    words[i % 4] = _mm_sha256msg2_epu32(sum, newest);
}

INLINE State sum_of(State a, State b) {
    State sum = {_mm_add_epi32(a.abef, b.abef), _mm_add_epi32(a.cdgh, b.cdgh)};
    return sum;
}

SHA static void hash_one(uint32_t words[8], const uint8_t *bytes, int64_t blocks) {
    State state = load_state(words);
    for (; blocks > 0; blocks--, bytes += 64) {
        State before = state;
        Schedule schedule = load_block(bytes);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            four_rounds(&state, &schedule, i);
            if (i < 12) extend(&schedule, i);
        }
        state = sum_of(state, before);
    }
    store_state(state, words);
}

SHA static void hash_two(uint32_t words[16], const uint8_t *one, const uint8_t *other, int64_t blocks) {
    State a = load_state(words), b = load_state(words + 8);
    for (; blocks > 0; blocks--, one += 64, other += 64) {
        State a_before = a, b_before = b;
        Schedule a_schedule = load_block(one), b_schedule = load_block(other);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            four_rounds(&a, &a_schedule, i);
            four_rounds(&b, &b_schedule, i);
            if (i < 12) {
                extend(&a_schedule, i);
                extend(&b_schedule, i);
            }
        }
        a = sum_of(a, a_before);
        b = sum_of(b, b_before);
    }
    store_state(a, words);
    store_state(b, words + 8);
}

/* Whether this processor has the SHA instructions. */
EXPORT int32_t dinowds_has_sha256(void) {
    uint32_t a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 29 & 1) && __builtin_cpu_supports("sse4.1");
}

/* Two hashes, `words` [2, 8], go on with whole blocks of 64 bytes: `blocks` of `one`, and `other_blocks` of `other`. */
EXPORT void dinowds_sha256(
    uint32_t words[16], const uint8_t *one, int64_t blocks, const uint8_t *other, int64_t other_blocks
) {
    int64_t both = blocks < other_blocks ? blocks : other_blocks;
    hash_two(words, one, other, both);
    hash_one(words, one + 64 * both, blocks - both);
    hash_one(words + 8, other + 64 * both, other_blocks - both);
}
#else
EXPORT int32_t dinowds_has_sha256(void) { return 0; }

EXPORT void dinowds_sha256(
    uint32_t words[16], const uint8_t *one, int64_t blocks, const uint8_t *other, int64_t other_blocks
) {
    (void)words, (void)one, (void)blocks, (void)other, (void)other_blocks;
}
#endif
