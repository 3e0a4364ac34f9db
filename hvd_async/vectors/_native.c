/* The store's arithmetic in one pass over memory, and waiting without spinning.
 *
 * Every function has a twin in arithmetic.py, made of torch operations, that rounds alike: each elementary operation is done
 * in float32 and rounded once, in the order written there. So this file must be compiled without contraction into fused
 * multiply-adds (-ffp-contract=off). Addresses are passed as integers; the caller guarantees that they are valid. All functions
 * release the interpreter's lock while they work, and work on one contiguous range, so that threads can share a vector.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <linux/futex.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && __GNUC__ >= 12
#define HOT __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#elif defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && defined(__GNUC__)
#define HOT __attribute__((target_clones("avx2", "default")))
#else
#define HOT
#endif

/* Elements worked on at a time, whose buffers stay in the first-level cache; fewer where inputs are read straight from memory.
 * Divisors of NORM_BLOCK. */
#define CHUNK 256
#define PLAIN_CHUNK 64
/* Sums of squares are formed in blocks of this many elements, in as many lanes, as in arithmetic.py. */
#define NORM_BLOCK 4096
#define LANES 64
#define MAX_INPUTS 64
/* Longer copies bypass the cache. */
#define STREAM_BYTES (12 << 20)

enum { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };
#define WIDTH(kind) ((kind) == FLOAT32 ? 4 : 2)

static inline float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

/* Exact: every half is a float. The factor 2^112 makes subnormals right; infinity and NaN are corrected afterwards. */
static inline float half_to_float(uint16_t half) {
    uint32_t magnitude = (uint32_t)(half & 0x7fff) << 13;
    uint32_t scaled = to_bits(from_bits(magnitude) * 0x1p112f);
    uint32_t special = magnitude | 0x7f800000u;
    uint32_t bits = (half & 0x7c00) == 0x7c00 ? special : scaled;
    return from_bits(bits | (uint32_t)(half & 0x8000) << 16);
}

/* Round to nearest, ties to even, as torch does; NaN stays NaN. */
static inline uint16_t float_to_bfloat(float value) {
    uint32_t bits = to_bits(value);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0 : (uint16_t)rounded;
}

static inline uint16_t float_to_half(float value) {
    uint32_t bits = to_bits(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffffu;
    /* Subnormal halves are multiples of 2^-24: adding 0.5 lines their bits up and rounds to even. */
    uint32_t subnormal = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13;
    uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
    result = magnitude >= 0x47800000u ? 0x7c00 : result; /* 65536 and more; 65520 to 65536 have rounded up to it above */
    result = magnitude > 0x7f800000u ? 0x7e00 : result;
    return (uint16_t)(sign | result);
}

/* target[0..n) = the values at element `start` of a vector of type `kind`. */
static inline void load_chunk(float *restrict target, const void *restrict vector, int kind, Py_ssize_t start, int n) {
    if (kind == FLOAT32) {
        memcpy(target, (const float *)vector + start, 4 * (size_t)n);
    } else if (kind == BFLOAT16) {
        const uint16_t *restrict source = (const uint16_t *)vector + start;
        for (int i = 0; i < n; i++) target[i] = from_bits((uint32_t)source[i] << 16);
    } else {
        const uint16_t *restrict source = (const uint16_t *)vector + start;
        for (int i = 0; i < n; i++) target[i] = half_to_float(source[i]);
    }
}

/* Write past the cache: nothing on this core reads the target soon, and its old contents need not be fetched. `target` is
 * aligned to 32 bytes, `num_bytes` a multiple of 64. */
#if defined(__x86_64__)
__attribute__((target("avx"))) static void stream_lines_avx(char *target, const char *source, size_t num_bytes) {
    for (size_t i = 0; i < num_bytes; i += 64) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(source + i));
        __m256i b = _mm256_loadu_si256((const __m256i *)(source + i + 32));
        _mm256_stream_si256((__m256i *)(target + i), a);
        _mm256_stream_si256((__m256i *)(target + i + 32), b);
    }
}

static void stream_lines_sse(char *target, const char *source, size_t num_bytes) {
    for (size_t i = 0; i < num_bytes; i += 16)
        _mm_stream_si128((__m128i *)(target + i), _mm_loadu_si128((const __m128i *)(source + i)));
}

static void (*stream_lines)(char *, const char *, size_t) = stream_lines_sse;
static int has_avx2 = 0;
#endif

/* As above, for any alignment and length. */
static inline void stream_out(void *target, const void *source, size_t num_bytes) {
#if defined(__x86_64__)
    char *to = target;
    const char *from = source;
    size_t head = (size_t)(-(uintptr_t)to & 63);
    head = head < num_bytes ? head : num_bytes;
    memcpy(to, from, head);
    size_t lines = (num_bytes - head) & ~(size_t)63;
    stream_lines(to + head, from + head, lines);
    memcpy(to + head + lines, from + head + lines, num_bytes - head - lines);
#else
    memcpy(target, source, num_bytes);
#endif
}

