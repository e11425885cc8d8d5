/*
 * The inner loops of sharding; kernels.py calls them without the GIL, from many threads.
 *
 * What is read may be hostile, and may be cut short or replaced meanwhile: every read is a pread of which the length is
 * checked, nothing is mapped into memory, and what these functions are not sure of they leave to Python. No function
 * keeps state.
 */

#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define X86 1
#include <immintrin.h>
#endif

/* Loops that the compiler vectorises, once more for processors with AVX2. Needs ifuncs, which glibc has. */
#if defined(X86) && defined(__GLIBC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("avx2", "default")))
#else
#define CLONES
#endif

#define EXPORT __attribute__((visibility("default")))

enum { VERSION = 2 }; /* of all arguments and results; equal to VERSION in kernels.py */

EXPORT int32_t dinowds_version(void) { return VERSION; }

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Read `size` bytes, or fewer at the end of the file; -errno where that fails. */
static int64_t read_at(int file, uint8_t *to, int64_t size, int64_t offset) {
    int64_t done = 0;
    while (done < size) {
        ssize_t count = pread(file, to + done, (size_t)least(size - done, 1 << 30), (off_t)(offset + done));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return -errno;
        if (count == 0) break;
        done += count;
    }
    return done;
}

static uint64_t load64(const uint8_t *bytes) {
    uint64_t value;
    memcpy(&value, bytes, sizeof value);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    value = __builtin_bswap64(value);
#endif
    return value;
}

static void store64_big_endian(uint8_t *to, uint64_t value) {
    for (int i = 0; i < 8; i++) to[i] = (uint8_t)(value >> (56 - 8 * i));
}

/* The two halves of a 128-bit product, one xor the other. */
static uint64_t folded_product(uint64_t a, uint64_t b) {
#ifdef __SIZEOF_INT128__
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
#else
    uint64_t low = (a & UINT32_MAX) * (b & UINT32_MAX), left = (a >> 32) * (b & UINT32_MAX);
    uint64_t right = (a & UINT32_MAX) * (b >> 32), high = (a >> 32) * (b >> 32);
    uint64_t middle = (low >> 32) + (left & UINT32_MAX) + right;
    return ((middle << 32) | (low & UINT32_MAX)) ^ (high + (left >> 32) + (middle >> 32));
#endif
}

/* ---- XXH3, 128 bits, of more than 240 bytes, without a seed: the xxHash specification, version 0.2, "XXH3" ---- */

enum { STRIPE = 64, STRIPES = 16, HASH_BLOCK = STRIPE * STRIPES, SECRET_BYTES = 192, SHORT = 240 };

static const uint64_t PRIME32_1 = 0x9E3779B1, PRIME32_2 = 0x85EBCA77, PRIME32_3 = 0xC2B2AE3D;
static const uint64_t PRIME64_1 = 0x9E3779B185EBCA87, PRIME64_2 = 0xC2B2AE3D27D4EB4F, PRIME64_3 = 0x165667B19E3779F9;
static const uint64_t PRIME64_4 = 0x85EBCA77C2B2AE63, PRIME64_5 = 0x27D4EB2F165667C5;

static const uint8_t SECRET[SECRET_BYTES] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

/* Sums are changed by `blocks` whole blocks of `data`, each with its scrambling, and then by `stripes` more stripes. */
typedef void Accumulate(uint64_t sums[8], const uint8_t *data, int64_t blocks, int64_t stripes);

static void accumulate_stripe(uint64_t sums[8], const uint8_t *data, const uint8_t *secret) {
    for (int i = 0; i < 8; i++) {
        uint64_t value = load64(data + 8 * i), keyed = value ^ load64(secret + 8 * i);
        sums[i ^ 1] += value;
        sums[i] += (keyed & UINT32_MAX) * (keyed >> 32);
    }
}

static void accumulate(uint64_t sums[8], const uint8_t *data, int64_t blocks, int64_t stripes) {
    for (int64_t block = 0; block <= blocks; block++) {
        int64_t count = block < blocks ? STRIPES : stripes;
        for (int64_t i = 0; i < count; i++, data += STRIPE) accumulate_stripe(sums, data, SECRET + 8 * i);
        if (block == blocks) break;
        for (int i = 0; i < 8; i++) {
            uint64_t sum = sums[i] ^ (sums[i] >> 47) ^ load64(SECRET + SECRET_BYTES - STRIPE + 8 * i);
            sums[i] = sum * PRIME32_1;
        }
    }
}

