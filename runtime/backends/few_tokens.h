/* The step for vectors of V floats; few_tokens.c includes this once for every kind of processor, each time with another
   V, TARGET (what its functions may use) and NAMED (what their names end in). */

#define FUNCTION static TARGET
#define INLINED static inline __attribute__((always_inline)) TARGET

typedef float NAMED(vector) __attribute__((vector_size(4 * V), aligned(4), may_alias));
typedef int32_t NAMED(mask) __attribute__((vector_size(4 * V), aligned(4), may_alias));
typedef float NAMED(lanes) __attribute__((vector_size(4 * ROWS), aligned(4), may_alias));
typedef int32_t NAMED(lanes_mask) __attribute__((vector_size(4 * ROWS), aligned(4), may_alias));
#define vector NAMED(vector)
#define mask NAMED(mask)
#define lanes NAMED(lanes)
#define lanes_mask NAMED(lanes_mask)

/* out[r, :width * V] += x[r, :depth] w, w [depth, width * V], of `rows` rows at once, whose sums stay in registers. Each
   sum runs in the order of depth, whatever `rows` is. */
#define PANEL(rows, width)                                                                                             \
  FUNCTION void NAMED(panel_##width##_##rows)(int depth, const float *x, int x_stride, const float *w, float *out,     \
                                              int out_stride) {                                                        \
    vector sums[rows][width];                                                                                          \
    for (int r = 0; r < rows; r++)                                                                                     \
      for (int v = 0; v < width; v++) sums[r][v] = *(const vector *)(out + r * out_stride + v * V);                    \
    for (int k = 0; k < depth; k++, w += width * V) {                                                                  \
      vector column[width];                                                                                            \
      for (int v = 0; v < width; v++) column[v] = *(const vector *)(w + v * V);                                        \
      _Pragma("GCC unroll 8") for (int r = 0; r < rows; r++) {                                                         \
        float value = x[r * x_stride + k];                                                                             \
        for (int v = 0; v < width; v++) sums[r][v] += value * column[v];                                               \
      }                                                                                                                \
    }                                                                                                                  \
    for (int r = 0; r < rows; r++)                                                                                     \
      for (int v = 0; v < width; v++) *(vector *)(out + r * out_stride + v * V) = sums[r][v];                          \
  }
#define PANELS(rows) PANEL(rows, 1) PANEL(rows, 2)
PANELS(1) PANELS(2) PANELS(3) PANELS(4) PANELS(5) PANELS(6) PANELS(7) PANELS(8)

