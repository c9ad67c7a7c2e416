// A block of N x C x H x W cells to look at: in 3-D, where samples stand side by side and each is a box of W
// x H x C cells, or flat, where each channel of each sample is a grid. Without WebGL it is always flat.

import { button, h, svg } from "./kit.js";

const GAP = 2; // between samples, in cells
const FOOT = 1; // below a sample, for its name
const LIFT = 0.8; // between a slab that is lifted out and the rest
const CELL = 0.88; // of a cell's place is filled
const LEGIBLE = 13; // pixels of a cell, for names of axes to have room
const SECONDS = 0.45; // to lift a slab out
const VIEW = { yaw: 0.55, pitch: 0.38 };

// Put a block on the page. Return {show, flat, unmount}: show({shape, colours, lifted, chosen, names}) draws
// cells in `colours` (of each element red, green and blue from 0 to 1), lifts out those for which
// lifted(element) holds, and frames the element `chosen`; flat(wanted) switches to the grids and back.
// onpick(element) is called for a click on a cell.
export function stage(root, { onpick, onready }) {
  const place = h("div", { class: "stage" });
  root.append(place);
  let block = null;
  let solid = null;
  let wantsFlat = false;
  let gone = false;
  const draw = () => {
    if (!block) return;
    const isFlat = wantsFlat || solid === false;
    place.classList.toggle("flat", isFlat);
    if (isFlat) {
      if (solid) solid.hide();
      drawFlat(place, block, onpick);
    } else if (solid) {
      place.querySelector(".grids")?.remove();
      solid.show(block);
    }
  };
  // The library for 3-D is large, and the page is to be seen before it is read.
  setTimeout(async () => {
    const made = await solidBlock(place, onpick).catch(() => false);
    if (gone) return made && made.unmount();
    solid = made;
    onready?.(solid !== false);
    draw();
  });
  return {
    show(next) {
      block = next;
      draw();
    },
    flat(wanted) {
      wantsFlat = wanted;
      draw();
    },
    unmount() {
      gone = true;
      if (solid) solid.unmount();
    },
  };
}

// Return the place in a block of a sample, channel, row and column in memory order.
export function indices([, channels, rows, columns], element) {
  const w = element % columns;
  const y = Math.floor(element / columns) % rows;
  const c = Math.floor(element / (columns * rows)) % channels;
  return { n: Math.floor(element / (columns * rows * channels)), c, h: y, w };
}

// ---------------------------------------------------------------- flat

function drawFlat(place, { shape, colours, lifted, chosen, names }, onpick) {
  place.querySelector(".grids")?.remove();
  const [samples, channels, rows, columns] = shape;
  const grid = (n, c) => {
    const cells = [];
    for (let at = 0; at < rows * columns; at += 1) {
      const element = (n * channels + c) * rows * columns + at;
      const [x, y] = [at % columns, Math.floor(at / columns)];
      const kind = `${lifted(element) ? "lifted" : ""} ${element === chosen ? "chosen" : ""}`;
      const inset = lifted(element) ? 0.04 : 0.16;
      cells.push(
        svg("rect", {
          x: x + inset,
          y: y + inset,
          width: 1 - 2 * inset,
          height: 1 - 2 * inset,
          fill: hex(colours[element]),
          class: kind,
          "data-element": element,
        }),
      );
    }
    return h(
      "div",
      {},
      svg("svg", { viewBox: `-0.1 -0.1 ${columns + 0.2} ${rows + 0.2}`, "aria-hidden": "true" }, cells),
    );
  };
  const line = (n) => [h("p", {}, names.sample(n)), Array.from({ length: channels }, (_, c) => grid(n, c))];
  const head = [h("p", {}), Array.from({ length: channels }, (_, c) => h("p", {}, names.channel(c)))];
  const all = [head, Array.from({ length: samples }, (_, n) => line(n))];
  const pick = (event) => {
    const element = event.target.dataset?.element;
    if (element !== undefined) onpick(Number(element));
  };
  const style = { "grid-template-columns": `auto repeat(${channels}, minmax(0, 1fr))` };
  place.append(h("div", { class: "grids", style, onclick: pick }, all));
}