#ifdef X86
__attribute__((target("avx2"))) static void accumulate_avx2(
    uint64_t sums[8], const uint8_t *data, int64_t blocks, int64_t stripes
) {
    const __m256i prime = _mm256_set1_epi32((int)PRIME32_1);
    __m256i totals[2] = {_mm256_loadu_si256((const void *)sums), _mm256_loadu_si256((const void *)(sums + 4))};
    for (int64_t block = 0; block <= blocks; block++) {
        int64_t count = block < blocks ? STRIPES : stripes;
        for (int64_t i = 0; i < count; i++, data += STRIPE) {
            for (int half = 0; half < 2; half++) {
                __m256i value = _mm256_loadu_si256((const void *)(data + 32 * half));
                __m256i keyed = _mm256_xor_si256(value, _mm256_loadu_si256((const void *)(SECRET + 8 * i + 32 * half)));
                __m256i product = _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32));
                __m256i swapped = _mm256_shuffle_epi32(value, 0x4E);
                totals[half] = _mm256_add_epi64(totals[half], _mm256_add_epi64(product, swapped));
            }
        }
        if (block == blocks) break;
        for (int half = 0; half < 2; half++) {
            __m256i key = _mm256_loadu_si256((const void *)(SECRET + SECRET_BYTES - STRIPE + 32 * half));
            __m256i sum = _mm256_xor_si256(totals[half], _mm256_srli_epi64(totals[half], 47));
            sum = _mm256_xor_si256(sum, key);
            __m256i high = _mm256_mul_epu32(_mm256_srli_epi64(sum, 32), prime);
            totals[half] = _mm256_add_epi64(_mm256_mul_epu32(sum, prime), _mm256_slli_epi64(high, 32));
        }
    }
    for (int half = 0; half < 2; half++) _mm256_storeu_si256((void *)(sums + 4 * half), totals[half]);
}

__attribute__((target("avx512f"))) static void accumulate_avx512(
    uint64_t sums[8], const uint8_t *data, int64_t blocks, int64_t stripes
) {
    const __m512i prime = _mm512_set1_epi32((int)PRIME32_1);
    const __m512i last_key = _mm512_loadu_si512(SECRET + SECRET_BYTES - STRIPE);
    __m512i total = _mm512_loadu_si512(sums);
    for (int64_t block = 0; block <= blocks; block++) {
        int64_t count = block < blocks ? STRIPES : stripes;
        for (int64_t i = 0; i < count; i++, data += STRIPE) {
            __m512i value = _mm512_loadu_si512(data);
            __m512i keyed = _mm512_xor_si512(value, _mm512_loadu_si512(SECRET + 8 * i));
            __m512i product = _mm512_mul_epu32(keyed, _mm512_srli_epi64(keyed, 32));
            __m512i swapped = _mm512_shuffle_epi32(value, (_MM_PERM_ENUM)0x4E);
            total = _mm512_add_epi64(total, _mm512_add_epi64(product, swapped));
        }
        if (block == blocks) break;
        __m512i sum = _mm512_xor_si512(_mm512_xor_si512(total, _mm512_srli_epi64(total, 47)), last_key);
        __m512i high = _mm512_mul_epu32(_mm512_srli_epi64(sum, 32), prime);
        total = _mm512_add_epi64(_mm512_mul_epu32(sum, prime), _mm512_slli_epi64(high, 32));
    }
    _mm512_storeu_si512(sums, total);
}
#endif

/* The ways that this processor can run, the fastest first; NULL after the last one. */
static Accumulate *accumulator(int position) {
#ifdef X86
    if (__builtin_cpu_supports("avx512f") && position-- == 0) return accumulate_avx512;
    if (__builtin_cpu_supports("avx2") && position-- == 0) return accumulate_avx2;
#endif
    return position == 0 ? accumulate : NULL;
}

