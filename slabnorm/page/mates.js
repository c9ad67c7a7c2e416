// Room 3, batch mates: in train mode a sample's output depends on who shares its batch, in eval mode it does not.

import { bars, button, choice, grey, h, lines, number, percent, responsive, slider, svg } from "./kit.js";

export const id = "mates";
export const title = "Batch mates";

const BATCH = 8;
const ALL = "all";
const SIZES = [1, 2, 4, 8, 24, 72, 360]; // they divide the 360 test digits
const MODES = [
  { value: "train", label: "Train" },
  { value: "eval", label: "Eval" },
];

// ---------------------------------------------------------------- the network

// Return W x + b for every row x.
function linear(rows, { weight, bias }) {
  return rows.map((x) => weight.map((w, unit) => w.reduce((sum, value, i) => sum + value * x[i], bias[unit])));
}

// Return the mean and the biased variance of every column: the slabs of "n c -> c".
export function moments(rows) {
  const mean = rows[0].map((_, c) => rows.reduce((sum, row) => sum + row[c], 0) / rows.length);
  const variance = mean.map((m, c) => rows.reduce((sum, row) => sum + (row[c] - m) ** 2, 0) / rows.length);
  return { mean, variance };
}

// Return batch norm of the rows: in train mode with their own statistics, in eval mode with the running ones.
export function batchNorm(rows, norm, mode) {
  const { mean, variance } = mode === "train" ? moments(rows) : { mean: norm.running_mean, variance: norm.running_var };
  return rows.map((row) =>
    row.map((x, c) => ((x - mean[c]) / Math.sqrt(variance[c] + norm.eps)) * norm.weight[c] + norm.bias[c]),
  );
}

// Return the network's outputs for pictures of pixels 0 to 16.
export function logits(network, pictures, mode) {
  const hidden = linear(
    pictures.map((pixels) => pixels.map((pixel) => pixel / 16)),
    network.hidden,
  );
  const active = batchNorm(hidden, network.norm, mode).map((row) => row.map((x) => Math.max(0, x)));
  return linear(active, network.output);
}

export function softmax(row) {
  const top = Math.max(...row);
  const parts = row.map((x) => Math.exp(x - top));
  const sum = parts.reduce((a, b) => a + b, 0);
  return parts.map((part) => part / sum);
}

// Return the share of digits that are classified correctly in batches of a size.
export function accuracy(network, { test, labels }, mode, size) {
  let right = 0;
  for (let start = 0; start < test.length; start += size) {
    logits(network, test.slice(start, start + size), mode).forEach((row, at) => {
      if (row.indexOf(Math.max(...row)) === labels[start + at]) right += 1;
    });
  }
  return right / test.length;
}

// Return a running statistic after each step: running += momentum * (batch - running).
export function running(batch, momentum, start) {
  let now = start;
  return batch.map((value) => (now += momentum * (value - now)));
}

// ---------------------------------------------------------------- the room

export function mount(root, study) {
  const { digits, network } = study.samples;
  root.append(
    h("h1", {}, "Batch mates: the same digit, two answers"),
    h(
      "p",
      { class: "lead" },
      "A small network, linear → batch norm → ReLU → linear, trained on handwritten digits. In train mode its batch " +
        "norm takes mean and variance over the batch, so the other seven digits have a say in what this one is.",
    ),
  );
  const stops = [matesPart, runningPart, forgetPart].map((part) => part(root, network, digits));
  return { unmount: () => stops.forEach((stop) => stop?.()) };
}

// Append a card with what is turned on the left, and what comes of it on the right.
function panel(root, heading, left, right) {
  const columns = h("div", { class: "columns wide-right" }, h("div", { class: "stack" }, left), h("div", {}, right));
  root.append(h("section", { class: "card" }, h("h2", {}, heading), columns));
}

function foundSentence() {
  return h("p", { class: "found", "aria-live": "polite" });
}

function short(value) {
  return number(Number(value.toPrecision(3)));
}

// ---------------------------------------------------------------- one batch

function matesPart(root, network, digits) {
  const state = { first: 0, mates: [1, 2, 3, 4, 5, 6, 7], light: new Array(7).fill(0), chosen: ALL, mode: "train" };
  const [batch, words, chartPlace] = [h("div", { class: "batch" }), foundSentence(), h("div")];
  const chart = probabilityChart(chartPlace);
  const change = (what) => {
    Object.assign(state, what);
    const found = answers(network, digits, state);
    batch.replaceChildren(...tiles(digits, state, found.lit));
    chart.update(found);
    words.textContent = matesSentence(found, state);
  };
  panel(root, "One batch of eight", [batch, matesControls(state, digits.test.length, change)], [words, chartPlace]);
  change({});
  return chart.stop;
}

function isChosen({ chosen }, at) {
  return chosen === ALL || chosen === at;
}

