// Normalization on the CPU. Column statistics: one pass over x. Forward: one more. Backward: one over (x, dy) that
// writes what each row settles by itself, and one over (x, dx) that adds what flows through the column statistics. The
// derivatives of the spatial gradient (backward with constant columns) take the same passes.
//
// With a = 1 / size (size = N + C released, N + C - 1 paper), m and v the column mean and unbiased variance,
// p the row mean and q the row's sum of squared deviations, c the center and D the variance with eps:
//   released  c = m + a (C (p - m) - x)          D = v + q / (C - 1) + eps
//   paper     c = m + a (C (p - m) - (x - m))    D = a ((N - 1) v + q + C (p - m)^2 - (x - m)^2) - (c - m)^2 + eps
//   bn        c = m                              D = v (N - 1) / N + eps
//   gn        c = mean of m                      D = sum over columns of ((N - 1) v + N (m - c)^2) / (N C - 1) + eps
//   y = (x - c) D^-1/2 weight + bias, and max(y, 0) where a ReLU is fused
// The paper's D is a ((N - 1) v + N (m - c)^2 + q + C (p - c)^2 - (x - c)^2) + eps, its squares taken about m.
// The plain twin is crossnorm_ns/functional/normalization.py.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

namespace {

using at::Tensor;

constexpr int64_t kBlock = 64;        // rows whose sums stay in the tensor's own precision before they join the total
constexpr int kRows = 4;              // rows handled together: their values and sums fill the vector registers
constexpr int64_t kGrain = 1 << 15;   // numbers that are worth a thread
constexpr int64_t kStream = 1 << 24;  // bytes of a result from which it is written past the caches

enum class Form { kReleased, kPaper, kColumns };

// A pack fills one vector register.
#if defined(__AVX512F__)
constexpr int64_t kPackBytes = 64;
#elif defined(__AVX__)
constexpr int64_t kPackBytes = 32;
#else
constexpr int64_t kPackBytes = 16;
#endif
template <typename T>
struct PackOf;
template <>
struct PackOf<float> {
    typedef float type __attribute__((vector_size(kPackBytes)));
};
template <>
struct PackOf<double> {
    typedef double type __attribute__((vector_size(kPackBytes)));
};
template <typename T>
using Pack = typename PackOf<T>::type;
template <typename T>
constexpr int64_t kLanes = kPackBytes / sizeof(T);

// How many lanes of a pack belong to the row: all, or the first few in the row's last pack.
struct All {};
struct First {
    int64_t count;
};

template <typename T>
ALWAYS_INLINE Pack<T> load(const T* from, All = {}) {
    Pack<T> pack;
    std::memcpy(&pack, from, sizeof pack);
    return pack;
}

template <typename T>
ALWAYS_INLINE void store(T* to, Pack<T> pack, All = {}) {
    std::memcpy(to, &pack, sizeof pack);
}

ALWAYS_INLINE Pack<float> keep(Pack<float> pack, All) { return pack; }
ALWAYS_INLINE Pack<double> keep(Pack<double> pack, All) { return pack; }

template <typename T>
ALWAYS_INLINE Pack<T> twice_inverse_by_root(Pack<T> pack) {
    T numbers[kLanes<T>];
    store(numbers, pack);
#pragma omp simd
    for (int64_t i = 0; i < kLanes<T>; ++i) numbers[i] = 2 / std::sqrt(numbers[i]);
    return load(numbers);
}

#if defined(__AVX512F__)
ALWAYS_INLINE __mmask16 mask(First lanes) { return __mmask16((1u << lanes.count) - 1); }
ALWAYS_INLINE Pack<float> load(const float* from, First lanes) {
    return (Pack<float>)_mm512_maskz_loadu_ps(mask(lanes), from);
}
ALWAYS_INLINE Pack<double> load(const double* from, First lanes) {
    return (Pack<double>)_mm512_maskz_loadu_pd(__mmask8(mask(lanes)), from);
}
ALWAYS_INLINE void store(float* to, Pack<float> pack, First lanes) {
    _mm512_mask_storeu_ps(to, mask(lanes), (__m512)pack);
}
ALWAYS_INLINE void store(double* to, Pack<double> pack, First lanes) {
    _mm512_mask_storeu_pd(to, __mmask8(mask(lanes)), (__m512d)pack);
}
ALWAYS_INLINE Pack<float> keep(Pack<float> pack, First lanes) {
    return (Pack<float>)_mm512_maskz_mov_ps(mask(lanes), (__m512)pack);
}
ALWAYS_INLINE Pack<double> keep(Pack<double> pack, First lanes) {
    return (Pack<double>)_mm512_maskz_mov_pd(__mmask8(mask(lanes)), (__m512d)pack);
}
ALWAYS_INLINE void stream(float* to, Pack<float> pack) { _mm512_stream_ps(to, (__m512)pack); }
ALWAYS_INLINE void stream(double* to, Pack<double> pack) { _mm512_stream_pd(to, (__m512d)pack); }
// The larger of two; NaN stays, which the instruction returns where it stands second.
ALWAYS_INLINE Pack<float> at_least(Pack<float> least, Pack<float> pack) {
    return (Pack<float>)_mm512_max_ps((__m512)least, (__m512)pack);
}
ALWAYS_INLINE Pack<double> at_least(Pack<double> least, Pack<double> pack) {
    return (Pack<double>)_mm512_max_pd((__m512d)least, (__m512d)pack);
}
ALWAYS_INLINE float total(Pack<float> pack) { return _mm512_reduce_add_ps((__m512)pack); }
ALWAYS_INLINE double total(Pack<double> pack) { return _mm512_reduce_add_pd((__m512d)pack); }

#elif defined(__AVX2__)
// Windows into these have all bits set in the first lanes.
alignas(32) constexpr int32_t kMaskFloat[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
alignas(32) constexpr int64_t kMaskDouble[8] = {-1, -1, -1, -1};
ALWAYS_INLINE __m256i mask_float(First lanes) {
    return _mm256_loadu_si256((const __m256i*)(kMaskFloat + kLanes<float> - lanes.count));
}
ALWAYS_INLINE __m256i mask_double(First lanes) {
    return _mm256_loadu_si256((const __m256i*)(kMaskDouble + kLanes<double> - lanes.count));
}
ALWAYS_INLINE Pack<float> load(const float* from, First lanes) {
    return (Pack<float>)_mm256_maskload_ps(from, mask_float(lanes));
}
ALWAYS_INLINE Pack<double> load(const double* from, First lanes) {
    return (Pack<double>)_mm256_maskload_pd(from, mask_double(lanes));
}
ALWAYS_INLINE void store(float* to, Pack<float> pack, First lanes) {
    _mm256_maskstore_ps(to, mask_float(lanes), (__m256)pack);
}
ALWAYS_INLINE void store(double* to, Pack<double> pack, First lanes) {
    _mm256_maskstore_pd(to, mask_double(lanes), (__m256d)pack);
}
ALWAYS_INLINE Pack<float> keep(Pack<float> pack, First lanes) {
    return (Pack<float>)_mm256_and_ps((__m256)pack, _mm256_castsi256_ps(mask_float(lanes)));
}
ALWAYS_INLINE Pack<double> keep(Pack<double> pack, First lanes) {
    return (Pack<double>)_mm256_and_pd((__m256d)pack, _mm256_castsi256_pd(mask_double(lanes)));
}
ALWAYS_INLINE void stream(float* to, Pack<float> pack) { _mm256_stream_ps(to, (__m256)pack); }
ALWAYS_INLINE void stream(double* to, Pack<double> pack) { _mm256_stream_pd(to, (__m256d)pack); }
ALWAYS_INLINE Pack<float> at_least(Pack<float> least, Pack<float> pack) {  // NaN stays, as above
    return (Pack<float>)_mm256_max_ps((__m256)least, (__m256)pack);
}
ALWAYS_INLINE Pack<double> at_least(Pack<double> least, Pack<double> pack) {
    return (Pack<double>)_mm256_max_pd((__m256d)least, (__m256d)pack);
}
ALWAYS_INLINE float total(Pack<float> pack) {
    const __m256 p = (__m256)pack;
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(p), _mm256_extractf128_ps(p, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
ALWAYS_INLINE double total(Pack<double> pack) {
    const __m256d p = (__m256d)pack;
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(p), _mm256_extractf128_pd(p, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

#else
template <typename T>
ALWAYS_INLINE Pack<T> load(const T* from, First lanes) {
    Pack<T> pack{};
    std::memcpy(&pack, from, lanes.count * sizeof(T));
    return pack;
}
template <typename T>
ALWAYS_INLINE void store(T* to, Pack<T> pack, First lanes) {
    std::memcpy(to, &pack, lanes.count * sizeof(T));
}
template <typename P>
ALWAYS_INLINE P keep(P pack, First lanes) {
    for (int64_t i = lanes.count; i < int64_t(sizeof(P) / sizeof(pack[0])); ++i) pack[i] = 0;
    return pack;
}
template <typename T>
ALWAYS_INLINE void stream(T* to, Pack<T> pack) { store(to, pack); }
template <typename P>
ALWAYS_INLINE P at_least(P least, P pack) { return pack < least ? least : pack; }
template <typename T, int lanes>
ALWAYS_INLINE T total_of(const T (&numbers)[lanes]) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < lanes; ++i) sum += numbers[i];
    return sum;
}
ALWAYS_INLINE float total(Pack<float> pack) {
    float numbers[kLanes<float>];
    store(numbers, pack);
    return total_of(numbers);
}
ALWAYS_INLINE double total(Pack<double> pack) {
    double numbers[kLanes<double>];
    store(numbers, pack);
    return total_of(numbers);
}
#endif

// 2 D^-1/2 by an estimate: AVX-512's has 14 bits and takes one Newton step, AVX's has 12 and takes the step of next
// order. An infinite D counts as the largest finite one, since the step would make NaN of it. NaN stays. Twice, since
// the step has a half that others can take.
#if defined(__AVX512F__)
ALWAYS_INLINE Pack<float> twice_inverse_sqrt(Pack<float> pack) {
    const __m512 d = _mm512_min_ps(_mm512_set1_ps(std::numeric_limits<float>::max()), (__m512)pack);
    const Pack<float> r = (Pack<float>)_mm512_rsqrt14_ps(d);
    return r * (3 - (Pack<float>)d * r * r);
}
#elif defined(__AVX2__)
ALWAYS_INLINE Pack<float> twice_inverse_sqrt(Pack<float> pack) {
    const __m256 d = _mm256_min_ps(_mm256_set1_ps(std::numeric_limits<float>::max()), (__m256)pack);
    const Pack<float> r = (Pack<float>)_mm256_rsqrt_ps(d), near_one = (Pack<float>)d * r * r;
    return r * (3.75f - near_one * (2.5f - 0.75f * near_one));
}
#else
ALWAYS_INLINE Pack<float> twice_inverse_sqrt(Pack<float> d) { return twice_inverse_by_root<float>(d); }
#endif
ALWAYS_INLINE Pack<double> twice_inverse_sqrt(Pack<double> d) { return twice_inverse_by_root<double>(d); }

// Calls work(j, lanes) for each pack of a row of C numbers, j its first column.
template <typename T, typename Work>
ALWAYS_INLINE void for_packs(int64_t C, const Work& work) {
    int64_t j = 0;
    for (; j + kLanes<T> <= C; j += kLanes<T>) work(j, All{});
    if (j < C) work(j, First{C - j});
}

// Calls work(i, rows) for the rows from begin to end, kRows at a time and then one by one; `rows` is a constant.
template <typename Work>
ALWAYS_INLINE void for_row_groups(int64_t begin, int64_t end, const Work& work) {
    int64_t i = begin;
    for (; i + kRows <= end; i += kRows) work(i, std::integral_constant<int, kRows>{});
    for (; i < end; ++i) work(i, std::integral_constant<int, 1>{});
}

// Asks for numbers in the order in which they lie in memory, which the processor's own prefetching continues; a group
// of rows read side by side would confuse it. Past the end of a tensor nothing happens.
template <typename T>
ALWAYS_INLINE void prefetch(const T* from, int64_t count) {
    for (int64_t i = 0; i < count; i += kLanes<T>) __builtin_prefetch(from + i, 0, 2);
}

// What the formula needs of the columns, padded to whole packs. `share` is a C m, `var` what a column gives to D;
// in norms of columns alone `mean` is the center and `var` 2 D^-1/2. Handed on by value: a constant that a store might
// change would be loaded again for each row.
template <typename T>
struct Columns {
    int64_t channels, width;
    double rows, size;  // N, and what a is the inverse of
    T a, a_channels, row_scale, eps;  // row_scale: what multiplies q in D
    T *mean, *share, *var, *weight, *bias;
};

template <typename T>
struct OwnedColumns : Columns<T> {
    std::vector<T> numbers;

    OwnedColumns(Form form, int64_t channels, double rows, double eps) {
        const double size = rows + channels - (form == Form::kPaper ? 1 : 0), a = 1 / size, a_channels = channels * a;
        const int64_t width = (channels + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
        const double row_scale = form == Form::kPaper ? a : 1.0 / std::max<int64_t>(channels - 1, 1);
        numbers.assign(5 * width, T(0));
        T* at = numbers.data();
        static_cast<Columns<T>&>(*this) = {
            channels, width, rows, size, T(a), T(a_channels), T(row_scale), T(eps),
            at, at + width, at + 2 * width, at + 3 * width, at + 4 * width};
        std::fill_n(this->var, 2 * width, T(1));  // and the weights
    }
    OwnedColumns(const OwnedColumns&) = delete;
    OwnedColumns(OwnedColumns&&) = default;
};

// Of a row: its mean, a C p, and what it gives to D.
template <typename T>
struct Row {
    T mean, share, variance;
};

template <typename T, int R>
ALWAYS_INLINE void row_moments(const Columns<T> k, const T* __restrict x, Row<T> (&rows)[R]) {
    const int64_t C = k.channels;
    Pack<T> sums[R]{}, squares[R]{};
    prefetch(x + R * C, R * C);
    for_packs<T>(C, [&](int64_t j, auto lanes) INLINE_LAMBDA {
        for (int r = 0; r < R; ++r) sums[r] += load(x + r * C + j, lanes);
    });
    for (int r = 0; r < R; ++r) {
        rows[r].mean = total(sums[r]) / T(C);
        rows[r].share = k.a_channels * rows[r].mean;
    }
    for_packs<T>(C, [&](int64_t j, auto lanes) INLINE_LAMBDA {
        for (int r = 0; r < R; ++r) {
            const Pack<T> d = keep(load(x + r * C + j, lanes) - rows[r].mean, lanes);
            squares[r] += d * d;
        }
    });
    for (int r = 0; r < R; ++r) rows[r].variance = total(squares[r]) * k.row_scale + k.eps;
}

// A pack of columns.
template <typename T>
struct Column {
    Pack<T> mean, share, var, weight, bias;
    ALWAYS_INLINE Column(const Columns<T> k, int64_t j)
        : mean(load(k.mean + j)),
          share(load(k.share + j)),
          var(load(k.var + j)),
          weight(load(k.weight + j)),
          bias(load(k.bias + j)) {}
};

// x - center, 2 D^-1/2 and, of the paper's form, center - mean and row mean - mean.
template <typename T>
struct Entry {
    Pack<T> centered, twice_inverse, offset, row_offset;
};

template <typename T, Form form>
ALWAYS_INLINE Entry<T> entry(const Columns<T> k, Pack<T> x, const Column<T>& column, const Row<T>& row) {
    const Pack<T> d = x - column.mean;
    Entry<T> e{};
    if (form == Form::kColumns) {
        e.centered = d;
        e.twice_inverse = column.var;
        return e;
    }
    const Pack<T> share = row.share - column.share;  // a C (p - m)
    if (form == Form::kReleased) {
        e.centered = d + (k.a * x - share);
        e.twice_inverse = twice_inverse_sqrt(column.var + row.variance);
        return e;
    }
    const Pack<T> own = k.a * d;
    e.row_offset = row.mean - column.mean;
    e.offset = share - own;
    e.centered = d - e.offset;
    const Pack<T> D = (column.var + row.variance) + share * e.row_offset - own * d - e.offset * e.offset;
    e.twice_inverse = twice_inverse_sqrt(at_least(Pack<T>{} + k.eps, D));  // rounding of an outlier's row may go below
    return e;
}

template <typename T, Form form, bool relu, bool streaming, int R>
ALWAYS_INLINE void forward_group(const Columns<T> k, const T* __restrict x, T* __restrict y) {
    const int64_t C = k.channels;
    Row<T> rows[R]{};
    if (form != Form::kColumns) row_moments(k, x, rows);
    else prefetch(x + R * C, R * C);
    for_packs<T>(C, [&](int64_t j, auto lanes) INLINE_LAMBDA {
        const Column<T> column(k, j);
        const Pack<T> half_weight = T(0.5) * column.weight;
        for (int r = 0; r < R; ++r) {
            const Entry<T> e = entry<T, form>(k, load(x + r * C + j, lanes), column, rows[r]);
            Pack<T> out = e.centered * e.twice_inverse * half_weight + column.bias;
            if (relu) out = out < 0 ? Pack<T>{} : out;  // not max: NaN stays
            if (streaming) stream(y + r * C + j, out);
            else store(y + r * C + j, out, lanes);
        }
    });
}

template <typename T, Form form, bool relu, bool streaming>
void forward_rows(const Columns<T> k, int64_t begin, int64_t end, const T* x, T* y) {
    for_row_groups(begin, end, [&](int64_t i, auto rows) INLINE_LAMBDA {
        forward_group<T, form, relu, streaming, rows.value>(k, x + i * k.channels, y + i * k.channels);
    });
}

// Sums over rows for each column; float64 totals of blocks in the tensor's own precision.
template <typename T>
struct ColumnSums {
    enum { kWeight, kBias, kCenter, kVariance, kOffset, kCount };  // g n, g, G r, G n r^2, G n r^2 (center - mean)
    int64_t width;
    std::vector<T> block;
    std::vector<double> total;
    explicit ColumnSums(int64_t width_) : width(width_), block(kCount * width_, T(0)), total(kCount * width_, 0.0) {}
    T* of(int which) { return block.data() + which * width; }
    double sum(int which, int64_t j) const { return total[which * width + j]; }
    void flush() {
        for (size_t i = 0; i < block.size(); ++i) total[i] += block[i];
        std::fill(block.begin(), block.end(), T(0));
    }
};

template <typename T>
ColumnSums<T> merged(std::vector<ColumnSums<T>>& partial) {
    for (size_t t = 1; t < partial.size(); ++t)
        for (size_t i = 0; i < partial[0].total.size(); ++i) partial[0].total[i] += partial[t].total[i];
    return std::move(partial[0]);
}

// With g = dL/dy (behind the ReLU), n = (x - c) r and r = D^-1/2: dL/dc = -weight g r and dL/dD = -1/2 weight g n r^2.
template <typename T, Form form, bool relu, bool streaming, int R>
ALWAYS_INLINE void backward_group(const Columns<T> k, const T* __restrict x, const T* __restrict dy,
                                  ColumnSums<T>& sums, T* __restrict own, T* __restrict dx) {
    const int64_t C = k.channels;
    Row<T> rows[R]{};
    prefetch(dy + R * C, R * C);
    if (form != Form::kColumns) row_moments(k, x, rows);
    else prefetch(x + R * C, R * C);
    Pack<T> row_center[R]{}, row_variance[R]{};
    for_packs<T>(C, [&](int64_t j, auto lanes) INLINE_LAMBDA {
        const Column<T> column(k, j);
        const Pack<T> weight = column.weight, bias = column.bias;
        Pack<T> weights{}, biases{}, centers{}, variances{}, offsets{};
        for (int r = 0; r < R; ++r) {
            const Entry<T> e = entry<T, form>(k, load(x + r * C + j, lanes), column, rows[r]);
            const Pack<T> inverse = T(0.5) * e.twice_inverse, n = e.centered * inverse;
            Pack<T> g = load(dy + r * C + j, lanes);
            if (relu) g = n * weight + bias <= 0 ? Pack<T>{} : g;
            const Pack<T> scaled = g * weight * inverse;
            weights += g * n;
            biases += g;
            if (form == Form::kColumns) {
                if (streaming) stream(dx + r * C + j, scaled);
                else store(dx + r * C + j, scaled, lanes);
                continue;
            }
            const Pack<T> variance = scaled * (n * inverse);
            centers += scaled;
            variances += variance;
            row_center[r] += scaled;
            row_variance[r] += variance;
            if (form == Form::kPaper) {
                offsets += variance * e.offset;
                row_center[r] += variance * (e.row_offset - e.offset);
                store(own + r * k.width + j, scaled * (k.a * n * n + (1 + k.a)));
            } else {
                store(own + r * k.width + j, scaled + k.a * scaled);
            }
        }
        const auto add = [&](int which, Pack<T> sum) INLINE_LAMBDA {
            store(sums.of(which) + j, load(sums.of(which) + j) + sum);
        };
        add(sums.kWeight, weights);
        add(sums.kBias, biases);
        if (form == Form::kColumns) return;
        add(sums.kCenter, centers);
        add(sums.kVariance, variances);
        if (form == Form::kPaper) add(sums.kOffset, offsets);
    });
    if (form == Form::kColumns) return;
    T from_mean[R], from_variance[R];
    for (int r = 0; r < R; ++r) {
        from_mean[r] = -k.a * total(row_center[r]);
        from_variance[r] = -k.row_scale * total(row_variance[r]);
    }
    for (int r = 0; r < R; ++r) {
        for_packs<T>(C, [&](int64_t j, auto lanes) INLINE_LAMBDA {
            const Pack<T> d = load(x + r * C + j, lanes) - rows[r].mean;
            const Pack<T> out = load(own + r * k.width + j) + from_mean[r] + from_variance[r] * d;
            if (streaming) stream(dx + r * C + j, out);
            else store(dx + r * C + j, out, lanes);
        });
    }
}

template <typename T, Form form, bool relu, bool streaming>
void backward_rows(const Columns<T> k, int64_t begin, int64_t end, const T* x, const T* dy, ColumnSums<T>& sums,
                   T* dx) {
    std::vector<T> own(kRows * k.width);  // what the rows of a group settle before their sums are known
    for (int64_t block = begin; block < end; block += kBlock) {
        for_row_groups(block, std::min(block + kBlock, end), [&](int64_t i, auto rows) INLINE_LAMBDA {
            const int64_t at = i * k.channels;
            backward_group<T, form, relu, streaming, rows.value>(k, x + at, dy + at, sums, own.data(), dx + at);
        });
        sums.flush();
    }
}

// Derivatives of the spatial gradient z, the backward pass with constant columns, for dL/dz = u. Since z is linear in
// G = weight g, the sum of u z over a row is S = sum of G n' with n' = r (c' - 1/2 (x - c) r^2 D'), where c' and D' are
// how x - c and D change along u:
//   c' = (1 + a) u - s with s = a sum(u)       D' = q' / (C - 1) released, with q' = 2 sum((x - p) u)
//                                              D' = a q' + 2 s (p - m) - 2 a (x - m) u - 2 (c - m) (s - a u) paper
// dL/dg = weight n', dL/dweight = g n', and x, m and v are reached through
//   A = dS/dD = G (3/4 (x - c) r^5 D' - 1/2 r^3 c')   B = dS/d(x - c) = -1/2 G r^3 D'   E = dS/dD' = -1/2 G (x - c) r^3
template <typename T, Form form, bool relu, int R>
ALWAYS_INLINE void spatial_group(const Columns<T> k, const T* __restrict x, const T* __restrict dy,
                                 const T* __restrict u, ColumnSums<T>& sums, T* __restrict own, T* __restrict ddy,
                                 T* __restrict dx) {
    const int64_t C = k.channels;
    constexpr bool paper = form == Form::kPaper, columns_alone = form == Form::kColumns;
    Row<T> rows[R]{};
    T s[R]{}, q[R]{};  // s and the row's share in D', q' times the scale of q in D
    prefetch(dy + R * C, R * C);
    prefetch(u + R * C, R * C);
    if (columns_alone) {
        prefetch(x + R * C, R * C);
    } else {
        row_moments(k, x, rows);
        Pack<T> along[R]{}, spread[R]{};
        for_packs<T>(C, [&](int64_t j, auto lanes) INLINE_LAMBDA {
            for (int r = 0; r < R; ++r) {
                const Pack<T> direction = load(u + r * C + j, lanes);
                along[r] += direction;
                spread[r] += direction * (load(x + r * C + j, lanes) - rows[r].mean);
            }
        });
        for (int r = 0; r < R; ++r) {
            s[r] = k.a * total(along[r]);
            q[r] = 2 * k.row_scale * total(spread[r]);
        }
    }
    Pack<T> row_variance[R]{}, row_center[R]{}, row_change[R]{};
    for_packs<T>(C, [&](int64_t j, auto lanes) INLINE_LAMBDA {
        const Column<T> column(k, j);
        Pack<T> weights{}, centers{}, variances{};
        for (int r = 0; r < R; ++r) {
            const Entry<T> e = entry<T, form>(k, load(x + r * C + j, lanes), column, rows[r]);
            const Pack<T> direction = load(u + r * C + j, lanes), inverse = T(0.5) * e.twice_inverse;
            Pack<T> g = load(dy + r * C + j, lanes), weight = column.weight;
            if (relu) {
                const auto off = e.centered * inverse * weight + column.bias <= 0;
                g = off ? Pack<T>{} : g;
                weight = off ? Pack<T>{} : weight;
            }
            const Pack<T> square = inverse * inverse, cube = g * column.weight * inverse * square;  // G r^3
            if (columns_alone) {
                const Pack<T> change = direction * inverse;
                store(ddy + r * C + j, weight * change, lanes);
                weights += g * change;
                variances += T(-0.5) * cube * direction;
                continue;
            }
            const Pack<T> center = direction + (k.a * direction - s[r]);
            Pack<T> variance = Pack<T>{} + q[r], offset{};
            if (paper) {
                const Pack<T> d = e.centered + e.offset;
                offset = s[r] - k.a * direction;
                variance += 2 * (s[r] * e.row_offset - k.a * d * direction - e.offset * offset);
            }
            const Pack<T> half = T(0.5) * e.centered * square * variance, change = inverse * (center - half);
            store(ddy + r * C + j, weight * change, lanes);
            weights += g * change;
            const Pack<T> A = cube * (T(1.5) * half - T(0.5) * center), B = T(-0.5) * cube * variance,
                          E = T(-0.5) * cube * e.centered;
            variances += A;
            row_variance[r] += A;
            row_center[r] += B;
            row_change[r] += E;
            Pack<T> out = B + k.a * B;
            if (paper) {
                centers += B + 2 * (e.offset * A + offset * E);
                row_center[r] -= 2 * (A * (e.row_offset - e.offset) - E * offset);
                out -= 2 * k.a * (A * e.centered + E * center);
            } else {
                centers += B;
            }
            store(own + r * k.width + j, out);
        }
        const auto add = [&](int which, Pack<T> sum) INLINE_LAMBDA {
            store(sums.of(which) + j, load(sums.of(which) + j) + sum);
        };
        add(sums.kWeight, weights);
        add(sums.kCenter, centers);
        add(sums.kVariance, variances);
    });
    if (columns_alone) {
        std::fill_n(dx, R * C, T(0));
        return;
    }
    T constant[R], by_x[R], by_u[R];
    for (int r = 0; r < R; ++r) {
        by_x[r] = 2 * k.row_scale * total(row_variance[r]);
        by_u[r] = 2 * k.row_scale * total(row_change[r]);
        constant[r] = -k.a * total(row_center[r]);
        if (!paper) constant[r] -= by_u[r] * s[r] / k.a_channels;
    }
    for (int r = 0; r < R; ++r) {
        for_packs<T>(C, [&](int64_t j, auto lanes) INLINE_LAMBDA {
            const Pack<T> d = load(x + r * C + j, lanes) - rows[r].mean, direction = load(u + r * C + j, lanes);
            const Pack<T> out = load(own + r * k.width + j) + constant[r] + by_x[r] * d + by_u[r] * direction;
            store(dx + r * C + j, out, lanes);
        });
    }
}

template <typename T, Form form, bool relu>
void spatial_rows(const Columns<T> k, int64_t begin, int64_t end, const T* x, const T* dy, const T* u,
                  ColumnSums<T>& sums, T* ddy, T* dx) {
    std::vector<T> own(kRows * k.width);
    for (int64_t block = begin; block < end; block += kBlock) {
        for_row_groups(block, std::min(block + kBlock, end), [&](int64_t i, auto rows) INLINE_LAMBDA {
            const int64_t at = i * k.channels;
            spatial_group<T, form, relu, rows.value>(k, x + at, dy + at, u + at, sums, own.data(), ddy + at, dx + at);
        });
        sums.flush();
    }
}

// dx += from_mean + from_var (x - mean), columns padded to whole packs
template <typename T>
void add_from_columns(int64_t begin, int64_t end, int64_t C, const T* __restrict x, const T* __restrict mean,
                      const T* __restrict from_mean, const T* __restrict from_var, T* __restrict dx) {
    for (int64_t i = begin; i < end; ++i) {
        for_packs<T>(C, [&](int64_t j, auto lanes) INLINE_LAMBDA {
            const int64_t at = i * C + j;
            const Pack<T> d = load(x + at, lanes) - load(mean + j);
            store(dx + at, load(dx + at, lanes) + load(from_mean + j) + load(from_var + j) * d, lanes);
        });
    }
}

// Counts, means and sums of squared deviations of the columns, merged by Chan's formula.
struct Moments {
    double count = 0;
    std::vector<double> mean, squares;
    explicit Moments(int64_t C) : mean(C, 0.0), squares(C, 0.0) {}
    void merge(double other_count, const double* other_mean, const double* other_squares) {
        if (other_count == 0) return;
        const double total = count + other_count, share = other_count / total;
        for (size_t j = 0; j < mean.size(); ++j) {
            const double difference = other_mean[j] - mean[j];
            mean[j] += difference * share;
            squares[j] += other_squares[j] + difference * difference * count * share;
        }
        count = total;
    }
};

// Adds x - shift and its square over the rows to sums of columns (padded to whole packs).
template <typename T>
void block_sums(const T* __restrict x, int64_t rows, int64_t C, T* __restrict sums, T* __restrict squares) {
    const T* shift = x;
    for_row_groups(0, rows, [&](int64_t i, auto group) INLINE_LAMBDA {
        prefetch(x + (i + group.value) * C, group.value * C);
        for_packs<T>(C, [&](int64_t j, auto lanes) INLINE_LAMBDA {
            const Pack<T> first = load(shift + j, lanes);
            Pack<T> sum = load(sums + j), square = load(squares + j);
            for (int r = 0; r < group.value; ++r) {
                const Pack<T> d = load(x + (i + r) * C + j, lanes) - first;
                sum += d;
                square += d * d;
            }
            store(sums + j, sum);
            store(squares + j, square);
        });
    });
}

template <typename T>
void column_moments(const T* x, int64_t begin, int64_t end, int64_t C, Moments& moments) {
    std::vector<T> sums(C + kLanes<T>), squares(C + kLanes<T>);
    std::vector<double> mean(C), deviations(C);
    for (int64_t start = begin; start < end; start += kBlock) {
        const int64_t rows = std::min(kBlock, end - start);
        const T* block = x + start * C;
        std::fill(sums.begin(), sums.end(), T(0));
        std::fill(squares.begin(), squares.end(), T(0));
        block_sums(block, rows, C, sums.data(), squares.data());
        for (int64_t j = 0; j < C; ++j) {
            const double sum = sums[j];
            mean[j] = block[j] + sum / rows;
            deviations[j] = squares[j] - sum * sum / rows;
        }
        moments.merge(double(rows), mean.data(), deviations.data());
    }
}

int64_t num_chunks(const Tensor& x) {
    return std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), x.numel() / kGrain));
}

// Gradients behind opaque samples fade below the normal range, where the processor takes many times as long: there they
// count as zero.
struct FlushDenormals {
#if defined(__SSE2__)
    const unsigned before = _mm_getcsr();
    FlushDenormals() { _mm_setcsr(before | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(before); }
#else
    FlushDenormals() {}
#endif
};

// Calls work(chunk, begin, end) for equal shares of the rows, in parallel.
template <typename Work>
void for_chunks(int64_t rows, int64_t chunks, const Work& work) {
    at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
        const FlushDenormals flush;
        for (int64_t t = first; t < last; ++t) work(t, rows * t / chunks, rows * (t + 1) / chunks);
    });
}

struct Global {
    double mean, variance, degrees;
};

template <typename T>
Global global_moments(const T* mean, const T* var, double rows, int64_t C, double eps) {
    Global g{0, 0, std::max(rows * C - 1, 1.0)};
    for (int64_t j = 0; j < C; ++j) g.mean += double(mean[j]) / C;
    for (int64_t j = 0; j < C; ++j)
        g.variance += (rows - 1) * double(var[j]) + rows * (mean[j] - g.mean) * (mean[j] - g.mean);
    g.variance = g.variance / g.degrees + eps;
    return g;
}

template <typename T>
OwnedColumns<T> prepare(Form form, const std::string& name, const Tensor& x, const std::optional<Tensor>& weight,
                        const std::optional<Tensor>& bias, double rows, const Tensor& mean, const Tensor& var,
                        double eps) {
    OwnedColumns<T> k(form, x.size(1), rows, eps);
    const T *means = mean.const_data_ptr<T>(), *vars = var.const_data_ptr<T>();
    std::copy_n(means, k.channels, k.mean);
    std::copy_n(vars, k.channels, k.var);
    if (name == "bn") {
        for (int64_t j = 0; j < k.channels; ++j) k.var[j] = T(2 / std::sqrt(vars[j] * ((rows - 1) / rows) + eps));
    } else if (name == "gn") {
        const Global g = global_moments(means, vars, rows, k.channels, eps);
        std::fill_n(k.mean, k.width, T(g.mean));
        std::fill_n(k.var, k.width, T(2 / std::sqrt(g.variance)));
    } else {
        const double share = form == Form::kPaper ? (rows - 1) / k.size : 1;
        for (int64_t j = 0; j < k.channels; ++j) {
            k.share[j] = k.a_channels * k.mean[j];
            k.var[j] = T(share * vars[j]);
        }
    }
    if (weight) std::copy_n(weight->contiguous().template const_data_ptr<T>(), k.channels, k.weight);
    if (bias) std::copy_n(bias->contiguous().template const_data_ptr<T>(), k.channels, k.bias);
    return k;
}

Form form_of(const std::string& name) {
    if (name == "released") return Form::kReleased;
    if (name == "paper") return Form::kPaper;
    TORCH_CHECK(name == "bn" || name == "gn", "unknown form ", name);
    return Form::kColumns;
}

// Whether results are written past the caches: where they would not stay there anyway, and rows begin at whole packs.
template <typename T>
bool streams(const Tensor& x) {
    return x.numel() * int64_t(sizeof(T)) >= kStream && x.size(1) % kLanes<T> == 0;
}

// Calls work with the form, whether a ReLU is fused and whether results are streamed as compile-time constants.
template <typename Work>
void specialize(Form form, bool relu, bool streaming, const Work& work) {
    const auto with_flag = [](bool flag, const auto& rest) {
        if (flag) rest(std::true_type{});
        else rest(std::false_type{});
    };
    const auto with_flags = [&](auto constant_form) {
        with_flag(relu, [&](auto constant_relu) {
            with_flag(streaming, [&](auto constant) { work(constant_form, constant_relu, constant); });
        });
    };
    if (form == Form::kReleased) with_flags(std::integral_constant<Form, Form::kReleased>{});
    else if (form == Form::kPaper) with_flags(std::integral_constant<Form, Form::kPaper>{});
    else with_flags(std::integral_constant<Form, Form::kColumns>{});
}

// dx += what reaches x through the mean and the variance of each column: dL/dmean / N', 2 dL/dvar / (N' - 1), with N'
// the rows of x. Given are dL/dm of the cross (dL/dc of the others) and dL/dD, summed over the rows.
template <typename T>
void add_through_columns(const std::string& form, const Columns<T> k, const std::vector<double>& by_center,
                         const std::vector<double>& by_variance, const Tensor& means, const Tensor& vars,
                         const Tensor& batch_mean, const Tensor& x, T* dx) {
    const int64_t C = k.channels, batch_rows = x.size(0);
    const T *mean = means.const_data_ptr<T>(), *var = vars.const_data_ptr<T>();
    const double N = k.rows;
    double through_center = 0, through_variance = 0;  // of gn, whose columns share both
    Global g{};
    if (form == "gn") {
        g = global_moments(mean, var, N, C, k.eps);
        for (int64_t j = 0; j < C; ++j) through_center += by_center[j], through_variance += by_variance[j];
    }
    std::vector<T> own(k.width), from_mean(k.width), from_var(k.width);
    std::copy_n(batch_mean.contiguous().template const_data_ptr<T>(), C, own.begin());
    for (int64_t j = 0; j < C; ++j) {
        double d_mean = by_center[j], d_var = by_variance[j];
        if (form == "paper") d_var *= (N - 1) / k.size;
        if (form == "bn") d_var *= (N - 1) / N;
        if (form == "gn") {
            d_mean = through_center / C + through_variance * 2 * N * (mean[j] - g.mean) / g.degrees;
            d_var = through_variance * (N - 1) / g.degrees;
        }
        from_mean[j] = T(d_mean / batch_rows);
        from_var[j] = batch_rows > 1 ? T(2 * d_var / (batch_rows - 1)) : T(0);
    }
    for_chunks(batch_rows, num_chunks(x), [&](int64_t, int64_t begin, int64_t end) {
        add_from_columns(begin, end, C, x.const_data_ptr<T>(), own.data(), from_mean.data(), from_var.data(), dx);
    });
}

void check_sizes(const Tensor& x, std::initializer_list<std::optional<Tensor>> of_columns) {
    TORCH_CHECK(x.dim() == 2, "x must have the shape (rows, channels)");
    for (const auto& tensor : of_columns)
        TORCH_CHECK(!tensor || (tensor->dim() == 1 && tensor->size(0) == x.size(1) && tensor->device() == x.device() &&
                                tensor->scalar_type() == x.scalar_type()),
                    "scale, shift and statistics must have one entry for each channel, in the type of x");
}

std::tuple<Tensor, Tensor, Tensor> column_statistics(const Tensor& given) {
    check_sizes(given, {});
    const Tensor x = given.contiguous();
    const int64_t rows = x.size(0), C = x.size(1), chunks = num_chunks(x);
    Tensor count = at::empty({}, x.options()), mean = at::empty({C}, x.options()), var = at::empty({C}, x.options());
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "column_statistics", [&] {
        std::vector<Moments> partial(chunks, Moments(C));
        const scalar_t* data = x.const_data_ptr<scalar_t>();
        for_chunks(rows, chunks, [&](int64_t t, int64_t begin, int64_t end) {
            column_moments(data, begin, end, C, partial[t]);
        });
        Moments& all = partial[0];
        for (int64_t t = 1; t < chunks; ++t)
            all.merge(partial[t].count, partial[t].mean.data(), partial[t].squares.data());
        *count.mutable_data_ptr<scalar_t>() = scalar_t(rows);
        for (int64_t j = 0; j < C; ++j) {
            mean.mutable_data_ptr<scalar_t>()[j] = scalar_t(all.mean[j]);
            var.mutable_data_ptr<scalar_t>()[j] = scalar_t(std::max(all.squares[j], 0.0) / std::max(rows - 1.0, 1.0));
        }
    });
    return {count, mean, var};
}

