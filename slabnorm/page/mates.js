// Room 3, batch mates: in train mode a sample's output depends on who shares its batch, in eval mode it does not.

import { bars, button, choice, grey, h, lines, number, percent, responsive, slider, svg } from "./kit.js";

export const id = "mates";
export const title = "Batch mates";

const BATCH = 8;
const SIZES = [1, 2, 4, 8, 24, 72, 360];

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
  const hidden = linear(pictures.map((pixels) => pixels.map((pixel) => pixel / 16)), network.hidden);
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
    h("p", { class: "lead" }, "A small network, linear → batch norm → ReLU → linear, trained on handwritten digits. In train mode its batch " +
      "norm takes mean and variance over the batch, so the other seven digits have a say in what this one is."),
  );
  const stops = [matesPart, runningPart, forgetPart].map((part) => part(root, network, digits));
  return { unmount: () => stops.forEach((stop) => stop?.()) };
}

function matesPart(root, network, digits) {
  const state = { first: 0, mates: [1, 2, 3, 4, 5, 6, 7], light: new Array(7).fill(0), chosen: 7, mode: "train" };
  const parts = matesLayout(root);
  const show = () => showMates(parts, network, digits, state);
  const change = (what) => {
    Object.assign(state, what);
    show();
  };
  const each = (set) => state.light.map((value, at) => (state.chosen === 7 || state.chosen === at ? set(value) : value));
  const light = slider({
    label: "Their brightness", min: -16, max: 16, value: 0, format: (value) => (value > 0 ? `+${value}` : number(value)),
    oninput: (value) => change({ light: each(() => value) }),
  });
  const which = (chosen) => {
    change({ chosen });
    light.set(state.light[chosen % 7]);
  };
  const next = (from) => (from + BATCH) % digits.test.length;
  const exchange = () => change({ mates: state.mates.map((mate, at) => (state.chosen === 7 || state.chosen === at ? next(mate) : mate)) });
  const restore = () => {
    change({ light: new Array(7).fill(0) });
    light.set(0);
  };
  const options = [...state.mates.map((_, at) => ({ value: at, label: String(at + 1) })), { value: 7, label: "All" }];
  parts.controls.append(
    choice({
      label: "Mode", value: "train", options: [{ value: "train", label: "Train" }, { value: "eval", label: "Eval" }],
      onchange: (mode) => change({ mode }),
    }),
    choice({ label: "Which mates to change", options, value: 7, onchange: which }),
    light,
    h("div", { class: "row" }, button("Exchange them", exchange), button("As they came", restore),
      button("Another digit", () => change({ first: next(state.first) }))),
  );
  show();
  return parts.chart.stop;
}

function matesLayout(root) {
  const controls = h("div", { class: "stack" });
  const batch = h("div", { class: "batch" });
  const words = h("p", { class: "found", "aria-live": "polite" });
  const right = h("div", {}, words);
  root.append(
    h("section", { class: "card" }, h("div", { class: "columns" },
      h("div", {}, h("h2", {}, "One batch of eight"), batch, controls),
      right,
    )),
  );
  return { controls, batch, words, chart: probabilityChart(right) };
}

function showMates(parts, network, digits, { first, mates, light, chosen, mode }) {
  const pixels = (at) => digits.test[at];
  const lit = mates.map((mate, at) => pixels(mate).map((pixel) => Math.min(16, Math.max(0, pixel + light[at]))));
  const answer = (others) => softmax(logits(network, [pixels(first), ...others], mode)[0]);
  const [before, now] = [answer(mates.map(pixels)), answer(lit)];
  const tile = (values, name, kind) =>
    h("figure", { class: kind }, grey({ pixels: values, side: 8, range: [0, 16], label: name }), h("figcaption", {}, name));
  parts.batch.replaceChildren(
    tile(pixels(first), `This digit: ${digits.labels[first]}`, "self"),
    ...lit.map((values, at) => tile(values, `Mate ${at + 1}`, chosen === 7 || chosen === at ? "picked" : "mate")),
  );
  parts.chart.update({ before, now, label: digits.labels[first] });
  const calm = softmax(logits(network, [pixels(first)], "eval")[0]);
  parts.words.textContent = matesSentence({ before, now, calm, label: digits.labels[first], mode, changed: light.some(Boolean) });
}

