// Work of a step that serves many requests at once: keys and values in pages, attention over pages, and low-rank
// adapters of different rows side by side. Every function exists for float and for bfloat16 (computed in float).
// Keys lie in pages as [page, head, width, 16], values as [page, head, 16, width]: sixteen tokens are one lane.

#include <algorithm>

#include "native.h"

namespace {

typedef uint16_t Sixteen __attribute__((vector_size(32), aligned(2)));
typedef uint32_t Wide __attribute__((vector_size(64), aligned(4)));

inline Lane lane(const float* p) { return *reinterpret_cast<const Lane*>(p); }
inline Lane lane(const bfloat16* p) {
    Wide bits = __builtin_convertvector(*reinterpret_cast<const Sixteen*>(p), Wide) << 16;
    Lane value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}
inline float sum(const Lane& lane) {
    float total = 0.0f;
    for (int i = 0; i < LANE; ++i) total += lane[i];
    return total;
}

// Puts the keys and values of `count` tokens into their places: slot = page * 16 + place in the page.
template <class T>
void store_pages(const T* key, int64_t key_token, int64_t key_head, const T* value, int64_t value_token,
                 int64_t value_head, T* keys, T* values, const int64_t* slots, int64_t count, int64_t heads,
                 int64_t width) {
    for (int64_t n = 0; n < count; ++n) {
        int64_t page = slots[n] / LANE, place = slots[n] % LANE;
        for (int64_t h = 0; h < heads; ++h) {
            const T* k = key + n * key_token + h * key_head;
            T* to = keys + (page * heads + h) * width * LANE + place;
            for (int64_t i = 0; i < width; ++i) to[i * LANE] = k[i];
            std::memcpy(values + ((page * heads + h) * LANE + place) * width, value + n * value_token + h * value_head,
                        static_cast<size_t>(width) * sizeof(T));
        }
    }
}

constexpr int64_t QUERIES = 8;  // of a sequence that are answered together

// A page as floats: itself, or a copy where it is held in 16 bits.
inline float* as_floats(float* page, int64_t, float*) { return page; }
inline float* as_floats(bfloat16* page, int64_t count, float* room) {
    for (int64_t i = 0; i < count; ++i) room[i] = load(page + i);
    return room;
}

// Causal attention of `count` sequences. Sequence s has its new tokens at starts[s], new_tokens[s] of them, the last of
// which is token contexts[s] - 1 of the sequence; all its keys and values are in the pages of row s of `tables`.
template <class T>
void attend_pages(const T* query, int64_t query_token, int64_t query_head, T* keys, T* values, T* out,
                  const int64_t* tables, int64_t table_row, const int64_t* starts, const int64_t* new_tokens,
                  const int64_t* contexts, int64_t count, int64_t heads, int64_t key_heads, int64_t width, float scale,
                  int64_t window) {
    struct Task { int64_t sequence, first; };
    std::vector<Task> tasks;
    for (int64_t s = 0; s < count; ++s)
        for (int64_t first = 0; first < new_tokens[s]; first += QUERIES) tasks.push_back({s, first});
    int64_t repeats = heads / key_heads, wide = padded(width), page_size = width * LANE;
#pragma omp parallel
    {
        std::vector<float> room;
#pragma omp for schedule(dynamic, 1)
        for (int64_t index = 0; index < static_cast<int64_t>(tasks.size()) * key_heads; ++index) {
            Task task = tasks[static_cast<size_t>(index / key_heads)];
            int64_t h = index % key_heads, s = task.sequence;
            int64_t queries = std::min(QUERIES, new_tokens[s] - task.first), rows = queries * repeats;
            int64_t at = contexts[s] - new_tokens[s] + task.first;  // of the first query, in its sequence
            int64_t end = at + queries;
            int64_t first_page = window > 0 && at + 1 > window ? (at + 1 - window) / LANE : 0;
            int64_t pages = (end + LANE - 1) / LANE - first_page, across = pages * LANE;
            size_t need = static_cast<size_t>(rows * (2 * wide + across) + page_size + wide);
            if (room.size() < need) room.resize(need);
            Matrix q{room.data(), wide, 1}, to{q.at + rows * wide, wide, 1}, p{to.at + rows * wide, across, 1};
            float* spare = p.at + rows * across;
            for (int64_t r = 0; r < rows; ++r) {
                const T* from = query + (starts[s] + task.first + r / repeats) * query_token +
                                (h * repeats + r % repeats) * query_head;
                for (int64_t i = 0; i < width; ++i) q.at[r * wide + i] = load(from + i) * scale;
            }
            const int64_t* table = tables + s * table_row + first_page;
            for (int64_t page = 0; page < pages; ++page) {
                T* where = keys + (table[page] * key_heads + h) * page_size;
                Matrix key{as_floats(where, page_size, spare), LANE, 1}, part{p.at + page * LANE, across, 1};
                multiply(q, key, part, rows, width, LANE, Skip::nothing);
            }
            for (int64_t r = 0; r < rows; ++r) {
                float* row = p.at + r * across;
                int64_t first, last;
                visible(at + r / repeats, end, window, first, last);
                first -= first_page * LANE;
                last -= first_page * LANE;
                float largest = -INFINITY, total = 0.0f;
#pragma omp simd reduction(max : largest)
                for (int64_t j = first; j < last; ++j) largest = row[j] > largest ? row[j] : largest;
#pragma omp simd reduction(+ : total)
                for (int64_t j = first; j < last; ++j) {
                    row[j] = exponential(row[j] - largest);
                    total += row[j];
                }
                for (int64_t j = 0; j < first; ++j) row[j] = 0.0f;
                float share = 1.0f / total;
#pragma omp simd
                for (int64_t j = first; j < last; ++j) row[j] *= share;
                for (int64_t j = last; j < across; ++j) row[j] = 0.0f;
            }
            for (int64_t page = 0; page < pages; ++page) {
                // Only what is this sequence's: behind its last token may lie another's numbers, which need not be any.
                int64_t there = std::min(LANE, end - (first_page + page) * LANE);
                T* where = values + (table[page] * key_heads + h) * page_size;
                Matrix value{as_floats(where, there * width, spare), width, 1}, part{p.at + page * LANE, across, 1};
                multiply(part, value, to, rows, there, wide, Skip::nothing, page > 0);
            }
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t i = 0; i < width; ++i)
                    store(out + ((starts[s] + task.first + r / repeats) * heads + h * repeats + r % repeats) * width + i,
                          to.at[r * wide + i]);
        }
    }
}

