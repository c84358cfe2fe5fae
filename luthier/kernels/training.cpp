// Work of a transformer block on processors. Elementwise, one pass over memory each: RMS norm, gated activation, rotary
// positions, causal softmax, cross-entropy, dropout. And attention of short sequences, whole. Every function exists for
// float and for bfloat16 (stored as 16 bits, computed in float). Rows are independent and shared among threads.
// In: raw pointers, rows contiguous unless a stride is given. The plain versions are in the .py files beside this one.

#include "native.h"

namespace {

constexpr int64_t WORTH_SHARING = 16384;  // values below which starting threads costs more than it saves

template <class T>
void rms_norm(const T* x, const T* weight, T* out, float* scale, int64_t rows, int64_t width, float epsilon, float offset) {
#pragma omp parallel for if (rows * width > WORTH_SHARING)
    for (int64_t row = 0; row < rows; ++row)
        scale[row] = rms_norm_row(x + row * width, weight, out + row * width, width, epsilon, offset);
}

template <class T>
void rms_norm_backward(const T* gradient, const T* x, const T* weight, const float* scale, T* out, int64_t rows,
                       int64_t width, float offset) {
#pragma omp parallel for if (rows * width > WORTH_SHARING)
    for (int64_t row = 0; row < rows; ++row) {
        const T* g = gradient + row * width;
        const T* from = x + row * width;
        T* to = out + row * width;
        float r = scale[row], sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < width; ++i) sum += load(g + i) * (offset + load(weight + i)) * load(from + i);
        float along = r * r * r * sum / width;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i)
            store(to + i, load(g + i) * (offset + load(weight + i)) * r - load(from + i) * along);
    }
}

template <class T, class Activation>
void gated(const T* gate_up, T* out, int64_t rows, int64_t width) {
#pragma omp parallel for if (rows * width > WORTH_SHARING)
    for (int64_t row = 0; row < rows; ++row)
        gated_row<T, Activation>(gate_up + row * 2 * width, out + row * width, width);
}

template <class T, class Activation>
void gated_backward(const T* gradient, const T* gate_up, T* out, int64_t rows, int64_t width) {
#pragma omp parallel for if (rows * width > WORTH_SHARING)
    for (int64_t row = 0; row < rows; ++row) {
        const T* g = gradient + row * width;
        const T* gate = gate_up + row * 2 * width;
        const T* up = gate + width;
        T* gate_to = out + row * 2 * width;
        T* up_to = gate_to + width;
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) {
            float d = load(g + i), x = load(gate + i);
            store(gate_to + i, d * load(up + i) * Activation::slope(x));
            store(up_to + i, d * Activation::value(x));
        }
    }
}

template <class T>
void rotate(T* x, const T* cosine, const T* sine, int64_t rows, int64_t stride, int64_t heads, int64_t width,
            float direction) {
#pragma omp parallel for if (rows * heads * width > WORTH_SHARING)
    for (int64_t row = 0; row < rows; ++row)
        rotate_row(x + row * stride, cosine + row * width, sine + row * width, heads, width, direction);
}

// Softmax over the keys that each query may see, in place; the others become 0. scores [matrices, queries, keys];
// query i stands at key i + offset; offset -1 for attention in both directions.
template <class T>
void causal_softmax(T* scores, int64_t matrices, int64_t queries, int64_t keys, float scale, int64_t offset,
                    int64_t window) {
#pragma omp parallel for if (matrices * queries * keys > WORTH_SHARING)
    for (int64_t index = 0; index < matrices * queries; ++index) {
        T* row = scores + index * keys;
        int64_t first, last;
        visible(offset < 0 ? -1 : index % queries + offset, keys, window, first, last);
        float largest = -INFINITY, sum = 0.0f;
#pragma omp simd reduction(max : largest)
        for (int64_t i = first; i < last; ++i) { float v = load(row + i); largest = v > largest ? v : largest; }
        if (sizeof(T) == 4) {
#pragma omp simd reduction(+ : sum)
            for (int64_t i = first; i < last; ++i) {
                float v = exponential((load(row + i) - largest) * scale);
                store(row + i, v);
                sum += v;
            }
            float share = 1.0f / sum;
#pragma omp simd
            for (int64_t i = first; i < last; ++i) store(row + i, load(row + i) * share);
        } else {  // rounding twice would lose half of the few bits there are
#pragma omp simd reduction(+ : sum)
            for (int64_t i = first; i < last; ++i) sum += exponential((load(row + i) - largest) * scale);
            float share = 1.0f / sum;
#pragma omp simd
            for (int64_t i = first; i < last; ++i)
                store(row + i, exponential((load(row + i) - largest) * scale) * share);
        }
        for (int64_t i = 0; i < first; ++i) store(row + i, 0.0f);
        for (int64_t i = last; i < keys; ++i) store(row + i, 0.0f);
    }
}