function matesSentence({ before, now, calm, label, mode, changed }) {
  const moved = Math.max(...now.map((value, at) => Math.abs(value - before[at])));
  const [name, one] = [mode === "train" ? "Train mode" : "Eval mode", `${label === 8 ? "an" : "a"} ${label}`];
  if (mode === "eval") {
    const still = moved === 0 ? " Not one probability moves, for the running statistics do not look at the batch." : "";
    return `${name}: this digit is ${one} with probability ${percent(now[label])}.${changed ? still : " Brighten its mates, and watch."}`;
  }
  if (!changed) {
    return `${name}: with these mates, this digit is ${one} with probability ${percent(now[label])}; in eval mode ${percent(calm[label])}. ` +
      "Brighten the mates, and watch.";
  }
  return `${name}: this digit has not changed, and still its probability of being ${one} went from ${percent(before[label])} ` +
    `to ${percent(now[label])}.`;
}

// Columns of probability, filled as it is now, with the outline of what it was. Return {update(spec), stop}.
function probabilityChart(root) {
  const place = h("div", { class: "plot" });
  root.append(h("figure", {}, h("figcaption", {}, "How probable each digit is, by the network"), place,
    h("p", { class: "axis" }, "Filled: now. Outlined: with the mates as they came. Blue: what the digit is.")));
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
    svg("rect", { class: kind, x: digit * step + step * 0.16, width: step * 0.68, y: foot - (foot - 24) * share, height: (foot - 24) * share });
  const columns = now.map((share, digit) => [
    column(share, digit, digit === label ? "probability right" : "probability"),
    column(before[digit], digit, "ghost"),
    svg("text", { x: (digit + 0.5) * step, y: height - 6, "text-anchor": "middle" }, digit),
    share < 0.005 ? null : svg("text", { x: (digit + 0.5) * step, y: foot - (foot - 24) * share - 6, "text-anchor": "middle" },
      `${Math.round(100 * share)}%`),
  ]);
  const said = now.map((share, digit) => `${digit}: ${percent(share)}, was ${percent(before[digit])}`).join("; ");
  return svg("svg", { role: "img", "aria-label": `Probabilities. ${said}`, width, height, viewBox: `0 0 ${width} ${height}` },
    columns, svg("line", { class: "foot", x1: 0, x2: width, y1: foot, y2: foot }));
}

// ---------------------------------------------------------------- running statistics

function runningPart(root, network) {
  const { trace, norm } = network;
  const steps = trace.batch_mean[0].map((_, at) => at + 1);
  const state = { unit: 0, momentum: norm.momentum, what: "mean", step: 20 };
  const words = h("p", { class: "found", "aria-live": "polite" });
  const [controls, place] = [h("div", { class: "stack" }), h("div")];
  let chart;
  const show = () => {
    const spec = runningPicture(trace, steps, state);
    chart ? chart.update(spec) : (chart = lines(place, spec));
    words.textContent = runningSentence(spec, trace, state);
  };
  const change = (what) => {
    Object.assign(state, what);
    show();
  };
  controls.append(
    choice({ label: "Momentum: the weight of the new batch", options: [0.01, 0.1, 0.5, 1], value: state.momentum,
      onchange: (momentum) => change({ momentum }) }),
    choice({ label: "Unit of the hidden layer", value: 0, onchange: (unit) => change({ unit }),
      options: trace.units.map((unit, at) => ({ value: at, label: String(unit) })) }),
    choice({ label: "Statistic", options: ["mean", "variance"], value: "mean", onchange: (what) => change({ what }) }),
    slider({ label: "Training step", min: 1, max: steps.length, value: state.step, oninput: (step) => change({ step }) }),
  );
  root.append(
    h("section", { class: "card" }, h("h2", {}, "What eval mode uses: running statistics, and how they lag"),
      h("div", { class: "columns wide-right" },
        h("div", {}, h("p", {}, "After each training step, running += momentum × (batch − running). Meanwhile the weights move on. The exact " +
          "statistics, over the whole training split with the weights of that step, are what eval mode should have."), controls),
        h("div", {}, words, place))),
  );
  show();
  return () => chart.stop();
}

