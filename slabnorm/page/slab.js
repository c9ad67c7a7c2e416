// Room 1: a block of N x C x H x W cells, the slab that each cell lies in, and the formula with the numbers
// of one slab.

import { CHANNELS, MOST, values as blockOf } from "./block.js";
import { button, choice, extent, h, HUES, histogram, number, slider, unique } from "./kit.js";
import { moments, normalise, plan } from "./norm.js";
import { NotationError, parse } from "./notation.js";
import { indices, stage } from "./stage.js";

export const id = "slab";
export const title = "The slab";

const EPS = 1e-5;
const SCHEMES = [
  {
    label: "Batch",
    pattern: "n c h w -> c",
    says: "Batch norm: one slab for each channel, through all samples. Every image of the batch has a say in every other.",
  },
  {
    label: "Layer",
    pattern: "n c h w -> n",
    says: "Layer norm: one slab for each sample, with all of its channels and places. No other sample matters.",
  },
  {
    label: "Instance",
    pattern: "n c h w -> n c",
    says: "Instance norm: one slab for each channel of each sample. What is left of a picture is its pattern, not its contrast.",
  },
  {
    label: "Group",
    pattern: "n (g c) h w -> n g",
    says: "Group norm: the channels of a sample in g groups. With one group it is layer norm, with one channel each instance norm.",
  },
  {
    label: "Position",
    pattern: "n c h w -> n h w",
    says: "Position norm: at each place of each sample, all channels. A transformer's layer norm does this, a place being a token.",
  },
  {
    label: "Pixel",
    pattern: "n c h w -> c h w",
    says: "One slab for each channel and place, through the batch: as few values in each as there are samples.",
  },
];
const SHADES = [
  { value: "slab", label: "Slabs" },
  { value: "input", label: "Input" },
  { value: "output", label: "Output" },
];

// ---------------------------------------------------------------- what is computed

// Everything that the room shows, from what the reader has chosen.
function compute({ text, shape, groups }, photos) {
  const values = blockOf(shape, photos);
  try {
    const pattern = parse(text);
    const sizes = pattern.left.some((item) => item.length > 1 && item.includes("g")) ? { g: groups } : {};
    const bound = plan(pattern, shape, sizes);
    const found = moments(values, bound);
    normalise(values, bound, found, { eps: EPS }); // refuses what the library refuses
    return { values, bound, found };
  } catch (error) {
    if (!(error instanceof NotationError)) throw error;
    return { values, error: error.message };
  }
}

// Gamma and beta of every slab; of those that the reader has not touched, 1 and 0.
function scales({ bound }) {
  return { gamma: new Float64Array(bound.slabs).fill(1), beta: new Float64Array(bound.slabs) };
}

function output({ values, bound, found }, { gamma, beta }) {
  return normalise(values, bound, found, { eps: EPS, weight: gamma, bias: beta, along: bound.of });
}

// "n = 0, c = 2" of a slab.
function nameOf({ kept }, slab) {
  if (kept.length === 0) return "all cells";
  let rest = slab;
  const parts = [...kept].reverse().map(({ name, size }) => {
    const at = rest % size;
    rest = Math.floor(rest / size);
    return `${name} = ${at}`;
  });
  return parts.reverse().join(", ");
}

// Whether a network's gamma and beta, which vary by channel, can undo the norm, and why.
function undoable({ pattern }) {
  const channel = new Set(pattern.affine.flat());
  const other = [...pattern.kept].filter((name) => !channel.has(name));
  if (pattern.affine.length === 0) {
    return "This pattern has no axis c, along which a network's γ and β vary.";
  }
  if (other.length === 0) {
    return "In a network γ and β vary by channel, and so do these statistics: training could find this γ and β. The norm takes nothing away that the network cannot take back.";
  }
  const names = other.length === 1 ? other[0] : `${other.slice(0, -1).join(", ")} and ${other.at(-1)}`;
  return `In a network γ and β vary by channel, but these statistics vary by ${names}, too. No γ and β of a network undo that for all slabs at once; here each slab has its own.`;
}

// ---------------------------------------------------------------- colours

// The report's hues where they suffice; for more slabs, hues that are as far apart as can be, step by step.
function slabColour(slab, slabs) {
  const few = HUES.slice(1);
  if (slabs <= few.length) return [1, 3, 5].map((at) => parseInt(few[slab].slice(at, at + 2), 16) / 255);
  const hue = (slab * 137.508) % 360;
  const light = 0.47 + 0.07 * (slab % 3);
  const part = (n) => {
    const k = (n + hue / 30) % 12;
    return light - 0.65 * Math.min(light, 1 - light) * Math.max(-1, Math.min(k - 3, 9 - k, 1));
  };
  return [part(0), part(8), part(4)];
}

