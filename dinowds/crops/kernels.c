/*
 * The `cpu` renderer: every view of one image, with the bytes that Pillow makes (see pil.py, the reference).
 *
 * One call renders all views of an image. The image is transposed once, so that both passes of the resize are weighted
 * sums of contiguous rows, which compilers vectorise; the rest works on blocks of pixels that fit the L1 cache.
 * All arithmetic is on integers or on IEEE floats without fused multiply-add (-ffp-contract=off), so every CPU makes
 * the same bytes. Nothing is allocated here: memory comes from the caller. No function keeps state.
 */

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* This file is compiled three times: alone, for any processor, and with GCC on x86-64 as part of kernels_v3.c and
   kernels_v4.c too, for processors with AVX2 and with AVX-512. */
#if GENERATION == 4
#define RENDER dinowds_render_v4
#elif GENERATION == 3
#define RENDER dinowds_render_v3
#else
#define RENDER render_anywhere
#endif

#define VERSION 1 /* of `dinowds_render`'s arguments and bytes; equal to VERSION in cpu.py */

#define INLINE static inline __attribute__((always_inline))

/* ---- Vectors: as wide as this file is compiled for; see kernels_v3.c and kernels_v4.c ---- */

#if GENERATION == 4 /* AVX-512 */
#include <immintrin.h>
enum { LANES = 16 };
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Uints __attribute__((vector_size(64)));
INLINE Ints widened(const uint8_t *from) { return (Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)from)); }
INLINE void store_clipped(uint8_t *to, Ints values) {
    __m512i least = _mm512_max_epi32((__m512i)values, _mm512_setzero_si512());
    _mm_storeu_si128((void *)to, _mm512_cvtusepi32_epi8(least));
}
#elif GENERATION == 3 /* AVX2 */
#include <immintrin.h>
enum { LANES = 8 };
typedef int32_t Ints __attribute__((vector_size(32)));
typedef uint32_t Uints __attribute__((vector_size(32)));
INLINE Ints widened(const uint8_t *from) { return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)from)); }
INLINE void store_clipped(uint8_t *to, Ints values) {
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)values, (__m256i)values), 0x08);
    _mm_storel_epi64((void *)to, _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_castsi256_si128(words)));
}
#else /* left to the compiler */
enum { LANES = 1 };
typedef int32_t Ints;
typedef uint32_t Uints;
INLINE Ints widened(const uint8_t *from) { return *from; }
INLINE void store_clipped(uint8_t *to, Ints value) {
    value = value > 0 ? value : 0;
    *to = (uint8_t)(value < 255 ? value : 255);
}
#endif

typedef struct { /* the record VIEW of recipe.py */
    int32_t top, left, height, width, size, flip, vertical_flip, turns, stain;
    float stain_map[3][4];
    int32_t jitter;
    float factor[3]; /* brightness, contrast, saturation */
    float hue;
    int32_t order[4], grey;
    float blur;
    int32_t solarize;
} View;

enum { BRIGHTNESS, CONTRAST, SATURATION, HUE, STAIN, GREY };

/* Rows are computed by WHOLE values; buffers have SLACK bytes that this may spill into. */
enum { WHOLE = 16, SLACK = 64 };

static size_t rounded_up(size_t value, size_t to) { return (value + to - 1) / to * to; }

/* ---- Transposition ---- */

typedef uint8_t Bytes16 __attribute__((vector_size(16)));

#ifdef __clang__
#define SHUFFLED __builtin_shufflevector
#else
#define SHUFFLED(a, b, ...) __builtin_shuffle(a, b, (Bytes16){__VA_ARGS__})
#endif
#define LOW(a, b) SHUFFLED(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define HIGH(a, b) SHUFFLED(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)

/* 16 × 16 bytes: interleaving rows i and i + 8 four times turns rows into columns. */
INLINE void transpose_block(uint8_t *to, ptrdiff_t to_step, const uint8_t *from, ptrdiff_t from_step) {
    Bytes16 rows[16], next[16];
    for (int i = 0; i < 16; i++) memcpy(&rows[i], from + i * from_step, 16);
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < 8; i++) {
            next[2 * i] = LOW(rows[i], rows[i + 8]);
            next[2 * i + 1] = HIGH(rows[i], rows[i + 8]);
        }
        memcpy(rows, next, sizeof rows);
    }
    for (int i = 0; i < 16; i++) memcpy(to + i * to_step, &rows[i], 16);
}

