// Room 4, the network: the runs of the study's sweep, two side by side.

import { button, choice, h, hue, lines, noStudy, number, percent, slider } from "./kit.js";

export const id = "network";
export const title = "The network";

const FIELDS = [
  { key: "batch_size", label: "Batch size" },
  { key: "rate", label: "Learning rate" },
  { key: "depth", label: "Hidden layers" },
  { key: "gain", label: "Initial gain of the weights" },
];
const PICTURES = [
  { title: "Training loss", x: "step", y: "loss", of: (run) => [run.steps, run.loss] },
  { title: "Validation accuracy, in eval mode", x: "step", y: "accuracy", of: (run) => [run.steps, run.validation] },
  {
    title: "Drift: how far each layer's input has moved by the end",
    x: "hidden layer",
    y: "standard deviations",
    of: (run) => [layers(run.drift), run.drift],
  },
  {
    title: "Gradient of each layer's weights, before the first step",
    x: "hidden layer",
    y: "norm",
    log: "y",
    of: (run) => [layers(run.gradient), run.gradient],
  },
];

function layers(values) {
  return values.map((_, at) => at + 1);
}

// Return the values of a field that occur in the sweep, in order.
export function values(sweep, key) {
  const found = [...new Set(sweep.map((run) => run[key]))];
  return typeof found[0] === "number" ? found.sort((a, b) => a - b) : found;
}

// Return the run with exactly these settings, or undefined.
export function find(sweep, wanted) {
  return sweep.find((run) => run.norm === wanted.norm && FIELDS.every(({ key }) => run[key] === wanted[key]));
}

// Return the run whose settings are the fewest steps of the sliders away, with the same norm if it was run at all.
export function nearest(sweep, wanted) {
  const scales = FIELDS.map(({ key }) => ({ key, list: values(sweep, key) }));
  const away = (run) =>
    scales.reduce((sum, { key, list }) => sum + Math.abs(list.indexOf(run[key]) - list.indexOf(wanted[key])), 0) +
    (run.norm === wanted.norm ? 0 : 1000);
  return sweep.reduce((best, run) => (away(run) < away(best) ? run : best));
}

export function describe(run) {
  return (
    `${normName(run.norm)}, batch ${run.batch_size}, rate ${number(run.rate)}, ${run.depth} layers, gain ` +
    `${number(run.gain)}`
  );
}

function normName(norm) {
  return norm === "none" ? "no norm" : norm;
}

// ---------------------------------------------------------------- the room

export function mount(root, study) {
  const sweep = study.claims?.sweep ?? [];
  root.append(
    h("h1", {}, "The network: turn its settings, compare two runs"),
    h(
      "p",
      { class: "lead" },
      "Every point of these sliders is a network that was trained. Start with run A and run B alike but for the norm. " +
        "Then make it deeper, raise the learning rate, shrink the batch: which of the two gives in first?",
    ),
  );
  if (!sweep.length) {
    root.append(noStudy());
    return {};
  }
  const stop = twoRuns(root, sweep);
  root.append(h("p", { class: "source" }, `${sweep.length} runs on ${study.claims.data.name}.`));
  return { unmount: stop };
}

function twoRuns(root, sweep) {
  const state = startingPair(sweep);
  const place = h("div", { class: "two plots" });
  const charts = PICTURES.map((spec) => chart(place, spec));
  let together = true;
  const show = () => {
    sides.forEach((one, at) => one.show(state[at]));
    charts.forEach((one) => one.show(state.map((wanted) => find(sweep, wanted))));
  };
  const sides = ["A", "B"].map((name, at) =>
    side(sweep, name, at, {
      take: (settings) => {
        Object.assign(state[at], settings);
        show();
      },
      slide: (settings) => {
        for (const one of together ? state : [state[at]]) Object.assign(one, settings);
        show();
      },
    }),
  );
  const which = choice({
    label: "A slider moves",
    options: ["both runs", "one run"],
    value: "both runs",
    onchange: (value) => (together = value === "both runs"),
  });
  const cards = sides.map((one) => one.root);
  root.append(h("div", { class: "row controls" }, which), h("div", { class: "two" }, cards), place);
  show();
  return () => charts.forEach((one) => one.stop());
}