Tensor normalize(const Tensor& given, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                 const Tensor& rows, const Tensor& given_mean, const Tensor& given_var, const std::string& form,
                 double eps, bool relu) {
    check_sizes(given, {weight, bias, given_mean, given_var});
    const Tensor x = given.contiguous(), mean = given_mean.contiguous(), var = given_var.contiguous();
    Tensor y = at::empty_like(x);
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "normalize", [&] {
        const auto k =
            prepare<scalar_t>(form_of(form), form, x, weight, bias, rows.item<double>(), mean, var, eps);
        specialize(form_of(form), relu, streams<scalar_t>(x), [&](auto constant_form, auto with_relu, auto streaming) {
            for_chunks(x.size(0), num_chunks(x), [&](int64_t, int64_t begin, int64_t end) {
                forward_rows<scalar_t, constant_form.value, with_relu.value, streaming.value>(
                    k, begin, end, x.const_data_ptr<scalar_t>(), y.mutable_data_ptr<scalar_t>());
            });
        });
    });
    return y;
}

std::tuple<Tensor, Tensor, Tensor> normalize_backward(
    const Tensor& given_dy, const Tensor& given, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
    const Tensor& rows, const Tensor& given_mean, const Tensor& given_var, const std::optional<Tensor>& batch_mean,
    const std::string& form, double eps, bool relu) {
    check_sizes(given, {weight, bias, given_mean, given_var, batch_mean});
    TORCH_CHECK(given_dy.sizes() == given.sizes(), "the gradient has another size than x");
    const Tensor x = given.contiguous(), dy = given_dy.contiguous(), mean = given_mean.contiguous(),
                 var = given_var.contiguous();
    Tensor dx = at::empty_like(x), dweight = at::empty_like(mean), dbias = at::empty_like(mean);
    const int64_t N = x.size(0), C = x.size(1), chunks = num_chunks(x);
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "normalize_backward", [&] {
        const auto k =
            prepare<scalar_t>(form_of(form), form, x, weight, bias, rows.item<double>(), mean, var, eps);
        std::vector<ColumnSums<scalar_t>> partial(chunks, ColumnSums<scalar_t>(k.width));
        const scalar_t *xs = x.const_data_ptr<scalar_t>(), *dys = dy.const_data_ptr<scalar_t>();
        scalar_t* dxs = dx.mutable_data_ptr<scalar_t>();
        specialize(form_of(form), relu, streams<scalar_t>(x), [&](auto constant_form, auto with_relu, auto streaming) {
            for_chunks(N, chunks, [&](int64_t t, int64_t begin, int64_t end) {
                backward_rows<scalar_t, constant_form.value, with_relu.value, streaming.value>(k, begin, end, xs, dys,
                                                                                               partial[t], dxs);
            });
        });
        const ColumnSums<scalar_t> sums = merged(partial);
        std::vector<double> by_center(C), by_variance(C);
        for (int64_t j = 0; j < C; ++j) {
            dweight.mutable_data_ptr<scalar_t>()[j] = scalar_t(sums.sum(sums.kWeight, j));
            dbias.mutable_data_ptr<scalar_t>()[j] = scalar_t(sums.sum(sums.kBias, j));
            if (form_of(form) == Form::kColumns) {
                const double weight = k.weight[j], inverse = 0.5 * k.var[j];
                by_center[j] = -weight * inverse * sums.sum(sums.kBias, j);
                by_variance[j] = -0.5 * weight * inverse * inverse * sums.sum(sums.kWeight, j);
            } else {
                const double offset = form == "paper" ? sums.sum(sums.kOffset, j) : 0.0;
                by_center[j] = k.rows / k.size * (offset - sums.sum(sums.kCenter, j));
                by_variance[j] = -0.5 * sums.sum(sums.kVariance, j);
            }
        }
        if (batch_mean) add_through_columns(form, k, by_center, by_variance, mean, var, *batch_mean, x, dxs);
    });
    return {dx, dweight, dbias};
}