function runningPicture(trace, steps, { unit, momentum, what, step }) {
  const short = what === "mean" ? "mean" : "var";
  const [batch, exact] = [trace[`batch_${short}`][unit], trace[`exact_${short}`][unit]];
  // A new batch norm layer starts with running mean 0 and running variance 1.
  const now = running(batch, momentum, what === "mean" ? 0 : 1);
  return {
    title: `The ${what} of unit ${trace.units[unit]} during training`, x: "training step", y: what, height: 300,
    series: [
      { name: "exact", x: steps, y: exact },
      { name: `running, momentum ${momentum}`, x: steps, y: now },
      { name: `after step ${step}`, x: [step], y: [now[step - 1]] },
    ],
  };
}

function runningSentence({ series }, trace, { unit, step, what }) {
  const [exact, now] = [series[0].y[step - 1], series[1].y[step - 1]];
  const spread = Math.sqrt(trace.exact_var[unit][step - 1]);
  const share = what === "mean" ? ` ${number(Number((Math.abs(now - exact) / spread).toPrecision(2)))} standard deviations,` : "";
  const end = Math.abs(series[1].y.at(-1) - series[0].y.at(-1));
  return (
    `After step ${step} the exact ${what} is ${number(exact)} and the running one ${number(now)}: off by${share || ""} ` +
    `${number(Number(Math.abs(now - exact).toPrecision(3)))}. After the last step it is off by ${number(Number(end.toPrecision(2)))}.`
  );
}

// ---------------------------------------------------------------- a forgotten eval()

function forgetPart(root, network, digits) {
  let guess = 80;
  const place = h("div");
  const words = h("p", { class: "found", "aria-live": "polite" });
  const count = digits.test.length;
  const press = () => {
    const sizes = SIZES.filter((size) => count % size === 0);
    const shares = sizes.map((size) => accuracy(network, digits, "train", size));
    const right = accuracy(network, digits, "eval", count);
    place.replaceChildren();
    bars(place, {
      title: `Accuracy on ${count} test digits with eval() forgotten`, x: "batch size", y: "accuracy, 0 to 1",
      series: [{ name: "train mode", x: sizes.map((size) => `batches of ${size}`), y: shares }], marks: [["with eval()", right]],
    });
    words.textContent =
      `With eval(), ${percent(right)} are right. Forgotten, and one digit at a time, ${percent(shares[0])}: you guessed ${guess}%. ` +
      "Alone in its batch a digit is its own mean. What is left of it after the subtraction is 0, so every digit gets the same answer. " +
      "For this case the bar applies the formula; slabnorm itself refuses a batch of one in train mode, as PyTorch does.";
  };
  root.append(
    h("section", { class: "card" }, h("h2", {}, "Forget eval()"),
      h("div", { class: "columns wide-right" },
        h("div", { class: "stack" },
          h("p", {}, `The network is trained, and now classifies ${count} digits that it has never seen, one at a time. The line model.eval() was ` +
            "forgotten. How many are right?"),
          slider({ label: "Your guess", min: 0, max: 100, value: guess, format: (value) => `${value}%`, oninput: (value) => (guess = value) }),
          h("div", {}, button("Forget eval()", press, { class: "main" }))),
        h("div", {}, words, place))),
  );
}
