// What the rooms share: elements, controls, numbers as text, and pictures.
//
// Text becomes text nodes and nothing else, so that a class called "<img onerror=...>" stays a name.

import uPlot from "./vendor/uPlot.iife.min.js";

// The report's hues (report/page.py), which colour-blind readers can tell apart.
export const HUES = ["#7a7f87", "#0a7fc2", "#d55e00", "#009e73", "#c2679e", "#c99a00", "#3fa7d6", "#8a63d2"];
const SVG = "http://www.w3.org/2000/svg";

// ---------------------------------------------------------------- elements

// Return an element. Attributes: functions "on..." are listeners, `style` is an object, true is an attribute without
// a value, and false or null is none. Children: nodes, text, numbers, arrays of them; null and false are left out.
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

// Return an element of a drawing; as h.
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, set] of Object.entries(value)) element.style.setProperty(key, set);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

let ids = 0;
// Return an id that nothing else on the page has.
export function unique(stem = "id") {
  ids += 1;
  return `${stem}-${ids}`;
}

// ---------------------------------------------------------------- numbers

const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";

// Return a number with four significant digits and a true minus sign; "–" if there is none.
export function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e6 || size < 1e-4)) {
    const [digits, power] = size.toExponential(3).split("e");
    const raised = String(Math.abs(Number(power))).replace(/\d/g, (digit) => SUPERSCRIPTS[digit]);
    return `${value < 0 ? "−" : ""}${Number(digits)} × 10${Number(power) < 0 ? "⁻" : ""}${raised}`;
  }
  const rounded = Number(size.toPrecision(4));
  const text = Number.isInteger(rounded) && rounded >= 1e4 ? rounded.toLocaleString("en-GB") : String(rounded);
  return (value < 0 && rounded !== 0 ? "−" : "") + text;
}

// Return a share from 0 to 1 as a percentage.
export function percent(value) {
  return value === null || value === undefined ? "–" : `${number(Math.round(value * 1000) / 10)}%`;
}

// ---------------------------------------------------------------- controls

// Return a slider. `set(value)` on it moves it without calling oninput.
export function slider({ label, min, max, step = 1, value, format = number, oninput }) {
  const id = unique("slider");
  const shown = h("output", { for: id }, format(value));
  const input = h("input", { type: "range", id, min, max, step, value });
  const said = () => {
    shown.textContent = format(Number(input.value));
    input.setAttribute("aria-valuetext", shown.textContent);
  };
  input.addEventListener("input", () => {
    said();
    oninput?.(Number(input.value));
  });
  said();
  const root = h("div", { class: "slider" }, h("label", { for: id }, label), shown, input);
  root.input = input;
  root.set = (next) => {
    input.value = next;
    said();
  };
  return root;
}

// Return radio buttons, or a menu where there are many options. Options are texts, or {value, label}. `set(value)` on it
// chooses without calling onchange.
export function choice({ label, options, value, onchange, menu = options.length > 8 }) {
  const known = options.map((option) => (typeof option === "object" ? option : { value: option, label: String(option) }));
  const of = (text) => known[Number(text)].value;
  const index = (wanted) => known.findIndex((option) => option.value === wanted);
  if (menu) {
    const id = unique("choice");
    const select = h("select", { id }, known.map((option, at) => h("option", { value: at }, option.label)));
    select.value = String(index(value));
    select.addEventListener("change", () => onchange?.(of(select.value)));
    const root = h("div", { class: "choice" }, h("label", { for: id }, label), select);
    root.set = (next) => void (select.value = String(index(next)));
    return root;
  }
  const name = unique("choice");
  const inputs = known.map((option, at) => h("input", { type: "radio", name, value: at, checked: option.value === value }));
  const root = h(
    "fieldset",
    { class: "choice", onchange: (event) => onchange?.(of(event.target.value)) },
    h("legend", {}, label),
    h("div", { class: "segments" }, known.map((option, at) => h("label", {}, inputs[at], h("span", {}, option.label)))),
  );
  root.set = (next) => inputs.forEach((input, at) => void (input.checked = at === index(next)));
  return root;
}

export function button(label, onclick, attributes = {}) {
  return h("button", { type: "button", onclick, ...attributes }, label);
}

// ---------------------------------------------------------------- pictures

// Return the colour of the nth of `count` series; a series alone is blue.
export function hue(index, count = 2) {
  return HUES[(count === 1 ? 1 : index + 1) % HUES.length];
}

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// Call draw(width) now, when the place changes its width, and when the theme changes, as long as it is on the page.
export function responsive(place, draw) {
  let width = 0;
  const observer = new ResizeObserver(([entry]) => {
    if (Math.abs(entry.contentRect.width - width) < 1) return;
    width = entry.contentRect.width;
    if (width > 0) draw(width);
  });
  const again = () => {
    if (!place.isConnected) return;
    if (width > 0) draw(width);
  };
  observer.observe(place);
  document.addEventListener("themechange", again);
  return {
    again,
    stop: () => {
      observer.disconnect();
      document.removeEventListener("themechange", again);
    },
  };
}