function colours(shade, { values, bound }, y) {
  if (shade === "slab" && bound) {
    // A little lighter or darker by value, each channel by itself, so that one sees the pictures in the
    // slabs.
    const inChannel = bound.shape[2] * bound.shape[3];
    const ranges = Array.from({ length: bound.shape[0] * bound.shape[1] }, (_, at) =>
      extent(values.subarray(at * inChannel, (at + 1) * inChannel)),
    );
    return Array.from(values, (value, element) => {
      const [low, high] = ranges[Math.floor(element / inChannel)];
      const light = (value - low) / (high - low) - 0.5;
      return slabColour(bound.of[element], bound.slabs).map(
        (part) => part + (light > 0 ? 0.55 * (1 - part) : 0.4 * part) * light,
      );
    });
  }
  const shown = shade === "output" && y ? y : values;
  const [low, high] = extent(shown);
  return Array.from(shown, (value) => new Array(3).fill(0.08 + (0.88 * (value - low)) / (high - low)));
}

function cssColour(parts) {
  return `rgb(${parts.map((part) => Math.round(255 * part)).join(" ")})`;
}

// ---------------------------------------------------------------- the formula

function fraction(top, bottom) {
  return h("span", { class: "fraction" }, h("span", {}, top), h("span", {}, bottom));
}

function root(...inside) {
  return h("span", { class: "root" }, "√", h("span", {}, inside));
}

// The formula in letters, or with the numbers of one cell in place of them.
function formula({ y, gamma, x, mean, variance, eps, beta }, spoken) {
  const minus = String(mean).startsWith("−") ? "+" : "−";
  const plus = String(beta).startsWith("−") ? "−" : "+";
  const bare = (text) => String(text).replace(/^−/, "");
  const parts = [
    y,
    " = ",
    gamma,
    " · ",
    fraction([x, ` ${minus} `, bare(mean)], root(variance, " + ", eps)),
    ` ${plus} `,
    bare(beta),
  ];
  return h("p", { class: "formula", role: "math", "aria-label": spoken }, parts);
}

function formulas({ values, bound, found }, { gamma, beta }, y, element) {
  const slab = bound.of[element];
  const [mean, variance] = [found.mean[slab], found.variance[slab]];
  const letters = { y: "y", gamma: "γ", x: "x", mean: "μ", variance: "σ²", eps: "ε", beta: "β" };
  const said = "y equals gamma times x minus the mean, over the root of the variance plus epsilon, plus beta";
  const real = {
    y: h("b", {}, number(y[element])),
    gamma: number(gamma[slab]),
    x: number(values[element]),
    mean: number(mean),
    variance: number(variance),
    eps: "10⁻⁵",
    beta: number(beta[slab]),
  };
  const saidReal = `${number(y[element])} equals ${real.gamma} times ${real.x} minus ${real.mean}, over the root of ${real.variance} plus 10 to the minus 5, plus ${real.beta}`;
  return [formula(letters, said), formula(real, saidReal)];
}

// ---------------------------------------------------------------- the room

export function mount(place, study) {
  const state = {
    text: SCHEMES[0].pattern,
    shape: [3, 4, 5, 5],
    groups: 2,
    element: 0,
    shade: "slab",
    undone: false,
  };
  const room = { photos: study.samples.photos, state, parts: {} };
  arrange(room, place);
  change(room, {});
  const again = () => show(room);
  document.addEventListener("themechange", again);
  return {
    unmount() {
      document.removeEventListener("themechange", again);
      room.parts.stage.unmount();
      room.parts.before.stop();
      room.parts.after.stop();
    },
  };
}

// Another pattern or shape: other slabs, with no gamma and beta of their own yet.
function change(room, what) {
  Object.assign(room.state, what, { undone: false });
  room.now = compute(room.state, room.photos);
  room.scale = room.now.bound && scales(room.now);
  if (room.state.element >= room.now.values.length) room.state.element = 0;
  show(room);
}

function lift(room, element) {
  room.state.element = element;
  show(room);
}

function step(room, by) {
  const { bound } = room.now;
  if (!bound) return;
  const slab = (bound.of[room.state.element] + by + bound.slabs) % bound.slabs;
  lift(room, bound.of.indexOf(slab));
}

function rescale(room, what, value) {
  room.scale[what][room.now.bound.of[room.state.element]] = value;
  room.state.undone = false;
  show(room);
}

function undo(room) {
  const { state, now, scale } = room;
  if (state.undone) room.scale = scales(now);
  else {
    scale.gamma.set(now.found.variance.map((variance) => Math.sqrt(variance + EPS)));
    scale.beta.set(now.found.mean.map((mean, slab) => mean + now.found.low[slab]));
  }
  state.undone = !state.undone;
  show(room);
}

// ---------------------------------------------------------------- its parts

