// Normalization on the CPU. Column statistics: one pass over x. Forward: one more. Backward: one over (x, dy) that writes
// what each row settles by itself, and one over (x, dx) that adds what flows through the column statistics.
//
// With a = 1 / size (size = N + C released, N + C - 1 paper), m and v the column mean and unbiased variance,
// p the row mean and q the row's sum of squared deviations, c the center and D the variance with eps:
//   released  c = m + a (C (p - m) - x)          D = v + q / (C - 1) + eps
//   paper     c = m + a (C (p - m) - (x - m))    D = a ((N - 1) v + N (m - c)^2 + q + C (p - c)^2 - (x - c)^2) + eps
//   bn        c = m                              D = v (N - 1) / N + eps
//   gn        c = mean of m                      D = sum over columns of ((N - 1) v + N (m - c)^2) / (N C - 1) + eps
//   y = (x - c) D^-1/2 weight + bias, and max(y, 0) where a ReLU is fused
// The plain twin is crossnorm_ns/functional/normalization.py.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

using at::Tensor;

constexpr int64_t kBlock = 64;  // rows whose sums are kept in the tensor's own precision before they join the total
constexpr int64_t kTile = 16;  // rows handled together
constexpr int64_t kPack = 16;   // numbers that rows are padded to a multiple of
constexpr int64_t kGrain = 1 << 15;  // numbers that are worth a thread

enum class Form { kReleased, kPaper, kColumns };

inline int64_t whole_packs(int64_t width) {
    if (width % kPack != 0) __builtin_unreachable();
    return width;
}

// What the formula needs of the columns, padded to `width`. Columns-only norms: `mean` is the center and `var` D^-1/2.
template <typename T>
struct Columns {
    int64_t channels, width;
    double rows, size;  // N, and what a is the inverse of
    T a, a_channels, n, per_channel, row_scale, eps;
    std::vector<T> mean, var, weight, bias;

    Columns(Form form, const Tensor& x, double rows_, double eps_)
        : channels(x.size(1)),
          width((channels + kPack - 1) / kPack * kPack),
          rows(rows_),
          size(rows_ + channels - (form == Form::kPaper ? 1 : 0)),
          a(T(1 / size)),
          a_channels(T(channels / size)),
          n(T(rows_)),
          per_channel(T(1.0 / channels)),
          row_scale(T(1.0 / std::max<int64_t>(channels - 1, 1))),
          eps(T(eps_)),
          mean(width, T(0)),
          var(width, T(1)),
          weight(width, T(1)),
          bias(width, T(0)) {}
};

// Rows are handled in tiles, stage by stage, so that the processor overlaps the long chains of single rows.
template <typename T>
struct Tile {
    std::array<T, kTile> mean{}, squares{};
};

template <typename T, bool padded>
inline void row_moments(const Columns<T>& k, const T* __restrict x, T& mean, T& squares) {
    const int64_t width = whole_packs(k.width);
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < width; ++j) sum += !padded || j < k.channels ? x[j] : T(0);
    const T center = sum * k.per_channel;
    T square = 0;
#pragma omp simd reduction(+ : square)
    for (int64_t j = 0; j < width; ++j) {
        const T d = !padded || j < k.channels ? x[j] - center : T(0);
        square += d * d;
    }
    mean = center;
    squares = square;
}

// x - center and D^-1/2 of one entry
template <typename T, Form form>
inline void entry(const Columns<T>& k, T x, T mean, T var, T row_mean, T row_squares, T& centered, T& inverse) {
    if (form == Form::kColumns) {
        centered = x - mean;
        inverse = var;
    } else if (form == Form::kPaper) {
        const T offset = k.a_channels * (row_mean - mean) - k.a * (x - mean);  // center - mean
        centered = (x - mean) - offset;
        const T row_offset = (row_mean - mean) - offset;
        const T sum = (k.n - 1) * var + k.n * offset * offset + row_squares + T(k.channels) * row_offset * row_offset -
                      centered * centered;
        inverse = T(1) / std::sqrt(std::max(k.a * sum, T(0)) + k.eps);  // rounding of an outlier's row may go below 0
    } else {
        centered = (x - mean) + k.a * x - k.a_channels * (row_mean - mean);
        inverse = T(1) / std::sqrt(var + row_squares * k.row_scale + k.eps);
    }
}