function figure(root, title, names) {
  const place = h("div", { class: "plot", "aria-hidden": "true" });
  const keys = h("ul", { class: "keys" });
  const table = h("div", { class: "hidden" });
  const caption = h("figcaption", {}, title);
  root.append(h("figure", {}, caption, keys, place, table));
  const legend = (series) => {
    keys.replaceChildren(
      ...series.map((name, at) => h("li", {}, h("i", { style: { background: hue(at, series.length) } }), name)),
    );
    keys.hidden = series.length < 2;
  };
  legend(names);
  return { place, table, caption, legend };
}

// The numbers of a picture for those who do not see it.
function dataTable({ title, x, y, series }) {
  const rows = [...new Set(series.flatMap((one) => one.x))];
  const value = (one, at) => {
    const found = one.x.indexOf(at);
    if (found < 0) return "–";
    const [low, high] = [one.low?.[found], one.high?.[found]];
    const interval = low === undefined || low === null || high === null ? "" : ` (${number(low)} to ${number(high)})`;
    return number(one.y[found]) + interval;
  };
  return h(
    "table",
    {},
    h("caption", {}, `${title}: ${y}`),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, x), series.map((one) => h("th", { scope: "col" }, one.name)))),
    h("tbody", {}, rows.map((at) =>
      h("tr", {}, h("th", { scope: "row" }, typeof at === "number" ? number(at) : at), series.map((one) => h("td", {}, value(one, at)))),
    )),
  );
}

// Draw lines: {title, x, y, series: [{name, x, y, low, high}], log: "", "x", "y" or "xy", marks: [[label, height]], height,
// points: true for a cloud without lines}. Return {update(spec)}, which draws others in the same place.
export function lines(root, spec) {
  const { place, table, caption, legend } = figure(root, spec.title, spec.series.map(({ name }) => name));
  let plot;
  let now = spec;
  const draw = (width) => {
    plot?.destroy();
    plot = new uPlot(plotOptions(now, width), plotData(now), place);
  };
  const sized = responsive(place, draw);
  table.append(dataTable(spec));
  return {
    update(next) {
      now = { ...now, ...next };
      caption.textContent = now.title;
      legend(now.series.map(({ name }) => name));
      table.replaceChildren(dataTable(now));
      sized.again();
    },
    stop: sized.stop,
  };
}

// All series over all x, as uPlot wants them: per series its values and the two ends of its band.
function plotData({ series, log = "", marks = [] }) {
  const shown = (value, axis) => (typeof value === "number" && !(log.includes(axis) && value <= 0) ? value : null);
  const xs = [...new Set(series.flatMap((one) => one.x))].filter((x) => shown(x, "x") !== null).sort((a, b) => a - b);
  const over = (one, values) => {
    const known = new Map(one.x.map((x, at) => [x, shown(values[at], "y")]));
    return xs.map((x) => (known.has(x) ? known.get(x) : undefined));
  };
  const columns = series.flatMap((one) => [over(one, one.y), over(one, one.low ?? []), over(one, one.high ?? [])]);
  return [xs, ...columns, ...marks.map(([, height]) => xs.map(() => height))];
}

function plotOptions({ x, y, series, log = "", marks = [], height = 280, points = false }, width) {
  const [ink, soft, grid] = [css("--ink"), css("--soft"), css("--grid")];
  const drawn = series.flatMap((one, at) => {
    const stroke = hue(at, series.length);
    const few = one.x.length <= 40;
    return [
      { stroke, width: points ? 0 : 2.5, spanGaps: true, points: { show: points || few, size: points ? 5 : 6, fill: stroke } },
      { stroke: "transparent", spanGaps: true, points: { show: false } },
      { stroke: "transparent", spanGaps: true, points: { show: false } },
    ];
  });
  const bands = series.flatMap((one, at) =>
    one.low?.length ? [{ series: [3 * at + 3, 3 * at + 2], fill: `${hue(at, series.length)}2b` }] : [],
  );
  const axis = (label, size, logarithmic) => ({
    ...(logarithmic ? { splits: (_, __, from, to) => logTicks(from, to), filter: (_, splits) => splits } : {}),
    label,
    labelSize: 22,
    labelFont: "13px system-ui, sans-serif",
    font: "12px system-ui, sans-serif",
    stroke: soft,
    size,
    grid: { stroke: grid, width: 1 },
    ticks: { stroke: grid, width: 1, size: 4 },
    values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : number(tick).replace(/^1 × /, ""))),
  });
  const labels = ({ ctx, bbox, valToPos }) => {
    ctx.save();
    ctx.fillStyle = ink;
    ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
    ctx.textAlign = "right";
    for (const [label, at] of marks) ctx.fillText(label, bbox.left + bbox.width - 4, valToPos(at, "y", true) - 5);
    ctx.restore();
  };
  return {
    width,
    height,
    legend: { show: false },
    cursor: { show: false },
    padding: [12, 12, 0, 0],
    scales: { x: { time: false, distr: log.includes("x") ? 3 : 1 }, y: { distr: log.includes("y") ? 3 : 1 } },
    axes: [axis(x, 36, log.includes("x")), axis(y, 58, log.includes("y"))],
    series: [{}, ...drawn, ...marks.map(() => ({ stroke: soft, width: 1, dash: [5, 5], points: { show: false } }))],
    bands,
    hooks: { draw: [labels] },
  };
}