// In place: gradient of the softmax's input from that of its output, times the scale.
template <class T>
void causal_softmax_backward(T* gradient, const T* probabilities, int64_t matrices, int64_t queries, int64_t keys,
                             float scale, int64_t offset, int64_t window) {
#pragma omp parallel for if (matrices * queries * keys > WORTH_SHARING)
    for (int64_t index = 0; index < matrices * queries; ++index) {
        T* g = gradient + index * keys;
        const T* p = probabilities + index * keys;
        int64_t first, last;
        visible(offset < 0 ? -1 : index % queries + offset, keys, window, first, last);
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = first; i < last; ++i) sum += load(g + i) * load(p + i);
#pragma omp simd
        for (int64_t i = first; i < last; ++i) store(g + i, load(p + i) * (load(g + i) - sum) * scale);
        for (int64_t i = 0; i < first; ++i) store(g + i, 0.0f);
        for (int64_t i = last; i < keys; ++i) store(g + i, 0.0f);
    }
}

// Cross-entropy of each row against its target, times the row's weight; the scores become its gradient, in place.
template <class T>
void cross_entropy(T* scores, const int64_t* target, const float* weight, float* loss, int64_t rows, int64_t classes) {
#pragma omp parallel for if (rows * classes > WORTH_SHARING)
    for (int64_t row = 0; row < rows; ++row) {
        T* s = scores + row * classes;
        float largest = -INFINITY, sum = 0.0f, of_target = load(s + target[row]);
#pragma omp simd reduction(max : largest)
        for (int64_t i = 0; i < classes; ++i) { float v = load(s + i); largest = v > largest ? v : largest; }
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < classes; ++i) sum += exponential(load(s + i) - largest);
        loss[row] = (std::log(sum) + largest - of_target) * weight[row];
        float share = weight[row] / sum;
#pragma omp simd
        for (int64_t i = 0; i < classes; ++i) store(s + i, exponential(load(s + i) - largest) * share);
        float probability = std::exp(of_target - largest) / sum;
        store(s + target[row], (probability - 1.0f) * weight[row]);
    }
}

constexpr uint64_t SPREAD = 0xD1342543DE82EF95ull;  // sets the seeds of neighbours far apart

// What dropout multiplies the value at a place with: 0 or the scale, the same for the same seed and place. A hash of 32
// bits (hash prospector's 16 21f0aaad 15 d35a2d97 15), because processors have no quick product of 64; the seed's halves
// go in before either product.
struct Coin {
    uint32_t low, high;
    int32_t below;  // of 2^24
    float scale;
    Coin(uint64_t seed, float share)
        : low(static_cast<uint32_t>(seed)), high(static_cast<uint32_t>(seed >> 32)),
          below(static_cast<int32_t>(share * 16777216.0f)), scale(1.0f / (1.0f - share)) {}
    float factor(uint32_t place) const {
        uint32_t x = place * 0x9E3779B9u + low;
        x = (x ^ (x >> 16)) * 0x21F0AAADu;
        x = ((x ^ (x >> 15)) + high) * 0xD35A2D97u;
        x ^= x >> 15;
        return static_cast<int32_t>(x >> 8) < below ? 0.0f : scale;
    }
};

// Zeroes a share of the values, and divides the others by what is left. Its own backward pass, with the same seed.
template <class T>
void dropout(const T* x, T* out, int64_t count, float share, int64_t seed) {
    constexpr int64_t PART = 4096;
#pragma omp parallel for if (count > WORTH_SHARING)
    for (int64_t part = 0; part < (count + PART - 1) / PART; ++part) {
        Coin coin(static_cast<uint64_t>(seed) + part * SPREAD, share);
        const T* from = x + part * PART;
        T* to = out + part * PART;
        int32_t size = static_cast<int32_t>(count - part * PART < PART ? count - part * PART : PART);
#pragma omp simd
        for (int32_t i = 0; i < size; ++i) store(to + i, load(from + i) * coin.factor(i));
    }
}