static inline void stream_fence(void) {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

/* Gradients to add in the order given, each divided by its divisor first. */
typedef struct {
    int count;
    const void *vectors[MAX_INPUTS];
    int kinds[MAX_INPUTS];
    float divisors[MAX_INPUTS];
} inputs_t;

static inline void sum_chunk(float *restrict sum, const inputs_t *inputs, Py_ssize_t start, int n) {
    float one[CHUNK];
    for (int k = 0; k < inputs->count; k++) {
        float *restrict target = k == 0 ? sum : one;
        load_chunk(target, inputs->vectors[k], inputs->kinds[k], start, n);
        float divisor = inputs->divisors[k];
        if (divisor != 1.0f)
            for (int i = 0; i < n; i++) target[i] = target[i] / divisor;
        if (k > 0)
            for (int i = 0; i < n; i++) sum[i] = sum[i] + one[i];
    }
}

/* Whether the loops below can read the inputs directly: float32, with divisor 1. */
static int are_plain(const inputs_t *inputs) {
    for (int k = 0; k < inputs->count; k++)
        if (inputs->kinds[k] != FLOAT32 || inputs->divisors[k] != 1.0f) return 0;
    return 1;
}

/* The sum of `count` plain inputs, at most 4, straight from memory. With `is_more` the sum so far takes the first place. */
__attribute__((always_inline)) static inline void sum_plain(float *sum, const int count, const int is_more,
                                                            const float *const *from, int n) {
    const float *restrict x0 = from[0], *restrict x1 = from[1], *restrict x2 = from[2], *restrict x3 = from[3];
#pragma GCC ivdep
    for (Py_ssize_t i = 0; i < n; i++) {
        float one = is_more ? sum[i] : x0[i];
        if (count > 1) one = one + x1[i];
        if (count > 2) one = one + x2[i];
        if (count > 3) one = one + x3[i];
        sum[i] = one;
    }
}

/* Let `from` (4 places) point to element `at` of plain inputs. If they are more than 4, `sum` takes those before the last ones, and
 * comes first. Returns how many places count. */
static inline int point_to(const float **from, float *sum, const inputs_t *inputs, Py_ssize_t at, int n) {
    int k = 0, count = inputs->count;
    for (; k < 4 && k < count; k++) from[k] = (const float *)inputs->vectors[k] + at;
    for (int rest = k; rest < 4; rest++) from[rest] = from[0];
    if (count <= 4) return count;
    sum_plain(sum, 4, 0, from, n);
    from[0] = sum;
    for (;;) {
        int places = 1;
        for (; places < 4 && k < count; k++) from[places++] = (const float *)inputs->vectors[k] + at;
        if (k == count) return places;
        sum_plain(sum, 4, 1, from, n);
    }
}

/* Add the squares of a chunk to the lanes: element i of a block belongs to lane i % LANES. The index is as wide as an address:
 * with an int, Python's own flag -fwrapv keeps the compiler from making vectors of this loop. */
static inline void add_squares(double *restrict lanes, const float *restrict g, int n) {
    Py_ssize_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (Py_ssize_t lane = 0; lane < LANES; lane++) lanes[lane] = lanes[lane] + (double)g[i + lane] * (double)g[i + lane];
    for (Py_ssize_t lane = 0; i < n; i++, lane++) lanes[lane] = lanes[lane] + (double)g[i] * (double)g[i];
}

/* The sum of the lanes: halved until one is left. */
static inline double add_lanes(double *lanes) {
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] = lanes[i] + lanes[i + half];
    return lanes[0];
}

/* The rules, by their places in rule.py. */
enum { RULE_SGD, RULE_ADAM, RULE_ADAMW, RULE_NADAM, RULE_NADAMW, RULE_LION, RULE_ADAGRAD };
enum { ADAM, ADAM_DECAY, ADAMW, PROVISIONAL = 4, NADAM = 8 }; /* the last two are combined with one of the others */
enum { ADAGRAD_DECAY = 1 };                                   /* and PROVISIONAL */
enum { SGD_DECAY = 1, SGD_MOMENTUM = 2, SGD_NESTEROV = 4, SGD_PROVISIONAL = 8 };

typedef struct {
    int kind;
    int has_momentum, has_nesterov, has_average, is_provisional;
    float divisor, clip; /* gradient = sum / divisor, then * clip; 1 for no change */
    float rate, decay;   /* step size; weight decay; if decoupled, the factor of the parameters */
    float beta1, beta2, one_minus_beta1, one_minus_beta2, inverse_root, epsilon, gradient_rate, average_weight;
} rule_t;

/* One pass over a chunk: the sum of `count` gradients, then Adam's or NAdam's step from `p` into `target`, and from `m` and `v`
 * into `m_to` and `v_to`, which may be the same. `g` is left with sum / divisor, or with the sum itself if the step is provisional.
 *
 * `count` and `kind` are constants where this is inlined. One loop reads everything straight from memory, so that
 * latency hides behind arithmetic.
 */