function hex([red, green, blue]) {
  return `rgb(${[red, green, blue].map((part) => Math.round(255 * Math.min(1, Math.max(0, part)))).join(" ")})`;
}

// ---------------------------------------------------------------- solid

async function solidBlock(place, onpick) {
  const three = await import("./vendor/three.module.min.js");
  const renderer = new three.WebGLRenderer({ antialias: true, alpha: true });
  renderer.setPixelRatio(Math.min(2, devicePixelRatio));
  const canvas = renderer.domElement;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "The block of cells, with one slab lifted out");
  const labels = h("div", { class: "labels", "aria-hidden": "true" });
  const view = { ...VIEW };
  const turns = turnButtons(view, () => render(state));
  const box = h("div", { class: "solid" }, canvas, labels);
  place.append(box, turns);
  const camera = new three.OrthographicCamera();
  const scene = lit(three);
  const state = { three, renderer, canvas, labels, scene, camera, view, place: box, heights: null, frame: 0 };

  const observer = new ResizeObserver(() => state.block && render(state));
  observer.observe(box);
  const listening = new AbortController();
  turnable(canvas, view, () => render(state), listening.signal);
  canvas.addEventListener("click", (event) => {
    const element = pick(state, event);
    if (element !== undefined) onpick(element);
  });
  return {
    show(block) {
      for (const part of [box, turns]) part.hidden = false;
      const before = state.block;
      state.block = block;
      if (!before || before.shape.join() !== block.shape.join()) build(state);
      paint(state);
      lift(state);
    },
    hide() {
      for (const part of [box, turns]) part.hidden = true;
    },
    unmount() {
      observer.disconnect();
      listening.abort();
      cancelAnimationFrame(state.frame);
      if (state.cells) freed(state.cells);
      renderer.dispose();
      renderer.forceContextLoss(); // a browser has only some 16 of them
    },
  };
}

function lit(three) {
  const sun = new three.DirectionalLight(0xffffff, 1.7);
  sun.position.set(3, 9, 5);
  return new three.Scene().add(new three.AmbientLight(0xffffff, 1.9), sun);
}

// Give back what cells hold on the graphics card.
function freed(cells) {
  cells.geometry.dispose();
  cells.material.dispose();
  cells.dispose();
}

// One box for every cell.
function build(state) {
  const { three, scene, block } = state;
  if (state.cells) {
    scene.remove(state.cells);
    freed(state.cells);
  }
  const count = block.shape.reduce((all, one) => all * one, 1);
  state.cells = new three.InstancedMesh(
    new three.BoxGeometry(CELL, CELL, CELL),
    new three.MeshLambertMaterial(),
    count,
  );
  state.cells.frustumCulled = false;
  state.edge ??= new three.LineSegments(
    new three.EdgesGeometry(new three.BoxGeometry(0.98, 0.98, 0.98)),
    new three.LineBasicMaterial(),
  );
  scene.add(state.cells, state.edge);
  state.heights = null;
}

function paint({ three, cells, block }) {
  const colour = new three.Color();
  block.colours.forEach(([red, green, blue], element) => {
    cells.setColorAt(element, colour.setRGB(red, green, blue, three.SRGBColorSpace));
  });
  cells.instanceColor.needsUpdate = true;
}