// Where the heads of a sequence lie: value i of head h of token t is at token * t + head * h + i.
template <class T>
struct Heads {
    T* at;
    int64_t token, head;
    T* row(int64_t t, int64_t h) const { return at + t * token + h * head; }
};

struct Short {
    int64_t length, width;
    float scale;
    int64_t causal, window;
    float share;    // of attention that is dropped
    uint64_t seed;  // of this sequence and head
};

template <class T>
void fetch(const Heads<const T>& from, int64_t start, int64_t h, int64_t length, int64_t width, const Matrix& to) {
    for (int64_t t = 0; t < length; ++t) {
        const T* row = from.row(start + t, h);
        float* target = to.at + t * to.row;
        if (to.column == 1) {
            int64_t i = 0;
            for (; i < width; ++i) target[i] = load(row + i);
            for (; i < to.row; ++i) target[i] = 0.0f;
        } else {
            for (int64_t i = 0; i < width; ++i) target[i * to.column] = load(row + i);
        }
    }
}

template <class T>
void bring(const Matrix& from, int64_t length, int64_t width, T* to, int64_t step) {
    for (int64_t t = 0; t < length; ++t)
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) store(to + t * step + i, from.at[t * from.row + i]);
}

// Probabilities [length, length] from queries [length, width] and keys turned [width, length].
inline void probabilities(const Short& s, const Matrix& query, const Matrix& keys, const Matrix& out) {
    multiply(query, keys, out, s.length, s.width, padded(s.length), s.causal ? Skip::later_out : Skip::nothing);
    for (int64_t i = 0; i < s.length; ++i) {
        float* row = out.at + i * out.row;
        int64_t first, last;
        visible(s.causal ? i : -1, s.length, s.window, first, last);
        float largest = -INFINITY, sum = 0.0f;
#pragma omp simd reduction(max : largest)
        for (int64_t j = first; j < last; ++j) largest = row[j] > largest ? row[j] : largest;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = first; j < last; ++j) {
            row[j] = exponential((row[j] - largest) * s.scale);
            sum += row[j];
        }
        float part = 1.0f / sum;
        for (int64_t j = 0; j < first; ++j) row[j] = 0.0f;
#pragma omp simd
        for (int64_t j = first; j < last; ++j) row[j] *= part;
        for (int64_t j = last; j < out.row; ++j) row[j] = 0.0f;
    }
}

// Drops the same places of one matrix or two.
inline void drop(const Short& s, float* values, float* also, int64_t row) {
    Coin coin(s.seed, s.share);
    for (int64_t i = 0; i < s.length; ++i) {
        uint32_t place = static_cast<uint32_t>(i * row);
        int32_t end = static_cast<int32_t>(s.causal ? i + 1 : s.length);
        float *one = values + i * row, *other = also + i * row;
        if (also == nullptr) {
#pragma omp simd
            for (int32_t j = 0; j < end; ++j) one[j] *= coin.factor(place + j);
        } else {
#pragma omp simd
            for (int32_t j = 0; j < end; ++j) {
                float factor = coin.factor(place + j);
                one[j] *= factor;
                other[j] *= factor;
            }
        }
    }
}

// Attention of `count` short sequences, whole: query [tokens, heads, width], key and value with `key_heads` heads, each
// sequence at starts[e] with lengths[e] tokens. Writes out [tokens, heads, width]. The backward pass forms the
// probabilities again, and the same ones are dropped again.
template <class T>
void short_attention(const T* query, int64_t query_token, int64_t query_head, const T* key, int64_t key_token,
                     int64_t key_head, const T* value, int64_t value_token, int64_t value_head, T* out,
                     const int64_t* starts, const int64_t* lengths, int64_t count, int64_t heads, int64_t key_heads,
                     int64_t width, float scale, int64_t causal, int64_t window, float share, int64_t seed) {
    Heads<const T> q{query, query_token, query_head}, k{key, key_token, key_head}, v{value, value_token, value_head};
#pragma omp parallel
    {
        std::vector<float> room;
#pragma omp for schedule(dynamic, 8)
        for (int64_t index = 0; index < count * heads; ++index) {
            int64_t e = index / heads, h = index % heads, shared = h / (heads / key_heads), n = lengths[e];
            int64_t wide = padded(width), across = padded(n);
            Short s{n, width, scale, causal, window, share, static_cast<uint64_t>(seed) + index * SPREAD};
            size_t need = static_cast<size_t>(3 * n * wide + (width + n) * across);
            if (room.size() < need) room.resize(need);
            Matrix a{room.data(), wide, 1}, b{a.at + n * wide, wide, 1}, to{b.at + n * wide, wide, 1};
            Matrix keys{to.at + n * wide, across, 1}, p{keys.at + width * across, across, 1};
            fetch(q, starts[e], h, n, width, a);
            fetch(k, starts[e], shared, n, width, keys.turned());
            fetch(v, starts[e], shared, n, width, b);
            probabilities(s, a, keys, p);
            if (share > 0.0f) drop(s, p.at, nullptr, p.row);
            multiply(p, b, to, n, n, wide, causal ? Skip::later_left : Skip::nothing);
            bring(to, n, width, out + (starts[e] * heads + h) * width, heads * width);
        }
    }
}

