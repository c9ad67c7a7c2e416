// Room 1: a block of N x C x H x W cells, and the slab that each cell lies in.

import { h } from "./kit.js";

export const id = "slab";
export const title = "The slab";

export function mount(root) {
  root.append(h("h1", {}, "Every normalisation is the same formula over a different slab"));
}
