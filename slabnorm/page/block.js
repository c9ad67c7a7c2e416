// The values of room 1: what the first layer of a network might make of real pictures. A sample is a piece of
// a photograph, and each channel is a simple filter of it, so that channels differ in scale as they do in a
// network.

export const MOST = 8; // samples, channels, rows and columns

// Weights of 3x3 pixels, and what they find.
const FILTERS = [
  ["the picture", [0, 0, 0, 0, 1, 0, 0, 0, 0]],
  ["edges across", [-1, 0, 1, -2, 0, 2, -1, 0, 1]],
  ["edges down", [-1, -2, -1, 0, 0, 0, 1, 2, 1]],
  ["blurred", new Array(9).fill(1 / 9)],
  ["spots", [0, -1, 0, -1, 4, -1, 0, -1, 0]],
  ["inverted", [0, 0, 0, 0, -1, 0, 0, 0, 0]],
  ["rising edges", [0, 1, 2, -1, 0, 1, -2, -1, 0]],
  ["falling edges", [2, 1, 0, 1, 0, -1, 0, -1, -2]],
];
export const CHANNELS = FILTERS.map(([name]) => name);

// Return the values of a block of this shape, in memory order. `photos` are those of the study: {side,
// pixels}.
export function values([samples, channels, rows, columns], photos) {
  const { side } = photos;
  const found = [];
  for (const pixels of pictures(photos).slice(0, samples)) {
    for (const [, weights] of FILTERS.slice(0, channels)) {
      for (let y = 0; y < rows; y += 1) {
        for (let x = 0; x < columns; x += 1) {
          found.push(pooled(pixels, side, weights, span(y, rows, side), span(x, columns, side)));
        }
      }
    }
  }
  return Float64Array.from(found);
}

// The pixels that belong to the nth of so many rows or columns; the outermost pixels have no neighbours to
// filter with.
function span(nth, many, side) {
  const bound = (place) => 1 + Math.floor((place * (side - 2)) / many);
  return [bound(nth), bound(nth + 1)];
}

// The mean of a filter over some pixels.
function pooled(pixels, side, weights, [top, bottom], [left, right]) {
  let sum = 0;
  for (let y = top; y < bottom; y += 1) {
    for (let x = left; x < right; x += 1) {
      for (let at = 0; at < 9; at += 1) {
        sum += weights[at] * pixels[(y + Math.floor(at / 3) - 1) * side + x + (at % 3) - 1];
      }
    }
  }
  return sum / ((bottom - top) * (right - left));
}

// The photographs' pieces in which most happens: a piece of sky has nothing to show.
function pictures({ pixels }) {
  const spread = (piece) => {
    const mean = piece.reduce((sum, pixel) => sum + pixel, 0) / piece.length;
    return piece.reduce((sum, pixel) => sum + (pixel - mean) ** 2, 0);
  };
  return [...pixels].sort((a, b) => spread(b) - spread(a));
}
