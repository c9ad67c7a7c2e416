// The norm: which slab each element lies in, the statistics of each slab, and the output; and the
// activations. In float64, shifted and compensated, so that the numbers agree with those of the library to 12
// digits.

import { bind, ELLIPSIS, product, StatisticsError, tuple } from "./notation.js";

// Bind a pattern (of notation.js) to a shape. Return {pattern, shape, axes, kept, count, slabs, of, affine,
// affines}: `of` has the slab of every element, in memory order; `kept` names the axes of the statistics and
// their sizes, joined axes as one; `affine` has the place of every element's weight and bias, of which there
// are `affines`.
export function plan(pattern, shape, sizes = {}) {
  const axes = bind(pattern, shape, sizes);
  const kept = gathered(axes, pattern.right);
  const affine = gathered(axes, pattern.affine);
  const slabs = product(kept.map(({ size }) => size));
  const numel = product(shape);
  return {
    pattern,
    shape,
    axes,
    kept,
    slabs,
    count: slabs === 0 ? 0 : numel / slabs,
    of: places(axes, kept),
    affine: places(axes, affine),
    affines: product(affine.map(({ size }) => size)),
  };
}

// The axes of a small tensor: {name, size, dims}, dims being places among the axes.
function gathered(axes, items) {
  const dims = (name) => {
    const own = (axis) => axis.name === name || (name === ELLIPSIS && axis.name.startsWith(ELLIPSIS));
    return axes.map((axis, dim) => (own(axis) ? dim : -1)).filter((dim) => dim >= 0);
  };
  return items.flatMap((item) => {
    const found = item.flatMap(dims);
    const parts = item[0] === ELLIPSIS ? found.map((dim) => [dim]) : [found];
    return parts.map((part) => ({
      name: part.map((dim) => axes[dim].name).join(" "),
      size: product(part.map((dim) => axes[dim].size)),
      dims: part,
    }));
  });
}

// For every element, in memory order, its place in a small tensor of these axes.
function places(axes, some) {
  const strides = new Array(axes.length).fill(0);
  let stride = 1;
  for (const dim of some.flatMap(({ dims }) => dims).reverse()) {
    strides[dim] = stride;
    stride *= axes[dim].size;
  }
  const found = new Int32Array(product(axes.map(({ size }) => size)));
  const at = new Array(axes.length).fill(0);
  let place = 0;
  for (let element = 0; element < found.length; element += 1) {
    found[element] = place;
    for (let dim = axes.length - 1; dim >= 0; dim -= 1) {
      at[dim] += 1;
      place += strides[dim];
      if (at[dim] < axes[dim].size) break;
      place -= at[dim] * strides[dim];
      at[dim] = 0;
    }
  }
  return found;
}

// Return {count, mean, low, variance, least, most}, each but count with a number for every slab. `low` is
// what the mean lost to rounding.
export function moments(values, { of, slabs, count }) {
  const make = (value) => new Float64Array(slabs).fill(value);
  const [shift, least, most] = [make(NaN), make(Infinity), make(-Infinity)];
  for (const [element, slab] of of.entries()) {
    const value = values[element];
    if (Number.isNaN(shift[slab])) shift[slab] = value;
    least[slab] = Math.min(least[slab], value);
    most[slab] = Math.max(most[slab], value);
  }
  const sums = compensated(slabs, of, (element, slab) => values[element] - shift[slab]);
  const mean = shift.map((value, slab) => value + sums[slab] / count);
  const low = compensated(slabs, of, (element, slab) => values[element] - mean[slab]).map(
    (sum) => sum / count,
  );
  const m2 = compensated(slabs, of, (element, slab) => (values[element] - mean[slab] - low[slab]) ** 2);
  return { count, mean, low, variance: m2.map((sum) => sum / count), least, most };
}

// Sums per slab that carry what each addition loses (Neumaier).
function compensated(slabs, of, term) {
  const sums = new Float64Array(slabs);
  const lost = new Float64Array(slabs);
  for (const [element, slab] of of.entries()) {
    const value = term(element, slab);
    const sum = sums[slab] + value;
    lost[slab] +=
      Math.abs(sums[slab]) >= Math.abs(value) ? sums[slab] - sum + value : value - sum + sums[slab];
    sums[slab] = sum;
  }
  return sums.map((sum, slab) => sum + lost[slab]);
}

// Return y = weight * (x - mean) / sqrt(variance + eps) + bias. Weight and bias are lists, and `along` has
// the place in them for every element; the library's own place by default.
export function normalise(values, bound, found, { eps = 1e-5, weight, bias, along = bound.affine } = {}) {
  checkSpread(bound);
  const spread = found.variance.map((variance) => Math.sqrt(variance + eps));
  return Float64Array.from(bound.of, (slab, element) => {
    const centred = values[element] - found.mean[slab] - found.low[slab];
    return (centred / spread[slab]) * (weight?.[along[element]] ?? 1) + (bias?.[along[element]] ?? 0);
  });
}

// What the library refuses, in its words: a variance of one element, in train mode.
export function checkSpread({ pattern, shape, count, slabs }) {
  if (count !== 1 || !pattern.poolsSamples || slabs === 0) return;
  throw new StatisticsError(
    `"${pattern.text}" pools samples, but x has one element per slab, whose variance says nothing`,
    `x of shape ${tuple(shape)}`,
    "use a larger batch, running statistics (eval mode), or a norm that does not pool samples",
  );
}