/* to[x][y] = from[y][x]; steps are bytes from row to row. The last blocks overlap those before them. */
static void transpose(uint8_t *to, ptrdiff_t to_step, const uint8_t *from, ptrdiff_t from_step, ptrdiff_t rows,
                      ptrdiff_t columns) {
    if (rows < 16 || columns < 16) {
        for (ptrdiff_t y = 0; y < rows; y++)
            for (ptrdiff_t x = 0; x < columns; x++) to[x * to_step + y] = from[y * from_step + x];
        return;
    }
    for (ptrdiff_t row = 0; row < rows; row += 16)
        for (ptrdiff_t column = 0; column < columns; column += 16) {
            ptrdiff_t y = row < rows - 16 ? row : rows - 16, x = column < columns - 16 ? column : columns - 16;
            transpose_block(to + x * to_step + y, to_step, from + y * from_step + x, from_step);
        }
}

/* ---- Resize ---- */

enum { WEIGHT_BITS = 22 };

typedef struct { /* which inputs an output is a weighted sum of */
    int32_t taps;    /* room for weights of one output */
    int32_t *first;  /* [size] first input */
    int32_t *count;  /* [size] inputs */
    int32_t *weight; /* [taps][size] in units of 2^-22 */
    double *exact;   /* [taps + 2][size] the weights before rounding, their sum and the centre */
} Filter;

static double support_of(float length, int size) {
    double scale = (double)length / size;
    return 2.0 * (scale < 1.0 ? 1.0 : scale);
}

static int32_t taps_of(float length, int size) { return (int32_t)ceil(support_of(length, size)) * 2 + 1; }

/* Keys' cubic with a = -1/2, in the order of operations of Pillow's bicubic filter. */
INLINE double cubic(double x) {
    x = x < 0.0 ? -x : x;
    double inner = (1.5 * x - 2.5) * x * x + 1.0;
    double outer = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5;
    return x < 1.0 ? inner : x < 2.0 ? outer : 0.0;
}

/* Pillow's weights for resizing [start, end) of `inputs` values to `size`: in double, then rounded to 22 bits. */
static void make_filter(Filter *filter, float start, float end, int inputs, int size) {
    double scale = (double)(end - start) / size, support = support_of(end - start, size);
    double inverse = 1.0 / (scale < 1.0 ? 1.0 : scale);
    int32_t taps = filter->taps, *restrict first = filter->first, *restrict count = filter->count;
    double *restrict sum = filter->exact + (size_t)taps * size, *restrict centre = sum + size;
    for (int i = 0; i < size; i++) {
        centre[i] = start + (i + 0.5) * scale;
        sum[i] = 0.0;
        int low = (int)(centre[i] - support + 0.5), high = (int)(centre[i] + support + 0.5);
        first[i] = low < 0 ? 0 : low;
        count[i] = (high > inputs ? inputs : high) - first[i];
    }
    for (int t = 0; t < taps; t++) {
        double *restrict exact = filter->exact + (size_t)t * size;
        for (int i = 0; i < size; i++) {
            double weight = cubic((t + first[i] - centre[i] + 0.5) * inverse);
            exact[i] = t < count[i] ? weight : 0.0;
            sum[i] += exact[i];
        }
    }
    for (int t = 0; t < taps; t++) {
        double *restrict exact = filter->exact + (size_t)t * size;
        int32_t *restrict weight = filter->weight + (size_t)t * size;
        for (int i = 0; i < size; i++) {
            double share = exact[i] / sum[i];
            weight[i] = (int32_t)((share < 0.0 ? -0.5 : 0.5) + share * (1 << WEIGHT_BITS));
        }
    }
}

/* out[i] = sum over t of weight[t] · in[t · step + i]; `taps` is a constant where it is inlined. `n` is at
   least LANES; the last vector overlaps the one before it. */
INLINE void weighted(uint8_t *restrict out, const uint8_t *restrict in, ptrdiff_t step, const int32_t *restrict weight,
                     int weight_step, int taps, int n) {
    for (int begin = 0; begin < n; begin += LANES) {
        int i = LANES > 1 && begin > n - LANES ? n - LANES : begin;
        Ints sum = widened(in + i) * weight[0] + (1 << (WEIGHT_BITS - 1));
        for (int t = 1; t < taps; t++) sum += widened(in + t * step + i) * weight[(ptrdiff_t)t * weight_step];
        store_clipped(out + i, sum >> WEIGHT_BITS);
    }
}

/* One pass over rows of `n` values: out row i of each plane is a sum of in rows, rounded to 8 bits as Pillow does after
   each pass. Rows are written in rising order: what spills over from one is overwritten by the next. */