function arrange(room, place) {
  const view = viewer(room);
  place.append(
    h("h1", {}, "One formula, different slabs"),
    h(
      "p",
      { class: "lead" },
      "Inside a network a batch of images is a block of N samples, C channels, H rows and W columns. ",
      "A norm cuts it into slabs and gives each mean 0 and variance 1. Norms differ only in which cells share a slab.",
    ),
    h(
      "div",
      { class: "workbench" },
      chooser(room),
      view,
      h("div", { class: "beside" }, sizes(room), facts(room)),
      plots(room),
    ),
  );
}

// The block, how to look at it, and which slab is lifted out.
function viewer(room) {
  const { parts, state } = room;
  const view = h("div", { class: "card view" });
  parts.ways = choice({
    label: "View",
    options: [
      { value: "solid", label: "3-D" },
      { value: "flat", label: "Flat" },
    ],
    value: "solid",
    onchange: (way) => parts.stage.flat(way === "flat"),
  });
  const shade = choice({
    label: "Colour",
    options: SHADES,
    value: state.shade,
    onchange(value) {
      state.shade = value;
      show(room);
    },
  });
  parts.stage = stage(view, {
    onpick: (element) => lift(room, element),
    onready(solid) {
      if (!solid) parts.ways.set("flat");
      for (const input of parts.ways.querySelectorAll("input")) input.disabled = !solid;
    },
  });
  parts.which = h("output", { class: "which", "aria-live": "polite" });
  parts.swatch = h("i", { class: "swatch" });
  const steps = h(
    "div",
    { class: "row lifted-out" },
    button("‹", () => step(room, -1), { "aria-label": "Previous slab" }),
    h("p", {}, parts.swatch, parts.which),
    button("›", () => step(room, 1), { "aria-label": "Next slab" }),
  );
  view.append(h("div", { class: "row ends" }, shade, parts.ways), steps);
  return view;
}

// The schemes, the pattern, and what is wrong with it.
function chooser(room) {
  const { parts, state } = room;
  const fieldId = unique("pattern");
  const wrongId = unique("wrong");
  parts.schemes = choice({
    label: "Norm",
    options: SCHEMES.map(({ label, pattern }) => ({ label, value: pattern })),
    value: state.text,
    onchange: (text) => {
      parts.pattern.value = text;
      change(room, { text });
    },
  });
  parts.pattern = h("input", {
    type: "text",
    id: fieldId,
    class: "mono",
    value: state.text,
    spellcheck: "false",
    autocomplete: "off",
    autocapitalize: "off",
    "aria-describedby": wrongId,
    oninput: () => change(room, { text: parts.pattern.value }),
  });
  parts.says = h("p", { class: "says" });
  parts.wrong = h("pre", {
    class: "wrong",
    id: wrongId,
    role: "status",
    tabindex: "0",
    "aria-label": "What is wrong with the pattern",
  });
  return h(
    "div",
    { class: "chooser" },
    parts.schemes,
    h("div", { class: "pattern" }, h("label", { for: fieldId }, "Pattern"), parts.pattern),
    parts.wrong,
    parts.says,
  );
}

function sizes(room) {
  const { parts, state } = room;
  const names = ["N samples", "C channels", "H rows", "W columns"];
  const axes = names.map((label, axis) =>
    slider({
      label,
      min: 1,
      max: MOST,
      value: state.shape[axis],
      oninput: (size) => change(room, { shape: state.shape.map((old, at) => (at === axis ? size : old)) }),
    }),
  );
  parts.groups = slider({
    label: "g groups",
    min: 1,
    max: MOST,
    value: state.groups,
    oninput: (groups) => change(room, { groups }),
  });
  return h("div", { class: "card sizes" }, axes, parts.groups);
}

// The lifted slab: its numbers, the formula, gamma and beta.
function facts(room) {
  const { parts } = room;
  parts.numbers = h("dl", { class: "statistics" });
  parts.formulas = h("div", { class: "formulas" });
  parts.cell = h("p", { class: "axis" });
  const any = { min: -3, max: 3, step: "any" };
  const onslide = (what) => (value) => rescale(room, what, value);
  parts.gamma = slider({ ...any, label: "γ (gamma)", value: 1, oninput: onslide("gamma") });
  parts.beta = slider({ ...any, label: "β (beta)", value: 0, oninput: onslide("beta") });
  parts.undo = button("Undo the normalisation", () => undo(room), { class: "main" });
  parts.undone = h("p", { class: "undone", "aria-live": "polite" });
  const head = h("h2", {}, "γ and β of this slab");
  parts.facts = h(
    "section",
    { class: "facts", "aria-label": "The slab that is lifted out" },
    h("div", { class: "card" }, parts.numbers, parts.formulas, parts.cell),
    h(
      "div",
      { class: "card" },
      head,
      parts.gamma,
      parts.beta,
      h("div", { class: "row" }, parts.undo),
      parts.undone,
    ),
  );
  return parts.facts;
}

