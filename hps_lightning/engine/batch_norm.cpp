// Batch norm in training with the activations around it, for channels-last maps.
//
// PyTorch's kernel works along the channels of one pixel: with the 4 to 16 channels of a narrow
// SqueezeNext it fills a fraction of a vector register and takes longer than the convolution
// before it. Here several pixels make one row, beside which the channels' constants lie
// repeated, so that registers are full whatever the width. A ReLU before the norm, a ReLU after
// it and the addition of a shortcut cost no pass over memory of their own. Sums are carried in
// double precision from block to block of rows.
//
// Compiled on the user's machine, for its processor, by native.py; threads are OpenMP's, of the
// copy that PyTorch has loaded.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

struct bfloat16 {
    uint16_t bits;
};

inline float load(float value) { return value; }

inline float load(bfloat16 value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

inline void store(float *to, float value) { *to = value; }

inline void store(bfloat16 *to, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    // To the nearest, ties to even. A NaN stays one, for those that arithmetic makes have no low bits to carry.
    to->bits = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float relu(float value) { return value < 0 ? 0 : value; }

constexpr long ROWS_PER_BLOCK = 64;
constexpr long LONGEST_ROW = 1024;

// A map as rows of several pixels each, and a shorter last row.
struct Rows {
    long pixels_per_row, row, count, rest;

    Rows(long pixels, long channels) : pixels_per_row(1) {
        // Registers hold 8 to 32 values, all divisors of 32.
        while ((pixels_per_row * channels % 32 != 0 || pixels_per_row * channels < 512) && pixels_per_row < 128 &&
               2 * pixels_per_row * channels <= LONGEST_ROW)
            pixels_per_row *= 2;
        row = pixels_per_row * channels;
        count = pixels / pixels_per_row;
        rest = (pixels - count * pixels_per_row) * channels;
    }

    // Calls work(offset, length) for the rows that are the thread's, the last thread's with the rest.
    template <typename Work> void each(long thread, long threads, Work work) const {
        for (long r = count * thread / threads; r < count * (thread + 1) / threads; ++r) work(r * row, row);
        if (thread == threads - 1 && rest) work(count * row, rest);
    }
};

// A constant of each channel, repeated along a row.
struct Repeated {
    float *values;

    Repeated(const float *channel_values, long channels, const Rows &rows)
        : values(static_cast<float *>(std::malloc(sizeof(float) * rows.row))) {
        for (long pixel = 0; pixel < rows.pixels_per_row; ++pixel)
            std::memcpy(values + pixel * channels, channel_values, sizeof(float) * channels);
    }
    ~Repeated() { std::free(values); }
    Repeated(const Repeated &) = delete;
    Repeated &operator=(const Repeated &) = delete;
    operator const float *() const { return values; }
};

// Two sums for each channel, over all pixels. add(offset, length, first, second) adds a row's
// values to first[j] and second[j]; totals are 2 x channels.
template <typename Add> void sum_rows(const Rows &rows, long channels, long threads, double *totals, Add add) {
    double *shares = static_cast<double *>(std::calloc(threads * 2 * channels, sizeof(double)));
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (long thread = 0; thread < threads; ++thread) {
        float *first = static_cast<float *>(std::calloc(2 * rows.row, sizeof(float)));
        float *second = first + rows.row;
        double *share = shares + thread * 2 * channels;
        long added = 0;
        const auto flush = [&] {
            for (long pixel = 0; pixel < rows.pixels_per_row; ++pixel)
                for (long c = 0; c < channels; ++c) {
                    share[c] += first[pixel * channels + c];
                    share[channels + c] += second[pixel * channels + c];
                }
            std::memset(first, 0, sizeof(float) * 2 * rows.row);
            added = 0;
        };
        rows.each(thread, threads, [&](long offset, long length) {
            add(offset, length, first, second);
            if (++added == ROWS_PER_BLOCK) flush();
        });
        flush();
        std::free(first);
    }
    std::memset(totals, 0, sizeof(double) * 2 * channels);
    for (long i = 0; i < threads * 2 * channels; ++i) totals[i % (2 * channels)] += shares[i];
    std::free(shares);
}

template <typename Work> void for_rows(const Rows &rows, long threads, Work work) {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (long thread = 0; thread < threads; ++thread) rows.each(thread, threads, work);
}

// What the backward pass needs of the forward pass; each is `channels` long.
struct Saved {
    float *mean, *inverse_std, *scale, *shift;

    Saved(float *memory, long channels)
        : mean(memory), inverse_std(memory + channels), scale(memory + 2 * channels), shift(memory + 3 * channels) {}
};

template <typename T, bool RELU_BEFORE, bool RELU_AFTER, bool SHORTCUT>
void forward(const T *x, const T *shortcut, T *y, long pixels, long channels, const float *gamma, const float *beta,
             float *running_mean, float *running_var, float momentum, float eps, Saved saved, long threads) {
    const Rows rows(pixels, channels);
    double *totals = static_cast<double *>(std::malloc(sizeof(double) * 2 * channels));
    // Deviations from some pixel rather than from 0, since the squares of a large mean would cancel.
    float *pivot = saved.mean;
    for (long c = 0; c < channels; ++c) pivot[c] = RELU_BEFORE ? relu(load(x[c])) : load(x[c]);
    {
        const Repeated pivots(pivot, channels, rows);
        sum_rows(rows, channels, threads, totals, [&](long offset, long length, float *sum, float *squares) {
            const T *in = x + offset;
            const float *from = pivots;
#pragma GCC ivdep
            for (long j = 0; j < length; ++j) {
                const float value = load(in[j]);
                const float deviation = (RELU_BEFORE ? relu(value) : value) - from[j];
                sum[j] += deviation;
                squares[j] += deviation * deviation;
            }
        });
    }
    for (long c = 0; c < channels; ++c) {
        const double deviation = totals[c] / pixels;
        double variance = totals[channels + c] / pixels - deviation * deviation;
        if (variance < 0) variance = 0;
        saved.mean[c] = float(pivot[c] + deviation);
        saved.inverse_std[c] = float(1 / std::sqrt(variance + eps));
        saved.scale[c] = gamma[c] * saved.inverse_std[c];
        saved.shift[c] = beta[c] - saved.mean[c] * saved.scale[c];
        const double unbiased = pixels > 1 ? variance * pixels / (pixels - 1) : variance;
        running_mean[c] += momentum * (saved.mean[c] - running_mean[c]);
        running_var[c] += momentum * (float(unbiased) - running_var[c]);
    }
    std::free(totals);
    const Repeated scales(saved.scale, channels, rows), shifts(saved.shift, channels, rows);
    for_rows(rows, threads, [&](long offset, long length) {
        const T *in = x + offset, *add = SHORTCUT ? shortcut + offset : nullptr;
        T *out = y + offset;
        const float *scale = scales, *shift = shifts;
#pragma GCC ivdep
        for (long j = 0; j < length; ++j) {
            float value = load(in[j]);
            if (RELU_BEFORE) value = relu(value);
            value = value * scale[j] + shift[j];
            if (RELU_AFTER) value = relu(value);
            if (SHORTCUT) value += load(add[j]);
            store(out + j, value);
        }
    });
}

template <typename T, bool RELU_BEFORE, bool RELU_AFTER>
void backward(const T *x, const T *gradient, T *x_gradient, long pixels, long channels, Saved saved,
              float *gamma_gradient, float *beta_gradient, long threads) {
    const Rows rows(pixels, channels);
    const Repeated scales(saved.scale, channels, rows), shifts(saved.shift, channels, rows);
    double *totals = static_cast<double *>(std::malloc(sizeof(double) * 2 * channels));
    {
        const Repeated means(saved.mean, channels, rows);
        sum_rows(rows, channels, threads, totals, [&](long offset, long length, float *sum, float *products) {
            const T *in = x + offset, *from = gradient + offset;
            const float *scale = scales, *shift = shifts, *mean = means;
#pragma GCC ivdep
            for (long j = 0; j < length; ++j) {
                float value = load(in[j]), slope = load(from[j]);
                if (RELU_BEFORE) value = relu(value);
                if (RELU_AFTER) slope = value * scale[j] + shift[j] <= 0 ? 0 : slope;
                sum[j] += slope;
                products[j] += slope * (value - mean[j]);
            }
        });
    }
    // The gradient is scale * slope + factor * value + constant, with the last two from the sums.
    float *factor = static_cast<float *>(std::malloc(sizeof(float) * 2 * channels)), *constant = factor + channels;
    for (long c = 0; c < channels; ++c) {
        const double inverse_std = saved.inverse_std[c], scale = saved.scale[c];
        beta_gradient[c] = float(totals[c]);
        gamma_gradient[c] = float(totals[channels + c] * inverse_std);
        const double along = -scale * inverse_std * inverse_std * totals[channels + c] / pixels;
        factor[c] = float(along);
        constant[c] = float(-scale * totals[c] / pixels - along * saved.mean[c]);
    }
    std::free(totals);
    {
        const Repeated factors(factor, channels, rows), constants(constant, channels, rows);
        for_rows(rows, threads, [&](long offset, long length) {
            const T *in = x + offset, *from = gradient + offset;
            T *out = x_gradient + offset;
            const float *scale = scales, *shift = shifts, *along = factors, *add = constants;
#pragma GCC ivdep
            for (long j = 0; j < length; ++j) {
                const float raw = load(in[j]);
                const float value = RELU_BEFORE ? relu(raw) : raw;
                float slope = load(from[j]);
                if (RELU_AFTER) slope = value * scale[j] + shift[j] <= 0 ? 0 : slope;
                float result = scale[j] * slope + along[j] * value + add[j];
                if (RELU_BEFORE) result = raw > 0 ? result : 0;
                store(out + j, result);
            }
        });
    }
    std::free(factor);
}

template <typename T>
void forward_as(const void *x, const void *shortcut, void *y, long pixels, long channels, int relu_before,
                int relu_after, const float *gamma, const float *beta, float *running_mean, float *running_var,
                float momentum, float eps, float *saved, long threads) {
#define HPS_FORWARD(BEFORE, AFTER, SHORTCUT)                                                                        \
    forward<T, BEFORE, AFTER, SHORTCUT>(static_cast<const T *>(x), static_cast<const T *>(shortcut),                \
                                        static_cast<T *>(y), pixels, channels, gamma, beta, running_mean,           \
                                        running_var, momentum, eps, Saved(saved, channels), threads)
    switch ((relu_before ? 4 : 0) + (relu_after ? 2 : 0) + (shortcut ? 1 : 0)) {
    case 0: return HPS_FORWARD(false, false, false);
    case 1: return HPS_FORWARD(false, false, true);
    case 2: return HPS_FORWARD(false, true, false);
    case 3: return HPS_FORWARD(false, true, true);
    case 4: return HPS_FORWARD(true, false, false);
    case 5: return HPS_FORWARD(true, false, true);
    case 6: return HPS_FORWARD(true, true, false);
    case 7: return HPS_FORWARD(true, true, true);
    }
#undef HPS_FORWARD
}

template <typename T>
void backward_as(const void *x, const void *gradient, void *x_gradient, long pixels, long channels, int relu_before,
                 int relu_after, float *saved, float *gamma_gradient, float *beta_gradient, long threads) {
#define HPS_BACKWARD(BEFORE, AFTER)                                                                              \
    backward<T, BEFORE, AFTER>(static_cast<const T *>(x), static_cast<const T *>(gradient),                      \
                               static_cast<T *>(x_gradient), pixels, channels, Saved(saved, channels),           \
                               gamma_gradient, beta_gradient, threads)
    switch ((relu_before ? 2 : 0) + (relu_after ? 1 : 0)) {
    case 0: return HPS_BACKWARD(false, false);
    case 1: return HPS_BACKWARD(false, true);
    case 2: return HPS_BACKWARD(true, false);
    case 3: return HPS_BACKWARD(true, true);
    }
#undef HPS_BACKWARD
}

}  // namespace

// x, shortcut, y and the gradients: pixels x channels, bfloat16 or float. saved: 4 x channels.
extern "C" void hps_batch_norm_forward(int is_bfloat16, const void *x, const void *shortcut, void *y, long pixels,
                                       long channels, int relu_before, int relu_after, const float *gamma,
                                       const float *beta, float *running_mean, float *running_var, float momentum,
                                       float eps, float *saved, long threads) {
    (is_bfloat16 ? forward_as<bfloat16> : forward_as<float>)(x, shortcut, y, pixels, channels, relu_before, relu_after,
                                                             gamma, beta, running_mean, running_var, momentum, eps,
                                                             saved, threads);
}

extern "C" void hps_batch_norm_backward(int is_bfloat16, const void *x, const void *gradient, void *x_gradient,
                                        long pixels, long channels, int relu_before, int relu_after, float *saved,
                                        float *gamma_gradient, float *beta_gradient, long threads) {
    (is_bfloat16 ? backward_as<bfloat16> : backward_as<float>)(x, gradient, x_gradient, pixels, channels, relu_before,
                                                               relu_after, saved, gamma_gradient, beta_gradient,
                                                               threads);
}