static void resample(uint8_t *out, ptrdiff_t out_step, ptrdiff_t out_plane, const uint8_t *in, ptrdiff_t in_step,
                     ptrdiff_t in_plane, int planes, const Filter *filter, int size, int mirror, int n) {
    for (int plane = 0; plane < planes; plane++)
        for (int i = 0; i < size; i++) {
            int from = mirror ? size - 1 - i : i;
            uint8_t *to = out + plane * out_plane + i * out_step;
            const uint8_t *row = in + plane * in_plane + filter->first[from] * in_step;
            const int32_t *weight = filter->weight + from;
            switch (filter->count[from]) {
#define CASE(taps) case taps: weighted(to, row, in_step, weight, size, taps, n); break;
                CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#undef CASE
                default: weighted(to, row, in_step, weight, size, filter->count[from], n);
            }
        }
}

/* ---- Colour: on blocks of pixels as floats that are whole numbers from 0 to 255 ---- */

enum { PIXELS = 256 };

typedef struct { _Alignas(64) float channel[3][PIXELS]; } Block;

INLINE float truncated(float value) {
    value = value > 0.0f ? value : 0.0f;
    value = value < 255.0f ? value : 255.0f;
    return (float)(int32_t)value;
}

/* Pillow's grey: (19595 R + 38470 G + 7471 B + 2^15) / 2^16, rounded down. All sums are below 2^24 and so exact. */
INLINE float grey_of(float red, float green, float blue) {
    return (float)(int32_t)((red * 19595.0f + green * 38470.0f + blue * 7471.0f + 32768.0f) * (1.0f / 65536.0f));
}

static void load(Block *block, const uint8_t *pixels, ptrdiff_t plane, int n) {
    for (int c = 0; c < 3; c++)
        for (int i = 0; i < n; i++) block->channel[c][i] = pixels[c * plane + i];
}

static void store(uint8_t *restrict pixels, ptrdiff_t plane, const Block *block, int planes, int n) {
    for (int c = 0; c < planes; c++)
        for (int i = 0; i < n; i++) pixels[c * plane + i] = (uint8_t)(int32_t)block->channel[c][i];
}

static int32_t sum_of_grey(const Block *block, int n) {
    const float *red = block->channel[0], *green = block->channel[1], *blue = block->channel[2];
    int32_t sum = 0;
    for (int i = 0; i < n; i++) sum += (int32_t)grey_of(red[i], green[i], blue[i]);
    return sum;
}

/* Brightness (from black) and contrast (from the mean of grey): Image.blend, which truncates and clips. */
static void blend_from(Block *block, float level, float factor) {
    for (int c = 0; c < 3; c++) {
        float *value = block->channel[c];
        for (int i = 0; i < PIXELS; i++) value[i] = truncated(level + factor * (value[i] - level));
    }
}

/* Saturation: Image.blend from grey. */
static void blend_from_grey(Block *block, float factor) {
    float *restrict red = block->channel[0], *restrict green = block->channel[1], *restrict blue = block->channel[2];
    for (int i = 0; i < PIXELS; i++) {
        float grey = grey_of(red[i], green[i], blue[i]);
        red[i] = truncated(grey + factor * (red[i] - grey));
        green[i] = truncated(grey + factor * (green[i] - grey));
        blue[i] = truncated(grey + factor * (blue[i] - grey));
    }
}

/* Into the first channel alone. */
static void to_grey(Block *block) {
    float *restrict red = block->channel[0], *restrict green = block->channel[1], *restrict blue = block->channel[2];
    for (int i = 0; i < PIXELS; i++) red[i] = grey_of(red[i], green[i], blue[i]);
}

/* Hues that Pillow's rounding errors make one step less where the exact quotient is this whole number: a bit each. */
static const uint32_t HUE_LESS[8] = {0xfffffffe, 0x00000000, 0x11000000, 0x00000111,
                                     0x222aaaaa, 0x23232222, 0x00022222, 0x00000000};

/* Goes through the words by differences, which vectorises; a lookup would not. */
INLINE int32_t is_hue_less(int32_t hue) {
    uint32_t bits = HUE_LESS[0];
    for (int k = 1; k < 8; k++) bits ^= -(uint32_t)(hue >= 32 * k) & (HUE_LESS[k] ^ HUE_LESS[k - 1]);
    return (int32_t)(bits >> (hue & 31)) & 1;
}

/* A channel of Pillow's HSV: value · (1 - saturation · share / 255), rounded, where share goes from 0 to 1 and back
   along the colour circle: `place` counts 85ths of a sixth of it, from where that channel begins to fall. Exact: never
   a half. */
INLINE float channel_at(int32_t place, float value, float saturation) {
    place = place >= 510 ? place - 510 : place;
    int32_t share = place < 340 - place ? place : 340 - place;
    share = share < 85 ? share : 85;
    share = share > 0 ? share : 0;
    return (float)(int32_t)(value * (21675.0f - saturation * (float)share) * (1.0f / 21675.0f) + 0.5f);
}

/* Hue: to Pillow's HSV of 8 bits, rounded down; `shift` steps on, modulo 256; and back.
   Hue is 85 n / 2 d and saturation 255 d / max of whole numbers, which one division each gives exactly. */