template <typename T, Form form, bool relu, bool padded>
void forward_tile(const Columns<T>& k, int64_t rows, const T* __restrict x, T* __restrict y) {
    const int64_t width = whole_packs(k.width), C = k.channels;
    const T *mean = k.mean.data(), *var = k.var.data(), *weight = k.weight.data(), *bias = k.bias.data();
    Tile<T> tile;
    if (form != Form::kColumns)
        for (int64_t i = 0; i < rows; ++i) row_moments<T, padded>(k, x + i * C, tile.mean[i], tile.squares[i]);
    for (int64_t i = 0; i < rows; ++i) {
        const T row_mean = tile.mean[i], row_squares = tile.squares[i];
        const T* __restrict xi = x + i * C;
        T* __restrict yi = y + i * C;
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) {
            T centered, inverse;
            entry<T, form>(k, xi[j], mean[j], var[j], row_mean, row_squares, centered, inverse);
            const T out = centered * inverse * weight[j] + bias[j];
            yi[j] = relu && out < 0 ? T(0) : out;  // not max: NaN stays
        }
    }
}

// Calls work(rows, x, dy, out) for each tile of a chunk. Padded rows are read and written past their end, into the
// next rows, which are written later; only a chunk's last rows need room behind them.
template <typename T, typename Work>
void for_tiles(const Columns<T>& k, int64_t begin, int64_t end, const T* x, const T* dy, T* out, const Work& work) {
    const int64_t C = k.channels, safe = C == k.width ? end : std::max(begin, end - whole_packs(k.width) / C);
    for (int64_t i = begin; i < safe; i += kTile) work(std::min(kTile, safe - i), x + i * C, dy + i * C, out + i * C);
    if (safe == end) return;
    const int64_t rest = (end - safe) * C;
    std::vector<T> x_rest(rest + k.width, T(0)), dy_rest(x_rest), out_rest(x_rest);
    std::copy_n(x + safe * C, rest, x_rest.data());
    std::copy_n(dy + safe * C, rest, dy_rest.data());
    for (int64_t i = 0; i < end - safe; i += kTile)
        work(std::min(kTile, end - safe - i), x_rest.data() + i * C, dy_rest.data() + i * C, out_rest.data() + i * C);
    std::copy_n(out_rest.data(), rest, out + safe * C);
}

template <typename T, Form form, bool relu>
void forward_rows(const Columns<T>& k, int64_t begin, int64_t end, const T* x, T* y) {
    const auto run = k.width == k.channels ? forward_tile<T, form, relu, false> : forward_tile<T, form, relu, true>;
    for_tiles(k, begin, end, x, x, y, [&](int64_t rows, const T* xs, const T*, T* ys) { run(k, rows, xs, ys); });
}

// Sums over rows for each column; float64 totals of blocks in the tensor's own precision.
template <typename T>
struct ColumnSums {
    enum { kWeight, kBias, kScaled, kVariance, kOffset, kCount };  // dy n, dy, g r, h, h (mean - center)
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

template <typename T, Form form, bool relu, bool padded>
void backward_tile(const Columns<T>& k, int64_t rows, const T* __restrict x, const T* __restrict dy, ColumnSums<T>& sums,
                   T* __restrict dx) {
    const int64_t width = whole_packs(k.width), C = k.channels;
    const T *mean = k.mean.data(), *var = k.var.data(), *weight = k.weight.data(), *bias = k.bias.data();
    T* __restrict weights = sums.of(sums.kWeight);
    T* __restrict biases = sums.of(sums.kBias);
    T* __restrict scaled = sums.of(sums.kScaled);
    T* __restrict variances = sums.of(sums.kVariance);
    T* __restrict offsets = sums.of(sums.kOffset);
    Tile<T> tile;
    if (form != Form::kColumns)
        for (int64_t i = 0; i < rows; ++i) row_moments<T, padded>(k, x + i * C, tile.mean[i], tile.squares[i]);
    for (int64_t i = 0; i < rows; ++i) {
        const T row_mean = tile.mean[i], row_squares = tile.squares[i];
        const T *__restrict xi = x + i * C, *__restrict dyi = dy + i * C;
        T* __restrict dxi = dx + i * C;
        T row_scaled = 0, row_variance = 0, row_offset = 0;
#pragma omp simd reduction(+ : row_scaled, row_variance, row_offset)
        for (int64_t j = 0; j < width; ++j) {
            const bool inside = !padded || j < C;
            T centered, inverse;
            entry<T, form>(k, xi[j], mean[j], var[j], row_mean, row_squares, centered, inverse);
            const T normalized = centered * inverse;
            T g = relu && normalized * weight[j] + bias[j] <= 0 ? T(0) : dyi[j];
            g = inside ? g : T(0);
            const T gr = inside ? g * weight[j] * inverse : T(0);  // the inverse of what lies there may be infinite
            weights[j] += g * normalized;
            biases[j] += g;
            T d = gr;
            if (form != Form::kColumns) {
                T h = T(-0.5) * gr * normalized * inverse;
                h = inside ? h : T(0);
                row_scaled += gr;
                row_variance += h;
                scaled[j] += gr;
                variances[j] += h;
                d += k.a * gr;
                if (form == Form::kPaper) {
                    const T center = xi[j] - centered;
                    row_offset += inside ? h * (row_mean - center) : T(0);
                    offsets[j] += h * (mean[j] - center);
                    d += k.a * gr * normalized * normalized;
                }
            }
            dxi[j] = d;
        }
        if (form == Form::kColumns) continue;
        const T through_mean = k.a * ((form == Form::kPaper ? 2 * row_offset : T(0)) - row_scaled);
        const T through_squares = 2 * row_variance * (form == Form::kPaper ? k.a : k.row_scale);
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) dxi[j] += through_mean + through_squares * (xi[j] - row_mean);
    }
}