// Begin with two runs that differ in their norm alone, if there are such.
function startingPair(sweep) {
  const middle = (key) => values(sweep, key)[Math.floor(values(sweep, key).length / 2)];
  const wanted = Object.fromEntries(FIELDS.map(({ key }) => [key, middle(key)]));
  const settings = ({ norm, batch_size, rate, depth, gain }) => ({ norm, batch_size, rate, depth, gain });
  const norms = values(sweep, "norm");
  const first = nearest(sweep, { ...wanted, norm: norms.includes("batch") ? "batch" : norms[0] });
  const other =
    norms.includes("none") && first.norm !== "none"
      ? "none"
      : (norms.find((norm) => norm !== first.norm) ?? first.norm);
  return [settings(first), settings(nearest(sweep, { ...settings(first), norm: other }))];
}

// The controls and the outcome of one run.
function side(sweep, name, at, { take, slide }) {
  const status = h("div", { "aria-live": "polite" });
  const norm = choice({
    label: "Norm",
    value: null,
    onchange: (norm) => take({ norm }),
    options: values(sweep, "norm").map((value) => ({ value, label: normName(value) })),
  });
  const sliders = FIELDS.map(({ key, label }) => ({ key, list: values(sweep, key), label })).map(
    ({ key, list, label }) => {
      if (list.length === 1) return { key, root: h("p", {}, `${label}: ${number(list[0])}`), set: () => {} };
      const control = slider({
        label,
        min: 0,
        max: list.length - 1,
        value: 0,
        format: (place) => number(list[place]),
        oninput: (place) => slide({ [key]: list[place] }),
      });
      return { key, root: control, set: (value) => control.set(list.indexOf(value)) };
    },
  );
  const root = h(
    "section",
    { class: "card side stack", style: { "--side": hue(at) }, "aria-label": `Run ${name}` },
    h("h2", {}, `Run ${name}`),
    norm,
    sliders.map((one) => one.root),
    status,
  );
  const show = (wanted) => {
    norm.set(wanted.norm);
    sliders.forEach((one) => one.set(wanted[one.key]));
    const run = find(sweep, wanted);
    status.replaceChildren(...(run ? outcome(run) : notRun(sweep, wanted, take)));
  };
  return { root, show };
}

function outcome(run) {
  if (run.status !== "diverged") return [h("p", { class: "status" }, `Test accuracy ${percent(run.accuracy)}`)];
  const last = run.steps.filter((_, at) => run.loss[at] !== null).at(-1);
  const when = last === undefined ? "before it was first looked at" : `after step ${last}`;
  return [h("p", { class: "status bad" }, `Diverged: the loss became infinite or NaN ${when}.`)];
}

function notRun(sweep, wanted, take) {
  const { norm, batch_size, rate, depth, gain } = nearest(sweep, wanted);
  const other = { norm, batch_size, rate, depth, gain };
  return [
    h("p", { class: "status" }, "This combination was not run."),
    button(`Take the nearest: ${describe(other)}`, () => take(other)),
  ];
}

function chart(root, { of, ...spec }) {
  const place = h("div", { class: "card" });
  root.append(place);
  let drawn;
  return {
    show(runs) {
      const series = runs.map((run, at) => {
        const [x, y] = run ? of(run) : [[], []];
        return { name: `${"AB"[at]}: ${run ? normName(run.norm) : "not run"}`, x, y };
      });
      if (drawn) drawn.update({ series });
      else drawn = lines(place, { ...spec, series, height: 240 });
    },
    stop: () => drawn?.stop(),
  };
}