static void shift_hue(Block *block, int32_t shift) {
    float *restrict red = block->channel[0], *restrict green = block->channel[1], *restrict blue = block->channel[2];
    for (int i = 0; i < PIXELS; i++) {
        float r = red[i], g = green[i], b = blue[i];
        float most = r > g ? r : g, least = r < g ? r : g;
        most = most > b ? most : b;
        least = least < b ? least : b;
        float range = most - least, divisor = range > 1.0f ? range : 1.0f;
        float from_green = b - r + 2.0f * range, from_blue = r - g + 4.0f * range, from_red = g - b;
        float along = g == most ? from_green : from_blue;
        along = r == most ? from_red : along;
        along += along < 0.0f ? 6.0f * range : 0.0f;
        float exact = 85.0f * along / (2.0f * divisor);
        int32_t hue = (int32_t)exact;
        int32_t less = is_hue_less(hue) & ((float)hue == exact);
        float saturation = (float)(int32_t)(255.0f * range / (most > 1.0f ? most : 1.0f));
        int32_t turned = 2 * ((hue - less + shift) & 255);
        red[i] = channel_at(turned + 5 * 85, most, saturation);
        green[i] = channel_at(turned + 3 * 85, most, saturation);
        blue[i] = channel_at(turned + 1 * 85, most, saturation);
    }
}

/* exp(x) for x in [-80, 80] to a few units in the last place: 2^whole · exp(rest), |rest| <= ln 2 / 2. */
INLINE float exponential(float x) {
    float turns = x * 1.44269504f;
    int32_t whole = (int32_t)(turns + (turns < 0.0f ? -0.5f : 0.5f));
    float rest = x - (float)whole * 0.693359375f + (float)whole * 2.12194440e-4f;
    float sum = 1.0f + rest * (1.0f / 6);
    sum = 1.0f + rest * (1.0f / 5) * sum;
    sum = 1.0f + rest * (1.0f / 4) * sum;
    sum = 1.0f + rest * (1.0f / 3) * sum;
    sum = 1.0f + rest * (1.0f / 2) * sum;
    sum = 1.0f + rest * sum;
    int32_t bits = (whole + 127) * (1 << 23);
    float power;
    memcpy(&power, &bits, sizeof power);
    return sum * power;
}

/* stain.stained: optical densities d (a table of 256) to A d + b, and back to the nearest grey level. */
static void stain(Block *block, const float map[3][4], const float *restrict density) {
    Block from = *block;
    for (int i = 0; i < PIXELS; i++)
        for (int c = 0; c < 3; c++) from.channel[c][i] = density[(int32_t)block->channel[c][i]];
    for (int c = 0; c < 3; c++) {
        float red = map[c][0], green = map[c][1], blue = map[c][2], constant = map[c][3];
        for (int i = 0; i < PIXELS; i++) {
            float sum = red * from.channel[0][i] + green * from.channel[1][i] + blue * from.channel[2][i] + constant;
            sum = sum > -6.0f ? sum : -6.0f;
            sum = sum < 40.0f ? sum : 40.0f;
            block->channel[c][i] = truncated(255.0f * exponential(-sum) + 0.5f);
        }
    }
}

/* ---- Blur ---- */

/* 2 · whole + 1 weights `centre`, and one `end` at each side, in units of 2^-24. */
typedef struct { int whole; uint32_t centre, end; } Box;

/* Pillow's box: three of them blur by `deviation` (Gwosdek et al. 2011), with its roundings to float. */
static Box box_of(float deviation) {
    float variance = deviation * deviation / 3;
    float length = (float)sqrt(12.0 * variance + 1.0);
    float whole = (float)(int)((length - 1.0) / 2.0);
    float part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance);
    part /= 6 * (variance - (whole + 1) * (whole + 1));
    float radius = whole + part;
    Box box = {.whole = (int)radius};
    box.centre = (uint32_t)((float)(1 << 24) / (radius * 2 + 1));
    box.end = ((1u << 24) - (uint32_t)(2 * box.whole + 1) * box.centre) / 2;
    return box;
}

enum { STRIP = 16 }; /* rows or columns that are blurred together */

/* to[i] is made of from[i - (whole + 1) · step] to from[i + (whole + 1) · step]. Inlined, `whole` is a constant. */
INLINE void box_filter(int32_t *restrict to, const int32_t *restrict from, ptrdiff_t step, int whole, uint32_t centre,
                       uint32_t end, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) {
        uint32_t ends = (uint32_t)(from[i - (whole + 1) * step] + from[i + (whole + 1) * step]);
        uint32_t sum = (uint32_t)from[i];
        for (int k = 1; k <= whole; k++) sum += (uint32_t)(from[i - k * step] + from[i + k * step]);
        to[i] = (int32_t)((sum * centre + ends * end + (1u << 23)) >> 24);
    }
}