// Move each cell to the height where it belongs; at once, where the reader wants no motion or nothing was
// there before.
function lift(state) {
  const { block } = state;
  const [, channels, rows, columns] = block.shape;
  const inSample = channels * rows * columns;
  const count = block.colours.length;
  const of = Array.from({ length: count / inSample }, (_, n) => {
    let all = true;
    for (let at = 0; at < inSample; at += 1) all &&= block.lifted(n * inSample + at);
    return all;
  });
  // A whole sample needs no more than a step up; a part of one has to come out of it.
  const target = Float32Array.from({ length: count }, (_, element) => {
    if (!block.lifted(element)) return 0;
    return of[Math.floor(element / inSample)] ? LIFT : rows + LIFT;
  });
  const from = state.heights ?? target;
  const there = from.every((height, element) => height === target[element]);
  const still = there || matchMedia("(prefers-reduced-motion: reduce)").matches;
  const start = performance.now();
  state.room = target.reduce((all, one) => Math.max(all, one), 0);
  cancelAnimationFrame(state.frame);
  const step = (now) => {
    const part = still ? 1 : Math.min(1, Math.max(0, (now - start) / (1000 * SECONDS)));
    const eased = 1 - (1 - part) ** 3;
    state.heights = target.map((to, element) => from[element] + (to - from[element]) * eased);
    render(state);
    if (part < 1) state.frame = requestAnimationFrame(step);
  };
  step(start);
}

// Where the samples stand as one sees them: in one row, or in several where the place is narrow. Each has a
// tile of the picture to itself, whatever the angle, and `at` is the place in space of a cell of it.
function layout({ three, block, place, room, view }) {
  const [samples, channels, rows, columns] = block.shape;
  const [sin, cos] = [Math.sin(view.yaw), Math.cos(view.yaw)];
  const [low, high] = [Math.sin(view.pitch), Math.cos(view.pitch)];
  const wide = columns * Math.abs(cos) + channels * Math.abs(sin) + GAP;
  const depth = (columns * Math.abs(sin) + channels * Math.abs(cos)) * Math.abs(low);
  const tall = (rows + room) * high + depth + FOOT + 0.5;
  const aspect = place.clientWidth / place.clientHeight;
  let half = Infinity; // of the height of the picture, in cells
  let many; // samples in a row
  for (let each = 1; each <= samples; each += 1) {
    const needed = Math.max((each * wide) / aspect, Math.ceil(samples / each) * tall) / 2;
    if (needed < half) [half, many] = [needed, each];
  }
  const right = new three.Vector3(cos, 0, -sin);
  const up = new three.Vector3(-sin * low, high, -cos * low);
  const lines = Math.ceil(samples / many);
  const tile = (n, above) => {
    const line = Math.floor(n / many);
    const inLine = line < lines - 1 ? many : samples - many * (lines - 1);
    const across = (n % many) - (inLine - 1) / 2;
    return right
      .clone()
      .multiplyScalar(across * wide)
      .addScaledVector(up, ((lines - 1) / 2 - line) * tall + above);
  };
  const middles = Array.from({ length: samples }, (_, n) => tile(n, (FOOT - room * high) / 2));
  const at = (n, c, y, x) =>
    new three.Vector3(x - (columns - 1) / 2, (rows - 1) / 2 - y, (channels - 1) / 2 - c).add(middles[n]);
  const towards = new three.Vector3(sin * high, low, cos * high);
  return { at, half, aspect, towards, name: (n) => tile(n, (FOOT - tall) / 2) };
}

function render(state) {
  const { three, renderer, camera, scene, cells, edge, block, heights, place } = state;
  const [width, height] = [place.clientWidth, place.clientHeight];
  if (width === 0) return; // it is hidden
  if (state.size !== `${width} ${height}`) renderer.setSize(width, height);
  state.size = `${width} ${height}`;
  const set = layout(state);
  const matrix = new three.Matrix4();
  heights.forEach((raised, element) => {
    const { n, c, h: y, w } = indices(block.shape, element);
    const { x, y: up, z } = set.at(n, c, y, w);
    cells.setMatrixAt(element, matrix.setPosition(x, up + raised, z));
  });
  cells.instanceMatrix.needsUpdate = true;
  cells.boundingSphere = null;
  const { half, aspect } = set;
  camera.position.copy(set.towards).multiplyScalar(200);
  camera.lookAt(0, 0, 0);
  Object.assign(camera, {
    left: -half * aspect,
    right: half * aspect,
    top: half,
    bottom: -half,
    near: 1,
    far: 400,
  });
  camera.updateProjectionMatrix();
  camera.updateMatrixWorld();
  edge.visible = block.chosen !== undefined;
  if (edge.visible) {
    cells.getMatrixAt(block.chosen, matrix);
    edge.position.setFromMatrixPosition(matrix);
    edge.material.color.set(getComputedStyle(place).color);
  }
  renderer.render(scene, camera);
  label(state, set);
}

