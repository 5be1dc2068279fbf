"""What a GPU computes around the network: noise, selection, what a score changes, the solver, as CUDA C.

One source, two compilers. NVRTC makes kernels of it; a test compiles the same text with the host's C compiler,
where every kernel is a plain function that runs all its threads in one loop, and holds it against NumPy. So the
arithmetic and the indices below are proven on any machine; that NVRTC and a GPU agree is for `make gpu-check`.

Everything that changes from step to step is read from device memory behind the step counter, so that the same
captured launch serves every step: `control` is (the step under way, the step that comes next). A kernel reads
one of the two and its first thread writes the other, never the one that its other threads still read.

All that kernels share is in one `Frame`, 64 bits a field; `FRAME` is its layout for NumPy. Shapes: B samples,
N tokens, C channels, T steps, S active tokens; formulas and tables are those of `runtime.schedule`, the noise is
that of `runtime.noise`. Sums over a sample are taken by one thread: few, short, and the same in any batch.
"""

import numpy as np

THREADS = 128  # of a block
_COUNTS = ("batch", "tokens", "channels", "is_linear", "is_multistep", "is_stochastic", "keeps_surprise", "seed")
_ARRAYS = {  # by C type
    "const i64": ("sample",),  # [B]
    "const double": ("times",),  # [T]
    "const float": (
        *("prior_scale", "weight"),  # [N], [N, C]
        "scalars",  # [T, 5]: latent_to_data, step_latent, step_data, step_previous, fresh_latent
        *("gaussian", "from_latent"),  # [T, N, C]
        *("score_to_data", "from_value", "step_noise", "fresh_score"),  # [T, N]
    ),
    "float": ("z", "data", "before", "value", "slope", "unheld", "surprise"),  # [B, N, C], the last [B]
    "i64": ("made", "mask", "prior", "control"),  # [B, N], [B] who is asked for, [B] who predicts by the prior, [2]
}
FRAME = np.dtype([(name, np.uint64) for name in (*_COUNTS, *(name for names in _ARRAYS.values() for name in names))])
SCALARS = ("latent_to_data", "step_latent", "step_data", "step_previous", "fresh_latent")
KERNELS = ("start", "coast", "gather", "surprise", "settle", "advance", "hold", "restore")

_FIELDS = "".join(f"  {'u64' if name == 'seed' else 'i64'} {name};\n" for name in _COUNTS) + "".join(
    f"  {kind} *{name};\n" for kind, names in _ARRAYS.items() for name in names
)