/* The same for any `whole`. */
INLINE void wide_box_filter(int32_t *restrict to, const int32_t *restrict from, ptrdiff_t step, Box box, ptrdiff_t n) {
    enum { CHUNK = 256 };
    for (ptrdiff_t begin = 0; begin < n; begin += CHUNK) {
        int length = n - begin < CHUNK ? (int)(n - begin) : CHUNK;
        uint32_t sum[CHUNK] = {0};
        for (int k = -box.whole; k <= box.whole; k++)
            for (int i = 0; i < length; i++) sum[i] += (uint32_t)from[begin + i + k * step];
        const int32_t *left = from + begin - (box.whole + 1) * step, *right = from + begin + (box.whole + 1) * step;
        for (int i = 0; i < length; i++) {
            uint32_t ends = (uint32_t)(left[i] + right[i]);
            to[begin + i] = (int32_t)((sum[i] * box.centre + ends * box.end + (1u << 23)) >> 24);
        }
    }
}

/* Three boxes along `count` lines of `size` places with `step` values each, which lie `pitch` apart from lines[0] on;
   the result is at lines[1]. Each box rounds to 8 bits; its input goes on with the outermost places on either side. */
static void blur_lines(int32_t *const lines[2], int count, ptrdiff_t pitch, ptrdiff_t step, int size, Box box) {
    ptrdiff_t n = (count - 1) * pitch + size * step;
    for (int pass = 0; pass < 3; pass++) {
        int32_t *from = lines[pass % 2], *to = lines[1 - pass % 2];
        for (int line = 0; line < count; line++) {
            int32_t *first = from + line * pitch, *last = first + (size - 1) * step;
            for (int k = 1; k <= box.whole + 1; k++)
                for (ptrdiff_t i = 0; i < step; i++) first[i - k * step] = first[i], last[i + k * step] = last[i];
        }
        switch (box.whole) {
            case 0: box_filter(to, from, step, 0, box.centre, box.end, n); break;
            case 1: box_filter(to, from, step, 1, box.centre, box.end, n); break;
            default: wide_box_filter(to, from, step, box, n);
        }
    }
}

/* Pillow's GaussianBlur: along rows into `plane`, then along columns. `memory` has room for a strip of either. */
static void blur(uint8_t *out, const uint8_t *in, int size, Box box, int32_t *const memory[2], uint8_t *plane) {
    ptrdiff_t margin = box.whole + 1, pitch = size + 2 * margin;
    int32_t *const rows[2] = {memory[0] + margin, memory[1] + margin};
    int32_t *const lines[2] = {memory[0] + STRIP * margin, memory[1] + STRIP * margin};
    for (int top = 0; top < size; top += STRIP) {
        int count = size - top < STRIP ? size - top : STRIP;
        for (int y = 0; y < count; y++)
            for (int x = 0; x < size; x++) rows[0][y * pitch + x] = in[(ptrdiff_t)(top + y) * size + x];
        blur_lines(rows, count, pitch, 1, size, box);
        for (int y = 0; y < count; y++)
            for (int x = 0; x < size; x++) plane[(ptrdiff_t)(top + y) * size + x] = (uint8_t)rows[1][y * pitch + x];
    }
    for (int x = 0; x < size; x += STRIP) {
        int left = x > size - STRIP && size > STRIP ? size - STRIP : x, width = size < STRIP ? size : STRIP;
        for (ptrdiff_t y = 0; y < size; y++)
            for (int i = 0; i < STRIP; i++) lines[0][y * STRIP + i] = plane[y * size + left + i];
        blur_lines(lines, 1, 0, STRIP, size, box);
        for (ptrdiff_t y = 0; y < size; y++) {
            uint8_t narrow[STRIP], *row = width < STRIP ? narrow : out + y * size + left;
            for (int i = 0; i < STRIP; i++) row[i] = (uint8_t)lines[1][y * STRIP + i];
            if (width < STRIP) memcpy(out + y * size, narrow, width);
        }
    }
}

/* ---- One view ---- */

static void solarize(uint8_t *pixels, int32_t threshold, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) pixels[i] = pixels[i] >= threshold ? (uint8_t)(255 - pixels[i]) : pixels[i];
}

/* The colour operations of a view in their order; those that change nothing are left out. Returns how many. */
static int list_operations(const View *view, int operations[6]) {
    int n = 0;
    if (view->stain) operations[n++] = STAIN;
    for (int i = 0; view->jitter && i < 4; i++)
        if (view->order[i] == HUE || view->factor[view->order[i]] != 1.0f) operations[n++] = view->order[i];
    if (view->grey) operations[n++] = GREY;
    return n;
}

