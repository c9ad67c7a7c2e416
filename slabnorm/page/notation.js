// The notation: the same language, and the same words for what is wrong, as slabnorm/notation.py. Read that
// one first; the tests hold the two equal. Python counts a text in characters and JavaScript in halves of
// them, so places in a text are places in the list of its characters here.

export const ELLIPSIS = "...";

// What Python's \s, \w and \d match in text.
const SPACE = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const WORD = "\\p{L}\\p{N}_";
const TOKEN = new RegExp(
  `[${SPACE}]*(?:(?<arrow>->)|(?<dots>\\.\\.\\.)|(?<name>[\\p{L}\\p{Nl}\\p{No}_][${WORD}]*)|(?<bracket>[()]))`,
  "uy",
);
const LEADING = new RegExp(`^[${SPACE}]+`, "u");
const TRAILING = new RegExp(`[${SPACE}]+$`, "u");
const SPACES = new RegExp(`[${SPACE}]+`, "u");

// An error says what is wrong, what was got, and the fix.
export class NotationError extends Error {
  constructor(problem, got = "", fix = "") {
    super([problem, got && `  got: ${got}`, fix && `  fix: ${fix}`].filter(Boolean).join("\n"));
    this.name = this.constructor.name;
  }
}
export class PatternError extends NotationError {}
export class ShapeError extends NotationError {}
export class StatisticsError extends NotationError {}

const characters = (text) => [...text];
const strip = (text) => text.replace(LEADING, "").replace(TRAILING, "");
const words = (text) => strip(text).split(SPACES).filter(Boolean);
export const product = (numbers) => numbers.reduce((all, one) => all * one, 1);

// Return text as Python's repr writes it.
export function repr(text) {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  const escaped = characters(text).map((character) => {
    if (character === "\\" || character === quote) return `\\${character}`;
    if (character === "\n" || character === "\r" || character === "\t")
      return { "\n": "\\n", "\r": "\\r", "\t": "\\t" }[character];
    if (character === " " || !/[\p{C}\p{Z}]/u.test(character)) return character;
    const code = character.codePointAt(0).toString(16);
    if (code.length <= 2) return `\\x${code.padStart(2, "0")}`;
    return code.length <= 4 ? `\\u${code.padStart(4, "0")}` : `\\U${code.padStart(8, "0")}`;
  });
  return quote + escaped.join("") + quote;
}

// Return a shape as Python writes a tuple.
export const tuple = (shape) => (shape.length === 1 ? `(${shape[0]},)` : `(${shape.join(", ")})`);

function fail(text, at, problem, fix, length = 1) {
  // The marks stand under the quoted text, whose line begins with "  got: ".
  throw new PatternError(problem, `${text}\n       ${" ".repeat(at)}${"^".repeat(length)}`, fix);
}

// ---------------------------------------------------------------- the text

function tokenize(text) {
  const tokens = [];
  const end = text.replace(TRAILING, "").length;
  let at = 0;
  while (at < end) {
    TOKEN.lastIndex = at;
    const match = TOKEN.exec(text);
    if (match === null) failAt(text, at);
    const [kind, value] = Object.entries(match.groups).find(([, found]) => found !== undefined);
    at += match[0].length;
    tokens.push({ kind, value, at: characters(text.slice(0, at - value.length)).length });
  }
  return tokens;
}

function failAt(text, at) {
  const rest = text.slice(at).replace(LEADING, "");
  const bad = characters(text.slice(0, text.length - rest.length)).length;
  const [character] = rest;
  if (/\p{Nd}/u.test(character)) {
    fail(text, bad, "A name cannot begin with a digit", "name the axis, and give its size as a keyword");
  }
  const fixes = { ".": "write '...', three dots", "…": "write '...', three dots", "-": "write '->'" };
  const fix = fixes[character] ?? "use names, '(', ')', '...' and '->'";
  fail(text, bad, `${repr(character)} has no meaning in a pattern`, fix);
}

