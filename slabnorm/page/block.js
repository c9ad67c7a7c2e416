// The values of room 1: what the first layer of a network might make of real pictures. A sample is a piece of a photograph,
// and each channel is a simple filter of it, so that channels differ in scale as they do in a network.

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

// Return the values of a block of this shape, and where they come from. `photos` are those of the study: {side, pixels}.
export function values([samples, channels, rows, columns], photos) {
  const found = new Float64Array(samples * channels * rows * columns);
  const step = Math.floor((photos.side - 2) / MOST); // pixels from one cell to the next
  let at = 0;
  for (let n = 0; n < samples; n += 1) {
    const pixels = pictures(photos)[n];
    for (let c = 0; c < channels; c += 1) {
      for (let y = 0; y < rows; y += 1) {
        for (let x = 0; x < columns; x += 1) {
          // The middle of the picture, whatever the size of the block.
          const top = 1 + step * (y + Math.floor((MOST - rows) / 2));
          const left = 1 + step * (x + Math.floor((MOST - columns) / 2));
          found[at] = filtered(pixels, photos.side, top, left, FILTERS[c][1]);
          at += 1;
        }
      }
    }
  }
  return found;
}

function filtered(pixels, side, top, left, weights) {
  let sum = 0;
  for (let place = 0; place < 9; place += 1) {
    sum += weights[place] * pixels[(top + Math.floor(place / 3) - 1) * side + left + (place % 3) - 1];
  }
  return sum;
}

// The photographs' pieces in which most happens: a piece of sky has nothing to show.
function pictures({ pixels }) {
  const spread = (piece) => {
    const mean = piece.reduce((sum, pixel) => sum + pixel, 0) / piece.length;
    return piece.reduce((sum, pixel) => sum + (pixel - mean) ** 2, 0);
  };
  return [...pixels].sort((a, b) => spread(b) - spread(a));
}