function matesControls(state, count, change) {
  const each = (list, set) => list.map((value, at) => (isChosen(state, at) ? set(value) : value));
  const light = slider({
    label: "Their brightness",
    min: -16,
    max: 16,
    value: 0,
    format: (value) => (value > 0 ? `+${value}` : number(value)),
    oninput: (value) => change({ light: each(state.light, () => value) }),
  });
  const choose = (chosen) => {
    change({ chosen });
    light.set(state.light[chosen === ALL ? 0 : chosen]);
  };
  const restore = () => {
    change({ light: new Array(7).fill(0) });
    light.set(0);
  };
  const next = (digit) => (digit + BATCH) % count;
  const mates = [...state.mates.map((_, at) => ({ value: at, label: String(at + 1) })), { value: ALL, label: "All" }];
  return [
    choice({ label: "Mode", options: MODES, value: state.mode, onchange: (mode) => change({ mode }) }),
    choice({ label: "Which mates to change", options: mates, value: ALL, onchange: choose }),
    light,
    h(
      "div",
      { class: "row" },
      button("Exchange them", () => change({ mates: each(state.mates, next) })),
      button("As they came", restore),
      button("Another digit", () => change({ first: next(state.first) })),
    ),
  ];
}

// Return the mates' pixels as they are lit, and the first digit's probabilities: with the mates as they came, with them
// as they are now, and in eval mode.
function answers(network, digits, { first, mates, light, mode }) {
  const came = mates.map((mate) => digits.test[mate]);
  const lit = came.map((pixels, at) => pixels.map((pixel) => Math.min(16, Math.max(0, pixel + light[at]))));
  const answer = (others, how) => softmax(logits(network, [digits.test[first], ...others], how)[0]);
  return {
    lit,
    before: answer(came, mode),
    now: answer(lit, mode),
    calm: answer([], "eval"),
    label: digits.labels[first],
  };
}

function tiles(digits, state, lit) {
  const tile = (pixels, name, kind) => {
    const picture = grey({ pixels, side: 8, range: [0, 16], label: name });
    return h("figure", { class: kind }, picture, h("figcaption", {}, name));
  };
  return [
    tile(digits.test[state.first], `This digit: ${digits.labels[state.first]}`, "self"),
    ...lit.map((pixels, at) => tile(pixels, `Mate ${at + 1}`, isChosen(state, at) ? "picked" : "mate")),
  ];
}

function matesSentence({ before, now, calm, label }, { mode, light }) {
  const one = `${label === 8 ? "an" : "a"} ${label}`;
  const [was, is] = [percent(before[label]), percent(now[label])];
  if (!light.some(Boolean)) {
    const beside = mode === "train" ? ` with these mates; in eval mode, with ${percent(calm[label])}` : "";
    return `This digit is ${one} with probability ${is}${beside}. Brighten its mates, and watch.`;
  }
  if (now.every((value, at) => value === before[at])) {
    return `Still ${is}: not one probability moves, for the running statistics do not look at the batch.`;
  }
  return `This digit has not changed, and still its probability of being ${one} went from ${was} to ${is}.`;
}

// Columns of probability, filled as it is now, with the outline of what it was. Return {update(spec), stop}.
function probabilityChart(root) {
  const place = h("div", { class: "plot" });
  root.append(
    h(
      "figure",
      {},
      h("figcaption", {}, "How probable each digit is, by the network"),
      place,
      h("p", { class: "axis" }, "Filled: now. Outlined: with the mates as they came. Blue: what the digit is."),
    ),
  );
  let spec;
  const sized = responsive(place, (width) => place.replaceChildren(drawProbabilities(spec, width)));
  return {
    update(next) {
      spec = next;
      sized.again();
    },
    stop: sized.stop,
  };
}

function drawProbabilities({ before, now, label }, width) {
  const [height, foot, step] = [260, 236, width / now.length];
  const column = (share, digit, kind) =>
    svg("rect", {
      class: kind,
      x: digit * step + step * 0.16,
      width: step * 0.68,
      y: foot - (foot - 24) * share,
      height: (foot - 24) * share,
    });
  const columns = now.map((share, digit) => [
    column(share, digit, digit === label ? "probability right" : "probability"),
    column(before[digit], digit, "ghost"),
    svg("text", { x: (digit + 0.5) * step, y: height - 6, "text-anchor": "middle" }, digit),
    share < 0.005
      ? null
      : svg(
          "text",
          { x: (digit + 0.5) * step, y: foot - (foot - 24) * share - 6, "text-anchor": "middle" },
          `${Math.round(100 * share)}%`,
        ),
  ]);
  const said = now.map((share, digit) => `${digit}: ${percent(share)}, was ${percent(before[digit])}`).join("; ");
  return svg(
    "svg",
    { role: "img", "aria-label": `Probabilities. ${said}`, width, height, viewBox: `0 0 ${width} ${height}` },
    columns,
    svg("line", { class: "foot", x1: 0, x2: width, y1: foot, y2: foot }),
  );
}