/* The hash of bytes that come piece by piece. */
typedef struct {
    uint64_t sums[8];
    Accumulate *accumulate;
} Hash;

static Hash new_hash(void) {
    Hash hash = {
        {PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3, PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1}, accumulator(0)
    };
    return hash;
}

static uint64_t merged(const uint64_t sums[8], const uint8_t *secret, uint64_t start) {
    for (int i = 0; i < 8; i += 2)
        start += folded_product(sums[i] ^ load64(secret + 8 * i), sums[i + 1] ^ load64(secret + 8 * i + 8));
    start ^= start >> 37;
    start *= 0x165667919E3779F9;
    return start ^ (start >> 32);
}

/* `rest` are the 1 to 1,024 bytes after the last whole block; at least 64 bytes can be read before their end. */
static void finish_hash(Hash *hash, const uint8_t *rest, int64_t count, int64_t size, uint8_t digest[16]) {
    hash->accumulate(hash->sums, rest, 0, (count - 1) / STRIPE);
    accumulate_stripe(hash->sums, rest + count - STRIPE, SECRET + SECRET_BYTES - STRIPE - 7);
    uint64_t length = (uint64_t)size;
    store64_big_endian(digest, merged(hash->sums, SECRET + SECRET_BYTES - STRIPE - 11, ~(length * PRIME64_2)));
    store64_big_endian(digest + 8, merged(hash->sums, SECRET + 11, length * PRIME64_1));
}

/* The hash of more than 240 bytes, by `accumulator(position)`; 0 where there is none. For tests and benchmarks. */
EXPORT int32_t dinowds_hash(int32_t position, const uint8_t *bytes, int64_t size, uint8_t *digest) {
    Hash hash = new_hash();
    int64_t blocks = (size - 1) / HASH_BLOCK;
    hash.accumulate = accumulator(position);
    if (!hash.accumulate) return 0;
    hash.accumulate(hash.sums, bytes, blocks, 0);
    finish_hash(&hash, bytes + blocks * HASH_BLOCK, size - blocks * HASH_BLOCK, size, digest);
    return 1;
}

/* ---- Copying ---- */

typedef struct {
    int32_t descriptor, digest;
    int64_t offset, size, to;
} Piece;

enum { CHUNK = 256 << 10 }; /* stays in the cache between its reading and its hashing; whole blocks of the hash */

/* 0, -errno, or 1 where the file ends too early. `digest` may be NULL. */
static int gather_piece(const Piece *piece, uint8_t *out, uint8_t *digest) {
    Hash hash = new_hash();
    int64_t hashed = 0, whole = (piece->size - 1) / HASH_BLOCK * HASH_BLOCK;
    for (int64_t done = 0; done < piece->size;) {
        int64_t count = least(CHUNK, piece->size - done);
        int64_t found = read_at(piece->descriptor, out + done, count, piece->offset + done);
        if (found < 0) return (int)found;
        if (found < count) return 1;
        done += count;
        if (digest) {
            int64_t stop = least(done, whole);
            hash.accumulate(hash.sums, out + hashed, (stop - hashed) / HASH_BLOCK, 0);
            hashed = stop;
        }
    }
    if (digest) finish_hash(&hash, out + hashed, piece->size - hashed, piece->size, digest);
    return 0;
}

/*
 * Copies `count` pieces to their places in `out`. Digests of up to 240 bytes are not computed. Returns -1, or the
 * position of a piece that cannot be read; `*error` is then errno, or 0 where the file ends too early.
 */
EXPORT int64_t dinowds_gather(const Piece *pieces, int64_t count, uint8_t *out, uint8_t *digests, int32_t *error) {
    for (int64_t i = 0; i < count; i++) {
        const Piece *piece = pieces + i;
        int has_digest = piece->digest >= 0 && piece->size > SHORT;
        int result = gather_piece(piece, out + piece->to, has_digest ? digests + 16 * (int64_t)piece->digest : NULL);
        if (result) {
            *error = result < 0 ? -result : 0;
            return i;
        }
    }
    return -1;
}

/* ---- Hashes of strings ---- */