// Where a logarithmic axis has its lines: at some seven powers of ten, or at 1, 2 and 5 where it spans less than three.
function logTicks(from, to) {
  const [low, high] = [Math.floor(Math.log10(from)), Math.ceil(Math.log10(to))];
  const every = Math.ceil((high - low) / 7);
  const powers = Array.from({ length: high - low + 1 }, (_, at) => low + at).filter((power) => power % every === 0);
  const steps = high - low < 3 ? [1, 2, 5] : [1];
  return powers.flatMap((power) => steps.map((step) => Number(`${step}e${power}`))).filter((tick) => tick >= from && tick <= to);
}

// Draw horizontal bars with their intervals: the spec of lines, where x are names. Return {update(spec)}.
export function bars(root, spec) {
  const { place, table, caption, legend } = figure(root, spec.title, spec.series.map(({ name }) => name));
  const show = (now) => {
    caption.textContent = now.title;
    legend(now.series.map(({ name }) => name));
    place.replaceChildren(barRows(now));
    table.replaceChildren(dataTable(now));
  };
  show(spec);
  let now = spec;
  return { update: (next) => show((now = { ...now, ...next })) };
}

function barRows({ y, series, log = "", marks = [] }) {
  const values = series.flatMap((one) => [...one.y, ...(one.low ?? []), ...(one.high ?? [])]);
  const numbers = [...values, ...marks.map(([, height]) => height)].filter((value) => typeof value === "number");
  const scaled = log.includes("y") ? numbers.filter((value) => value > 0).map(Math.log10) : numbers;
  const [least, most] = [Math.min(...scaled), Math.max(...scaled)];
  // A logarithmic axis begins a whole power of ten below the smallest bar, any other at 0.
  const from = log.includes("y") ? Math.floor(least - 0.3) : Math.min(0, least);
  const to = Math.max(most, from + 1e-12);
  const at = (value) => {
    const where = log.includes("y") ? Math.log10(Math.max(value, 1e-300)) : value;
    return 100 * Math.min(1, Math.max(0, (where - from) / (to - from)));
  };
  const zero = log.includes("y") ? 0 : at(0);
  const bar = (one, place, index) => {
    const value = one.y[place];
    const [low, high] = [one.low?.[place], one.high?.[place]];
    const end = value === null || value === undefined ? zero : at(value);
    const [left, right] = [Math.min(zero, end), Math.max(zero, end)];
    return h(
      "div",
      { class: "bar" },
      h(
        "div",
        { class: "track" },
        h("i", { style: { left: `${left}%`, width: `${right - left}%`, background: hue(index, series.length) } }),
        typeof low === "number" && typeof high === "number" && high > low
          ? h("b", { style: { left: `${at(low)}%`, width: `${at(high) - at(low)}%` } })
          : null,
        marks.map(([, height]) => h("u", { style: { left: `${at(height)}%` } })),
      ),
      h("span", {}, number(value)),
    );
  };
  const names = [...new Set(series.flatMap((one) => one.x))];
  const rows = names.map((name) =>
    h("div", { class: "bars" }, h("p", {}, String(name)), series.map((one, index) => {
      const place = one.x.indexOf(name);
      return place < 0 ? null : bar(one, place, index);
    })),
  );
  const notes = [y, log.includes("y") ? "logarithmic" : "", ...marks.map(([label, height]) => `¦ ${label}: ${number(height)}`)];
  return h("div", {}, rows, h("p", { class: "axis" }, notes.filter(Boolean).join(" · ")));
}

