// The shell: the list of rooms, their links, the theme. Everything else is in the rooms.

import { choice, h } from "./kit.js";
import * as input from "./input.js";
import * as mates from "./mates.js";
import * as network from "./network.js";
import * as recall from "./recall.js";
import * as slab from "./slab.js";

const ROOMS = [slab, input, mates, network, recall];
const THEMES = [
  { value: "light", label: "Light" },
  { value: "dark", label: "Dark" },
  { value: "system", label: "System" },
];

const study = JSON.parse(document.getElementById("study").textContent);
const place = document.getElementById("room");
const links = new Map();
let left; // what the open room wants done when it is left

function open() {
  const wanted = location.hash.slice(1);
  if (wanted === "room") return; // the link to skip the head of the page
  const room = ROOMS.find(({ id }) => id === wanted) ?? ROOMS[0];
  left?.();
  document.title = `${room.title} · slabnorm lab`;
  for (const [id, link] of links) {
    if (id === room.id) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const root = h("div", { class: `room room-${room.id}` });
  place.replaceChildren(root);
  left = room.mount(root, study)?.unmount;
  scrollTo(0, 0);
}

// Settings of a browser may forbid storage, and then the theme lasts as long as the page is open.
function stored(key, value) {
  try {
    if (value === undefined) return localStorage.getItem(key);
    localStorage.setItem(key, value);
  } catch {
    // The theme is not kept.
  }
  return null;
}

function paint(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  document.dispatchEvent(new Event("themechange"));
}

for (const [index, { id, title }] of ROOMS.entries()) {
  const link = h("a", { href: `#${id}` }, h("span", { class: "nth" }, index + 1), title);
  links.set(id, link);
  document.getElementById("rooms").append(link);
}
const theme = THEMES.some(({ value }) => value === stored("slabnorm-theme")) ? stored("slabnorm-theme") : "system";
paint(theme);
document.getElementById("theme").append(
  choice({
    label: "Theme",
    options: THEMES,
    value: theme,
    onchange: (value) => {
      stored("slabnorm-theme", value);
      paint(value);
    },
  }),
);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  document.dispatchEvent(new Event("themechange"));
});
addEventListener("hashchange", () => {
  open();
  place.focus({ preventScroll: true });
});
open();
