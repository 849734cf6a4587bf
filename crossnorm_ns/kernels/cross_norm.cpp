// Cross normalization on the CPU: column statistics in one pass over x, forward in another, backward in two over (x, dy).
//
// With a = 1 / size (size = N + C released, N + C - 1 paper), m and v the column mean and unbiased variance,
// p the row mean and q the row's sum of squared deviations, c the center and D the variance with eps:
//   released  c = m + a (C (p - m) - x)          D = v + q / (C - 1) + eps
//   paper     c = m + a (C (p - m) - (x - m))    D = a ((N - 1) v + N (m - c)^2 + q + C (p - c)^2 - (x - c)^2) + eps
//   y = (x - c) D^-1/2 weight + bias
// The plain twin is crossnorm_ns/functional/normalization.py.
#include <torch/extension.h>

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace {

constexpr int64_t kBlock = 64;  // rows whose sums are kept in the tensor's own precision before they join the total

template <typename T>
struct Column {
    const T* mean;
    const T* var;
    const T* weight;
};

struct Shape {
    int64_t rows, channels;
    double batch_rows;  // the N of the formula: that of the stored statistics, or of this batch
};

template <typename T, bool paper>
struct Constants {
    T a, channels, batch_rows, eps, row_scale, paper_scale;
    explicit Constants(const Shape& s, double eps_)
        : a(T(1 / (s.batch_rows + s.channels - (paper ? 1 : 0)))),
          channels(T(s.channels)),
          batch_rows(T(s.batch_rows)),
          eps(T(eps_)),
          row_scale(paper ? T(1) : T(1.0 / std::max<int64_t>(s.channels - 1, 1))),
          paper_scale(paper ? T(1) : T(0)) {}
};

template <typename T>
inline void row_moments(const T* x, int64_t channels, T& mean, T& squares) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < channels; ++j) sum += x[j];
    const T center = sum / T(channels);
    T square = 0;
#pragma omp simd reduction(+ : square)
    for (int64_t j = 0; j < channels; ++j) square += (x[j] - center) * (x[j] - center);
    mean = center;
    squares = square;
}

// x - center and D^-1/2 of one entry
template <typename T, bool paper>
inline void entry(const Constants<T, paper>& k, T x, T mean, T var, T row_mean, T row_squares, T& centered, T& inverse) {
    if (paper) {
        const T offset = k.a * (k.channels * (row_mean - mean) - (x - mean));  // center - mean
        centered = (x - mean) - offset;
        const T row_offset = (row_mean - mean) - offset;
        const T sum = (k.batch_rows - 1) * var + k.batch_rows * offset * offset + row_squares +
                      k.channels * row_offset * row_offset - centered * centered;
        inverse = T(1) / std::sqrt(std::max(k.a * sum, T(0)) + k.eps);  // rounding of an outlier's row may go below 0
    } else {
        centered = (x - mean) - k.a * (k.channels * (row_mean - mean) - x);
        inverse = T(1) / std::sqrt(var + row_squares * k.row_scale + k.eps);
    }
}

template <typename T, bool paper>
void forward_rows(const Shape& s, double eps, const T* x, Column<T> col, const T* bias, T* y) {
    const Constants<T, paper> k(s, eps);
    at::parallel_for(0, s.rows, kBlock, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const T* xi = x + i * s.channels;
            T* yi = y + i * s.channels;
            T row_mean, row_squares;
            row_moments(xi, s.channels, row_mean, row_squares);
#pragma omp simd
            for (int64_t j = 0; j < s.channels; ++j) {
                T centered, inverse;
                entry<T, paper>(k, xi[j], col.mean[j], col.var[j], row_mean, row_squares, centered, inverse);
                yi[j] = centered * inverse * col.weight[j] + bias[j];
            }
        }
    });
}

// Sums over the rows of what backward needs of each column; float64 totals of blocks in the tensor's own precision.
template <typename T>
struct ColumnSums {
    enum { kScaled, kVariance, kOffset, kWeight, kBias, kCount };
    int64_t channels;
    std::vector<T> block;
    std::vector<double> total;
    explicit ColumnSums(int64_t c) : channels(c), block(kCount * c, T(0)), total(kCount * c, 0.0) {}
    T* at(int which) { return block.data() + which * channels; }
    void flush() {
        for (size_t i = 0; i < block.size(); ++i) {
            total[i] += block[i];
            block[i] = 0;
        }
    }
};

