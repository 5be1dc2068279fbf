/* One step of the transformer for a few tokens of one sample, which is so short that ONNX Runtime spends as long between
   its operators as in them: embed, all layers and head in one call, on one core, over the K/V caches in place.

   The same sums as step.onnx to rounding; few_tokens.py packs its weights, and holds the result against the graph before
   it is used. Written with the vector extensions of GCC and Clang, for the widest vectors that the processor has. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define ROWS 8        /* tokens at a time at most, so that their sums stay in registers */
#define INNER 256     /* inner features of the feed-forward layers that are computed at a time */
#define EPSILON 1e-5f /* of LayerNorm, PyTorch's */
#define LESS(a, b) ((a) < (b) ? (a) : (b))
#define PARTS(number, size) (((number) + (size) - 1) / (size))
#define UP(number, multiple) (PARTS(number, multiple) * (multiple))
#define SHARE(rows) PARTS(rows, PARTS(rows, ROWS)) /* tokens at a time, as many each time */

#if defined(__GNUC__) && !defined(_WIN32)
#define EXPORTED __attribute__((visibility("default")))
#else
#error "needs GCC or Clang"
#endif

struct call {
  int32_t channels, d_model, heads, layers, d_ff, tokens;
  int32_t active;        /* tokens to compute */
  const float *z;        /* [active, channels] */
  const float *t;        /* [1] */
  const int64_t *token;  /* [active] */
  float *const *caches;  /* keys of every layer, then values: [heads, tokens, d_model / heads] each */
  const float *weights;  /* as few_tokens.py packs them for vectors of this width */
  float *score;          /* [active, channels] */
  float *hidden;         /* [active, d_model], or none */
};

#if defined(__x86_64__)
#define V 16
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#define NAMED(name) name##_16
#include "few_tokens.h"
#undef V
#undef TARGET
#undef NAMED
#define V 8
#define TARGET __attribute__((target("avx2,fma")))
#define NAMED(name) name##_8
#include "few_tokens.h"
#elif defined(__aarch64__)
#define V 4
#define TARGET
#define NAMED(name) name##_4
#include "few_tokens.h"
#endif

/* Whether this processor runs vectors of `width` floats. */
EXPORTED int few_tokens_has(int width) {
#if defined(__x86_64__)
  if (width == 16)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
  return width == 8 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#elif defined(__aarch64__)
  return width == 4;
#else
  return 0;
#endif
}

/* 0, or 1 where a token is none of the network's; then nothing was touched. */
EXPORTED int few_tokens_step(int width, const struct call *call) {
  for (int i = 0; i < call->active; i++)
    if (call->token[i] < 0 || call->token[i] >= call->tokens) return 1;
  (void)width;
#if defined(__x86_64__)
  (width == 16 ? step_16 : step_8)(call);
#elif defined(__aarch64__)
  step_4(call);
#endif
  return 0;
}