static uint64_t hash_string(const uint8_t *bytes, int64_t size) {
    uint64_t hash = PRIME64_5 + (uint64_t)size * PRIME64_1;
    for (; size >= 16; size -= 16, bytes += 16)
        hash = folded_product(load64(bytes) ^ PRIME64_2, load64(bytes + 8) ^ PRIME64_3 ^ hash);
    uint8_t rest[16] = {0};
    memcpy(rest, bytes, (size_t)size);
    hash = folded_product(load64(rest) ^ PRIME64_4, load64(rest + 8) ^ PRIME64_1 ^ hash);
    return folded_product(hash ^ PRIME64_5, hash ^ PRIME64_2);
}

EXPORT void dinowds_hash_strings(const uint8_t *bytes, const int64_t *offsets, int64_t count, uint64_t *hashes) {
    for (int64_t i = 0; i < count; i++) hashes[i] = hash_string(bytes + offsets[i], offsets[i + 1] - offsets[i]);
}

/* ---- The members of a tar ---- */

enum { BLOCK = 512, MAX_METADATA = 8192, MAX_NAME = 4096, AHEAD = 8 << 20 };

/* What was last read of a tar. */
typedef struct {
    int file;
    int64_t start, filled, advised;
    uint8_t bytes[MAX_METADATA + BLOCK];
} TarWindow;

static int64_t padded(int64_t size) { return (size + BLOCK - 1) / BLOCK * BLOCK; }

/* `size` bytes at `offset`; NULL where they cannot be read. Where they must be read, up to `ahead` bytes are. */
static const uint8_t *tar_bytes(TarWindow *window, int64_t offset, int64_t size, int64_t ahead) {
    if (offset < window->start || offset + size > window->start + window->filled) {
#ifdef POSIX_FADV_WILLNEED
        if (offset + size > window->advised) { /* a cold tar comes in large reads */
            posix_fadvise(window->file, (off_t)offset, AHEAD, POSIX_FADV_WILLNEED);
            window->advised = offset + AHEAD;
        }
#endif
        window->start = offset;
        window->filled = read_at(window->file, window->bytes, ahead, offset);
        if (window->filled < size) return NULL;
    }
    return window->bytes + (offset - window->start);
}

/* Octal digits after spaces, with nothing but spaces and zeros after them; -1 for all else. */
static int64_t octal(const uint8_t *field, int size) {
    int i = 0;
    int64_t value = 0;
    while (i < size && field[i] == ' ') i++;
    int first = i;
    for (; i < size && field[i] >= '0' && field[i] <= '7'; i++) value = value * 8 + (field[i] - '0');
    if (i == first) return -1;
    for (; i < size; i++)
        if (field[i] != ' ' && field[i] != 0) return -1;
    return value;
}

CLONES static uint32_t byte_sum(const uint8_t *block) {
    uint32_t sum = 0;
    for (int i = 0; i < BLOCK; i++) sum += block[i];
    return sum;
}

/* The size that a header tells, or -1 for one without an unsigned checksum that holds or a size in octal. */
static int64_t header_size(const uint8_t *header) {
    int64_t sum = (int64_t)byte_sum(header) + 8 * ' ';
    for (int i = 148; i < 156; i++) sum -= header[i];
    return octal(header + 148, 8) == sum ? octal(header + 124, 12) : -1;
}

/* Bytes before the first zero. */
static int64_t text_size(const uint8_t *text, int64_t size) {
    const uint8_t *end = memchr(text, 0, (size_t)size);
    return end ? end - text : size;
}

/* The name in a header, with USTAR's prefix: at most 256 bytes. Returns its size. */
static int64_t header_name(const uint8_t *header, uint8_t *name) {
    int64_t size = 0;
    if (header[345] && !memcmp(header + 257, "ustar", 6)) {
        size = text_size(header + 345, 155);
        memcpy(name, header + 345, (size_t)size);
        name[size++] = '/';
    }
    int64_t stem = text_size(header, 100);
    memcpy(name + size, header, (size_t)stem);
    return size + stem;
}

/*
 * Reads the records `LENGTH KEYWORD=VALUE\n` of a PAX header, of which `path` alone may matter: it goes to `name`.
 * Returns its size, 0 without one, or -1 for whatever Python should look at.
 */