__attribute__((always_inline)) static inline void adam_chunk(const rule_t *rule, const int count, const int kind,
                                                             const float *const *from, float *restrict g,
                                                             const float *p, float *target, const float *m,
                                                             const float *v, float *m_to, float *v_to, int n) {
    const float divisor = rule->divisor, clip = rule->clip, rate = rule->rate, decay = rule->decay;
    const float w1 = rule->one_minus_beta1, b2 = rule->beta2, w2 = rule->one_minus_beta2;
    const float root = rule->inverse_root, epsilon = rule->epsilon, gradient_rate = rule->gradient_rate;
    const int decay_kind = kind & ~(PROVISIONAL | NADAM);
    const float *restrict x0 = from[0], *restrict x1 = from[1], *restrict x2 = from[2], *restrict x3 = from[3];
#pragma GCC ivdep
    for (int i = 0; i < n; i++) {
        float sum = x0[i], parameter = p[i];
        if (count > 1) sum = sum + x1[i];
        if (count > 2) sum = sum + x2[i];
        if (count > 3) sum = sum + x3[i];
        float mean = sum / divisor;
        g[i] = kind & PROVISIONAL ? sum : mean;
        float gradient = mean * clip;
        if (decay_kind == ADAM_DECAY) gradient = gradient + parameter * decay;
        if (decay_kind == ADAMW) parameter = parameter * decay;
        float first = m[i] + (gradient - m[i]) * w1;
        float added = gradient * gradient * w2;
        float second = kind & PROVISIONAL ? (added > v[i] ? added : v[i]) : v[i] * b2 + added;
        if (!(kind & PROVISIONAL)) {
            m_to[i] = first;
            v_to[i] = second;
        }
        float spread = sqrtf(second) * root + epsilon;
        float change = kind & NADAM ? (first * rate + gradient * gradient_rate) / spread : first / spread * rate;
        target[i] = parameter - change;
    }
}

/* SGD's step, likewise; `m` is NULL without momentum. */
__attribute__((always_inline)) static inline void sgd_chunk(const rule_t *rule, const int count, const int kind,
                                                            const float *const *from, float *restrict g, const float *p,
                                                            float *target, const float *m, float *m_to, int n) {
    const float divisor = rule->divisor, clip = rule->clip, rate = rule->rate, decay = rule->decay;
    const float momentum = rule->beta1;
    const float *restrict x0 = from[0], *restrict x1 = from[1], *restrict x2 = from[2], *restrict x3 = from[3];
#pragma GCC ivdep
    for (int i = 0; i < n; i++) {
        float sum = x0[i], parameter = p[i];
        if (count > 1) sum = sum + x1[i];
        if (count > 2) sum = sum + x2[i];
        if (count > 3) sum = sum + x3[i];
        float mean = sum / divisor;
        g[i] = kind & SGD_PROVISIONAL ? sum : mean;
        float gradient = mean * clip;
        if (kind & SGD_DECAY) gradient = gradient + parameter * decay;
        if (kind & SGD_MOMENTUM) {
            float moved = m[i] * momentum + gradient;
            if (!(kind & SGD_PROVISIONAL)) m_to[i] = moved;
            gradient = kind & SGD_NESTEROV ? gradient + moved * momentum : moved;
        }
        target[i] = parameter - gradient * rate;
    }
}

/* Lion's step, likewise. */
__attribute__((always_inline)) static inline void lion_chunk(const rule_t *rule, const int count, const int is_provisional,
                                                             const float *const *from, float *restrict g, const float *p,
                                                             float *target, const float *m, float *m_to, int n) {
    const float divisor = rule->divisor, clip = rule->clip, rate = rule->rate, decay = rule->decay;
    const float b1 = rule->beta1, w1 = rule->one_minus_beta1, b2 = rule->beta2, w2 = rule->one_minus_beta2;
    const float *restrict x0 = from[0], *restrict x1 = from[1], *restrict x2 = from[2], *restrict x3 = from[3];
#pragma GCC ivdep
    for (int i = 0; i < n; i++) {
        float sum = x0[i], parameter = p[i];
        if (count > 1) sum = sum + x1[i];
        if (count > 2) sum = sum + x2[i];
        if (count > 3) sum = sum + x3[i];
        float mean = sum / divisor;
        g[i] = is_provisional ? sum : mean;
        float gradient = mean * clip;
        float direction = m[i] * b1 + gradient * w1;
        if (!is_provisional) m_to[i] = m[i] * b2 + gradient * w2;
        target[i] = parameter * decay - (direction > 0.0f ? rate : direction < 0.0f ? -rate : 0.0f);
    }
}