template <class T>
void short_attention_backward(const T* gradient, const T* query, int64_t query_token, int64_t query_head, const T* key,
                              int64_t key_token, int64_t key_head, const T* value, int64_t value_token,
                              int64_t value_head, T* for_query, int64_t for_query_token, T* for_key,
                              int64_t for_key_token, T* for_value, int64_t for_value_token, const int64_t* starts,
                              const int64_t* lengths, int64_t count, int64_t heads, int64_t key_heads, int64_t width,
                              float scale, int64_t causal, int64_t window, float share, int64_t seed) {
    Heads<const T> q{query, query_token, query_head}, k{key, key_token, key_head}, v{value, value_token, value_head},
        g{gradient, heads * width, width};
    int64_t repeats = heads / key_heads;
#pragma omp parallel
    {
        std::vector<float> room;
#pragma omp for schedule(dynamic, 8)
        for (int64_t index = 0; index < count * key_heads; ++index) {
            int64_t e = index / key_heads, shared = index % key_heads, n = lengths[e];
            int64_t wide = padded(width), across = padded(n);
            size_t need = static_cast<size_t>(6 * n * wide + (2 * width + 3 * n) * across);
            if (room.size() < need) room.resize(need);
            Matrix a{room.data(), wide, 1}, b{a.at + n * wide, wide, 1}, of_out{b.at + n * wide, wide, 1};
            Matrix to_query{of_out.at + n * wide, wide, 1}, to_key{to_query.at + n * wide, wide, 1};
            Matrix to_value{to_key.at + n * wide, wide, 1}, keys{to_value.at + n * wide, across, 1};
            Matrix values{keys.at + width * across, across, 1}, p{values.at + width * across, across, 1};
            Matrix used{p.at + n * across, across, 1}, of_p{used.at + n * across, across, 1};
            fetch(k, starts[e], shared, n, width, keys.turned());
            fetch(k, starts[e], shared, n, width, b);
            fetch(v, starts[e], shared, n, width, values.turned());
            for (int64_t h = shared * repeats; h < (shared + 1) * repeats; ++h) {
                uint64_t own = static_cast<uint64_t>(e * heads + h) * SPREAD;
                Short s{n, width, scale, causal, window, share, static_cast<uint64_t>(seed) + own};
                bool more = h > shared * repeats;
                fetch(q, starts[e], h, n, width, a);
                fetch(g, starts[e], h, n, width, of_out);
                probabilities(s, a, keys, p);
                std::memcpy(used.at, p.at, static_cast<size_t>(n * across) * sizeof(float));
                multiply(of_out, values, of_p, n, width, across, causal ? Skip::later_out : Skip::nothing);
                if (share > 0.0f) drop(s, used.at, of_p.at, across);
                multiply(used.turned(), of_out, to_value, n, n, wide, causal ? Skip::earlier_left : Skip::nothing, more);
                for (int64_t i = 0; i < n; ++i) {
                    float sum = 0.0f;
                    float *row = of_p.at + i * across, *chance = p.at + i * across;
                    int64_t end = causal ? i + 1 : n;
#pragma omp simd reduction(+ : sum)
                    for (int64_t j = 0; j < end; ++j) sum += row[j] * chance[j];
#pragma omp simd
                    for (int64_t j = 0; j < end; ++j) row[j] = chance[j] * (row[j] - sum) * scale;
                    for (int64_t j = end; j < across; ++j) row[j] = 0.0f;
                }
                multiply(of_p, b, to_query, n, n, wide, causal ? Skip::later_left : Skip::nothing);
                multiply(of_p.turned(), a, to_key, n, n, wide, causal ? Skip::earlier_left : Skip::nothing, more);
                bring(to_query, n, width, for_query + starts[e] * for_query_token + h * width, for_query_token);
            }
            bring(to_key, n, width, for_key + starts[e] * for_key_token + shared * width, for_key_token);
            bring(to_value, n, width, for_value + starts[e] * for_value_token + shared * width, for_value_token);
        }
    }
}