function plots({ parts }) {
  const [before, after] = [h("div"), h("div")];
  parts.before = histogram(before, { title: "Before: the input x", values: [0, 1] });
  parts.after = histogram(after, { title: "After: the output y", values: [0, 1] });
  parts.plots = h(
    "section",
    { class: "card columns before-after", "aria-label": "Before and after" },
    before,
    after,
  );
  return parts.plots;
}

// ---------------------------------------------------------------- showing

function show(room) {
  const { parts, now, scale } = room;
  const y = now.bound && output(now, scale);
  showBlock(room, y);
  showPattern(room);
  for (const part of [parts.facts, parts.plots]) part.classList.toggle("away", !now.bound);
  if (now.bound) showFacts(room, y);
}

function showBlock({ parts, state, now }, y) {
  const slab = now.bound?.of[state.element];
  parts.stage.show({
    shape: state.shape,
    colours: colours(now.bound ? state.shade : "input", now, y),
    lifted: (element) => now.bound !== undefined && now.bound.of[element] === slab,
    chosen: now.bound ? state.element : undefined,
    names: { sample: (n) => `sample ${n}`, channel: (c) => `c = ${c}` },
  });
}

function showPattern({ parts, state, now }) {
  const scheme = SCHEMES.find(({ pattern }) => pattern === state.text);
  parts.schemes.set(state.text);
  parts.wrong.textContent = now.error ?? "";
  parts.wrong.hidden = !now.error;
  parts.pattern.setAttribute("aria-invalid", now.error ? "true" : "false");
  parts.groups.input.disabled = !/\([^)]*\bg\b[^)]*\)/.test(state.text);
  const pools = now.bound?.pattern.poolsSamples;
  const mode =
    pools === undefined
      ? ""
      : pools
        ? "Samples share a slab, so at test time running statistics stand in for the batch."
        : "No slab holds two samples, so training and test time are alike.";
  if (!now.bound) parts.which.textContent = "no slabs";
  parts.swatch.hidden = !now.bound;
  parts.says.replaceChildren(scheme && now.bound ? `${scheme.says} ` : "", mode);
}

function showFacts(room, y) {
  const { parts, state, now, scale } = room;
  const { values, bound, found } = now;
  const slab = bound.of[state.element];
  const own = (list) => list.filter((_, element) => bound.of[element] === slab);
  const colour = cssColour(slabColour(slab, bound.slabs));
  parts.which.textContent = `slab ${slab + 1} of ${bound.slabs}: ${nameOf(bound, slab)}`;
  parts.swatch.style.background = colour;
  const pair = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));
  parts.numbers.replaceChildren(
    pair("count m", number(found.count)),
    pair("mean μ", number(found.mean[slab])),
    pair("variance σ²", number(found.variance[slab])),
  );
  parts.formulas.replaceChildren(...formulas(now, scale, y, state.element));
  const at = indices(state.shape, state.element);
  parts.cell.textContent = `The cell with the frame: n = ${at.n}, c = ${at.c} (${CHANNELS[at.c]}), h = ${at.h}, w = ${at.w}.`;
  showScale(parts, now, scale, slab);
  showUndone(parts, state, now, y);
  parts.before.update({ values, part: own(values), colour, x: describe(own(values)) });
  parts.after.update({ values: y, part: own(y), colour, x: describe(own(y)) });
}

function showScale(parts, { found }, { gamma, beta }, slab) {
  const reach = (value) => Math.max(3, 1.25 * Math.abs(value));
  const [wide, far] = [reach(Math.sqrt(found.variance[slab] + EPS)), reach(found.mean[slab])];
  Object.assign(parts.gamma.input, { min: -wide, max: wide });
  Object.assign(parts.beta.input, { min: -far, max: far });
  parts.gamma.set(gamma[slab]);
  parts.beta.set(beta[slab]);
}

function showUndone(parts, state, { values, bound }, y) {
  parts.undo.textContent = state.undone ? "Normalise again" : "Undo the normalisation";
  if (!state.undone) {
    parts.undone.textContent = "It sets γ to √(σ² + ε) and β to μ, in every slab.";
    return;
  }
  const off = y.reduce((most, value, element) => Math.max(most, Math.abs(value - values[element])), 0);
  parts.undone.textContent = `The output is the input again: over all ${y.length} cells they differ by ${off === 0 ? "nothing" : `at most ${number(off)}`}. ${undoable(bound)}`;
}

function describe(list) {
  const mean = list.reduce((sum, value) => sum + value, 0) / list.length;
  const variance = list.reduce((sum, value) => sum + (value - mean) ** 2, 0) / list.length;
  const near = (value) => number(Math.abs(value) < 1e-9 ? 0 : value);
  return `this slab: mean ${near(mean)}, variance ${near(variance)} · grey: all cells`;
}