constexpr int64_t RANKS = 4, COLUMNS = 128;  // that are computed together

// low[i][r] = down[r] . x[i] for `ROWS` rows and `RANKS` ranks.
template <int ROWS, class T, class W>
inline void go_down(const T* x, int64_t x_row, const W* down, int64_t inputs, float* low, int64_t rank, int64_t ranks) {
    Lane sums[ROWS][RANKS] = {};
    float rest[ROWS][RANKS] = {};
    const W* from[RANKS];
    for (int r = 0; r < RANKS; ++r) from[r] = down + (r < ranks ? r : 0) * inputs;
    int64_t i = 0;
    for (; i + LANE <= inputs; i += LANE) {
        Lane values[ROWS];
        for (int n = 0; n < ROWS; ++n) values[n] = lane(x + n * x_row + i);
        for (int r = 0; r < RANKS; ++r) {
            Lane weight = lane(from[r] + i);
            for (int n = 0; n < ROWS; ++n) sums[n][r] += values[n] * weight;
        }
    }
    for (; i < inputs; ++i)
        for (int r = 0; r < RANKS; ++r)
            for (int n = 0; n < ROWS; ++n) rest[n][r] += load(x + n * x_row + i) * load(from[r] + i);
    for (int n = 0; n < ROWS; ++n)
        for (int64_t r = 0; r < ranks; ++r) low[n * rank + r] = sum(sums[n][r]) + rest[n][r];
}

// out[i][o] += sum over r of low[i][r] up[r][o], for up to COLUMNS columns from `first`.
template <class T, class W>
inline void go_up(const float* low, const W* up, int64_t rank, int64_t outputs, int64_t first, int64_t last, T* out) {
    int64_t o = first;
    if (last - first == COLUMNS) {
        constexpr int LANES = COLUMNS / LANE;
        Lane sums[LANES] = {};
        for (int64_t r = 0; r < rank; ++r) {
            const W* from = up + r * outputs + first;
            for (int l = 0; l < LANES; ++l) sums[l] += low[r] * lane(from + l * LANE);
        }
        for (int l = 0; l < LANES; ++l)
            for (int i = 0; i < LANE; ++i) {
                T* to = out + first + l * LANE + i;
                store(to, load(to) + sums[l][i]);
            }
        return;
    }
    for (; o + LANE <= last; o += LANE) {
        Lane sums = {};
        for (int64_t r = 0; r < rank; ++r) sums += low[r] * lane(up + r * outputs + o);
        for (int i = 0; i < LANE; ++i) store(out + o + i, load(out + o + i) + sums[i]);
    }
    for (; o < last; ++o) {
        float total = 0.0f;
        for (int64_t r = 0; r < rank; ++r) total += low[r] * load(up + r * outputs + o);
        store(out + o, load(out + o) + total);
    }
}