// ---------------------------------------------------------------- running statistics

function runningPart(root, network) {
  const { trace, norm } = network;
  const steps = trace.batch_mean[0].map((_, at) => at + 1);
  const state = { unit: 0, momentum: norm.momentum, what: "mean", step: 20 };
  const [words, place] = [foundSentence(), h("div")];
  const chart = lines(place, runningPicture(trace, steps, state));
  const change = (what) => {
    Object.assign(state, what);
    const picture = runningPicture(trace, steps, state);
    chart.update(picture);
    words.textContent = runningSentence(picture, trace, state);
  };
  const why = h(
    "p",
    {},
    "After each training step, running += momentum × (batch − running). Meanwhile the weights move on. Eval mode " +
      "should have the exact statistics: those of the whole training split, with the weights of that step.",
  );
  const heading = "What eval mode uses: running statistics, and how they lag";
  panel(root, heading, [why, runningControls(state, trace, steps.length, change)], [words, place]);
  change({});
  return chart.stop;
}

function runningControls(state, trace, count, change) {
  const pick = (label, key, options) =>
    choice({ label, options, value: state[key], onchange: (value) => change({ [key]: value }) });
  const units = trace.units.map((unit, at) => ({ value: at, label: String(unit) }));
  return [
    pick("Momentum: the weight of the new batch", "momentum", [0.01, 0.1, 0.5, 1]),
    pick("Unit of the hidden layer", "unit", units),
    pick("Statistic", "what", ["mean", "variance"]),
    slider({ label: "Training step", min: 1, max: count, value: state.step, oninput: (step) => change({ step }) }),
  ];
}

function runningPicture(trace, steps, { unit, momentum, what, step }) {
  const key = what === "mean" ? "mean" : "var";
  const [batch, exact] = [trace[`batch_${key}`][unit], trace[`exact_${key}`][unit]];
  // A new batch norm layer starts with running mean 0 and running variance 1.
  const now = running(batch, momentum, what === "mean" ? 0 : 1);
  return {
    title: `The ${what} of unit ${trace.units[unit]} during training`,
    x: "training step",
    y: what,
    height: 300,
    series: [
      { name: "exact", x: steps, y: exact },
      { name: `running, momentum ${momentum}`, x: steps, y: now },
      { name: `after step ${step}`, x: [step], y: [now[step - 1]] },
    ],
  };
}

function runningSentence({ series: [exact, now] }, trace, { unit, step, what }) {
  const off = (at) => Math.abs(now.y.at(at) - exact.y.at(at));
  const spread = Math.sqrt(trace.exact_var[unit][step - 1]);
  const inSpreads = what === "mean" ? `, which is ${short(off(step - 1) / spread)} standard deviations` : "";
  return (
    `After step ${step} the exact ${what} is ${short(exact.y[step - 1])}, and the running one ` +
    `${short(now.y[step - 1])}: off by ${short(off(step - 1))}${inSpreads}. After the last step it is off by ` +
    `${short(off(-1))}.`
  );
}

// ---------------------------------------------------------------- a forgotten eval()

function forgetPart(root, network, digits) {
  const [words, place] = [foundSentence(), h("div")];
  const count = digits.test.length;
  const guess = slider({ label: "Your guess", min: 0, max: 100, value: 80, format: (value) => `${value}%` });
  const press = () => {
    const shares = SIZES.map((size) => accuracy(network, digits, "train", size));
    const right = accuracy(network, digits, "eval", count);
    place.replaceChildren();
    bars(place, forgottenPicture(shares, right, count));
    words.textContent =
      `With eval(), ${percent(right)} are right. Forgotten, and one digit at a time, ${percent(shares[0])}; you ` +
      `guessed ${guess.input.value}%. Alone in its batch a digit is its own mean, and minus its mean it is 0: every ` +
      "digit gets the same answer. For this case the bar applies the formula. The layers themselves refuse it: " +
      "slabnorm and PyTorch raise an error for a batch of one in train mode.";
  };
  const task = h(
    "p",
    {},
    `The network is trained, and classifies ${count} digits that it has never seen, one at a time. But the line `,
    h("code", {}, "model.eval()"),
    " was forgotten. How many are right?",
  );
  const go = h("div", {}, button("Forget eval()", press, { class: "main" }));
  panel(root, "Forget eval()", [task, guess, go], [words, place]);
}

function forgottenPicture(shares, right, count) {
  const inPercent = (share) => Math.round(1000 * share) / 10;
  const names = SIZES.map((size) => (size === 1 ? "one at a time" : `batches of ${size}`));
  return {
    title: `Accuracy on ${count} test digits with eval() forgotten`,
    x: "batch size",
    y: "accuracy in %",
    series: [{ name: "train mode", x: names, y: shares.map(inPercent) }],
    marks: [["with eval()", inPercent(right)]],
  };
}
