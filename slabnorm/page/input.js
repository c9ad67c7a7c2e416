// Room 2, the input: what the first layer of a network gets from a picture, raw or scaled, and what gradient is left.

import { HUES, button, choice, grey, h, histogram, number, percent, responsive, slider, svg } from "./kit.js";

export const id = "input";
export const title = "The input";

const UNITS = 256;
const FLAT = 1e-3; // a derivative below it passes nothing back that is worth the name
const SCHEMES = [
  { value: "raw", label: "Raw" },
  { value: "fixed", label: "Fixed" },
  { value: "minmax", label: "Min-max" },
  { value: "zscore", label: "Z-score" },
];

// ---------------------------------------------------------------- weights, as torch draws them

// The random numbers of `torch.manual_seed(seed)`: the Mersenne Twister (Matsumoto and Nishimura 1998).
class Twister {
  constructor(seed) {
    this.state = new Uint32Array(624);
    this.state[0] = seed;
    for (let i = 1; i < 624; i++) {
      const before = this.state[i - 1];
      this.state[i] = Math.imul(1812433253, before ^ (before >>> 30)) + i;
    }
    this.at = 624;
  }

  turn() {
    const s = this.state;
    for (let i = 0; i < 624; i++) {
      const y = (s[i] & 0x80000000) | (s[(i + 1) % 624] & 0x7fffffff);
      s[i] = s[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.at = 0;
  }

  // A number from 0 to 1, of the 24 bits that torch takes for float32.
  unit() {
    if (this.at === 624) this.turn();
    let y = this.state[this.at++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return ((y ^ (y >>> 18)) & 0xffffff) / 0x1000000;
  }

  uniform(count, bound) {
    return Float32Array.from({ length: count }, () => this.unit() * 2 * bound - bound);
  }

  // Box and Muller's way, eight pairs at a time, as torch pairs them.
  normal(count, std) {
    const values = Float32Array.from({ length: count }, () => this.unit());
    for (let i = 0; i < count; i += 8) {
      for (const end = i + 8; i < end; i++) {
        const [radius, angle] = [Math.sqrt(-2 * Math.log(1 - values[i])), 2 * Math.PI * values[i + 8]];
        values[i] = std * radius * Math.cos(angle);
        values[i + 8] = std * radius * Math.sin(angle);
      }
    }
    return values;
  }
}

// The rules by which weights are drawn: what they are called, the line of Python, and the same draw.
export const RULES = {
  default: {
    label: "PyTorch's default",
    python: (inputs) => `nn.Linear(${inputs}, ${UNITS})`,
    draw: (random, inputs) => ({
      weight: random.uniform(inputs * UNITS, 1 / Math.sqrt(inputs)),
      bias: random.uniform(UNITS, 1 / Math.sqrt(inputs)),
    }),
  },
  kaiming: {
    label: "Kaiming",
    python: (inputs) => `torch.empty(${UNITS}, ${inputs}).normal_(0, (2 / ${inputs}) ** 0.5)`,
    draw: (random, inputs) => unbiased(random.normal(inputs * UNITS, Math.sqrt(2 / inputs))),
  },
  normal: {
    label: "N(0, 0.1²)",
    python: (inputs) => `torch.empty(${UNITS}, ${inputs}).normal_(0, 0.1)`,
    draw: (random, inputs) => unbiased(random.normal(inputs * UNITS, 0.1)),
  },
};

function unbiased(weight) {
  return { weight, bias: new Float32Array(UNITS) };
}

export function drawWeights(rule, inputs, seed) {
  return RULES[rule].draw(new Twister(seed), inputs);
}

// ---------------------------------------------------------------- the layer

// Return the mean, spread and range of all pixels of some pictures.
export function statistics(pictures) {
  const values = pictures.flat();
  const mean = values.reduce((sum, x) => sum + x, 0) / values.length;
  const variance = values.reduce((sum, x) => sum + (x - mean) ** 2, 0) / values.length;
  const [min, max] = values.reduce(([low, high], x) => [Math.min(low, x), Math.max(high, x)], [Infinity, -Infinity]);
  return { mean, std: Math.sqrt(variance), min, max };
}

// Every scheme is one shift and one scale, y = (x - shift) / scale.
export function affine(scheme, { mean, std, min, max }, [low, high]) {
  const known = { raw: [0, 1], fixed: [low, high - low], minmax: [min, max - min], zscore: [mean, std] };
  const [shift, scale] = known[scheme];
  return { shift, scale };
}

// Return the first layer's pre-activations, a list of 256 for each picture.
export function preactivations(pictures, { shift, scale }, { weight, bias }) {
  const inputs = weight.length / bias.length;
  return pictures.map((picture) => {
    const x = picture.map((pixel) => (pixel - shift) / scale);
    return Array.from(bias, (offset, unit) => {
      let sum = offset;
      for (let i = 0; i < inputs; i++) sum += weight[unit * inputs + i] * x[i];
      return sum;
    });
  });
}

const sigmoid = (z) => 1 / (1 + Math.exp(-z));

// The activations: value, derivative, and where the derivative is below FLAT.
export const ACTIVATIONS = {
  sigmoid: {
    label: "Sigmoid",
    value: sigmoid,
    derivative: (z) => sigmoid(z) * (1 - sigmoid(z)),
    flat: [
      [-Infinity, -edge(Math.sqrt(1 - 4 * FLAT)) * 2],
      [edge(Math.sqrt(1 - 4 * FLAT)) * 2, Infinity],
    ],
  },
  tanh: {
    label: "Tanh",
    value: Math.tanh,
    derivative: (z) => 1 - Math.tanh(z) ** 2,
    flat: [
      [-Infinity, -edge(Math.sqrt(1 - FLAT))],
      [edge(Math.sqrt(1 - FLAT)), Infinity],
    ],
  },
  relu: {
    label: "ReLU",
    value: (z) => Math.max(0, z),
    derivative: (z) => (z > 0 ? 1 : 0),
    flat: [[-Infinity, 0]],
  },
};

function edge(height) {
  return Math.atanh(height);
}

// Return what an activation leaves of the gradient: the share of values where it is flat, the share of units that are flat
// for every picture, and the mean derivative; and the range in which 90% of the pre-activations lie.
export function measure(pre, activation) {
  const { derivative } = ACTIVATIONS[activation];
  const slopes = pre.map((values) => values.map(derivative));
  const every = slopes.flat();
  const dead = slopes[0].filter((_, unit) => slopes.every((values) => values[unit] < FLAT)).length;
  const sorted = Float64Array.from(pre.flat()).sort();
  return {
    flat: every.filter((slope) => slope < FLAT).length / every.length,
    dead: dead / slopes[0].length,
    gradient: every.reduce((sum, slope) => sum + slope, 0) / every.length,
    low: sorted[Math.floor(0.05 * (sorted.length - 1))],
    high: sorted[Math.ceil(0.95 * (sorted.length - 1))],
  };
}

// ---------------------------------------------------------------- the room

export function mount(root, study) {
  const state = { data: "photos", at: 7, scheme: "raw", activation: "sigmoid", rule: "default", seed: 0 };
  const parts = build(root);
  let found; // weights, statistics and pre-activations of the data, rule and seed that are chosen
  const change = (what) => {
    Object.assign(state, what);
    if (!found || "data" in what || "rule" in what || "seed" in what) found = compute(study.samples[state.data], state);
    parts.show(state, found);
  };
  parts.controls.append(...controls(state, change));
  change({});
  return { unmount: parts.stop };
}

function compute(data, { rule, seed }) {
  const layer = drawWeights(rule, data.side ** 2, seed);
  const stats = statistics(data.pixels);
  const pre = {};
  for (const { value } of SCHEMES) pre[value] = preactivations(data.pixels, affine(value, stats, data.range), layer);
  return { ...data, stats, pre };
}

function controls(state, change) {
  const options = (named) => Object.entries(named).map(([value, { label }]) => ({ value, label }));
  const which = { photos: { label: "Photographs, 0 to 255" }, digits: { label: "Digits, 0 to 16" } };
  const pick = (label, key, list) =>
    choice({ label, options: list, value: state[key], onchange: (value) => change({ [key]: value }) });
  return [
    pick("Scale the input", "scheme", SCHEMES),
    pick("Activation", "activation", options(ACTIVATIONS)),
    pick("Pictures", "data", options(which)),
    pick("Weights drawn by", "rule", options(RULES)),
    button("Draw the weights again", () => change({ seed: state.seed + 1 })),
  ];
}

function build(root) {
  const panel = () => h("div", { class: "card" });
  const [left, right, below] = [panel(), panel(), panel()];
  const controls = h("div", { class: "row controls" });
  root.append(
    h("h1", {}, "The input: why pixels are scaled before a network sees them"),
    h(
      "p",
      { class: "lead" },
      "A first layer multiplies every pixel with a weight and adds up. Weights are drawn for inputs of " +
        "about 1. What happens when the pixels go up to 255? Try raw pixels first, then the three ways of scaling.",
    ),
    controls,
    h("div", { class: "columns wide-right" }, left, right),
    below,
  );
  const drawn = [picturePanel(left), curvePanel(right), tablePanel(below)];
  return {
    controls,
    show: (state, found) => drawn.forEach(({ show }) => show(state, found)),
    stop: () => drawn.forEach(({ stop }) => stop?.()),
  };
}

// The picture, and its pixels before and after.
function picturePanel(root) {
  const place = h("div", { class: "picture" });
  const words = h("p", { class: "axis" });
  const [before, after] = [h("div"), h("div")];
  let [state, found, shown, first, second] = [];
  const look = () => {
    const pixels = found.pixels[state.at];
    const { shift, scale } = affine(state.scheme, found.stats, found.range);
    const label = SCHEMES.find(({ value }) => value === state.scheme).label;
    const raw = { title: "Its pixels as they are", values: pixels, range: found.range };
    const scaled = {
      title: `What the layer gets: ${label.toLowerCase()}`,
      values: pixels.map((x) => (x - shift) / scale),
    };
    scaled.range = found.range.map((x) => (x - shift) / scale);
    canvas.set(pixels, `Picture ${state.at + 1}: grey levels from ${Math.min(...pixels)} to ${Math.max(...pixels)}`);
    words.textContent = `(x − ${number(shift)}) / ${number(scale)}. The picture stays the same; its numbers change.`;
    first ? first.update(raw) : (first = histogram(before, { ...raw, height: 92 }));
    second ? second.update(scaled) : (second = histogram(after, { ...scaled, height: 92, colour: HUES[2] }));
    state.moved?.();
  };
  let canvas;
  return {
    show(next, data) {
      [state, found] = [next, data];
      if (shown !== data.pixels) {
        shown = data.pixels;
        state.at = Math.min(state.at, shown.length - 1);
        canvas = grey({ pixels: shown[0], side: data.side, range: data.range, label: "A picture" });
        const browse = slider({
          label: "Picture",
          min: 1,
          max: shown.length,
          value: state.at + 1,
          oninput: (value) => {
            state.at = value - 1;
            look();
          },
        });
        place.replaceChildren(canvas, browse);
        root.replaceChildren(h("h2", {}, "One picture"), place, before, after, words);
      }
      look();
    },
    stop: () => [first, second].forEach((one) => one?.stop()),
  };
}

// The pre-activations on the curve.
function curvePanel(root) {
  const place = h("div", { class: "plot" });
  const heading = h("h2", {});
  const words = h("p", { class: "axis" });
  root.append(heading, place, words);
  let now;
  const draw = (width) => now && place.replaceChildren(drawCurve(now, width));
  const sized = responsive(place, draw);
  const look = (state, found) => {
    const pre = found.pre[state.scheme];
    now = { activation: ACTIVATIONS[state.activation], mine: pre[state.at], all: pre.flat() };
    heading.textContent = `Its ${UNITS} pre-activations on the ${curveName(state.activation)} curve`;
    words.textContent =
      `Each dot is one unit of the first layer, for this picture. The columns count the units of all ` +
      `${pre.length} pictures. ` +
      "Where it is shaded, the curve's slope is below 0.001, and no gradient comes back.";
    sized.again();
  };
  return {
    show(state, found) {
      state.moved = () => look(state, found);
      look(state, found);
    },
    stop: sized.stop,
  };
}

function drawCurve({ activation, mine, all }, width) {
  const height = width < 500 ? 300 : 420;
  const [foot, edgeWidth] = [height - 22, 34];
  const far = Float64Array.from(all, Math.abs).sort()[Math.floor(0.995 * all.length)];
  const limit = Math.max(10, far);
  const [least, most] = [activation.value(-limit), activation.value(limit)];
  const x = (z) => edgeWidth + ((width - edgeWidth - 8) * (z + limit)) / (2 * limit);
  const y = (value) => foot - 12 - ((foot - 30) * (value - least)) / (most - least);
  const shades = activation.flat.map(([from, to]) => {
    const [start, end] = [Math.max(-limit, from), Math.min(limit, to)];
    return svg("rect", { class: "shade", x: x(start), y: 6, width: Math.max(0, x(end) - x(start)), height: foot - 6 });
  });
  // More points near 0, where the curve bends even when the axis is hundreds long.
  const path = Array.from({ length: 241 }, (_, at) => (limit * Math.sinh((at - 120) / 15)) / Math.sinh(8));
  const curve = path.map((z) => `${x(z).toFixed(1)},${y(activation.value(z)).toFixed(1)}`).join(" ");
  const ticks = [-limit, -limit / 2, 0, limit / 2, limit].map((z, nth) =>
    svg(
      "text",
      { x: x(z), y: height - 4, "text-anchor": ["start", "middle", "middle", "middle", "end"][nth] },
      number(Math.round(z)),
    ),
  );
  const heights = [least, most].map((value) =>
    svg("text", { x: edgeWidth - 6, y: y(value) + 4, "text-anchor": "end" }, number(Math.round(value))),
  );
  const inside = mine.filter((z) => Math.abs(z) <= limit);
  return svg(
    "svg",
    {
      role: "img",
      "aria-label": `Pre-activations from ${number(Math.min(...mine))} to ${number(Math.max(...mine))} on the curve`,
      width,
      height,
      viewBox: `0 0 ${width} ${height}`,
    },
    shades,
    density(all, limit, x, foot),
    svg("line", { class: "foot", x1: x(-limit), x2: x(limit), y1: foot, y2: foot }),
    svg("polyline", { class: "curve", points: curve }),
    inside.map((z) =>
      svg("circle", { class: "unit", cx: x(z).toFixed(1), cy: y(activation.value(z)).toFixed(1), r: 4 }),
    ),
    ticks,
    heights,
  );
}

function density(values, limit, x, foot) {
  const counts = new Array(60).fill(0);
  for (const z of values) {
    const bin = Math.floor((60 * (z + limit)) / (2 * limit));
    if (bin >= 0 && bin < 60) counts[bin] += 1;
  }
  const top = Math.max(...counts);
  return counts.map((count, bin) => {
    const [from, tall] = [-limit + (2 * limit * bin) / 60, (0.25 * foot * count) / top];
    const across = Math.max(1, x(limit / 30) - x(0) - 1);
    return count ? svg("rect", { class: "density", x: x(from), y: foot - tall, width: across, height: tall }) : null;
  });
}

// All four ways side by side.
function tablePanel(root) {
  const words = h("p", { class: "found", "aria-live": "polite" });
  const body = h("tbody", {});
  const code = h("p", { class: "axis" });
  const heads = [
    "Input",
    "90% of the pre-activations",
    "Flat here",
    "Flat for every picture",
    "Gradient that is left (mean slope)",
  ];
  const head = h(
    "thead",
    {},
    h(
      "tr",
      {},
      heads.map((text) => h("th", { scope: "col" }, text)),
    ),
  );
  root.append(
    h("h2", {}, "What is left for learning"),
    words,
    h(
      "div",
      { class: "scroll", tabindex: "0", role: "group", "aria-label": "The four ways" },
      h("table", { class: "four" }, head, body),
    ),
    code,
  );
  return {
    show(state, found) {
      const rows = SCHEMES.map((scheme) => ({ ...scheme, ...measure(found.pre[scheme.value], state.activation) }));
      const most = Math.max(...rows.map(({ gradient }) => gradient));
      body.replaceChildren(...rows.map((row) => tableRow(row, most, row.value === state.scheme)));
      words.textContent = sentence(rows, state);
      const inputs = found.side ** 2;
      code.replaceChildren(
        `All ${found.pixels.length} pictures, ${UNITS} units; mean ${number(found.stats.mean)}, standard deviation ` +
          `${number(found.stats.std)}, from ${found.stats.min} to ${found.stats.max}. In Python these are the ` +
          `weights of `,
        h("code", {}, `torch.manual_seed(${state.seed}); ${RULES[state.rule].python(inputs)}`),
        state.rule === "default" ? "." : ", and biases of 0.",
      );
    },
  };
}

function tableRow(row, most, chosen) {
  return h(
    "tr",
    { class: chosen ? "chosen" : null },
    h("th", { scope: "row" }, row.label, chosen ? h("span", { class: "hidden" }, " (shown above)") : null),
    h("td", {}, `${number(Number(row.low.toPrecision(3)))} to ${number(Number(row.high.toPrecision(3)))}`),
    h("td", {}, percent(row.flat)),
    h("td", {}, percent(row.dead)),
    h("td", { class: "gauge" }, h("i", { style: { width: `${(70 * row.gradient) / most}%` } }), number(row.gradient)),
  );
}

// Sentences that say what the numbers do, and nothing else.
function sentence(rows, { scheme, activation }) {
  const [mine, best] = [rows.find(({ value }) => value === scheme), rows.find(({ value }) => value === "zscore")];
  const said = [
    `${mine.label} input, ${curveName(activation)}: the slope is below 0.001 in ${percent(mine.flat)} of all cases.`,
  ];
  if (mine.dead) said.push(`${percent(mine.dead)} of the units are flat for every picture, and cannot learn from any.`);
  const times = (ratio) => `${number(Number(ratio.toPrecision(3)))} times`;
  const factor = best.gradient / mine.gradient;
  if (scheme === "zscore") said.push(`On average a slope of ${number(Number(mine.gradient.toPrecision(3)))} is left.`);
  else if (factor > 1.25) said.push(`A z-scored input leaves ${times(factor)} the slope.`);
  else if (factor < 0.8) said.push(`That is ${times(1 / factor)} the slope that a z-scored input leaves.`);
  else said.push("On average the slope is about that of a z-scored input.");
  const size = mine.high / best.high;
  if (activation === "relu" && size > 2)
    said.push(`But a ReLU passes on what it gets: values ${times(size)} as large as with z-scored input.`);
  return said.join(" ");
}

// The name of an activation within a sentence.
function curveName(activation) {
  const { label } = ACTIVATIONS[activation];
  return label === "ReLU" ? label : label.toLowerCase();
}