// Group tokens into items, {names, at}.
function group(text, tokens) {
  const items = [];
  const seen = new Set();
  let open = null;
  for (const { kind, value, at } of tokens) {
    if (value === "(") {
      if (open) fail(text, at, "A bracket opens within a bracket", "close the first bracket before the next");
      open = { names: [], at };
    } else if (value === ")") {
      if (!open) fail(text, at, "A bracket closes that was never opened", "remove it, or open it with '('");
      if (open.names.length === 0)
        fail(text, open.at, "A bracket is empty", "remove it, or name axes in it", 2);
      items.push(open);
      open = null;
    } else {
      if (seen.has(value)) {
        const several = "leave one '...', which stands for any number of axes, and name the others";
        const fix = kind === "dots" ? several : "give every axis a name of its own";
        fail(text, at, `${repr(value)} is named twice`, fix, characters(value).length);
      }
      if (kind === "dots" && open)
        fail(text, at, "'...' cannot stand in a bracket", "take it out of the bracket", 3);
      seen.add(value);
      if (open) open.names.push(value);
      else items.push({ names: [value], at });
    }
  }
  if (open) fail(text, open.at, "A bracket is never closed", "close it with ')'");
  return items;
}

// Return a pattern with every letter as an axis: "n c h w -> c" of "nchw->c".
function spaced(text) {
  return strip(
    text
      .split("->")
      .map((side) => characters(words(side).join("")).join(" "))
      .join(" -> "),
  );
}

function checkKnown(text, items, known, where) {
  for (const { names, at } of items) {
    for (const name of names) {
      if (known.includes(name)) continue;
      // In a bracket the place of the name is found again, whole words only.
      const after = characters(text).slice(at).join("");
      const found = new RegExp(`(?<![${WORD}])${name.replaceAll(".", "\\.")}(?![${WORD}])`, "u").exec(after);
      const place = found ? at + characters(after.slice(0, found.index)).length : at;
      fail(
        text,
        place,
        `Axis ${repr(name)} ${where} is not on the left`,
        suggest(name, known),
        characters(name).length,
      );
    }
  }
}

// Return the fix for an unknown name: the one that may have been meant, or all there are.
function suggest(name, known) {
  const close = known.find((other) => other.toLowerCase() === name.toLowerCase()) ?? closest(name, known);
  if (close !== undefined) return `did you mean ${repr(close)}?`;
  return known.length ? `name one of ${known.join(", ")}` : "this pattern has no named axis";
}

// Python's difflib.get_close_matches(name, known, 1): the most similar text, if it is similar enough.
function closest(name, known) {
  let best;
  for (const other of known) {
    const [a, b] = [characters(other), characters(name)];
    const ratio = (2 * matching(a, b)) / (a.length + b.length);
    if (ratio >= 0.6 && (!best || ratio > best.ratio || (ratio === best.ratio && other > best.other))) {
      best = { ratio, other };
    }
  }
  return best?.other;
}

// The characters in matching blocks: the longest common run, and so on to the left and right of it.
function matching(a, b) {
  let [size, i, j] = [0, 0, 0];
  for (let from = 0; from < a.length; from += 1) {
    for (let to = 0; to < b.length; to += 1) {
      let run = 0;
      while (from + run < a.length && to + run < b.length && a[from + run] === b[to + run]) run += 1;
      if (run > size) [size, i, j] = [run, from, to];
    }
  }
  if (size === 0) return 0;
  return size + matching(a.slice(0, i), b.slice(0, j)) + matching(a.slice(i + size), b.slice(j + size));
}

// Parse a pattern such as "n (g c) ... -> n g". Return {text, left, right, names, kept, affine,
// poolsSamples}: left and right are lists of items, each a list of names; affine are the items that weight
// and bias vary along.
export function parse(text) {
  const tokens = tokenize(text);
  const arrows = tokens.filter(({ kind }) => kind === "arrow").map(({ at }) => at);
  const end = characters(text).length;
  if (arrows.length === 0)
    fail(text, end, "The pattern has no arrow", 'write "axes -> kept axes", as "n c h w -> c"');
  if (arrows.length > 1) fail(text, arrows[1], "The pattern has two arrows", "leave one '->'", 2);
  const left = group(
    text,
    tokens.filter(({ at }) => at < arrows[0]),
  );
  const right = group(
    text,
    tokens.filter(({ at }) => at > arrows[0]),
  );
  if (left.length === 0) {
    const fix = 'name every axis of the tensor, as "n c h w"';
    fail(text, arrows[0], "The pattern names no axes left of '->'", fix, 2);
  }
  const known = left.flatMap(({ names }) => names);
  checkApart(text, left, right, known);
  checkKnown(text, right, known, "on the right of '->'");
  const kept = new Set(right.flatMap(({ names }) => names));
  const items = left.map(({ names }) => names);
  return {
    text,
    left: items,
    right: right.map(({ names }) => names),
    names: known,
    kept,
    affine: items.filter((item) => item.includes("c")),
    poolsSamples: !items[0].every((name) => kept.has(name)),
  };
}