static void apply(int operation, Block *block, const View *view, float mean, const float *density) {
    switch (operation) {
        case BRIGHTNESS: blend_from(block, 0.0f, view->factor[BRIGHTNESS]); break;
        case CONTRAST: blend_from(block, mean, view->factor[CONTRAST]); break;
        case SATURATION: blend_from_grey(block, view->factor[SATURATION]); break;
        case HUE: shift_hue(block, (int32_t)(view->hue * 255.0)); break;
        case STAIN: stain(block, view->stain_map, density); break;
        case GREY: to_grey(block); break;
    }
}

/* Colour operations from `in` to `out`, three planes of `area` pixels each, or one where the view is grey. Contrast
   takes its mean over the whole view: what comes before it is done first, in place. */
static void colour(uint8_t *out, uint8_t *in, ptrdiff_t area, const View *view, const float *density) {
    int operations[6], n = list_operations(view, operations), begin = 0;
    float mean = 0.0f;
    Block block = {0};
    for (int i = 0; i < n; i++)
        if (operations[i] == CONTRAST) {
            int64_t sum = 0;
            for (ptrdiff_t at = 0; at < area; at += PIXELS) {
                int length = area - at < PIXELS ? (int)(area - at) : PIXELS;
                load(&block, in + at, area, length);
                for (int k = 0; k < i; k++) apply(operations[k], &block, view, mean, density);
                if (i) store(in + at, area, &block, 3, length);
                sum += sum_of_grey(&block, length);
            }
            mean = (float)(int32_t)((double)sum / (double)area + 0.5);
            begin = i;
        }
    for (ptrdiff_t at = 0; at < area; at += PIXELS) {
        int length = area - at < PIXELS ? (int)(area - at) : PIXELS;
        load(&block, in + at, area, length);
        for (int k = begin; k < n; k++) apply(operations[k], &block, view, mean, density);
        store(out + at, area, &block, view->grey ? 1 : 3, length);
    }
}

typedef struct { uint8_t *memory; size_t used; } Arena; /* memory NULL: only counts */

static void *take(Arena *arena, size_t bytes) {
    size_t at = arena->used;
    arena->used += rounded_up(bytes + SLACK, SLACK);
    return arena->memory ? arena->memory + at : NULL;
}

static Filter take_filter(Arena *arena, float length, int size) {
    Filter filter = {.taps = taps_of(length, size)};
    filter.first = take(arena, sizeof(int32_t) * size);
    filter.count = take(arena, sizeof(int32_t) * size);
    filter.weight = take(arena, sizeof(int32_t) * filter.taps * size);
    filter.exact = take(arena, sizeof(double) * (filter.taps + 2) * size);
    return filter;
}

/* The image, and the part of it that views need transposed: there, value (x, c, y) is at (3 x + c) · step + y. */
typedef struct {
    const uint8_t *rows, *columns;
    ptrdiff_t row_step, column_step;
    int32_t top, left; /* of `columns` */
} Image;

typedef struct { int32_t top, left, bottom, right; } Rectangle;

/* Pixels that a box of the full image touches in one that is 1 / `reduction` of its size. */
static Rectangle touched(const View *view, int32_t reduction) {
    Rectangle of = {view->top / reduction, view->left / reduction,
                    (view->top + view->height + reduction - 1) / reduction,
                    (view->left + view->width + reduction - 1) / reduction};
    return of;
}

/* What a view needs, in an arena. */
typedef struct {
    Filter horizontal, vertical;
    uint8_t *a, *b; /* three planes of one pass each */
    int32_t *lines[2];
    uint8_t *plane;
} Work;

static Work take_work(Arena *arena, const View *view, Rectangle box, int32_t reduction, int blur_margin) {
    size_t size = view->size, rows = box.bottom - box.top, columns = box.right - box.left;
    size_t longest = rounded_up(rows > columns ? rows : columns, WHOLE), step = rounded_up(size, WHOLE);
    Work work;
    work.horizontal = take_filter(arena, (float)view->width / reduction, view->size);
    work.vertical = take_filter(arena, (float)view->height / reduction, view->size);
    work.a = take(arena, 3 * step * (longest > step ? longest : step));
    work.b = take(arena, 3 * step * (longest > step ? longest : step));
    work.plane = take(arena, size * size);
    for (int i = 0; i < 2; i++) work.lines[i] = take(arena, sizeof(int32_t) * STRIP * (size + 2 * blur_margin));
    return work;
}

/* Crop, resize, flips and turns, which fold into the order of the outputs. Returns the pixels, [3][size][size].
   Pillow 13 resizes rows first, unless the height shrinks by more than twice what the width does. */