// Adds to each group of rows what its adapter adds: group g is rows spans[2 g]..spans[2 g + 1] of x and out. Of part p
// (layers of the same input, side by side in out from column offsets[p], widths[p] wide) its adapter has, at place
// p * stride + g, down [rank, inputs] and up [rank, width] with the scale in it; address 0 where it has none.
template <class T, class W>
void add_adapters_of(const T* x, int64_t x_row, T* out, int64_t out_row, const int64_t* spans, int64_t groups,
                     const int64_t* downs, const int64_t* ups, const int64_t* ranks, int64_t stride, int64_t parts,
                     const int64_t* offsets, const int64_t* widths, int64_t inputs) {
    struct Task { int64_t group, part, from, low; };
    std::vector<Task> down_tasks, up_tasks;
    int64_t size = 0;
    for (int64_t g = 0; g < groups; ++g)
        for (int64_t p = 0; p < parts; ++p) {
            if (!downs[p * stride + g]) continue;
            int64_t rank = ranks[p * stride + g];
            for (int64_t r = 0; r < rank; r += RANKS) down_tasks.push_back({g, p, r, size});
            for (int64_t o = 0; o < widths[p]; o += COLUMNS) up_tasks.push_back({g, p, o, size});
            size += (spans[2 * g + 1] - spans[2 * g]) * rank;
        }
    std::vector<float> lows(static_cast<size_t>(size));
    int64_t down_count = static_cast<int64_t>(down_tasks.size()), up_count = static_cast<int64_t>(up_tasks.size());
#pragma omp parallel if (down_count > 1)
    {
#pragma omp for schedule(static)
        for (int64_t index = 0; index < down_count; ++index) {
            Task task = down_tasks[static_cast<size_t>(index)];
            int64_t at = task.part * stride + task.group, rank = ranks[at], left = std::min(RANKS, rank - task.from);
            const W* down = reinterpret_cast<const W*>(downs[at]) + task.from * inputs;
            int64_t row = spans[2 * task.group], end = spans[2 * task.group + 1];
            float* low = lows.data() + task.low + task.from;
            for (; row + 4 <= end; row += 4, low += 4 * rank)
                go_down<4>(x + row * x_row, x_row, down, inputs, low, rank, left);
            for (; row < end; ++row, low += rank) go_down<1>(x + row * x_row, x_row, down, inputs, low, rank, left);
        }
#pragma omp for schedule(static)
        for (int64_t index = 0; index < up_count; ++index) {
            Task task = up_tasks[static_cast<size_t>(index)];
            int64_t at = task.part * stride + task.group, rank = ranks[at], outputs = widths[task.part];
            const W* up = reinterpret_cast<const W*>(ups[at]);
            const float* low = lows.data() + task.low;
            int64_t last = std::min(task.from + COLUMNS, outputs);
            for (int64_t row = spans[2 * task.group]; row < spans[2 * task.group + 1]; ++row, low += rank)
                go_up(low, up, rank, outputs, task.from, last, out + row * out_row + offsets[task.part]);
        }
    }
}

template <class T>
void add_adapters(const T* x, int64_t x_row, T* out, int64_t out_row, const int64_t* spans, int64_t groups,
                  const int64_t* downs, const int64_t* ups, const int64_t* ranks, int64_t stride, int64_t parts,
                  const int64_t* offsets, const int64_t* widths, int64_t inputs, int64_t halves) {
    if (halves)
        add_adapters_of<T, bfloat16>(x, x_row, out, out_row, spans, groups, downs, ups, ranks, stride, parts, offsets,
                                     widths, inputs);
    else
        add_adapters_of<T, float>(x, x_row, out, out_row, spans, groups, downs, ups, ranks, stride, parts, offsets,
                                  widths, inputs);
}

}  // namespace

#define EXPORT(TYPE, SUFFIX)                                                                                           \
    extern "C" void store_pages_##SUFFIX(const TYPE* key, int64_t key_token, int64_t key_head, const TYPE* value,      \
                                         int64_t value_token, int64_t value_head, TYPE* keys, TYPE* values,            \
                                         const int64_t* slots, int64_t count, int64_t heads, int64_t width) {          \
        store_pages(key, key_token, key_head, value, value_token, value_head, keys, values, slots, count, heads,       \
                    width);                                                                                            \
    }                                                                                                                  \
    extern "C" void attend_pages_##SUFFIX(                                                                             \
        const TYPE* query, int64_t query_token, int64_t query_head, TYPE* keys, TYPE* values, TYPE* out,               \
        const int64_t* tables, int64_t table_row, const int64_t* starts, const int64_t* new_tokens,                    \
        const int64_t* contexts, int64_t count, int64_t heads, int64_t key_heads, int64_t width, float scale,          \
        int64_t window) {                                                                                              \
        attend_pages(query, query_token, query_head, keys, values, out, tables, table_row, starts, new_tokens,         \
                     contexts, count, heads, key_heads, width, scale, window);                                         \
    }                                                                                                                  \
    extern "C" void add_adapters_##SUFFIX(const TYPE* x, int64_t x_row, TYPE* out, int64_t out_row,                    \
                                          const int64_t* spans, int64_t groups, const int64_t* downs,                  \
                                          const int64_t* ups, const int64_t* ranks, int64_t stride, int64_t parts,     \
                                          const int64_t* offsets, const int64_t* widths, int64_t inputs,               \
                                          int64_t halves) {                                                            \
        add_adapters(x, x_row, out, out_row, spans, groups, downs, ups, ranks, stride, parts, offsets, widths,        \
                     inputs, halves);                                                                                  \
    }

EXPORT(float, float32)
EXPORT(bfloat16, bfloat16)