static int64_t pax_path(const uint8_t *content, int64_t size, uint8_t *name) {
    int64_t found = 0;
    for (int64_t position = 0; position < size && content[position];) {
        int64_t length = 0, i = position;
        for (; i < size && i < position + 9 && content[i] >= '0' && content[i] <= '9'; i++)
            length = length * 10 + (content[i] - '0');
        int64_t end = position + length;
        if (i == position || i >= size || content[i] != ' ' || end > size || end < i + 3) return -1;
        const uint8_t *keyword = content + i + 1, *stop = content + end - 1;
        const uint8_t *equals = memchr(keyword, '=', (size_t)(stop - keyword));
        if (*stop != '\n' || !equals) return -1;
        int64_t count = equals - keyword;
        if ((count == 4 && !memcmp(keyword, "size", 4)) || (count >= 11 && !memcmp(keyword, "GNU.sparse.", 11)))
            return -1;
        if (count == 4 && !memcmp(keyword, "path", 4)) {
            found = stop - equals - 1;
            if (found > MAX_NAME) return -1;
            memcpy(name, equals + 1, (size_t)found);
        }
        position = end;
    }
    return found;
}

/*
 * Walks ordinary files from `offset` on, at most `room` of them and while they begin before `stop`: a header of V7,
 * USTAR or GNU with octal numbers, and before it at most one long name of GNU or PAX header. `names` has room for
 * 4,096 bytes a member. `offsets` gets count + 1 numbers, `next` the offset after the last one; `advised` is kept
 * between calls. Returns the count.
 */
EXPORT int64_t dinowds_walk_tar(
    int32_t file, int64_t offset, int64_t stop, int64_t room, uint8_t *names, int64_t *offsets, int64_t *places,
    int64_t *sizes, int64_t *next, int64_t *advised
) {
    TarWindow window;
    window.file = file;
    window.start = window.filled = 0;
    window.advised = *advised;
    int64_t count = 0;
    offsets[0] = 0;
    *next = offset;
    while (count < room && offset < stop) {
        uint8_t *name = names + offsets[count];
        int64_t name_size = 0;
        const uint8_t *header = tar_bytes(&window, offset, BLOCK, BLOCK);
        int64_t size = header ? header_size(header) : -1;
        if (size >= 0 && (header[156] == 'x' || header[156] == 'L')) {
            int is_pax = header[156] == 'x';
            if (size > MAX_METADATA) break;
            const uint8_t *content = tar_bytes(&window, offset + BLOCK, size, padded(size) + BLOCK);
            if (!content) break;
            name_size = is_pax ? pax_path(content, size, name) : text_size(content, size);
            if (name_size < 0 || name_size > MAX_NAME) break;
            if (!is_pax) memcpy(name, content, (size_t)name_size);
            offset += BLOCK + padded(size);
            header = tar_bytes(&window, offset, BLOCK, BLOCK);
            size = header ? header_size(header) : -1;
        }
        if (size < 0 || (header[156] != '0' && header[156] != 0)) break;
        uint8_t stored[256];
        int64_t stored_size = header_name(header, stored);
        if (header[156] == 0 && stored_size && stored[stored_size - 1] == '/') break; /* a folder of V7 */
        if (!name_size) memcpy(name, stored, (size_t)(name_size = stored_size));
        places[count] = offset + BLOCK;
        sizes[count] = size;
        offsets[++count] = (name - names) + name_size;
        offset += BLOCK + padded(size);
        *next = offset;
    }
    *advised = window.advised;
    return count;
}

static void put_octal(uint8_t *field, int digits, uint64_t value) {
    for (; digits; value >>= 3) field[--digits] = (uint8_t)('0' + (value & 7));
}

/*
 * Writes `headers`, [count, 512]: `empty`, the header of an ordinary file, with names of at most 100 bytes (from
 * `offsets[i]` to `offsets[i + 1]` of `names`), sizes below 8^11, and checksums.
 */