static uint8_t *resize(const Image *image, const View *view, Rectangle box, int32_t reduction, Work *work) {
    int size = view->size, rows = box.bottom - box.top, columns = box.right - box.left;
    ptrdiff_t area = (ptrdiff_t)size * size;
    float top = (float)view->top / reduction - box.top, left = (float)view->left / reduction - box.left;
    make_filter(&work->horizontal, left, left + (float)view->width / reduction, columns, size);
    make_filter(&work->vertical, top, top + (float)view->height / reduction, rows, size);
    /* Two quarter turns are both flips; one is a flip and a transposition. */
    int turned = view->turns & 1, half = view->turns >> 1 & 1, transposed;
    int mirror = (view->flip != 0) ^ half ^ turned, mirror_rows = (view->vertical_flip != 0) ^ half;
    uint8_t *a = work->a, *b = work->b;
    if (rows > size && rows + size > 2 * columns) {
        ptrdiff_t step = (ptrdiff_t)rounded_up(size, WHOLE);
        const uint8_t *in = image->rows + box.top * image->row_step + 3 * (ptrdiff_t)box.left;
        ptrdiff_t in_step = image->row_step;
        if (3 * columns < WHOLE) { /* nothing behind the image may be read */
            for (ptrdiff_t y = 0; y < rows; y++) memcpy(b + y * WHOLE, in + y * in_step, 3 * columns);
            in = b, in_step = WHOLE;
        }
        int n = 3 * columns < WHOLE ? WHOLE : 3 * columns;
        resample(a, 3 * columns, 0, in, in_step, 0, 1, &work->vertical, size, mirror_rows, n);
        transpose(b, step, a, 3 * columns, size, 3 * columns);
        resample(a, size, area, b, 3 * step, step, 3, &work->horizontal, size, mirror, (int)step);
        transposed = !turned;
    } else {
        ptrdiff_t step = (ptrdiff_t)rounded_up(rows, WHOLE), columns_step = image->column_step;
        const uint8_t *in = image->columns + 3 * (box.left - image->left) * columns_step + (box.top - image->top);
        resample(a, 3 * step, step, in, 3 * columns_step, columns_step, 3, &work->horizontal, size, mirror, (int)step);
        for (int c = 0; c < 3; c++) transpose(b + c * rows * (ptrdiff_t)size, size, a + c * step, 3 * step, size, rows);
        resample(a, size, area, b, size, rows * (ptrdiff_t)size, 3, &work->vertical, size, mirror_rows,
                 (int)rounded_up(size, WHOLE));
        transposed = turned;
    }
    if (!transposed) return a;
    for (int c = 0; c < 3; c++) transpose(b + c * area, size, a + c * area, size, size, size);
    return b;
}

static void render_view(uint8_t *out, const Image *image, const View *view, int32_t reduction, const float *density,
                        Arena arena) {
    int size = view->size;
    ptrdiff_t area = (ptrdiff_t)size * size;
    Rectangle box = touched(view, reduction);
    Box blur_box = box_of(view->blur);
    Work work = take_work(&arena, view, box, reduction, blur_box.whole + 1);
    uint8_t *pixels = resize(image, view, box, reduction, &work);
    int operations[6];
    if (list_operations(view, operations)) {
        uint8_t *to = view->blur > 0.0f ? pixels : out;
        colour(to, pixels, area, view, density);
        pixels = to;
    }
    int num_planes = view->grey ? 1 : 3;
    if (view->blur > 0.0f)
        for (int c = 0; c < num_planes; c++)
            blur(out + c * area, pixels + c * area, size, blur_box, work.lines, work.plane);
    else if (pixels != out)
        memcpy(out, pixels, num_planes * area);
    if (view->solarize < 256) solarize(out, view->solarize, num_planes * area);
    for (int c = num_planes; c < 3; c++) memcpy(out + c * area, out, area);
}

/* |value| <= most? Not NaN, which -ffinite-math-only lets compilers take for impossible: hence by the bits. */
static int is_within(float value, float most) {
    uint32_t bits, most_bits;
    memcpy(&bits, &value, sizeof bits);
    memcpy(&most_bits, &most, sizeof most_bits);
    return (bits & INT32_MAX) <= most_bits;
}

static int are_finite(const float *values, int n) {
    for (int i = 0; i < n; i++)
        if (!is_within(values[i], FLT_MAX)) return 0;
    return 1;
}