function checkApart(text, left, right, known) {
  const letters = characters(known[0]);
  const one = known.length === 1 && !text.includes("(") && new Set(letters).size === letters.length;
  if (!one || right.every(({ names }) => names.every((name) => known.includes(name)))) return;
  const fixed = spaced(text);
  const at = fixed.indexOf("->");
  const named = new Set(words(fixed.slice(0, at)));
  if (words(fixed.slice(at + 2)).every((name) => named.has(name))) {
    fail(text, left[0].at, "The axes are not apart", `put spaces between them: "${fixed}"`, letters.length);
  }
}

// ---------------------------------------------------------------- the text and a shape

// Return the axes of a tensor of this shape, brackets opened: a list of {name, size, axis}, axis being the
// place in the shape. Those that `...` stands for are called "...0", "...1", and so on. `sizes` are those of
// split axes: {g: 4}.
export function bind(pattern, shape, sizes = {}) {
  checkSizes(pattern, sizes);
  return expand(pattern, shape).flatMap((item, axis) => {
    const found = split(pattern, item, axis, shape, sizes);
    return item.map((name, at) => ({ name, size: found[at], axis }));
  });
}

function checkSizes(pattern, sizes) {
  for (const [name, size] of Object.entries(sizes)) {
    const known = pattern.names.filter((other) => other !== ELLIPSIS);
    if (!known.includes(name)) {
      throw new PatternError(`${name}=${size} names no axis of "${pattern.text}"`, "", suggest(name, known));
    }
    if (!Number.isInteger(size) || size < 1) {
      const problem = `${name} must be a positive integer, and is ${size}`;
      throw new PatternError(problem, `"${pattern.text}"`, `give ${name} a size of 1 or more`);
    }
  }
}

function expand(pattern, shape) {
  const open = pattern.names.includes(ELLIPSIS);
  const fixed = pattern.left.length - (open ? 1 : 0);
  const spare = shape.length - fixed;
  if (spare < 0 || (spare > 0 && !open)) {
    const named = `${open ? "at least " : ""}${fixed} ${fixed === 1 ? "axis" : "axes"}`;
    const letters = characters(pattern.names[0]);
    const alone = pattern.left.length === 1 && pattern.left[0].length === 1;
    const apart = alone && new Set(letters).size === letters.length && letters.length === shape.length;
    const fix = apart
      ? `put spaces between the axes: "${spaced(pattern.text)}"`
      : "name every axis of the tensor on the left, or use `...` for any number of them";
    throw new ShapeError(
      `"${pattern.text}" names ${named}, but the tensor has ${shape.length}`,
      `shape ${tuple(shape)}`,
      fix,
    );
  }
  return pattern.left.flatMap((item) =>
    item[0] === ELLIPSIS ? Array.from({ length: spare }, (_, i) => [`${ELLIPSIS}${i}`]) : [item],
  );
}

function split(pattern, item, axis, shape, sizes) {
  const size = shape[axis];
  const given = item.filter((name) => Object.hasOwn(sizes, name));
  const unknown = item.filter((name) => !Object.hasOwn(sizes, name));
  const known = product(given.map((name) => sizes[name]));
  const bracket = item.length === 1 ? item[0] : `(${item.join(" ")})`;
  if (unknown.length > 1) {
    const got = `"${pattern.text}" without the sizes of ${unknown.join(" and ")}`;
    throw new PatternError(`Of ${bracket}, all sizes but one must be given`, got, `add ${unknown[0]}=<size>`);
  }
  if (unknown.length ? size % known : size !== known) {
    const said = given.map((name) => `${name}=${sizes[name]}`).join(", ");
    let wrong = unknown.length ? `which cannot be split with ${said}` : `but ${said} was given`;
    if (item.length > 1 && !unknown.length) wrong += `, which makes ${known}`;
    throw new ShapeError(
      `Axis ${axis} (\`${bracket}\`) has size ${size}, ${wrong}`,
      `shape ${tuple(shape)} for "${pattern.text}"`,
      unknown.length ? `choose sizes that divide ${size}` : `give an input with ${known} there`,
    );
  }
  return item.map((name) => sizes[name] ?? size / known);
}