EXPORT void dinowds_tar_headers(
    const uint8_t *empty, const uint8_t *names, const int64_t *offsets, const int64_t *sizes, int64_t count,
    uint8_t *headers
) {
    for (int64_t i = 0; i < count; i++) {
        uint8_t *header = headers + BLOCK * i;
        memcpy(header, empty, BLOCK);
        memcpy(header, names + offsets[i], (size_t)(offsets[i + 1] - offsets[i]));
        put_octal(header + 124, 11, (uint64_t)sizes[i]);
        memset(header + 148, ' ', 8);
        put_octal(header + 148, 6, byte_sum(header));
        header[154] = 0;
    }
}

/* ---- What payloads are ---- */

enum { WHOLE, NOT_AN_IMAGE, CUT_SHORT, DAMAGED, TOO_LARGE }; /* REASONS in check.py */
enum { JPG, PNG };                                           /* EXTENSIONS in check.py */
enum { DONE = 0, LEFT = -1, CHANGED = -2 };                  /* states; above 0: errno */
enum { LOOK = 1024 };                                        /* bytes that are read to look at a header */

/* A payload, and what was last read of it. */
typedef struct {
    int file, state;
    int64_t place, size, start, filled, step;
    uint8_t *bytes;
} Payload;

/* `count` bytes at `position` of the payload, at most `step`; NULL past its end, or where `state` then says why. */
static const uint8_t *payload_bytes(Payload *payload, int64_t position, int64_t count) {
    if (position + count > payload->size) return NULL;
    if (position < payload->start || position + count > payload->start + payload->filled) {
        int64_t wanted = least(payload->step, payload->size - position);
        int64_t found = read_at(payload->file, payload->bytes, wanted, payload->place + position);
        payload->start = position;
        payload->filled = found < 0 ? 0 : found;
        if (found < wanted) payload->state = found < 0 ? (int)-found : CHANGED;
        if (payload->state) return NULL;
    }
    return payload->bytes + (position - payload->start);
}

static int big_endian_16(const uint8_t *bytes) { return bytes[0] << 8 | bytes[1]; }

