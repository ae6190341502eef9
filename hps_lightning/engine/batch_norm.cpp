// Batch norm in training with the activations around it, for channels-last maps.
//
// PyTorch's kernel works along the channels of one pixel: with the 4 to 16 channels of a narrow
// SqueezeNext it fills a fraction of a vector register and takes longer than the convolution
// before it. Here several pixels make one row, beside which the channels' constants lie
// repeated, so that registers are full whatever the width. An activation before the norm, one after
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

// Of a value of at most 0, in arithmetic that fills registers, which the library's function does not: 2^n times a
// polynomial of what is left, |x| < 0.35, as in Cephes. Within two units in the last place.
inline float exp_negative(float value) {
    value = value < -87.0f ? -87.0f : value;
    // Added to 1.5 * 2^23, a number loses its fraction.
    const float shifted = value * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
    const float x = value - n * 0.693359375f - n * -2.12194440e-4f;
    float sum = 1.9875691500e-4f;
    sum = sum * x + 1.3981999507e-3f;
    sum = sum * x + 8.3334519073e-3f;
    sum = sum * x + 4.1665795894e-2f;
    sum = sum * x + 1.6666665459e-1f;
    sum = sum * x + 5.0000001201e-1f;
    sum = sum * x * x + x + 1.0f;
    uint32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - 0x4b400000u + 127u) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return power * sum;
}

enum Activation { NONE, RELU, ELU };

template <Activation KIND> inline float activated(float value) {
    if (KIND == RELU) return value < 0 ? 0 : value;
    // A NaN is neither above 0 nor below -87, and stays one.
    if (KIND == ELU) return value > 0 ? value : exp_negative(value > 0 ? 0 : value) - 1;
    return value;
}

// The gradient before an activation, from that after it and the value before it.
template <Activation KIND> inline float passed_back(float gradient, float value) {
    if (KIND == RELU) return value > 0 ? gradient : 0;
    if (KIND == ELU) return value > 0 ? gradient : gradient * exp_negative(value > 0 ? 0 : value);
    return gradient;
}

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

template <typename T, Activation BEFORE, Activation AFTER, bool SHORTCUT>
void forward(const T *x, const T *shortcut, T *y, long pixels, long channels, const float *gamma, const float *beta,
             float *running_mean, float *running_var, float momentum, float eps, Saved saved, long threads) {
    const Rows rows(pixels, channels);
    double *totals = static_cast<double *>(std::malloc(sizeof(double) * 2 * channels));
    // Deviations from some pixel rather than from 0, since the squares of a large mean would cancel.
    float *pivot = saved.mean;
    for (long c = 0; c < channels; ++c) pivot[c] = activated<BEFORE>(load(x[c]));
    {
        const Repeated pivots(pivot, channels, rows);
        sum_rows(rows, channels, threads, totals, [&](long offset, long length, float *sum, float *squares) {
            const T *in = x + offset;
            const float *from = pivots;
#pragma GCC ivdep
            for (long j = 0; j < length; ++j) {
                const float deviation = activated<BEFORE>(load(in[j])) - from[j];
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
            float value = activated<BEFORE>(load(in[j]));
            value = activated<AFTER>(value * scale[j] + shift[j]);
            if (SHORTCUT) value += load(add[j]);
            store(out + j, value);
        }
    });
}

template <typename T, Activation BEFORE, Activation AFTER>
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
                const float value = activated<BEFORE>(load(in[j]));
                const float slope = passed_back<AFTER>(load(from[j]), value * scale[j] + shift[j]);
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
                const float value = activated<BEFORE>(raw);
                const float slope = passed_back<AFTER>(load(from[j]), value * scale[j] + shift[j]);
                store(out + j, passed_back<BEFORE>(scale[j] * slope + along[j] * value + add[j], raw));
            }
        });
    }
    std::free(factor);
}

template <typename T, Activation BEFORE, Activation AFTER, bool SHORTCUT> struct Kernels {
    static void forward_as(const void *x, const void *shortcut, void *y, long pixels, long channels,
                           const float *gamma, const float *beta, float *running_mean, float *running_var,
                           float momentum, float eps, float *saved, long threads) {
        forward<T, BEFORE, AFTER, SHORTCUT>(static_cast<const T *>(x), static_cast<const T *>(shortcut),
                                            static_cast<T *>(y), pixels, channels, gamma, beta, running_mean,
                                            running_var, momentum, eps, Saved(saved, channels), threads);
    }
    static void backward_as(const void *x, const void *gradient, void *x_gradient, long pixels, long channels,
                            float *saved, float *gamma_gradient, float *beta_gradient, long threads) {
        backward<T, BEFORE, AFTER>(static_cast<const T *>(x), static_cast<const T *>(gradient),
                                   static_cast<T *>(x_gradient), pixels, channels, Saved(saved, channels),
                                   gamma_gradient, beta_gradient, threads);
    }
};

// Calls work with the kernels of a type and two activations; what they are is known before compilation alone.
template <typename T, bool SHORTCUT, Activation BEFORE, typename Work> void with_after(int after, Work work) {
    switch (after) {
    case RELU: return work(Kernels<T, BEFORE, RELU, SHORTCUT>());
    case ELU: return work(Kernels<T, BEFORE, ELU, SHORTCUT>());
    default: return work(Kernels<T, BEFORE, NONE, SHORTCUT>());
    }
}

template <typename T, bool SHORTCUT, typename Work> void with_kernels(int before, int after, Work work) {
    switch (before) {
    case RELU: return with_after<T, SHORTCUT, RELU>(after, work);
    case ELU: return with_after<T, SHORTCUT, ELU>(after, work);
    default: return with_after<T, SHORTCUT, NONE>(after, work);
    }
}

}  // namespace

// x, shortcut, y and the gradients: pixels x channels, bfloat16 or float. saved: 4 x channels.
// before and after: an Activation.
extern "C" void hps_batch_norm_forward(int is_bfloat16, const void *x, const void *shortcut, void *y, long pixels,
                                       long channels, int before, int after, const float *gamma, const float *beta,
                                       float *running_mean, float *running_var, float momentum, float eps,
                                       float *saved, long threads) {
    const auto work = [&](auto kernels) {
        kernels.forward_as(x, shortcut, y, pixels, channels, gamma, beta, running_mean, running_var, momentum, eps,
                           saved, threads);
    };
    if (is_bfloat16)
        shortcut ? with_kernels<bfloat16, true>(before, after, work) : with_kernels<bfloat16, false>(before, after, work);
    else
        shortcut ? with_kernels<float, true>(before, after, work) : with_kernels<float, false>(before, after, work);
}

extern "C" void hps_batch_norm_backward(int is_bfloat16, const void *x, const void *gradient, void *x_gradient,
                                        long pixels, long channels, int before, int after, float *saved,
                                        float *gamma_gradient, float *beta_gradient, long threads) {
    const auto work = [&](auto kernels) {
        kernels.backward_as(x, gradient, x_gradient, pixels, channels, saved, gamma_gradient, beta_gradient, threads);
    };
    is_bfloat16 ? with_kernels<bfloat16, false>(before, after, work) : with_kernels<float, false>(before, after, work);
}