/* Nothing else of a record can make the renderer leave its memory or compute with what is not a number. */
static int is_valid(const View *view) {
    if (view->top < 0 || view->left < 0 || view->height < 1 || view->width < 1 || view->size < 1 ||
        view->height > (1 << 24) - view->top || view->width > (1 << 24) - view->left)
        return 0;
    if (!is_within(view->blur, 32.0f) || view->blur < 0.0f) return 0; /* MAX_BLUR of recipe.py */
    if (view->stain && !are_finite(view->stain_map[0], 12)) return 0;
    if (!view->jitter) return 1;
    int seen = 0;
    for (int i = 0; i < 4; i++)
        if (view->order[i] >= BRIGHTNESS && view->order[i] <= HUE) seen |= 1 << view->order[i];
    return seen == 15 && are_finite(view->factor, 3) && is_within(view->hue, 0.5f);
}

/*
 * Renders `num_views` views of an image of 8 bits, RGB, whose rows are `row_step` bytes apart and whose records are in
 * px of an image `reduction` (1, 2, 4 or 8) times as large; outs[i] is [3][size][size]. `density` is
 * stain.optical_density().
 *
 * Returns 0 when done; n > 0 when nothing was done because `scratch` must have n bytes; -1 - i when nothing was done
 * because record i is not of a view of this image.
 */
int64_t RENDER(const uint8_t *image, int64_t height, int64_t width, int64_t row_step, int32_t reduction,
               const View *views, int64_t num_views, uint8_t *const *outs, const float *density, uint8_t *scratch,
               int64_t scratch_bytes) {
    Rectangle used = {INT32_MAX, INT32_MAX, 0, 0};
    for (int64_t i = 0; i < num_views; i++) {
        if (!is_valid(views + i)) return -1 - i;
        Rectangle box = touched(views + i, reduction);
        if (box.bottom > height || box.right > width) return -1 - i;
        used.top = box.top < used.top ? box.top : used.top;
        used.left = box.left < used.left ? box.left : used.left;
        used.bottom = box.bottom > used.bottom ? box.bottom : used.bottom;
        used.right = box.right > used.right ? box.right : used.right;
    }
    if (num_views == 0) return 0;

    /* An odd number of cache lines from column to column spreads them over the sets of the cache. */
    ptrdiff_t rows = used.bottom - used.top, columns = 3 * (ptrdiff_t)(used.right - used.left);
    Image source = {.rows = image, .row_step = row_step, .column_step = (ptrdiff_t)rounded_up(rows, 128) + 64,
                    .top = used.top, .left = used.left};
    Arena arena = {NULL, 0};
    take(&arena, columns * source.column_step);
    size_t needed = 0;
    for (int64_t i = 0; i < num_views; i++) {
        Arena with_view = arena;
        take_work(&with_view, views + i, touched(views + i, reduction), reduction, box_of(views[i].blur).whole + 1);
        if (with_view.used > needed) needed = with_view.used;
    }
    needed += SLACK;
    if (scratch_bytes < (int64_t)needed) return (int64_t)needed;

    arena = (Arena){(uint8_t *)rounded_up((uintptr_t)scratch, SLACK), 0};
    uint8_t *transposed = take(&arena, columns * source.column_step);
    transpose(transposed, source.column_step, image + used.top * row_step + 3 * (ptrdiff_t)used.left, row_step, rows,
              columns);
    source.columns = transposed;
    for (int64_t i = 0; i < num_views; i++) render_view(outs[i], &source, views + i, reduction, density, arena);
    return 0;
}

#ifndef GENERATION

/* ---- What Python calls ---- */

int32_t dinowds_version(void) { return VERSION; }

/* Where the fields of a record lie, in the order of VIEW, and its size: compared with VIEW as the library is loaded. */
#define AT(field) (int32_t)offsetof(View, field)
const int32_t dinowds_layout[] = {
    AT(top), AT(left), AT(height), AT(width), AT(size), AT(flip), AT(vertical_flip), AT(turns),
    AT(stain), AT(stain_map), AT(jitter), AT(factor[BRIGHTNESS]), AT(factor[CONTRAST]), AT(factor[SATURATION]),
    AT(hue), AT(order), AT(grey), AT(blur),
    AT(solarize), sizeof(View),
};

typedef int64_t Render(const uint8_t *, int64_t, int64_t, int64_t, int32_t, const View *, int64_t, uint8_t *const *,
                       const float *, uint8_t *, int64_t);

/* The renderers that this processor can run, the fastest first; NULL behind the last. All make the same bytes. */
Render *dinowds_renderer(int32_t place) {
    Render *renderers[3] = {0};
    int n = 0;
#if defined(__x86_64__) && !defined(__clang__)
    Render dinowds_render_v3, dinowds_render_v4;
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        renderers[n++] = dinowds_render_v4;
    if (__builtin_cpu_supports("avx2")) renderers[n++] = dinowds_render_v3;
#endif
    renderers[n++] = render_anywhere;
    return place >= 0 && place < n ? renderers[place] : NULL;
}

#endif