// The sum of the squares of each stretch of each tensor, one after another.
constexpr int64_t STRETCH = 4096;
template <class T>
struct Numbers {
    const T* at;
    int64_t count;
};
template <class T>
void squares(const Numbers<T>* tensors, float* out, int64_t count) {
#pragma omp parallel
    {
        float* sums = out;
        for (int64_t t = 0; t < count; ++t) {
            const Numbers<T>& x = tensors[t];
            int64_t stretches = (x.count + STRETCH - 1) / STRETCH;
#pragma omp for schedule(dynamic) nowait
            for (int64_t stretch = 0; stretch < stretches; ++stretch) {
                const T* values = x.at + stretch * STRETCH;
                int64_t left = x.count - stretch * STRETCH, size = left < STRETCH ? left : STRETCH;
                float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
                for (int64_t i = 0; i < size; ++i) sum += load(values + i) * load(values + i);
                sums[stretch] = sum;
            }
            sums += stretches;
        }
    }
}

// One step of AdamW on moments of 32 bits; the plain version is in adamw.py.
template <class T>
struct Moved {
    float* weight;
    const T* gradient;
    float *mean, *square;
    bfloat16* rounded;  // takes the weight's values, where there is one
    int64_t count;
};
struct Size {
    float step, corrected;
};
template <class T>
void adamw(const Moved<T>* tensors, const Size* sizes, int64_t count, float decay, float beta1, float beta2,
           float epsilon, float divide) {
#pragma omp parallel
    for (int64_t t = 0; t < count; ++t) {
        const Moved<T>& x = tensors[t];
        float step = sizes[t].step, corrected = sizes[t].corrected;
#pragma omp for schedule(dynamic) nowait
        for (int64_t stretch = 0; stretch < (x.count + STRETCH - 1) / STRETCH; ++stretch) {
            int64_t first = stretch * STRETCH, end = x.count < first + STRETCH ? x.count : first + STRETCH;
#pragma omp simd
            for (int64_t i = first; i < end; ++i) {
                float g = load(x.gradient + i) / divide;
                float mean = x.mean[i] + (1.0f - beta1) * (g - x.mean[i]);
                float square = x.square[i] * beta2 + (1.0f - beta2) * g * g;
                x.mean[i] = mean;
                x.square[i] = square;
                x.weight[i] = x.weight[i] * decay - step * mean / (std::sqrt(square) / corrected + epsilon);
            }
            if (x.rounded != nullptr) {
#pragma omp simd
                for (int64_t i = first; i < end; ++i) store(x.rounded + i, x.weight[i]);
            }
        }
    }
}

// A block of AdamW's moments, each the level of its code times the block's scale.
constexpr int64_t MOMENTS = 256;
struct Levels {
    const float *levels, *borders;  // 256 ascending; the 255 between them, and infinity
    const uint8_t* below;           // of numbers whose upper bits are alike, the borders below all of them
    void widen(const uint8_t* codes, float scale, int64_t count, float* out) const {
        for (int64_t i = 0; i < count; ++i) out[i] = levels[codes[i]] * scale;
    }
    // Codes of a block; returns its scale. A code is the number of borders that lie below.
    float narrow(const float* numbers, int64_t count, uint8_t* codes) const {
        float scale = 0.0f;
#pragma omp simd reduction(max : scale)
        for (int64_t i = 0; i < count; ++i) scale = std::fabs(numbers[i]) > scale ? std::fabs(numbers[i]) : scale;
        float by = scale > 1.17549435e-38f ? scale : 1.17549435e-38f, shares[MOMENTS];
        int32_t places[MOMENTS];
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) {
            float share = numbers[i] / by;
            int32_t bits;
            std::memcpy(&bits, &share, 4);
            int32_t upper = ((bits & 0x7fffffff) >> 15) - LOWEST;
            places[i] = (upper < 0 ? 0 : upper) + (bits < 0 ? ALIKE : 0);
            shares[i] = share;
        }
        for (int64_t i = 0; i < count; ++i) {
            uint8_t least = below[places[i]];
            codes[i] = static_cast<uint8_t>(least + (borders[least] < shares[i]));  // one border at most lies among them
        }
        return scale;
    }
    static constexpr int32_t LOWEST = 102 << 8, ALIKE = (25 << 8) + 1;  // from 2^-25 up to 1: sign, exponent, 8 bits
};