/* Adagrad's step, likewise; `s` has the sums of squares. */
__attribute__((always_inline)) static inline void adagrad_chunk(const rule_t *rule, const int count, const int kind,
                                                                const float *const *from, float *restrict g,
                                                                const float *p, float *target, const float *s, float *s_to,
                                                                int n) {
    const float divisor = rule->divisor, clip = rule->clip, rate = rule->rate, decay = rule->decay;
    const float epsilon = rule->epsilon;
    const float *restrict x0 = from[0], *restrict x1 = from[1], *restrict x2 = from[2], *restrict x3 = from[3];
#pragma GCC ivdep
    for (int i = 0; i < n; i++) {
        float sum = x0[i], parameter = p[i];
        if (count > 1) sum = sum + x1[i];
        if (count > 2) sum = sum + x2[i];
        if (count > 3) sum = sum + x3[i];
        float mean = sum / divisor;
        g[i] = kind & PROVISIONAL ? sum : mean;
        float gradient = mean * clip;
        if (kind & ADAGRAD_DECAY) gradient = gradient + parameter * decay;
        float total = s[i] + gradient * gradient;
        if (!(kind & PROVISIONAL)) s_to[i] = total;
        target[i] = parameter - gradient / (sqrtf(total) + epsilon) * rate;
    }
}

/* Choose the loop that was compiled for these constants. `from` has 4 places, the first `count` of them filled. */
__attribute__((always_inline)) static inline void step_chunk(const rule_t *rule, int count, const float *const *from,
                                                             float *g, const float *p, float *target, const float *m,
                                                             const float *v, float *m_to, float *v_to, int n) {
#define CASE(KIND, LOOP, ...)                                                        \
    case KIND:                                                                       \
        switch (count) {                                                             \
        case 1: LOOP(rule, 1, KIND, from, g, p, target, __VA_ARGS__, n); break;      \
        case 2: LOOP(rule, 2, KIND, from, g, p, target, __VA_ARGS__, n); break;      \
        case 3: LOOP(rule, 3, KIND, from, g, p, target, __VA_ARGS__, n); break;      \
        default: LOOP(rule, 4, KIND, from, g, p, target, __VA_ARGS__, n);            \
        }                                                                            \
        break;
    int has_decay = rule->decay != 0.0f, provisional = rule->is_provisional ? PROVISIONAL : 0;
    if (rule->kind == RULE_SGD) {
        int kind = (has_decay ? SGD_DECAY : 0) | (rule->has_momentum ? SGD_MOMENTUM : 0);
        kind |= rule->has_momentum && rule->has_nesterov ? SGD_NESTEROV : 0;
        switch (kind | (provisional ? SGD_PROVISIONAL : 0)) {
            CASE(0, sgd_chunk, m, m_to)
            CASE(SGD_DECAY, sgd_chunk, m, m_to)
            CASE(SGD_MOMENTUM, sgd_chunk, m, m_to)
            CASE(SGD_MOMENTUM | SGD_DECAY, sgd_chunk, m, m_to)
            CASE(SGD_MOMENTUM | SGD_NESTEROV, sgd_chunk, m, m_to)
            CASE(SGD_MOMENTUM | SGD_NESTEROV | SGD_DECAY, sgd_chunk, m, m_to)
            CASE(SGD_PROVISIONAL, sgd_chunk, m, m_to)
            CASE(SGD_PROVISIONAL | SGD_DECAY, sgd_chunk, m, m_to)
            CASE(SGD_PROVISIONAL | SGD_MOMENTUM, sgd_chunk, m, m_to)
            CASE(SGD_PROVISIONAL | SGD_MOMENTUM | SGD_DECAY, sgd_chunk, m, m_to)
            CASE(SGD_PROVISIONAL | SGD_MOMENTUM | SGD_NESTEROV, sgd_chunk, m, m_to)
            CASE(SGD_PROVISIONAL | SGD_MOMENTUM | SGD_NESTEROV | SGD_DECAY, sgd_chunk, m, m_to)
        }
    } else if (rule->kind == RULE_LION) {
        switch (provisional) {
            CASE(0, lion_chunk, m, m_to)
            CASE(PROVISIONAL, lion_chunk, m, m_to)
        }
    } else if (rule->kind == RULE_ADAGRAD) {
        switch ((has_decay ? ADAGRAD_DECAY : 0) | provisional) {
            CASE(0, adagrad_chunk, m, m_to)
            CASE(ADAGRAD_DECAY, adagrad_chunk, m, m_to)
            CASE(PROVISIONAL, adagrad_chunk, m, m_to)
            CASE(ADAGRAD_DECAY | PROVISIONAL, adagrad_chunk, m, m_to)
        }
    } else {
        int is_decoupled = rule->kind == RULE_ADAMW || rule->kind == RULE_NADAMW;
        int is_nadam = rule->kind == RULE_NADAM || rule->kind == RULE_NADAMW;
        int kind = is_decoupled ? ADAMW : has_decay ? ADAM_DECAY : ADAM;
        switch (kind | provisional | (is_nadam ? NADAM : 0)) {
            CASE(ADAM, adam_chunk, m, v, m_to, v_to)
            CASE(ADAM_DECAY, adam_chunk, m, v, m_to, v_to)
            CASE(ADAMW, adam_chunk, m, v, m_to, v_to)
            CASE(ADAM | PROVISIONAL, adam_chunk, m, v, m_to, v_to)
            CASE(ADAM_DECAY | PROVISIONAL, adam_chunk, m, v, m_to, v_to)
            CASE(ADAMW | PROVISIONAL, adam_chunk, m, v, m_to, v_to)
            CASE(NADAM | ADAM, adam_chunk, m, v, m_to, v_to)
            CASE(NADAM | ADAM_DECAY, adam_chunk, m, v, m_to, v_to)
            CASE(NADAM | ADAMW, adam_chunk, m, v, m_to, v_to)
            CASE(NADAM | ADAM | PROVISIONAL, adam_chunk, m, v, m_to, v_to)
            CASE(NADAM | ADAM_DECAY | PROVISIONAL, adam_chunk, m, v, m_to, v_to)
            CASE(NADAM | ADAMW | PROVISIONAL, adam_chunk, m, v, m_to, v_to)
        }
    }
#undef CASE
}