template <typename T, Form form, bool relu>
void backward_rows(const Columns<T>& k, int64_t begin, int64_t end, const T* x, const T* dy, ColumnSums<T>& sums, T* dx) {
    const auto run = k.width == k.channels ? backward_tile<T, form, relu, false> : backward_tile<T, form, relu, true>;
    int64_t pending = 0;
    for_tiles(k, begin, end, x, dy, dx, [&](int64_t rows, const T* xs, const T* dys, T* dxs) {
        run(k, rows, xs, dys, sums, dxs);
        if ((pending += rows) >= kBlock) sums.flush(), pending = 0;
    });
    sums.flush();
}

// dx += from_mean + from_var (x - mean)
template <typename T>
void add_from_columns(int64_t begin, int64_t end, int64_t C, const T* __restrict x, const T* __restrict mean,
                      const T* __restrict from_mean, const T* __restrict from_var, T* __restrict dx) {
    for (int64_t i = begin; i < end; ++i) {
#pragma omp simd
        for (int64_t j = 0; j < C; ++j) dx[i * C + j] += from_mean[j] + from_var[j] * (x[i * C + j] - mean[j]);
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

// Sums of x - shift and of its square over a block of rows, a strip of columns at a time.
template <typename T>
void block_sums(const T* __restrict x, int64_t rows, int64_t C, T* __restrict sums, T* __restrict squares) {
    const T* __restrict shift = x;
    std::fill(sums, sums + C, T(0));
    std::fill(squares, squares + C, T(0));
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4) {
        const T *a = x + i * C, *b = a + C, *c = b + C, *d = c + C;
#pragma omp simd
        for (int64_t j = 0; j < C; ++j) {
            const T da = a[j] - shift[j], db = b[j] - shift[j], dc = c[j] - shift[j], dd = d[j] - shift[j];
            sums[j] += (da + db) + (dc + dd);
            squares[j] += (da * da + db * db) + (dc * dc + dd * dd);
        }
    }
    for (; i < rows; ++i) {
#pragma omp simd
        for (int64_t j = 0; j < C; ++j) {
            const T d = x[i * C + j] - shift[j];
            sums[j] += d;
            squares[j] += d * d;
        }
    }
}

template <typename T>
void column_moments(const T* x, int64_t begin, int64_t end, int64_t C, Moments& moments) {
    std::vector<T> sums(C), squares(C);
    std::vector<double> mean(C), deviations(C);
    for (int64_t start = begin; start < end; start += kBlock) {
        const int64_t rows = std::min(kBlock, end - start);
        const T* block = x + start * C;
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
Columns<T> prepare(Form form, const std::string& name, const Tensor& x, const std::optional<Tensor>& weight,
                   const std::optional<Tensor>& bias, double rows, const Tensor& mean, const Tensor& var, double eps) {
    Columns<T> k(form, x, rows, eps);
    const T *means = mean.const_data_ptr<T>(), *vars = var.const_data_ptr<T>();
    std::copy(means, means + k.channels, k.mean.begin());
    std::copy(vars, vars + k.channels, k.var.begin());
    if (name == "bn") {
        for (int64_t j = 0; j < k.channels; ++j) k.var[j] = T(1 / std::sqrt(vars[j] * ((rows - 1) / rows) + eps));
    } else if (name == "gn") {
        const Global g = global_moments(means, vars, rows, k.channels, eps);
        std::fill(k.mean.begin(), k.mean.end(), T(g.mean));
        std::fill(k.var.begin(), k.var.end(), T(1 / std::sqrt(g.variance)));
    }
    if (weight) std::copy_n(weight->contiguous().template const_data_ptr<T>(), k.channels, k.weight.begin());
    if (bias) std::copy_n(bias->contiguous().template const_data_ptr<T>(), k.channels, k.bias.begin());
    return k;
}

Form form_of(const std::string& name) {
    if (name == "released") return Form::kReleased;
    if (name == "paper") return Form::kPaper;
    TORCH_CHECK(name == "bn" || name == "gn", "unknown form ", name);
    return Form::kColumns;
}

template <typename T, bool relu>
auto forward_of(Form form) {
    if (form == Form::kReleased) return forward_rows<T, Form::kReleased, relu>;
    if (form == Form::kPaper) return forward_rows<T, Form::kPaper, relu>;
    return forward_rows<T, Form::kColumns, relu>;
}

template <typename T, bool relu>
auto backward_of(Form form) {
    if (form == Form::kReleased) return backward_rows<T, Form::kReleased, relu>;
    if (form == Form::kPaper) return backward_rows<T, Form::kPaper, relu>;
    return backward_rows<T, Form::kColumns, relu>;
}

// How the column sums reach x through the mean and the variance of each column: dL/dmean / N', 2 dL/dvar / (N' - 1).
template <typename T>
void through_columns(const std::string& form, const Columns<T>& k, const ColumnSums<T>& sums, const T* mean, const T* var,
                     int64_t batch_rows, std::vector<T>& from_mean, std::vector<T>& from_var) {
    const int64_t C = k.channels;
    const double N = k.rows;
    double through_center = 0, through_variance = 0;  // of gn, whose columns share both
    Global g{};
    if (form == "gn") {
        g = global_moments(mean, var, N, C, k.eps);
        for (int64_t j = 0; j < C; ++j) {
            through_center -= k.weight[j] * sums.sum(sums.kBias, j) / std::sqrt(g.variance);
            through_variance -= 0.5 * k.weight[j] * sums.sum(sums.kWeight, j) / g.variance;
        }
    }
    for (int64_t j = 0; j < C; ++j) {
        double d_mean, d_var;
        if (form == "released" || form == "paper") {
            const bool paper = form == "paper";
            d_mean = N / k.size * ((paper ? 2 * sums.sum(sums.kOffset, j) : 0.0) - sums.sum(sums.kScaled, j));
            d_var = sums.sum(sums.kVariance, j) * (paper ? (N - 1) / k.size : 1.0);
        } else if (form == "bn") {
            const double inverse = k.var[j];
            d_mean = -k.weight[j] * inverse * sums.sum(sums.kBias, j);
            d_var = -0.5 * k.weight[j] * inverse * inverse * sums.sum(sums.kWeight, j) * (N - 1) / N;
        } else {
            d_mean = through_center / C + through_variance * 2 * N * (mean[j] - g.mean) / g.degrees;
            d_var = through_variance * (N - 1) / g.degrees;
        }
        from_mean[j] = T(d_mean / batch_rows);
        from_var[j] = batch_rows > 1 ? T(2 * d_var / (batch_rows - 1)) : T(0);
    }
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
        const auto run = relu ? forward_of<scalar_t, true>(form_of(form)) : forward_of<scalar_t, false>(form_of(form));
        for_chunks(x.size(0), num_chunks(x), [&](int64_t, int64_t begin, int64_t end) {
            run(k, begin, end, x.const_data_ptr<scalar_t>(), y.mutable_data_ptr<scalar_t>());
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
        const auto run = relu ? backward_of<scalar_t, true>(form_of(form)) : backward_of<scalar_t, false>(form_of(form));
        std::vector<ColumnSums<scalar_t>> partial(chunks, ColumnSums<scalar_t>(k.width));
        const scalar_t *xs = x.const_data_ptr<scalar_t>(), *dys = dy.const_data_ptr<scalar_t>();
        scalar_t* dxs = dx.mutable_data_ptr<scalar_t>();
        for_chunks(N, chunks, [&](int64_t t, int64_t begin, int64_t end) {
            run(k, begin, end, xs, dys, partial[t], dxs);
        });
        ColumnSums<scalar_t>& sums = partial[0];
        for (int64_t t = 1; t < chunks; ++t)
            for (size_t i = 0; i < sums.total.size(); ++i) sums.total[i] += partial[t].total[i];
        for (int64_t j = 0; j < C; ++j) {
            dweight.mutable_data_ptr<scalar_t>()[j] = scalar_t(sums.sum(sums.kWeight, j));
            dbias.mutable_data_ptr<scalar_t>()[j] = scalar_t(sums.sum(sums.kBias, j));
        }
        if (!batch_mean) return;
        const Tensor own_mean = batch_mean->contiguous();
        std::vector<scalar_t> from_mean(C), from_var(C);
        through_columns(form, k, sums, mean.const_data_ptr<scalar_t>(), var.const_data_ptr<scalar_t>(), N, from_mean,
                        from_var);
        for_chunks(N, chunks, [&](int64_t, int64_t begin, int64_t end) {
            add_from_columns(begin, end, C, xs, own_mean.const_data_ptr<scalar_t>(), from_mean.data(), from_var.data(),
                             dxs);
        });
    });
    return {dx, dweight, dbias};
}

}  // namespace

// The schemas are in crossnorm_ns/kernels/operators.py.
TORCH_LIBRARY_IMPL(crossnorm_ns, CPU, m) {
    m.impl("column_statistics", &column_statistics);
    m.impl("normalize", &normalize);
    m.impl("normalize_backward", &normalize_backward);
}