template <typename T, bool paper>
void backward_rows(const Shape& s, double eps, const T* x, const T* dy, Column<T> col, const T* batch_mean, T* dx,
                   T* dweight, T* dbias) {
    const Constants<T, paper> k(s, eps);
    const int64_t C = s.channels;
    const int64_t chunks = std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), s.rows / kBlock));
    const int64_t chunk = (s.rows + chunks - 1) / chunks;
    std::vector<ColumnSums<T>> partial(chunks, ColumnSums<T>(C));
    struct Row {
        T mean, squares, scaled, variance, offset;  // moments, and the sums of g r, of h and of h (mean - center)
    };
    std::vector<Row> row(s.rows);

    at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
        for (int64_t t = first; t < last; ++t) {
            ColumnSums<T>& sums = partial[t];
            T *scaled = sums.at(sums.kScaled), *variance = sums.at(sums.kVariance), *offsets = sums.at(sums.kOffset),
              *weights = sums.at(sums.kWeight), *biases = sums.at(sums.kBias);
            const int64_t end = std::min(s.rows, (t + 1) * chunk);
            for (int64_t i = t * chunk; i < end; ++i) {
                const T *xi = x + i * C, *dyi = dy + i * C;
                T row_mean, row_squares;
                row_moments(xi, C, row_mean, row_squares);
                T row_scaled = 0, row_variance = 0, row_offset = 0;
#pragma omp simd reduction(+ : row_scaled, row_variance, row_offset)
                for (int64_t j = 0; j < C; ++j) {
                    T centered, inverse;
                    entry<T, paper>(k, xi[j], col.mean[j], col.var[j], row_mean, row_squares, centered, inverse);
                    const T normalized = centered * inverse;
                    const T gr = dyi[j] * col.weight[j] * inverse;
                    const T h = T(-0.5) * gr * normalized * inverse;
                    row_scaled += gr;
                    row_variance += h;
                    scaled[j] += gr;
                    variance[j] += h;
                    if (paper) {
                        const T center = xi[j] - centered;
                        row_offset += h * (row_mean - center);
                        offsets[j] += h * (col.mean[j] - center);
                    }
                    weights[j] += dyi[j] * normalized;
                    biases[j] += dyi[j];
                }
                row[i] = {row_mean, row_squares, row_scaled, row_variance, row_offset};
                if ((i + 1) % kBlock == 0) sums.flush();
            }
            sums.flush();
        }
    });

    std::vector<double> total(ColumnSums<T>::kCount * C, 0.0);
    for (const auto& sums : partial)
        for (size_t i = 0; i < total.size(); ++i) total[i] += sums.total[i];

    // dx += from_mean + from_var (x - batch_mean): what flows through the column statistics of the batch
    std::vector<T> from_mean(C, T(0)), from_var(C, T(0));
    for (int64_t j = 0; j < C; ++j) {
        dweight[j] = T(total[ColumnSums<T>::kWeight * C + j]);
        dbias[j] = T(total[ColumnSums<T>::kBias * C + j]);
        if (batch_mean == nullptr) continue;
        const double size = s.batch_rows + C - (paper ? 1 : 0);
        const double mean_share = s.batch_rows / size / s.rows;
        from_mean[j] = T(mean_share * (-total[ColumnSums<T>::kScaled * C + j] +
                                       (paper ? 2 * total[ColumnSums<T>::kOffset * C + j] : 0.0)));
        const double var_share = paper ? (s.batch_rows - 1) / size : 1.0;
        if (s.rows > 1) from_var[j] = T(2 * var_share * total[ColumnSums<T>::kVariance * C + j] / (s.rows - 1));
    }

    at::parallel_for(0, s.rows, kBlock, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const T *xi = x + i * C, *dyi = dy + i * C;
            T* dxi = dx + i * C;
            const Row& r = row[i];
            const T through_mean = k.a * (T(2) * k.paper_scale * r.offset - r.scaled);
            const T through_squares = T(2) * r.variance * (paper ? k.a : k.row_scale);
#pragma omp simd
            for (int64_t j = 0; j < C; ++j) {
                T centered, inverse;
                entry<T, paper>(k, xi[j], col.mean[j], col.var[j], r.mean, r.squares, centered, inverse);
                const T gr = dyi[j] * col.weight[j] * inverse;
                T d = gr + k.a * gr + through_mean + through_squares * (xi[j] - r.mean);
                if (paper) d += k.a * gr * centered * centered * inverse * inverse;
                if (batch_mean != nullptr) d += from_mean[j] + from_var[j] * (xi[j] - batch_mean[j]);
                dxi[j] = d;
            }
        }
    });
}

