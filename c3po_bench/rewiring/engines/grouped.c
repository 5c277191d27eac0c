/* Rows in groups, each group times a matrix of its own: y = X W^T, all in float32.
 *
 * The matrices lie in panels, each of PANEL outputs: panels[matrix][panel][input][output of the panel], zeros behind the
 * last output. So a product reads its weights from memory in order, once. A tile of ROWS rows by one panel is summed up in
 * registers over DEPTH inputs at a time and then added to what is there: one sum over all of a vocabulary would lose digits.
 * A thread takes SPAN panels at once where one part is all there is (0.96 of the time with hundreds of rows; deep matrices
 * lose a tenth by it). Any compiler with GNU vectors; no headers, no allocation. */

typedef __SIZE_TYPE__ size;

#ifdef __AVX512F__
enum { LANES = 16, ROWS = 12 };
#else
enum { LANES = 8, ROWS = 6 };
#endif
enum { PANEL = 2 * LANES, DEPTH = 640, SPAN = 4 };

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4)));

size panel(void) { return PANEL; }

/* `rows` is a constant wherever this is called, so that `sum` lies in registers. */
static inline __attribute__((always_inline)) void tile(const int rows, const float *x, size inputs, const float *w, size depth,
                                                       float *y, size stride, int first) {
  vector sum[ROWS][2];
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < 2; ++v) sum[r][v] = (vector){0};
  for (size i = 0; i < depth; ++i, w += PANEL) {
    const vector left = *(const vector *)w, right = *(const vector *)(w + LANES);
    for (int r = 0; r < rows; ++r) {
      sum[r][0] += x[r * inputs + i] * left;
      sum[r][1] += x[r * inputs + i] * right;
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < 2; ++v) {
      vector *to = (vector *)(y + r * stride + v * LANES);
      *to = first ? sum[r][v] : *to + sum[r][v];
    }
}

static void rows_by_panel(int rows, const float *x, size inputs, const float *w, size depth, float *y, size stride, int first) {
#define CASE(n) \
  case n: tile(n, x, inputs, w, depth, y, stride, first); break;
  switch (rows) {
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#ifdef __AVX512F__
    CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
  }
}

typedef struct {
  const float *x, *panels;
  float *y;
  const long long *counts, *starts;
  size groups, inputs, outputs, next;
} Work;

/* All rows of a group by the panels from `left` to `right`, which stay in a near cache for the next tile. */
static void group_by_panels(const Work *work, size group, size left, size right) {
  const size inputs = work->inputs, outputs = work->outputs, rows = work->counts[group];
  const size panels = (outputs + PANEL - 1) / PANEL, tiles = (rows + ROWS - 1) / ROWS, parts = (inputs + DEPTH - 1) / DEPTH;
  const float *x = work->x + work->starts[group] * inputs, *w = work->panels + group * panels * inputs * PANEL;
  float *y = work->y + work->starts[group] * outputs, edge[ROWS * PANEL];
  for (size part = 0, start = 0, end; part < parts; ++part, start = end) {
    end = (part + 1) * inputs / parts;
    for (size t = 0, done = 0, now; t < tiles; ++t, done += now) {
      now = (rows - done + tiles - t - 1) / (tiles - t);
      for (size p = left; p < right; ++p) {
        const float *from = x + done * inputs + start, *panel = w + (p * inputs + start) * PANEL;
        float *to = y + done * outputs + p * PANEL;
        const size width = outputs - p * PANEL; /* of the last panel fewer outputs are wanted */
        if (width >= PANEL) {
          rows_by_panel(now, from, inputs, panel, end - start, to, outputs, part == 0);
          continue;
        }
        rows_by_panel(now, from, inputs, panel, end - start, edge, PANEL, 1);
        for (size r = 0; r < now; ++r)
          for (size o = 0; o < width; ++o) to[r * outputs + o] = edge[r * PANEL + o] + (part ? to[r * outputs + o] : 0);
      }
    }
  }
}

/* Takes some panels of one group after the other, until none are left. */
static void take(void *shared) {
  Work *work = shared;
  const size panels = (work->outputs + PANEL - 1) / PANEL, span = work->inputs > DEPTH ? 1 : SPAN;
  const size spans = (panels + span - 1) / span;
  for (size job; (job = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED)) < work->groups * spans;) {
    const size left = job % spans * span, right = left + span;
    group_by_panels(work, job / spans, left, right < panels ? right : panels);
  }
}

extern void GOMP_parallel(void (*function)(void *), void *data, unsigned threads, unsigned flags); /* torch's OpenMP */

/* x [rows, inputs] and panels [groups, ceil(outputs / PANEL), inputs, PANEL] -> y [rows, outputs]. Group g are counts[g] rows
 * from row starts[g] on, and may be empty. */
void grouped_product(const float *x, const float *panels, const long long *counts, const long long *starts, size groups,
                     size inputs, size outputs, float *y, unsigned threads) {
  Work work = {x, panels, y, counts, starts, groups, inputs, outputs, 0};
  if (threads > 1)
    GOMP_parallel(take, &work, threads, 0);
  else
    take(&work);
}