typedef void (*NAMED(panel))(int, const float *, int, const float *, float *, int);
#define OF_WIDTH(width)                                                                                                \
  {NAMED(panel_##width##_1), NAMED(panel_##width##_2), NAMED(panel_##width##_3), NAMED(panel_##width##_4),             \
   NAMED(panel_##width##_5), NAMED(panel_##width##_6), NAMED(panel_##width##_7), NAMED(panel_##width##_8)}
static const NAMED(panel) NAMED(panels)[2][ROWS] = {OF_WIDTH(1), OF_WIDTH(2)};

/* out [rows, columns] += x [rows, depth] w, w in panels of 2V columns and of V for an odd rest; returns what follows w. */
FUNCTION const float *NAMED(add_product)(int rows, int depth, int columns, const float *x, int x_stride, const float *w,
                                         float *out, int out_stride) {
  const int share = SHARE(rows);
  for (int c = 0, width; c < columns; c += width * V, w += depth * width * V) {
    width = c + V < columns ? 2 : 1;
    for (int r = 0; r < rows; r += share)
      NAMED(panels)[width - 1][LESS(share, rows - r) - 1](depth, x + r * x_stride, x_stride, w,
                                                          out + r * out_stride + c, out_stride);
  }
  return w;
}

/* out [rows, columns] = bias + x w; bias and w lie one after the other, returns what follows them. */
FUNCTION const float *NAMED(linear)(int rows, int depth, int columns, const float *x, int x_stride, const float *w,
                                    float *out, int out_stride) {
  for (int r = 0; r < rows; r++) memcpy(out + r * out_stride, w, 4 * columns);
  return NAMED(add_product)(rows, depth, columns, x, x_stride, w + columns, out, out_stride);
}

/* e^x of x <= 0, to 2e-7 of itself: 2^n by the exponent, the rest by Cephes' polynomial (expf.c). */
INLINED vector NAMED(exponential)(vector x) {
  mask is_low = x < -87.3f;
  x = (vector)(((mask)x & ~is_low) | ((mask)((vector){0} - 87.3f) & is_low));
  vector n = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the integer is in the lowest bits */
  mask exponent = (mask)n << 23;
  n -= 12582912.0f;
  vector f = x - n * 0.693359375f + n * 2.12194440e-4f;
  vector p = f * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  return (vector)((mask)p + exponent) + 0 * x; /* what is no number stays none */
}

INLINED lanes NAMED(larger)(lanes a, lanes b) {
  lanes_mask is_first = a > b;
  return (lanes)(((lanes_mask)a & is_first) | ((lanes_mask)b & ~is_first));
}

/* One head: queries [rows, width] with a stride, keys and values [tokens, width] -> out, with a stride.
   Lanes are queries, so that keys and values are read as they lie in the cache. scratch: tokens * ROWS floats. */
INLINED void NAMED(attend_width)(const int width, int tokens, int rows, const float *query, int query_stride,
                                 const float *key, const float *value, float *out, int out_stride, float *scratch) {
  float turned[width * ROWS];
  memset(turned, 0, sizeof turned);
  for (int s = 0; s < rows; s++)
    for (int d = 0; d < width; d++) turned[d * ROWS + s] = query[s * query_stride + d];
  lanes queries[width], sums[width], total = {0}, largest[4];
  for (int d = 0; d < width; d++) queries[d] = *(lanes *)(turned + d * ROWS), sums[d] = (lanes){0};
  for (int i = 0; i < 4; i++) largest[i] = (lanes){0} - INFINITY;
#pragma GCC unroll 4
  for (int n = 0; n < tokens; n++) {
    lanes weight = key[n * width] * queries[0];
    for (int d = 1; d < width; d++) weight += key[n * width + d] * queries[d];
    *(lanes *)(scratch + n * ROWS) = weight;
    largest[n % 4] = NAMED(larger)(weight, largest[n % 4]);
  }
  largest[0] = NAMED(larger)(NAMED(larger)(largest[0], largest[1]), NAMED(larger)(largest[2], largest[3]));
  for (int n = 0; n < tokens; n++) *(lanes *)(scratch + n * ROWS) -= largest[0];
  for (int i = 0; i < UP(tokens * ROWS, V); i += V) *(vector *)(scratch + i) = NAMED(exponential)(*(vector *)(scratch + i));
  for (int n = 0; n < tokens; n++) {
    lanes weight = *(lanes *)(scratch + n * ROWS);
    total += weight;
    for (int d = 0; d < width; d++) sums[d] += value[n * width + d] * weight;
  }
  for (int d = 0; d < width; d++) {
    sums[d] /= total;
    for (int s = 0; s < rows; s++) out[s * out_stride + d] = sums[d][s];
  }
}

FUNCTION void NAMED(attend)(int width, int tokens, int rows, const float *query, int query_stride, const float *key,
                            const float *value, float *out, int out_stride, float *scratch) {
#define WIDTH(number)                                                                                                  \
  case number:                                                                                                         \
    NAMED(attend_width)(number, tokens, rows, query, query_stride, key, value, out, out_stride, scratch);            \
    break;
  switch (width) { /* widths whose sums the compiler keeps in registers; 6 is the published one, 18 the demo's */
    WIDTH(4) WIDTH(6) WIDTH(8) WIDTH(12) WIDTH(16) WIDTH(18)
  default:
    NAMED(attend_width)(width, tokens, rows, query, query_stride, key, value, out, out_stride, scratch);
  }
#undef WIDTH
}

/* x = layer_norm(x + update) of rows [stride], of which `columns` count and the rest is 0. */
FUNCTION const float *NAMED(add_and_norm)(int rows, int columns, int stride, float *x, const float *update,
                                          const float *w) {
  int whole = columns / V * V;
  for (int r = 0; r < rows; r++, x += stride, update += stride) {
    vector sums = {0}, squares = {0};
    float mean = 0, variance = 0;
    for (int c = 0; c < stride; c += V) {
      *(vector *)(x + c) += *(const vector *)(update + c);
      sums += *(vector *)(x + c);
    }
    for (int i = 0; i < V; i++) mean += sums[i];
    mean /= columns;
    for (int c = 0; c < whole; c += V) {
      vector off = *(vector *)(x + c) - mean;
      squares += off * off;
    }
    for (int i = 0; i < V; i++) variance += squares[i];
    for (int c = whole; c < columns; c++) variance += (x[c] - mean) * (x[c] - mean);
    float scale = 1 / sqrtf(variance / columns + EPSILON);
    for (int c = 0; c < stride; c += V)
      *(vector *)(x + c) = (*(vector *)(x + c) - mean) * scale * *(const vector *)(w + c) + *(const vector *)(w + stride + c);
  }
  return w + 2 * stride;
}

FUNCTION void NAMED(step)(const struct call *call) {
  const int channels = call->channels, d_model = call->d_model, heads = call->heads, tokens = call->tokens;
  const int rows = call->active, width = d_model / heads, half = (d_model + 1) / 2;
  const int stride = UP(d_model, V), qkv_stride = UP(3 * d_model, V), score_stride = UP(channels, V);
  const int64_t *token = call->token;
  const float *w = call->weights;
  float x[rows * stride], update[rows * stride], context[rows * stride], qkv[rows * qkv_stride], inner[rows * INNER];
  float score[rows * score_stride], attention[UP(tokens * ROWS, V)], waves[2 * half];
  memset(context, 0, sizeof context);

  for (int i = 0; i < half; i++) { /* of an odd d_model the last cosine is dropped */
    float angle = *call->t * w[i] * 2.0f * 3.14159265358979f;
    waves[i] = sinf(angle), waves[half + i] = cosf(angle);
  }
  w = NAMED(linear)(1, d_model, stride, waves, 0, w + UP(half, V), update, stride);
  for (int r = 0; r < rows; r++)
    for (int c = 0; c < stride; c += V)
      *(vector *)(x + r * stride + c) = *(const vector *)(w + token[r] * stride + c) + *(vector *)(update + c);
  w = NAMED(add_product)(rows, channels, stride, call->z, channels, w + tokens * stride, x, stride);

  for (int layer = 0; layer < call->layers; layer++) {
    float *keys = call->caches[layer], *values = call->caches[call->layers + layer];
    w = NAMED(linear)(rows, d_model, qkv_stride, x, stride, w, qkv, qkv_stride);
    for (int h = 0; h < heads; h++, keys += tokens * width, values += tokens * width) {
      const float *query = qkv + h * width;
      for (int r = 0; r < rows; r++) {
        memcpy(keys + token[r] * width, query + r * qkv_stride + d_model, 4 * width);
        memcpy(values + token[r] * width, query + r * qkv_stride + 2 * d_model, 4 * width);
      }
      for (int r = 0; r < rows; r += SHARE(rows))
        NAMED(attend)(width, tokens, LESS(SHARE(rows), rows - r), query + r * qkv_stride, qkv_stride, keys, values,
                      context + r * stride + h * width, stride, attention);
    }
    w = NAMED(linear)(rows, d_model, stride, context, stride, w, update, stride);
    w = NAMED(add_and_norm)(rows, d_model, stride, x, update, w);
    for (int r = 0; r < rows; r++) memcpy(update + r * stride, w, 4 * stride);
    w += stride;
    for (int left = call->d_ff; left > 0; left -= INNER) { /* so few inner features stay in the nearest cache */
      const int part = left < INNER ? UP(left, V) : INNER;
      w = NAMED(linear)(rows, d_model, part, x, stride, w, inner, INNER);
      for (int i = 0; i < rows * INNER; i++) inner[i] = inner[i] > 0 ? inner[i] : 0;
      w = NAMED(add_product)(rows, part, stride, inner, INNER, w, update, stride);
    }
    w = NAMED(add_and_norm)(rows, d_model, stride, x, update, w);
  }

  NAMED(linear)(rows, d_model, score_stride, x, stride, w, score, score_stride);
  for (int r = 0; r < rows; r++) {
    memcpy(call->score + r * channels, score + r * score_stride, 4 * channels);
    if (call->hidden) memcpy(call->hidden + r * d_model, x + r * stride, 4 * d_model);
  }
}

#undef vector
#undef mask
#undef lanes
#undef lanes_mask
#undef PANEL
#undef PANELS
#undef OF_WIDTH
#undef FUNCTION
#undef INLINED