static uint32_t big_endian_32(const uint8_t *bytes) {
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

/* Whether an end-of-image marker lies at `end` or after it. */
static int has_end_marker(Payload *payload, int64_t end) {
    for (int64_t stop = payload->size; stop - end >= 2; stop -= LOOK - 1) {
        int64_t start = stop - LOOK > end ? stop - LOOK : end;
        const uint8_t *bytes = payload_bytes(payload, start, stop - start);
        if (!bytes) return 0;
        for (int64_t i = stop - start - 2; i >= 0; i--)
            if (bytes[i] == 0xFF && bytes[i + 1] == 0xD9) return 1;
        if (start == end) return 0;
    }
    return 0;
}

/* Does what `_jpeg_size` of images.py does: `*width` is 0 without a frame. */
static int check_jpeg(Payload *payload, int64_t *width, int64_t *height) {
    int has_frame = 0;
    int64_t position = 2;
    for (;;) {
        const uint8_t *bytes = payload_bytes(payload, position, 2);
        /* One byte alone at the end is looked at before the next one is missed. */
        if (!bytes) {
            bytes = payload_bytes(payload, position, 1);
            return bytes && bytes[0] != 0xFF ? DAMAGED : CUT_SHORT;
        }
        int marker = bytes[1];
        if (bytes[0] != 0xFF) return DAMAGED;
        if (marker == 0xFF) {
            position += 1;
            continue;
        }
        if (marker == 0x01 || (marker >= 0xD0 && marker <= 0xD8)) {
            position += 2;
            continue;
        }
        if (marker == 0x00 || marker == 0xD9) return DAMAGED;
        bytes = payload_bytes(payload, position + 2, 2);
        if (!bytes) return CUT_SHORT;
        int length = big_endian_16(bytes);
        if (length < 2) return DAMAGED;
        int is_frame = marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC;
        if (is_frame && !has_frame) {
            bytes = payload_bytes(payload, position + 2, 8); /* where these end early, so does the walk, below */
            *height = bytes ? big_endian_16(bytes + 3) : 0;
            *width = bytes ? big_endian_16(bytes + 5) : 0;
            has_frame = 1;
        }
        position += 2 + length;
        if (marker == 0xDA) break;
    }
    if (!has_end_marker(payload, position)) return CUT_SHORT;
    return *width && *height ? WHOLE : DAMAGED;
}

static int is_letter(uint8_t byte) { return (byte >= 'A' && byte <= 'Z') || (byte >= 'a' && byte <= 'z'); }

/* Does what `_png_size` of images.py does. */
static int check_png(Payload *payload, int64_t *width, int64_t *height) {
    const uint8_t *bytes = payload_bytes(payload, 0, 33);
    if (!bytes) return CUT_SHORT;
    uint32_t across = big_endian_32(bytes + 16), down = big_endian_32(bytes + 20);
    if (big_endian_32(bytes + 8) != 13 || memcmp(bytes + 12, "IHDR", 4)) return DAMAGED;
    if (!across || across > INT32_MAX || !down || down > INT32_MAX) return DAMAGED;
    *width = across;
    *height = down;
    int has_data = 0;
    for (int64_t position = 33;;) {
        bytes = payload_bytes(payload, position, 12);
        if (!bytes) return CUT_SHORT;
        for (int i = 4; i < 8; i++)
            if (!is_letter(bytes[i])) return DAMAGED;
        if (!memcmp(bytes + 4, "IEND", 4)) break;
        has_data |= !memcmp(bytes + 4, "IDAT", 4);
        position += 12 + (int64_t)big_endian_32(bytes);
    }
    return has_data ? WHOLE : DAMAGED;
}

/* The hash of a payload of over 240 bytes. What was read last stays: all of one that is not larger than `step`. */
static void hash_payload(Payload *payload, uint8_t *digest) {
    Hash hash = new_hash();
    int64_t whole = (payload->size - 1) / HASH_BLOCK * HASH_BLOCK;
    for (int64_t done = 0; done < whole;) {
        int64_t count = least(whole - done, payload->step - HASH_BLOCK);
        const uint8_t *bytes = payload_bytes(payload, done, count);
        if (!bytes) return;
        hash.accumulate(hash.sums, bytes, count / HASH_BLOCK, 0);
        done += count;
    }
    int64_t before = whole ? STRIPE : 0;
    const uint8_t *rest = payload_bytes(payload, whole - before, payload->size - whole + before);
    if (rest) finish_hash(&hash, rest + before, payload->size - whole, payload->size, digest);
}

typedef struct {
    int8_t reason, ext;
    int32_t width, height, state;
} Found;

static void check_payload(Payload *payload, int64_t max_pixels, uint8_t *digest, Found *found) {
    static const uint8_t PNG_START[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};
    const uint8_t *start = payload_bytes(payload, 0, 8);
    int is_jpeg = start && start[0] == 0xFF && start[1] == 0xD8 && start[2] == 0xFF;
    int is_png = start && !memcmp(start, PNG_START, 8);
    int64_t width = 0, height = 0;
    found->state = LEFT;
    if ((is_jpeg || is_png) && !(digest && payload->size <= SHORT)) {
        if (digest) hash_payload(payload, digest);
        int reason = is_jpeg ? check_jpeg(payload, &width, &height) : check_png(payload, &width, &height);
        if (reason == WHOLE && width * height > max_pixels) reason = TOO_LARGE;
        found->reason = (int8_t)reason;
        found->ext = (int8_t)(reason ? -1 : is_jpeg ? JPG : PNG);
        found->width = reason ? 0 : (int32_t)width;
        found->height = reason ? 0 : (int32_t)height;
        found->state = DONE;
    }
    if (payload->state) found->state = payload->state;
}

static int64_t modified_ns(const struct stat *file) {
#ifdef __APPLE__
    return (int64_t)file->st_mtimespec.tv_sec * 1000000000 + file->st_mtimespec.tv_nsec;
#else
    return (int64_t)file->st_mtim.tv_sec * 1000000000 + file->st_mtim.tv_nsec;
#endif
}

/* Open a file that is still as it was listed: its descriptor, or -1, and `*state` says why. */
static int open_listed(int folder, const char *name, int64_t size, int64_t newest_ns, int *state) {
    struct stat now;
    int file;
    do {
        file = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    } while (file < 0 && errno == EINTR);
    if (file < 0) {
        int is_gone = errno == ENOENT || errno == ENOTDIR || errno == ELOOP || errno == ENXIO;
        *state = is_gone ? CHANGED : errno;
        return -1;
    }
    *state = fstat(file, &now) ? errno : DONE;
    if (!*state && (!S_ISREG(now.st_mode) || now.st_size != size || modified_ns(&now) > newest_ns)) *state = CHANGED;
    if (!*state) return file;
    close(file);
    return -1;
}

/*
 * Looks at `count` payloads: those at `places` of `file`, or, with `names` (ended by zeros, which begin at
 * `name_starts`), whole files below the folder `file`. `digests` may be NULL. Returns 0, or -errno.
 */
EXPORT int32_t dinowds_check(
    int32_t file, const char *names, const int64_t *name_starts, int64_t newest_ns, const int64_t *places,
    const int64_t *sizes, int64_t count, int64_t max_pixels, Found *found, uint8_t *digests
) {
    int64_t step = digests ? CHUNK : LOOK;
    uint8_t *bytes = malloc((size_t)step);
    if (!bytes) return -ENOMEM;
    for (int64_t i = 0; i < count; i++) {
        Payload payload = {file, DONE, names ? 0 : places[i], sizes[i], 0, 0, step, bytes};
        if (names) payload.file = open_listed(file, names + name_starts[i], sizes[i], newest_ns, &payload.state);
        if (payload.state)
            found[i].state = payload.state;
        else
            check_payload(&payload, max_pixels, digests ? digests + 16 * i : NULL, found + i);
        if (names && payload.file >= 0) close(payload.file);
    }
    free(bytes);
    return 0;
}

/* ---- Statistics of pixels ---- */

CLONES static void grey_row(const uint8_t *pixels, int64_t width, uint8_t *grey) {
    for (int64_t i = 0; i < width; i++) {
        const uint8_t *p = pixels + 3 * i;
        grey[i] = (uint8_t)((19595u * p[0] + 38470u * p[1] + 7471u * p[2] + 32768u) >> 16);
    }
}

/* How many of `count` pixels, at most 2^31, have all channels at least `white`, and all at most `black`. */
CLONES static void count_row(
    const uint8_t *pixels, int64_t count, int white, int black, int64_t *whites, int64_t *blacks
) {
    uint32_t bright = 0, dark = 0;
    for (int64_t i = 0; i < count; i++) {
        const uint8_t *p = pixels + 3 * i;
        bright += (p[0] >= white) & (p[1] >= white) & (p[2] >= white);
        dark += (p[0] <= black) & (p[1] <= black) & (p[2] <= black);
    }
    *whites += bright;
    *blacks += dark;
}

/* Sums over at most 2,048 pixels of the row between the outer two, the first and last of which are left out. */
CLONES static void laplacian_row(
    const uint8_t *above, const uint8_t *row, const uint8_t *below, int64_t count, int64_t *sum, int64_t *squares
) {
    int32_t total = 0;
    uint32_t square = 0;
    for (int64_t i = 0; i < count; i++) {
        int32_t value = above[i] + below[i] + row[i - 1] + row[i + 1] - 4 * row[i];
        total += value;
        square += (uint32_t)(value * value);
    }
    *sum += total;
    *squares += square;
}

/*
 * Of RGB pixels [height, width, 3]: `sums` gets how many are white, and black, and the sum of the Laplacian of the grey
 * image's inner pixels and of its squares. `grey` is memory for height × width bytes.
 */
EXPORT void dinowds_statistics(
    const uint8_t *pixels, int64_t height, int64_t width, int32_t white, int32_t black, uint8_t *grey, int64_t sums[4]
) {
    memset(sums, 0, 4 * sizeof *sums);
    for (int64_t y = 0; y < height; y++) {
        const uint8_t *row = pixels + 3 * y * width;
        grey_row(row, width, grey + y * width);
        count_row(row, width, white, black, sums, sums + 1);
    }
    for (int64_t y = 1; y + 1 < height; y++) {
        for (int64_t x = 1; x + 1 < width; x += 2048) { /* 2,048 × 1,020² fits 32 bits */
            const uint8_t *row = grey + y * width + x;
            laplacian_row(row - width, row, row + width, least(2048, width - 1 - x), sums + 2, sums + 3);
        }
    }
}