// Draw how often values occur: {title, x, values, bins: 32, range: [low, high], shade: [[from, to, label]], height: 120,
// colour, part}. `part` are some of the values, to be drawn in the colour before the others, which are then grey. Values beyond the range are counted in the text below. Return {update(spec)}.
export function histogram(root, spec) {
  const caption = h("figcaption", {}, spec.title);
  const place = h("div", { class: "plot" });
  const below = h("p", { class: "axis" });
  root.append(h("figure", { class: "histogram" }, caption, place, below));
  let now = spec;
  const sized = responsive(place, (width) => {
    const { drawing, words } = drawHistogram(now, width);
    caption.textContent = now.title;
    place.replaceChildren(drawing);
    below.textContent = words;
  });
  return {
    update(next) {
      now = { ...now, ...next };
      sized.again();
    },
    stop: sized.stop,
  };
}

function drawHistogram({ title, x = "", values, bins = 32, range, shade = [], height = 120, colour = HUES[1], part }, width) {
  const [low, high] = range ?? extent(values);
  const { counts, beyond } = counted(values, low, high, bins);
  const top = Math.max(1, ...counts);
  const [foot, left] = [height - 20, 4];
  const step = (width - 2 * left) / bins;
  const at = (value) => left + ((width - 2 * left) * (value - low)) / (high - low);
  const areas = shade.map(([from, to]) => {
    const [start, end] = [Math.max(low, from), Math.min(high, to)];
    return start < end ? svg("rect", { class: "shade", x: at(start), y: 0, width: at(end) - at(start), height: foot }) : null;
  });
  const columns = (all, fill, least = 1) =>
    all.map((count, bin) => {
      const tall = Math.max(least, ((foot - 6) * count) / top);
      const where = { x: left + bin * step + 0.5, y: foot - tall, width: Math.max(1, step - 1), height: tall };
      return count === 0 ? null : svg("rect", { ...where, fill });
    });
  const ticks = [low, (low + high) / 2, high].map((value, nth) =>
    svg("text", { x: at(value), y: height - 4, "text-anchor": ["start", "middle", "end"][nth] }, number(value)),
  );
  const label = `${title}: ${values.length} values between ${number(low)} and ${number(high)}`;
  const drawing = svg(
    "svg",
    { role: "img", "aria-label": label, width, height, viewBox: `0 0 ${width} ${height}` },
    areas,
    columns(counts, part ? `${HUES[0]}80` : colour),
    part ? columns(counted(part, low, high, bins).counts, colour, 3) : null,
    svg("line", { class: "foot", x1: left, x2: width - left, y1: foot, y2: foot }),
    ticks,
  );
  const shares = shade.filter(([, , text]) => text).map(([from, to, text]) => {
    const share = values.filter((value) => value >= from && value <= to).length / values.length;
    return `${percent(share)} ${text}`;
  });
  const words = [x, ...shares, beyond ? `${beyond} of ${values.length} lie beyond` : ""];
  return { drawing, words: words.filter(Boolean).join(" · ") };
}

function counted(values, low, high, bins) {
  const counts = new Array(bins).fill(0);
  let beyond = 0;
  for (const value of values) {
    const bin = value === high ? bins - 1 : Math.floor(((value - low) / (high - low)) * bins);
    if (bin >= 0 && bin < bins) counts[bin] += 1;
    else beyond += 1;
  }
  return { counts, beyond };
}

// Return the smallest and the largest value, apart from each other.
export function extent(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low < high) return [low, high];
  return Number.isFinite(low) ? [low - 0.5, high + 0.5] : [0, 1];
}

// Draw a `Picture` record of slabnorm/report/claims.py, with a table of its numbers for screen readers.
export function picture(root, record) {
  const named = record.series.some((one) => one.x.some((x) => typeof x === "string"));
  if (record.kind === "bars" || named) return bars(root, record);
  return lines(root, { ...record, points: record.kind === "points" });
}

// Return a grey picture of side x side pixels, black at the low end of the range. `set(pixels)` on it shows another.
export function grey({ pixels, side, range, label, size }) {
  const canvas = h("canvas", { role: "img", "aria-label": label, class: "grey", width: side, height: side });
  if (size) canvas.style.setProperty("width", `${size}px`);
  const [low, high] = range;
  canvas.set = (next, words) => {
    const image = new ImageData(side, side);
    next.forEach((value, at) => image.data.set([...new Array(3).fill((255 * (value - low)) / (high - low)), 255], 4 * at));
    canvas.getContext("2d").putImageData(image, 0, 0);
    if (words) canvas.setAttribute("aria-label", words);
  };
  canvas.set(pixels);
  return canvas;
}

// Return what a room says that shows a study, where the page was built without one.
export function noStudy() {
  return h(
    "p",
    { class: "card" },
    "This room shows what a study has measured, and this page was made without one. Make one, and a page of it, with ",
    h("code", {}, "slabnorm claims --sweep --json study.json"),
    " and ",
    h("code", {}, "slabnorm lab --study study.json"),
    ".",
  );
}