// Mean and unbiased variance of each column in one pass: sums of blocks about the block's first row, merged by Chan.
template <typename T>
void column_moments(int64_t rows, int64_t C, const T* x, T* mean, T* var) {
    const int64_t chunks = std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), rows / kBlock));
    const int64_t chunk = (rows + chunks - 1) / chunks;
    std::vector<std::vector<double>> means(chunks, std::vector<double>(C, 0.0)), squares(means);
    std::vector<double> counts(chunks, 0.0);
    auto merge = [](double& n, double& m, double& q, double count, double other_mean, double other_squares) {
        const double sum = n + count, difference = other_mean - m;
        m += difference * (count / sum);
        q += other_squares + difference * difference * (n * count / sum);
    };
    at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
        std::vector<T> s1(C), s2(C);
        for (int64_t t = first; t < last; ++t) {
            const int64_t stop = std::min(rows, (t + 1) * chunk);
            for (int64_t start = t * chunk; start < stop; start += kBlock) {
                const int64_t end = std::min(stop, start + kBlock);
                const T* shift = x + start * C;
                std::fill(s1.begin(), s1.end(), T(0));
                std::fill(s2.begin(), s2.end(), T(0));
                for (int64_t i = start + 1; i < end; ++i) {
                    const T* xi = x + i * C;
                    T *sum = s1.data(), *square = s2.data();
#pragma omp simd
                    for (int64_t j = 0; j < C; ++j) {
                        const T d = xi[j] - shift[j];
                        sum[j] += d;
                        square[j] += d * d;
                    }
                }
                const double count = double(end - start);
                for (int64_t j = 0; j < C; ++j) {
                    const double block_mean = shift[j] + s1[j] / count;
                    double n = counts[t];
                    merge(n, means[t][j], squares[t][j], count, block_mean, s2[j] - double(s1[j]) * s1[j] / count);
                }
                counts[t] += count;
            }
        }
    });
    double n = 0;
    std::vector<double> m(C, 0.0), q(C, 0.0);
    for (int64_t t = 0; t < chunks; ++t) {
        if (counts[t] == 0) continue;
        for (int64_t j = 0; j < C; ++j) merge(n, m[j], q[j], counts[t], means[t][j], squares[t][j]);
        n += counts[t];
    }
    for (int64_t j = 0; j < C; ++j) {
        mean[j] = T(m[j]);
        var[j] = T(std::max(q[j], 0.0) / std::max(n - 1, 1.0));
    }
}

torch::Tensor or_constant(const std::optional<torch::Tensor>& given, const torch::Tensor& x, double value) {
    return given ? given->contiguous() : torch::full({x.size(1)}, value, x.options());
}

}  // namespace

std::vector<torch::Tensor> column_statistics(torch::Tensor x) {
    x = x.contiguous();
    auto mean = torch::empty({x.size(1)}, x.options()), var = torch::empty_like(mean);
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "column_statistics", [&] {
        column_moments<scalar_t>(x.size(0), x.size(1), x.data_ptr<scalar_t>(), mean.data_ptr<scalar_t>(),
                                 var.data_ptr<scalar_t>());
    });
    return {mean, var};
}

torch::Tensor forward(torch::Tensor x, std::optional<torch::Tensor> weight, std::optional<torch::Tensor> bias,
                      double batch_rows, torch::Tensor mean, torch::Tensor var, bool paper, double eps) {
    x = x.contiguous(), mean = mean.contiguous(), var = var.contiguous();
    const auto w = or_constant(weight, x, 1), b = or_constant(bias, x, 0);
    auto y = torch::empty_like(x);
    const Shape shape{x.size(0), x.size(1), batch_rows};
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "cross_norm_forward", [&] {
        const Column<scalar_t> col{mean.data_ptr<scalar_t>(), var.data_ptr<scalar_t>(), w.data_ptr<scalar_t>()};
        auto run = paper ? forward_rows<scalar_t, true> : forward_rows<scalar_t, false>;
        run(shape, eps, x.data_ptr<scalar_t>(), col, b.data_ptr<scalar_t>(), y.data_ptr<scalar_t>());
    });
    return y;
}

std::vector<torch::Tensor> backward(torch::Tensor dy, torch::Tensor x, std::optional<torch::Tensor> weight,
                                    double batch_rows, torch::Tensor mean, torch::Tensor var,
                                    std::optional<torch::Tensor> batch_mean, bool paper, double eps) {
    x = x.contiguous(), dy = dy.contiguous(), mean = mean.contiguous(), var = var.contiguous();
    const auto w = or_constant(weight, x, 1);
    const auto own_mean = batch_mean ? batch_mean->contiguous() : torch::Tensor();
    auto dx = torch::empty_like(x), dweight = torch::empty_like(mean), dbias = torch::empty_like(mean);
    const Shape shape{x.size(0), x.size(1), batch_rows};
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "cross_norm_backward", [&] {
        const Column<scalar_t> col{mean.data_ptr<scalar_t>(), var.data_ptr<scalar_t>(), w.data_ptr<scalar_t>()};
        auto run = paper ? backward_rows<scalar_t, true> : backward_rows<scalar_t, false>;
        run(shape, eps, x.data_ptr<scalar_t>(), dy.data_ptr<scalar_t>(), col,
            batch_mean ? own_mean.data_ptr<scalar_t>() : nullptr, dx.data_ptr<scalar_t>(),
            dweight.data_ptr<scalar_t>(), dbias.data_ptr<scalar_t>());
    });
    return {dx, dweight, dbias};
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
    m.def("column_statistics", &column_statistics);
    m.def("forward", &forward);
    m.def("backward", &backward);
}