std::tuple<Tensor, Tensor, Tensor> spatial_backward(
    const Tensor& given_u, const Tensor& given_dy, const Tensor& given, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& bias, const Tensor& rows, const Tensor& given_mean, const Tensor& given_var,
    const std::optional<Tensor>& batch_mean, const std::string& form, double eps, bool relu) {
    check_sizes(given, {weight, bias, given_mean, given_var, batch_mean});
    TORCH_CHECK(given_dy.sizes() == given.sizes() && given_u.sizes() == given.sizes(),
                "the gradients have another size than x");
    const Tensor x = given.contiguous(), dy = given_dy.contiguous(), u = given_u.contiguous(),
                 mean = given_mean.contiguous(), var = given_var.contiguous();
    Tensor ddy = at::empty_like(x), dx = at::empty_like(x), dweight = at::empty_like(mean);
    const int64_t N = x.size(0), C = x.size(1), chunks = num_chunks(x);
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "spatial_backward", [&] {
        const auto k =
            prepare<scalar_t>(form_of(form), form, x, weight, bias, rows.item<double>(), mean, var, eps);
        std::vector<ColumnSums<scalar_t>> partial(chunks, ColumnSums<scalar_t>(k.width));
        scalar_t* dxs = dx.mutable_data_ptr<scalar_t>();
        specialize(form_of(form), relu, false, [&](auto constant_form, auto with_relu, auto) {
            for_chunks(N, chunks, [&](int64_t t, int64_t begin, int64_t end) {
                spatial_rows<scalar_t, constant_form.value, with_relu.value>(
                    k, begin, end, x.const_data_ptr<scalar_t>(), dy.const_data_ptr<scalar_t>(),
                    u.const_data_ptr<scalar_t>(), partial[t], ddy.mutable_data_ptr<scalar_t>(), dxs);
            });
        });
        const ColumnSums<scalar_t> sums = merged(partial);
        std::vector<double> by_center(C), by_variance(C);
        for (int64_t j = 0; j < C; ++j) {
            dweight.mutable_data_ptr<scalar_t>()[j] = scalar_t(sums.sum(sums.kWeight, j));
            by_center[j] = -k.rows / k.size * sums.sum(sums.kCenter, j);
            by_variance[j] = sums.sum(sums.kVariance, j);
        }
        if (batch_mean) add_through_columns(form, k, by_center, by_variance, mean, var, *batch_mean, x, dxs);
    });
    return {ddy, dx, dweight};
}

}  // namespace

// The schemas are in crossnorm_ns/kernels/operators.py.
TORCH_LIBRARY_IMPL(crossnorm_ns, CPU, m) {
    m.impl("column_statistics", &column_statistics);
    m.impl("normalize", &normalize);
    m.impl("normalize_backward", &normalize_backward);
    m.impl("spatial_backward", &spatial_backward);
}