SOURCE = (
    """
typedef long long i64;
typedef unsigned long long u64;

#ifdef E2CRF_HOST
#include <math.h>
#define KERNEL void
#define DEVICE static
#define FIRST 0
#define STRIDE 1
static u64 high(u64 a, u64 b) { return (u64)(((unsigned __int128)a * b) >> 64); }
#else
#define KERNEL extern "C" __global__ void
#define DEVICE static __device__
#define FIRST ((i64)blockIdx.x * blockDim.x + threadIdx.x)
#define STRIDE ((i64)gridDim.x * blockDim.x)
#define high __umul64hi
#endif
#define EACH(k, count) for (i64 k = FIRST; k < (count); k += STRIDE)

typedef struct {
"""
    + _FIELDS
    + """} Frame;

/* The 64-bit word `lane` of Philox-4x64-10 (Salmon et al. 2011) at counter (low, sample, 0, 0), key (seed, 0). */
DEVICE u64 philox(u64 seed, u64 sample, u64 low, int lane) {
  u64 c0 = low, c1 = sample, c2 = 0, c3 = 0, k0 = seed, k1 = 0;
  for (int round = 0; round < 10; round++) {
    u64 a = 0xD2E7470EE14C6C93ULL * c0, a_high = high(0xD2E7470EE14C6C93ULL, c0);
    u64 b = 0xCA5A826395121157ULL * c2, b_high = high(0xCA5A826395121157ULL, c2);
    c0 = b_high ^ c1 ^ k0; c1 = b; c2 = a_high ^ c3 ^ k1; c3 = a;
    k0 += 0x9E3779B97F4A7C15ULL; k1 += 0xBB67AE8584CAA73BULL;
  }
  return lane == 0 ? c0 : lane == 1 ? c1 : lane == 2 ? c2 : c3;
}

/* Standard normal number `value` of `values` for a sample and a step; step 0 is the prior. */
DEVICE float normal(u64 seed, u64 sample, i64 step, i64 value, i64 values) {
  i64 blocks = (values + 7) / 8, words = 4 * blocks, at = value < words ? value : value - words;
  u64 word = philox(seed, sample, (u64)(step * blocks + at / 4), (int)(at % 4));
  float angle = (float)(unsigned)word * 1.4629180792671596e-09f;
  float radius = ((float)(unsigned)(word >> 32) + 0.5f) * 2.3283064365386963e-10f;
  radius = sqrtf(-2.0f * logf(radius));
  return radius * (value < words ? cosf(angle) : sinf(angle));
}

DEVICE float cached(const Frame *f, i64 i, i64 k, i64 made) { /* the value of element k at step i */
  if (!f->is_linear || made < 0) return f->value[k];
  return f->slope[k] * (float)(f->times[i] - f->times[made]) + f->value[k];
}

KERNEL start(const Frame *f) { /* the prior, and nothing cached */
  i64 width = f->tokens * f->channels;
  EACH(k, f->batch * width) {
    i64 b = k / width, at = k % width;
    f->z[k] = f->prior_scale[at / f->channels] * normal(f->seed, (u64)f->sample[b], 0, at, width);
    f->data[k] = f->before[k] = f->value[k] = f->slope[k] = f->unheld[k] = 0.0f;
    if (at % f->channels == 0) f->made[k / f->channels] = -1;
    if (at == 0) { f->mask[b] = 1; f->prior[b] = 0; f->surprise[b] = 0.0f; }
  }
  if (FIRST == 0) f->control[0] = f->control[1] = 0;
}

KERNEL coast(const Frame *f, i64 i, i64 j, i64 is_prior) { /* steps i .. j - 1 without the network */
  i64 width = f->tokens * f->channels;
  EACH(k, f->batch * width) {
    i64 b = k / width, at = k % width, n = at / f->channels, made = f->made[k / f->channels];
    float z = f->z[k], data = 0.0f, before = f->before[k];
    for (i64 step = i; step < j; step++) {
      const float *s = f->scalars + 5 * step;
      i64 row = step * f->tokens + n, element = step * width + at;
      data = is_prior || f->prior[b] ? f->gaussian[element] * z
                      : f->from_latent[element] * z + f->from_value[row] * cached(f, step, k, made);
      z = s[1] * z + s[2] * data;
      if (f->is_multistep) { z += s[3] * before; before = data; }
      if (f->is_stochastic) z += f->step_noise[row] * normal(f->seed, (u64)f->sample[b], step + 1, at, width);
    }
    f->z[k] = z; f->data[k] = data; f->before[k] = before;
  }
  if (FIRST == 0) f->control[1] = j;
}

/* Begin a step: predict the data of all tokens, and lay out what the network is asked. */
KERNEL gather(const Frame *f, i64 active, const i64 *token, float *z, float *t) {
  i64 i = f->control[1], width = f->tokens * f->channels;
  EACH(k, f->batch * width) {
    i64 at = k % width;
    f->data[k] = f->prior[k / width] ? f->gaussian[i * width + at] * f->z[k]
               : f->from_latent[i * width + at] * f->z[k]
               + f->from_value[i * f->tokens + at / f->channels] * cached(f, i, k, f->made[k / f->channels]);
  }
  EACH(k, f->batch * active) {
    for (i64 c = 0; c < f->channels; c++)
      z[k * f->channels + c] = f->z[(k / active * f->tokens + token[k]) * f->channels + c];
    if (k % active == 0) t[k / active] = (float)f->times[i];
  }
  if (FIRST == 0) f->control[0] = i;
}

/* How far the prediction of all tokens was off, by sample; before `settle` overwrites it. */
KERNEL surprise(const Frame *f, const float *z, const float *score) {
  i64 i = f->control[0], width = f->tokens * f->channels;
  EACH(b, f->batch) {
    float sum = 0.0f, total = 0.0f;
    if (!f->mask[b]) continue;
    for (i64 at = 0; at < width; at++) {
      i64 k = b * width + at;
      float data = f->score_to_data[i * f->tokens + at / f->channels] * score[k] + f->scalars[5 * i] * z[k];
      float error = data - f->data[k];
      sum += f->weight[at] * (error * error);
      total += f->weight[at];
    }
    f->surprise[b] = f->made[b * f->tokens] < 0 ? 0.0f : sqrtf(sum / fmaxf(total, 1.17549435e-38f));
  }
}

/* Renew what is cached of the recomputed tokens; padding repeats the first of them, which counts once. */
KERNEL settle(const Frame *f, i64 active, const i64 *token, const float *z, const float *score) {
  i64 i = f->control[0];
  EACH(k, f->batch * active) {
    i64 b = k / active, s = k % active, n = token[k], made = f->made[b * f->tokens + n];
    if (!f->mask[b] || (s > 0 && n == token[b * active])) continue;
    for (i64 c = 0; c < f->channels; c++) {
      i64 to = (b * f->tokens + n) * f->channels + c, from = k * f->channels + c, row = i * f->tokens + n;
      float data = f->score_to_data[row] * score[from] + f->scalars[5 * i] * z[from];
      float value = (data - f->from_latent[row * f->channels + c] * z[from]) / f->from_value[row];
      if (f->is_linear)
        f->slope[to] = made < 0 ? 0.0f : (float)((value - f->value[to]) / (f->times[i] - f->times[made]));
      f->data[to] = data; f->value[to] = value;
    }
    f->made[b * f->tokens + n] = i;
  }
}

/* The solver's step, and on to the next; `score` is that of all tokens of the samples under the mask, or null. */
KERNEL advance(const Frame *f, const float *score) {
  i64 i = f->control[0], width = f->tokens * f->channels;
  const float *s = f->scalars + 5 * i;
  EACH(k, f->batch * width) {
    i64 at = k % width, row = i * f->tokens + at / f->channels;
    float z = score && !f->is_multistep && f->mask[k / width] ? s[4] * f->z[k] + f->fresh_score[row] * score[k]
                                        : s[1] * f->z[k] + s[2] * f->data[k];
    if (f->is_multistep) { z += s[3] * f->before[k]; f->before[k] = f->data[k]; }
    if (f->is_stochastic) z += f->step_noise[row] * normal(f->seed, (u64)f->sample[k / width], i + 1, at, width);
    f->z[k] = z;
  }
  if (FIRST == 0) f->control[1] = i + 1;
}

/* After a full refresh, hold a linear function of its values, of those before and of z: `tables` [4, N, C]. */
KERNEL hold(const Frame *f, const float *z, const float *tables) {
  i64 width = f->tokens * f->channels;
  EACH(k, f->batch * width) {
    const float *table = tables + k % width;
    float value = f->value[k];
    if (!f->mask[k / width]) continue;
    f->value[k] = table[0] * value + table[width] * f->unheld[k] + table[2 * width] * z[k] + table[3 * width];
    f->unheld[k] = value;
  }
}

/* Samples that were not asked for keep their keys or values: `size` 16-bit words each, from before to after. */
KERNEL restore(const Frame *f, i64 size, const unsigned short *before, unsigned short *after) {
  EACH(k, f->batch * size) if (!f->mask[k / size]) after[k] = before[k];
}
"""
)