// Words stand where they belong, in HTML, so that they stay sharp and upright.
function label({ camera, labels, block, place, view }, { at, name, half }) {
  const [samples, channels, rows, columns] = block.shape;
  const put = (text, point, kind) => {
    const seen = point.project(camera);
    const [left, top] = [((seen.x + 1) / 2) * place.clientWidth, ((1 - seen.y) / 2) * place.clientHeight];
    return h("span", { class: kind, style: { left: `${left}px`, top: `${top}px` } }, text);
  };
  const names = Array.from({ length: samples }, (_, n) => put(block.names.sample(n), name(n), ""));
  // Beside the edges that are seen from any angle: the front's outer one, and the one that leads back.
  const leftwards = view.yaw >= 0;
  const axes = [
    put(
      `H ${rows}`,
      at(0, 0, (rows - 1) / 2, leftwards ? -0.8 : columns - 0.2),
      leftwards ? "axis-name left" : "axis-name right",
    ),
    put(
      `C ${channels}`,
      at(0, (channels - 1) / 2, rows - 0.2, leftwards ? columns + 0.1 : -1.1),
      "axis-name",
    ),
    put(`W ${columns}`, at(0, 0, rows - 0.05, (columns - 1) / 2), "axis-name"),
  ];
  // Among small cells the names of axes would lie on top of each other.
  const big = place.clientHeight / (2 * half) > LEGIBLE;
  labels.replaceChildren(...names, ...(big ? axes : []));
}

function pick({ three, camera, cells, canvas }, event) {
  const box = canvas.getBoundingClientRect();
  const ray = new three.Raycaster();
  const x = ((event.clientX - box.left) / box.width) * 2 - 1;
  const y = 1 - ((event.clientY - box.top) / box.height) * 2;
  ray.setFromCamera(new three.Vector2(x, y), camera);
  return ray.intersectObject(cells)[0]?.instanceId;
}

// Drag to turn. A drag ends in no click. On a telephone, a stroke up or down scrolls the page.
function turnable(canvas, view, again, signal) {
  let last = null;
  let moved = 0;
  canvas.addEventListener("pointerdown", (event) => {
    last = event;
    moved = 0;
  });
  addEventListener(
    "pointermove",
    (event) => {
      if (!last) return;
      const [dx, dy] = [event.clientX - last.clientX, event.clientY - last.clientY];
      moved += Math.abs(dx) + Math.abs(dy);
      last = event;
      turn(view, dx * 0.008, event.pointerType === "touch" ? 0 : dy * 0.008);
      again();
    },
    { signal },
  );
  for (const end of ["pointerup", "pointercancel"])
    addEventListener(end, () => void (last = null), { signal });
  canvas.addEventListener("click", (event) => moved > 5 && event.stopImmediatePropagation(), {
    capture: true,
  });
}

function turn(view, yaw, pitch) {
  view.yaw = Math.min(1.5, Math.max(-1.5, view.yaw - yaw));
  view.pitch = Math.min(1.5, Math.max(-0.2, view.pitch + pitch));
}

function turnButtons(view, again) {
  const by = (yaw, pitch) => () => {
    turn(view, yaw, pitch);
    again();
  };
  return h(
    "div",
    { class: "turns", role: "group", "aria-label": "Turn the block" },
    button("←", by(-0.2, 0), { "aria-label": "Turn left" }),
    button("→", by(0.2, 0), { "aria-label": "Turn right" }),
    button("↑", by(0, 0.15), { "aria-label": "Tilt up" }),
    button("↓", by(0, -0.15), { "aria-label": "Tilt down" }),
  );
}