// One step of AdamW on moments of 8 bits; the plain version is in adamw_8bit.py.
void adamw_8bit(float* weight, const float* gradient, uint8_t* mean_codes, float* mean_scales, uint8_t* root_codes,
                float* root_scales, Levels of_mean, Levels of_root, int64_t count, float step_size, float decay,
                float beta1, float beta2, float epsilon, float corrected, float divide) {
#pragma omp parallel for if (count > WORTH_SHARING)
    for (int64_t block = 0; block < (count + MOMENTS - 1) / MOMENTS; ++block) {
        int64_t first = block * MOMENTS, size = count - first < MOMENTS ? count - first : MOMENTS;
        float mean[MOMENTS], root[MOMENTS];
        of_mean.widen(mean_codes + first, mean_scales[block], size, mean);
        of_root.widen(root_codes + first, root_scales[block], size, root);
        float* w = weight + first;
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) {
            float g = gradient[first + i] / divide;
            mean[i] += (1.0f - beta1) * (g - mean[i]);
            root[i] = std::sqrt(root[i] * root[i] * beta2 + (1.0f - beta2) * g * g);
            w[i] = w[i] * decay - step_size * mean[i] / (root[i] / corrected + epsilon);
        }
        mean_scales[block] = of_mean.narrow(mean, size, mean_codes + first);
        root_scales[block] = of_root.narrow(root, size, root_codes + first);
    }
}

}  // namespace