static inline void average_chunk(float weight, const float *restrict p, const float *a, float *to, int n) {
#pragma GCC ivdep
    for (int i = 0; i < n; i++) to[i] = a[i] + (p[i] - a[i]) * weight;
}

typedef struct {
    float *parameters, *target, *first, *second, *average;
} state_t;

/* What a step writes over old values, in memory that outlives this process: the new values of the chunk that begins at element
 * `at` are made in one of two places in turn, then `at` says so, then they are copied. So at every moment one chunk is whole here.
 * `at` is 2 * the element + the place; -1 - start: no chunk was made. A process that dies loses none of the stores that it has
 * made. */
typedef struct {
    int64_t at, end, counts[2];
    float made[2][3][CHUNK];
} redo_t;

static inline void copy_floats(float *restrict to, const float *restrict from, int n) {
    for (int i = 0; i < n; i++) to[i] = from[i];
}

/* Copy a chunk that is made to its place. Only the compiler could change the order of the stores. */
static inline void copy_made(const float (*made)[CHUNK], const state_t *state, int has_average, Py_ssize_t at, int n) {
    if (state->first != NULL) copy_floats(state->first + at, made[0], n);
    if (state->second != NULL) copy_floats(state->second + at, made[1], n);
    if (has_average) copy_floats(state->average + at, made[2], n);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

/* Say that the chunk at `at` is made in `place`. */
static inline void say_made(redo_t *redo, int place, Py_ssize_t at, int n) {
    redo->counts[place] = n;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    *(volatile int64_t *)&redo->at = 2 * (int64_t)at + place;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

/* Complete the chunk that was made last by a process that has died. Returns the element from which the step goes on. */
static Py_ssize_t go_on_after(const redo_t *redo, const state_t *state, int has_average) {
    if (redo->at < 0) return (Py_ssize_t)(-1 - redo->at);
    const Py_ssize_t at = (Py_ssize_t)(redo->at / 2);
    const int place = (int)(redo->at & 1), n = (int)redo->counts[place];
    copy_made(redo->made[place], state, has_average, at, n);
    return at + n;
}

/* Write a chunk of the sum: past the cache, unless `sum` is an input, whose lines the cache holds. */
static inline void put_sum(float *sum, const inputs_t *inputs, Py_ssize_t at, const float *chunk, int n) {
    if (sum == inputs->vectors[0])
        memcpy(sum + at, chunk, 4 * (size_t)n);
    else
        stream_out(sum + at, chunk, 4 * (size_t)n);
}

/* Sum elements [start, end) into `sum` (may be NULL), and the squares of sum / divisor into `partials`. */
HOT static void sum_range(const inputs_t *inputs, float *sum, float divisor, double *partials, Py_ssize_t start,
                          Py_ssize_t end) {
    float g[CHUNK], summed[CHUNK];
    double lanes[LANES];
    const int is_plain = are_plain(inputs);
    const Py_ssize_t chunk = is_plain ? PLAIN_CHUNK : CHUNK;
    for (Py_ssize_t block = start; block < end; block += NORM_BLOCK) {
        Py_ssize_t block_end = block + NORM_BLOCK < end ? block + NORM_BLOCK : end;
        memset(lanes, 0, sizeof lanes);
        for (Py_ssize_t at = block; at < block_end; at += chunk) {
            int n = block_end - at < chunk ? (int)(block_end - at) : chunk;
            if (is_plain) {
                const float *from[4];
                switch (point_to(from, summed, inputs, at, n)) {
                case 1: sum_plain(g, 1, 0, from, n); break;
                case 2: sum_plain(g, 2, 0, from, n); break;
                case 3: sum_plain(g, 3, 0, from, n); break;
                default: sum_plain(g, 4, 0, from, n);
                }
            } else {
                sum_chunk(g, inputs, at, n);
            }
            if (sum != NULL) put_sum(sum, inputs, at, g, n);
            if (divisor != 1.0f)
                for (int i = 0; i < n; i++) g[i] = g[i] / divisor;
            add_squares(lanes, g, n);
        }
        partials[block / NORM_BLOCK] = add_lanes(lanes);
    }
    stream_fence();
}

/* Sum, divide, step: elements [start, end) of everything. A provisional step leaves the sum in `sum` (may be NULL), any other the
 * squares of sum / divisor in `partials`. `redo` (may be NULL) has what would be lost if the process died. With `is_long` the cache
 * cannot hold the target. */
HOT static void step_range(const inputs_t *inputs, const rule_t *rule, const state_t *state, float *sum, double *partials,
                           redo_t *redo, int is_long, Py_ssize_t start, Py_ssize_t end) {
    float g[CHUNK], made[CHUNK], summed[CHUNK];
    double lanes[LANES];
    const int is_plain = are_plain(inputs);
    const Py_ssize_t chunk = is_plain ? PLAIN_CHUNK : CHUNK;
    int place = redo == NULL || redo->at < 0 ? 0 : 1 - (int)(redo->at & 1);
    for (Py_ssize_t block = start; block < end; block += NORM_BLOCK) {
        Py_ssize_t block_end = block + NORM_BLOCK < end ? block + NORM_BLOCK : end;
        memset(lanes, 0, sizeof lanes);
        for (Py_ssize_t at = block; at < block_end; at += chunk) {
            int n = block_end - at < chunk ? (int)(block_end - at) : chunk;
            float *first = state->first == NULL ? NULL : state->first + at;
            float *second = state->second == NULL ? NULL : state->second + at;
            float *first_to = first, *second_to = second, *average_to = state->average + at;
            if (redo != NULL)
                first_to = redo->made[place][0], second_to = redo->made[place][1], average_to = redo->made[place][2];
            const float *from[4] = {summed, summed, summed, summed};
            int count = 1;
            if (is_plain)
                count = point_to(from, summed, inputs, at, n);
            else
                sum_chunk(summed, inputs, at, n);
            step_chunk(rule, count, from, g, state->parameters + at, made, first, second,
                       first_to, second_to, n);
            if (!rule->is_provisional)
                add_squares(lanes, g, n);
            else if (sum != NULL)
                put_sum(sum, inputs, at, g, n);
            if (rule->has_average) average_chunk(rule->average_weight, made, state->average + at, average_to, n);
            if (state->target == state->parameters || !is_long)
                memcpy(state->target + at, made, 4 * (size_t)n);
            else
                stream_out(state->target + at, made, 4 * (size_t)n);
            if (redo != NULL) { /* last: the next process goes on after this chunk */
                say_made(redo, place, at, n);
                copy_made(redo->made[place], state, rule->has_average, at, n);
                place = 1 - place;
            }
        }
        if (!rule->is_provisional) partials[block / NORM_BLOCK] = add_lanes(lanes);
    }
    stream_fence();
}

/* [(address, kind, divisor), ...] -> inputs */
static int parse_inputs(PyObject *list, inputs_t *inputs) {
    Py_ssize_t count = PySequence_Size(list);
    if (count < 1 || count > MAX_INPUTS) {
        PyErr_Format(PyExc_ValueError, "inputs: got %zd, expected 1 to %d", count, MAX_INPUTS);
        return -1;
    }
    inputs->count = (int)count;
    for (Py_ssize_t k = 0; k < count; k++) {
        PyObject *item = PySequence_GetItem(list, k);
        unsigned long long address;
        int ok = item != NULL && PyArg_ParseTuple(item, "Kif", &address, &inputs->kinds[k], &inputs->divisors[k]);
        Py_XDECREF(item);
        if (!ok) return -1;
        inputs->vectors[k] = (const void *)(uintptr_t)address;
    }
    return 0;
}

static PyObject *py_sum(PyObject *self, PyObject *args) {
    PyObject *list;
    unsigned long long sum, partials;
    float divisor;
    Py_ssize_t start, end;
    inputs_t inputs;
    if (!PyArg_ParseTuple(args, "OKfKnn", &list, &sum, &divisor, &partials, &start, &end)) return NULL;
    if (parse_inputs(list, &inputs) < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    sum_range(&inputs, (float *)(uintptr_t)sum, divisor, (double *)(uintptr_t)partials, start, end);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_step(PyObject *self, PyObject *args) {
    PyObject *list;
    unsigned long long parameters, target, first, second, average, sum, partials, redo;
    int is_again;
    Py_ssize_t size, start, end;
    inputs_t inputs;
    rule_t r;
    if (!PyArg_ParseTuple(args, "OKKKKKKKKpnnn(iiiiiffffffffffff)", &list, &parameters, &target, &first, &second, &average,
                          &sum, &partials, &redo, &is_again, &size, &start, &end, &r.kind, &r.has_momentum, &r.has_nesterov, &r.has_average, &r.is_provisional,
                          &r.divisor, &r.clip, &r.rate, &r.decay, &r.beta1, &r.beta2, &r.one_minus_beta1, &r.one_minus_beta2,
                          &r.inverse_root, &r.epsilon, &r.gradient_rate, &r.average_weight))
        return NULL;
    if (parse_inputs(list, &inputs) < 0) return NULL;
    state_t state = {(float *)(uintptr_t)parameters, (float *)(uintptr_t)target, (float *)(uintptr_t)first,
                     (float *)(uintptr_t)second, (float *)(uintptr_t)average};
    redo_t *kept = (redo_t *)(uintptr_t)redo;
    Py_BEGIN_ALLOW_THREADS
    if (is_again) start = go_on_after(kept, &state, r.has_average);
    step_range(&inputs, &r, &state, (float *)(uintptr_t)sum, (double *)(uintptr_t)partials, kept, 4 * size >= STREAM_BYTES,
               start, end);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* The largest magnitude is compared as an integer: infinity is above every number, NaN above infinity. */
static inline uint32_t measure_chunk(const float *restrict from, int n, uint32_t largest) {
    for (int i = 0; i < n; i++) {
        uint32_t magnitude = to_bits(from[i]) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

#if defined(__x86_64__)
/* Copy `num_bytes`, a multiple of 64, to a target aligned to 64 bytes; find the floats' largest magnitude on the way. */
__attribute__((target("avx2"))) static uint32_t copy_lines_avx2(char *target, const char *source, size_t num_bytes,
                                                                int past_cache) {
    const __m256i mask = _mm256_set1_epi32(0x7fffffff);
    __m256i first = _mm256_setzero_si256(), second = first;
    for (size_t i = 0; i < num_bytes; i += 64) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(source + i));
        __m256i b = _mm256_loadu_si256((const __m256i *)(source + i + 32));
        first = _mm256_max_epu32(first, _mm256_and_si256(a, mask));
        second = _mm256_max_epu32(second, _mm256_and_si256(b, mask));
        if (past_cache) {
            _mm256_stream_si256((__m256i *)(target + i), a);
            _mm256_stream_si256((__m256i *)(target + i + 32), b);
        } else {
            _mm256_store_si256((__m256i *)(target + i), a);
            _mm256_store_si256((__m256i *)(target + i + 32), b);
        }
    }
    uint32_t lanes[8], largest = 0;
    _mm256_storeu_si256((__m256i *)lanes, _mm256_max_epu32(first, second));
    for (int i = 0; i < 8; i++) largest = lanes[i] > largest ? lanes[i] : largest;
    return largest;
}

static uint32_t copy_floats_avx2(const float *source, float *target, Py_ssize_t count, int past_cache) {
    Py_ssize_t head = (Py_ssize_t)(-(uintptr_t)target & 63) / 4;
    head = head < count ? head : count;
    Py_ssize_t middle = (count - head) & ~(Py_ssize_t)15, tail = head + middle;
    memcpy(target, source, 4 * (size_t)head);
    memcpy(target + tail, source + tail, 4 * (size_t)(count - tail));
    uint32_t largest = copy_lines_avx2((char *)(target + head), (const char *)(source + head), 4 * (size_t)middle, past_cache);
    largest = measure_chunk(source, (int)head, largest);
    return measure_chunk(source + tail, (int)(count - tail), largest);
}
#endif

HOT static uint32_t copy_and_measure(const float *source, void *target, int kind, Py_ssize_t start, Py_ssize_t end) {
    uint32_t largest = 0;
    float values[CHUNK];
    uint16_t halves[CHUNK];
    const int is_long = 4 * (end - start) >= STREAM_BYTES;
#if defined(__x86_64__)
    if (kind == FLOAT32 && target != NULL && has_avx2) {
        largest = copy_floats_avx2(source + start, (float *)target + start, end - start, is_long);
        stream_fence();
        return largest;
    }
#endif
    for (Py_ssize_t at = start; at < end; at += CHUNK) {
        int n = end - at < CHUNK ? (int)(end - at) : CHUNK;
        const float *restrict from = source + at;
        if (kind == FLOAT32) {
            largest = measure_chunk(from, n, largest);
            if (target != NULL && is_long) stream_out((float *)target + at, from, 4 * (size_t)n);
            if (target != NULL && !is_long) memcpy((float *)target + at, from, 4 * (size_t)n);
            continue;
        }
        if (kind == BFLOAT16) {
            for (int i = 0; i < n; i++) halves[i] = float_to_bfloat(from[i]);
            for (int i = 0; i < n; i++) values[i] = from_bits((uint32_t)halves[i] << 16);
        } else {
            for (int i = 0; i < n; i++) halves[i] = float_to_half(from[i]);
            for (int i = 0; i < n; i++) values[i] = half_to_float(halves[i]);
        }
        largest = measure_chunk(values, n, largest);
        stream_out((uint16_t *)target + at, halves, 2 * (size_t)n);
    }
    stream_fence();
    return largest;
}

static PyObject *py_copy_and_measure(PyObject *self, PyObject *args) {
    unsigned long long source, target;
    int kind;
    Py_ssize_t start, end;
    uint32_t largest;
    if (!PyArg_ParseTuple(args, "KKinn", &source, &target, &kind, &start, &end)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    largest = copy_and_measure((const float *)(uintptr_t)source, (void *)(uintptr_t)target, kind, start, end);
    Py_END_ALLOW_THREADS
    return PyFloat_FromDouble((double)from_bits(largest));
}

static PyObject *py_copy(PyObject *self, PyObject *args) {
    unsigned long long source, target;
    Py_ssize_t num_bytes;
    if (!PyArg_ParseTuple(args, "KKn", &source, &target, &num_bytes)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    if (num_bytes >= STREAM_BYTES)
        stream_out((void *)(uintptr_t)target, (const void *)(uintptr_t)source, (size_t)num_bytes);
    else
        memcpy((void *)(uintptr_t)target, (const void *)(uintptr_t)source, (size_t)num_bytes);
    stream_fence();
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* A doorbell is a 32-bit count in shared memory: rung by adding to it, waited for with a futex. */
static PyObject *py_ring(PyObject *self, PyObject *args) {
    unsigned long long address;
    if (!PyArg_ParseTuple(args, "K", &address)) return NULL;
    uint32_t *bell = (uint32_t *)(uintptr_t)address;
    __atomic_fetch_add(bell, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, bell, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
    Py_RETURN_NONE;
}

static PyObject *py_heard(PyObject *self, PyObject *args) {
    unsigned long long address;
    if (!PyArg_ParseTuple(args, "K", &address)) return NULL;
    return PyLong_FromUnsignedLong(__atomic_load_n((uint32_t *)(uintptr_t)address, __ATOMIC_SEQ_CST));
}

static PyObject *py_wait(PyObject *self, PyObject *args) {
    unsigned long long address;
    unsigned int heard;
    double seconds;
    if (!PyArg_ParseTuple(args, "KId", &address, &heard, &seconds)) return NULL;
    struct timespec limit = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    Py_BEGIN_ALLOW_THREADS
    syscall(SYS_futex, (uint32_t *)(uintptr_t)address, FUTEX_WAIT, heard, &limit, NULL, 0);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE; /* rung, timed out or interrupted: the caller checks */
}

/* Atomic operations on a control word. Unlike MPI's, they take no lock, which a process killed inside would leave behind. */
static PyObject *py_fetch_add(PyObject *self, PyObject *args) {
    unsigned long long address;
    long long amount;
    if (!PyArg_ParseTuple(args, "KL", &address, &amount)) return NULL;
    return PyLong_FromLongLong(__atomic_fetch_add((int64_t *)(uintptr_t)address, (int64_t)amount, __ATOMIC_SEQ_CST));
}

static PyObject *py_compare_swap(PyObject *self, PyObject *args) {
    unsigned long long address;
    long long expected, value;
    if (!PyArg_ParseTuple(args, "KLL", &address, &expected, &value)) return NULL;
    int64_t before = expected;
    __atomic_compare_exchange_n((int64_t *)(uintptr_t)address, &before, (int64_t)value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return PyLong_FromLongLong(before);
}

/* Orders what this thread reads and writes before with what it does after, for other processes too. */
static PyObject *py_fence(PyObject *self, PyObject *args) {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    Py_RETURN_NONE;
}

/* In _pulse.c. */
PyObject *py_start_pulse(PyObject *self, PyObject *args);
PyObject *py_touch_pulse(PyObject *self, PyObject *args);
PyObject *py_stop_pulse(PyObject *self, PyObject *args);

static PyMethodDef methods[] = {
    {"sum", py_sum, METH_VARARGS, "sum(inputs, sum, divisor, partials, start, end)"},
    {"step", py_step, METH_VARARGS, "step(inputs, parameters, target, first, second, average, sum, partials, redo, is_again, start, end, rule)"},
    {"copy_and_measure", py_copy_and_measure, METH_VARARGS, "copy_and_measure(source, target, kind, start, end) -> largest"},
    {"copy", py_copy, METH_VARARGS, "copy(source, target, num_bytes)"},
    {"ring", py_ring, METH_VARARGS, "ring(bell)"},
    {"heard", py_heard, METH_VARARGS, "heard(bell) -> count"},
    {"wait", py_wait, METH_VARARGS, "wait(bell, heard, seconds)"},
    {"fetch_add", py_fetch_add, METH_VARARGS, "fetch_add(word, amount) -> before"},
    {"compare_swap", py_compare_swap, METH_VARARGS, "compare_swap(word, expected, value) -> before"},
    {"fence", py_fence, METH_NOARGS, "fence()"},
    {"start_pulse", py_start_pulse, METH_VARARGS, "start_pulse(word, every, limit, hung, ends_process, far) -> pulse"},
    {"touch_pulse", py_touch_pulse, METH_VARARGS, "touch_pulse(pulse)"},
    {"stop_pulse", py_stop_pulse, METH_VARARGS, "stop_pulse(pulse, seconds) -> has_ended"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx")) stream_lines = stream_lines_avx;
    has_avx2 = __builtin_cpu_supports("avx2") != 0;
#endif
    PyObject *made = PyModule_Create(&module);
    if (made != NULL && PyModule_AddIntConstant(made, "REDO_BYTES", (long)sizeof(redo_t)) < 0) Py_CLEAR(made);
    return made;
}
