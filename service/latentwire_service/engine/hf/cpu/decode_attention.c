/* Attention of one query position per slot over that slot's keys and values.
 *
 * With one query, and few query heads per KV head, the products are too small for a matrix library,
 * because its calls take most of the time. Here each (slot, KV head) is one task. It reads its keys
 * and values once, only where the mask allows it, and prefetches the next ones. Sums are in float32.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* decode_attention.py declares the same struct. Strides are in elements. */
typedef struct {
    int64_t batch, kv_heads, group, kv_length, key_dim, value_dim;
    int64_t key_strides[3];   /* slot, head, position; the values of a position are contiguous */
    int64_t value_strides[3]; /* as key_strides */
    int64_t mask_stride;      /* of a slot; 0 if all slots share one mask */
    float scale;
    float softcap; /* 0 if there is none */
    int32_t is_bf16;
    int32_t num_threads;
} Call;

/* One (slot, KV head): its first element in each tensor. */
typedef struct {
    const void *query, *key, *value, *mask;
    const void *next_key; /* keys of the next task, to prefetch; may be null */
    const float *sinks;   /* [group]; may be null */
    void *out;
} Task;

INLINE float load(const void *data, int64_t index, int is_bf16) {
    if (!is_bf16) return ((const float *)data)[index];
    uint32_t bits = (uint32_t)((const uint16_t *)data)[index] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Rounds to bfloat16 as torch does: to nearest, ties to even; NaN stays NaN. */
INLINE void store(void *data, int64_t index, float value, int is_bf16) {
    if (!is_bf16) {
        ((float *)data)[index] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t rounded = (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
    ((uint16_t *)data)[index] = isnan(value) ? 0x7FC0 : rounded;
}

INLINE void fetch(const void *data, int64_t index, int64_t count, int is_bf16) {
    const int64_t size = is_bf16 ? 2 : 4;
    const char *begin = (const char *)data + index * size;
    for (int64_t byte = 0; byte < count * size; byte += 64) __builtin_prefetch(begin + byte);
}

/* exp(x) for x <= 0 or NaN, in a form that a compiler can vectorise; 0 below -87. The polynomial is
 * from expf of Cephes (Moshier 1992). */
INLINE float exp_of_negative(float x) {
    const float clamped = x < -87.0f ? -87.0f : x;
    const float n = __builtin_rintf(clamped * 1.44269504f);
    const float r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return x < -87.0f ? 0.0f : p * power;
}

/* softcap * tanh(score / softcap); near 0, the polynomial is from tanhf of Cephes. */
INLINE float cap(float score, float softcap) {
    const float x = score / softcap, square = x * x;
    float p = -5.70498872745e-3f;
    p = p * square + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square - 3.33332819422e-1f;
    const float e = exp_of_negative(-2.0f * fabsf(x));
    const float far = copysignf(softcap * (1.0f - e) / (1.0f + e), score);
    return fabsf(x) < 0.625f ? p * square * score + score : far;
}

/* Turns scores into weights, in place. */
INLINE void softmax(float *scores, const float *bias, int64_t count, float softcap, const float *sink) {
    float largest = sink ? *sink : -INFINITY, total = 0.0f;
    if (softcap > 0.0f) {
#pragma omp simd
        for (int64_t j = 0; j < count; j++) scores[j] = cap(scores[j], softcap);
    }
#pragma omp simd reduction(max : largest)
    for (int64_t j = 0; j < count; j++) {
        scores[j] += bias[j];
        largest = scores[j] > largest ? scores[j] : largest;
    }
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < count; j++) {
        scores[j] = exp_of_negative(scores[j] - largest);
        total += scores[j];
    }
    if (sink) total += exp_of_negative(*sink - largest);
#pragma omp simd
    for (int64_t j = 0; j < count; j++) scores[j] /= total;
}

/* The dimensions and the dtype are arguments, so that a caller can pass constants. */
INLINE void attend(const Call *call, const Task *task, float *scratch, int64_t key_dim,
                   int64_t value_dim, int is_bf16) {
    const int64_t group = call->group;
    int64_t first = 0, end = call->kv_length;
    while (first < end && load(task->mask, first, is_bf16) == -INFINITY) first++;
    while (end > first && load(task->mask, end - 1, is_bf16) == -INFINITY) end--;
    const int64_t count = end - first;
    float *query = scratch, *row = query + group * key_dim;
    float *sums = row + (key_dim > value_dim ? key_dim : value_dim);
    float *bias = sums + group * value_dim, *scores = bias + count;
    for (int64_t i = 0; i < group * key_dim; i++)
        query[i] = load(task->query, i, is_bf16) * call->scale;
    for (int64_t j = 0; j < count; j++) {
        const int64_t start = (first + j) * call->key_strides[2];
        fetch(task->value, (first + j) * call->value_strides[2], value_dim, is_bf16);
        bias[j] = load(task->mask, first + j, is_bf16);
#pragma omp simd
        for (int64_t d = 0; d < key_dim; d++) row[d] = load(task->key, start + d, is_bf16);
        for (int64_t g = 0; g < group; g++) {
            float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
            for (int64_t d = 0; d < key_dim; d++) sum += query[g * key_dim + d] * row[d];
            scores[g * count + j] = sum;
        }
    }
    for (int64_t g = 0; g < group; g++)
        softmax(scores + g * count, bias, count, call->softcap, task->sinks ? task->sinks + g : 0);
    for (int64_t i = 0; i < group * value_dim; i++) sums[i] = 0.0f;
    for (int64_t j = 0; j < count; j++) {
        const int64_t start = (first + j) * call->value_strides[2];
        if (task->next_key)
            fetch(task->next_key, (first + j) * call->key_strides[2], key_dim, is_bf16);
#pragma omp simd
        for (int64_t d = 0; d < value_dim; d++) row[d] = load(task->value, start + d, is_bf16);
        for (int64_t g = 0; g < group; g++) {
            const float weight = scores[g * count + j];
#pragma omp simd
            for (int64_t d = 0; d < value_dim; d++) sums[g * value_dim + d] += weight * row[d];
        }
    }
    for (int64_t i = 0; i < group * value_dim; i++) store(task->out, i, sums[i], is_bf16);
}

/* Gives the most common widths loops of constant length. */
INLINE void attend_by_width(const Call *call, const Task *task, float *scratch, int is_bf16) {
    if (call->key_dim == 64 && call->value_dim == 64)
        attend(call, task, scratch, 64, 64, is_bf16);
    else if (call->key_dim == 128 && call->value_dim == 128)
        attend(call, task, scratch, 128, 128, is_bf16);
    else
        attend(call, task, scratch, call->key_dim, call->value_dim, is_bf16);
}

/* query [batch, kv_heads * group, key_dim] and out [.., value_dim] are contiguous. key and value are
 * [batch, kv_heads, kv_length, dim] with their strides. mask [batch, kv_length] is added to the scores.
 * sinks [kv_heads * group] is float32 or null. Returns 1 if memory runs out, else 0. */
int decode_attention(const Call *call, const char *query, const char *key, const char *value,
                     const char *mask, const float *sinks, char *out) {
    const int64_t size = call->is_bf16 ? 2 : 4, num_tasks = call->batch * call->kv_heads;
    const int64_t widest = call->key_dim > call->value_dim ? call->key_dim : call->value_dim;
    const int64_t num_floats = widest + call->group * (call->key_dim + call->value_dim) +
                               (call->group + 1) * call->kv_length;
    /* With less work than this, waking the other threads takes longer than the work itself. */
    const int is_worth_threads = num_tasks * num_floats > 32768;
    /* A thread takes several tasks at a time, but few enough to leave some for every thread. */
    const int64_t share = num_tasks / (2 * call->num_threads);
    const int chunk = share < 1 ? 1 : share > 4 ? 4 : (int)share;
    int has_failed = 0;
#pragma omp parallel num_threads(call->num_threads) if (is_worth_threads)
    {
        float *scratch = malloc(num_floats * sizeof *scratch);
        if (!scratch) {
#pragma omp atomic write
            has_failed = 1;
        }
#pragma omp for schedule(dynamic, chunk)
        for (int64_t index = 0; index < num_tasks; index++) {
            if (!scratch) continue;
            const int64_t slot = index / call->kv_heads, head = index % call->kv_heads;
            const int64_t next = index + 1, next_slot = next / call->kv_heads;
            const int64_t next_head = next % call->kv_heads;
            const int64_t *k = call->key_strides, *v = call->value_strides;
            const Task task = {
                .query = query + index * call->group * call->key_dim * size,
                .key = key + (slot * k[0] + head * k[1]) * size,
                .value = value + (slot * v[0] + head * v[1]) * size,
                .mask = mask + slot * call->mask_stride * size,
                .next_key =
                    next < num_tasks ? key + (next_slot * k[0] + next_head * k[1]) * size : 0,
                .sinks = sinks ? sinks + head * call->group : 0,
                .out = out + index * call->group * call->value_dim * size,
            };
            if (call->is_bf16)
                attend_by_width(call, &task, scratch, 1);
            else
                attend_by_width(call, &task, scratch, 0);
        }
        free(scratch);
    }
    return has_failed;
}