#define EXPORT(TYPE, SUFFIX)                                                                                           \
    extern "C" void rms_norm_##SUFFIX(const TYPE* x, const TYPE* weight, TYPE* out, float* scale, int64_t rows,        \
                                      int64_t width, float epsilon, float offset) {                                    \
        rms_norm(x, weight, out, scale, rows, width, epsilon, offset);                                                 \
    }                                                                                                                  \
    extern "C" void rms_norm_backward_##SUFFIX(const TYPE* gradient, const TYPE* x, const TYPE* weight,                \
                                               const float* scale, TYPE* out, int64_t rows, int64_t width,             \
                                               float offset) {                                                         \
        rms_norm_backward(gradient, x, weight, scale, out, rows, width, offset);                                       \
    }                                                                                                                  \
    extern "C" void silu_##SUFFIX(const TYPE* gate_up, TYPE* out, int64_t rows, int64_t width) {                       \
        gated<TYPE, Silu>(gate_up, out, rows, width);                                                                  \
    }                                                                                                                  \
    extern "C" void silu_backward_##SUFFIX(const TYPE* gradient, const TYPE* gate_up, TYPE* out, int64_t rows,         \
                                           int64_t width) {                                                            \
        gated_backward<TYPE, Silu>(gradient, gate_up, out, rows, width);                                               \
    }                                                                                                                  \
    extern "C" void gelu_tanh_##SUFFIX(const TYPE* gate_up, TYPE* out, int64_t rows, int64_t width) {                  \
        gated<TYPE, GeluTanh>(gate_up, out, rows, width);                                                              \
    }                                                                                                                  \
    extern "C" void gelu_tanh_backward_##SUFFIX(const TYPE* gradient, const TYPE* gate_up, TYPE* out, int64_t rows,    \
                                                int64_t width) {                                                       \
        gated_backward<TYPE, GeluTanh>(gradient, gate_up, out, rows, width);                                           \
    }                                                                                                                  \
    extern "C" void rotate_##SUFFIX(TYPE* x, const TYPE* cosine, const TYPE* sine, int64_t rows, int64_t stride,       \
                                    int64_t heads, int64_t width, float direction) {                                   \
        rotate(x, cosine, sine, rows, stride, heads, width, direction);                                                \
    }                                                                                                                  \
    extern "C" void causal_softmax_##SUFFIX(TYPE* scores, int64_t matrices, int64_t queries, int64_t keys, float scale,\
                                            int64_t offset, int64_t window) {                                          \
        causal_softmax(scores, matrices, queries, keys, scale, offset, window);                                        \
    }                                                                                                                  \
    extern "C" void causal_softmax_backward_##SUFFIX(TYPE* gradient, const TYPE* probabilities, int64_t matrices,      \
                                                     int64_t queries, int64_t keys, float scale, int64_t offset,       \
                                                     int64_t window) {                                                 \
        causal_softmax_backward(gradient, probabilities, matrices, queries, keys, scale, offset, window);              \
    }                                                                                                                  \
    extern "C" void cross_entropy_##SUFFIX(TYPE* scores, const int64_t* target, const float* weight, float* loss,      \
                                           int64_t rows, int64_t classes) {                                            \
        cross_entropy(scores, target, weight, loss, rows, classes);                                                    \
    }                                                                                                                  \
    extern "C" void dropout_##SUFFIX(const TYPE* x, TYPE* out, int64_t count, float share, int64_t seed) {             \
        dropout(x, out, count, share, seed);                                                                           \
    }                                                                                                                  \
    extern "C" void squares_##SUFFIX(const Numbers<TYPE>* tensors, float* out, int64_t count) {                        \
        squares(tensors, out, count);                                                                                  \
    }                                                                                                                  \
    extern "C" void adamw_##SUFFIX(const Moved<TYPE>* tensors, const Size* sizes, int64_t count, float decay, float beta1, \
                                   float beta2, float epsilon, float divide) {                                         \
        adamw(tensors, sizes, count, decay, beta1, beta2, epsilon, divide);                                            \
    }                                                                                                                  \
    extern "C" void short_attention_##SUFFIX(                                                                          \
        const TYPE* query, int64_t query_token, int64_t query_head, const TYPE* key, int64_t key_token,                \
        int64_t key_head, const TYPE* value, int64_t value_token, int64_t value_head, TYPE* out,                       \
        const int64_t* starts, const int64_t* lengths, int64_t count, int64_t heads, int64_t key_heads, int64_t width, \
        float scale, int64_t causal, int64_t window, float share, int64_t seed) {                                      \
        short_attention(query, query_token, query_head, key, key_token, key_head, value, value_token, value_head, out, \
                        starts, lengths, count, heads, key_heads, width, scale, causal, window, share, seed);          \
    }                                                                                                                  \
    extern "C" void short_attention_backward_##SUFFIX(                                                                 \
        const TYPE* gradient, const TYPE* query, int64_t query_token, int64_t query_head, const TYPE* key,             \
        int64_t key_token, int64_t key_head, const TYPE* value, int64_t value_token, int64_t value_head,               \
        TYPE* for_query, int64_t for_query_token, TYPE* for_key, int64_t for_key_token, TYPE* for_value,               \
        int64_t for_value_token, const int64_t* starts, const int64_t* lengths, int64_t count, int64_t heads,          \
        int64_t key_heads, int64_t width, float scale, int64_t causal, int64_t window, float share, int64_t seed) {    \
        short_attention_backward(gradient, query, query_token, query_head, key, key_token, key_head, value,            \
                                 value_token, value_head, for_query, for_query_token, for_key, for_key_token,          \
                                 for_value, for_value_token, starts, lengths, count, heads, key_heads, width, scale,   \
                                 causal, window, share, seed);                                                         \
    }

#ifdef OF_BFLOAT16
EXPORT(bfloat16, bfloat16)
#else
EXPORT(float, float32)

extern "C" void adamw_8bit_float32(float* weight, const float* gradient, uint8_t* mean_codes, float* mean_scales,
                                   uint8_t* root_codes, float* root_scales, const float* mean_levels,
                                   const float* mean_borders, const uint8_t* mean_below, const float* root_levels,
                                   const float* root_borders, const uint8_t* root_below, int64_t count, float step_size,
                                   float decay, float beta1, float beta2, float epsilon, float corrected, float divide) {
    adamw_8bit(weight, gradient, mean_codes, mean_scales, root_codes, root_scales,
               {mean_levels, mean_borders, mean_below}, {root_levels, root_borders, root_below}, count, step_size, decay, beta1, beta2, epsilon, corrected, divide);
}
#endif
