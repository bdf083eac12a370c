// From a picture's pixels to those that a model reads. Each step is that of src/gsb_vit/data/preprocess.py, and the
// arithmetic is Pillow's fixed-point resampling (src/libImaging/Resample.c), so the result equals Python's to the bit.

const PRECISION = 22; // bits behind the point of a weight
const FILTERS = {
  bilinear: { support: 1, at: (x) => (Math.abs(x) < 1 ? 1 - Math.abs(x) : 0) },
  bicubic: { support: 2, at: (x) => cubic(Math.abs(x)) },
};

function cubic(x) {
  const a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/**
 * Crop and resize a picture as a model's preprocessing says.
 * @param {Uint8ClampedArray} rgba (height, width, 4); transparency is laid on white
 * @param {{size: number[], resize: string, crop_ratio: number, interpolation: string}} preprocessing
 * @returns {Uint8Array} (H, W, 3)
 */
export function prepare(rgba, width, height, preprocessing) {
  const [outHeight, outWidth] = preprocessing.size;
  const box = kept(width, height, preprocessing);
  const rgb = onWhite(rgba);
  if (width === outWidth && height === outHeight && box.join() === `0,0,${width},${height}`) return rgb;
  const [left, top, right, bottom] = box.map(Math.fround);
  if (preprocessing.interpolation === "nearest") {
    return nearest(rgb, width, [left, top, right, bottom], outWidth, outHeight);
  }
  const filter = FILTERS[preprocessing.interpolation];
  const columns = weights(width, left, right, outWidth, filter);
  const rows = weights(height, top, bottom, outHeight, filter);
  // Pillow 13 begins with the columns where that spares the rows work; older ones never do.
  if (height > outHeight && height - outHeight > (width - outWidth) * 2) {
    return horizontal(vertical(rgb, width, 0, rows), width, 0, outHeight, columns);
  }
  const first = rows[0].first;
  const lines = rows.at(-1).first + rows.at(-1).taps.length - first;
  return vertical(horizontal(rgb, width, first, lines, columns), outWidth, first, rows);
}

/** The part of a picture that is read: left, top, right, bottom in its own pixels. */
export function kept(width, height, { size, resize, crop_ratio: ratio }) {
  if (resize === "squash") return [0, 0, width, height];
  const factor = Math.max(size[0] / height, size[1] / width) / ratio;
  const keptHeight = Math.min(size[0] / factor, height);
  const keptWidth = Math.min(size[1] / factor, width);
  const left = (width - keptWidth) / 2;
  const top = (height - keptHeight) / 2;
  return [left, top, left + keptWidth, top + keptHeight];
}

function onWhite(rgba) {
  const rgb = new Uint8Array((rgba.length / 4) * 3);
  for (let i = 0, j = 0; i < rgba.length; i += 4, j += 3) {
    const alpha = rgba[i + 3];
    for (let c = 0; c < 3; ++c) {
      if (alpha === 255) {
        rgb[j + c] = rgba[i + c];
        continue;
      }
      const sum = (rgba[i + c] * alpha + 255 * (255 - alpha) + 128) << 7; // as Pillow's alpha_composite
      rgb[j + c] = ((sum >> 8) + sum) >> 15;
    }
  }
  return rgb;
}

/** For each output pixel the first input pixel and the whole-number weights from there on. */
function weights(size, begin, end, count, filter) {
  const scale = Math.fround(end - begin) / count;
  const stretch = Math.max(scale, 1);
  const support = filter.support * stretch;
  const shrink = 1 / stretch;
  return Array.from({ length: count }, (_, i) => {
    const centre = begin + (i + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const last = Math.min(Math.trunc(centre + support + 0.5), size);
    const taps = Array.from({ length: last - first }, (__, x) => filter.at((x + first - centre + 0.5) * shrink));
    const sum = taps.reduce((a, b) => a + b, 0);
    return { first, taps: Int32Array.from(taps, (tap) => fixed(sum === 0 ? tap : tap / sum)) };
  });
}

function fixed(value) {
  return Math.trunc(value * 2 ** PRECISION + (value < 0 ? -0.5 : 0.5));
}

function clip(sum) {
  const value = sum >> PRECISION;
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

const HALF = 1 << (PRECISION - 1);

/** Lines first … first + lines − 1, each as wide as there are columns. */
function horizontal(rgb, width, first, lines, columns) {
  const out = new Uint8Array(lines * columns.length * 3);
  for (let y = 0, to = 0; y < lines; ++y) {
    const line = (first + y) * width * 3;
    for (const { first: from, taps } of columns) {
      let [red, green, blue] = [HALF, HALF, HALF];
      for (let k = 0, at = line + from * 3; k < taps.length; ++k, at += 3) {
        red += rgb[at] * taps[k];
        green += rgb[at + 1] * taps[k];
        blue += rgb[at + 2] * taps[k];
      }
      out[to++] = clip(red);
      out[to++] = clip(green);
      out[to++] = clip(blue);
    }
  }
  return out;
}

function vertical(rgb, width, first, rows) {
  const line = width * 3;
  const out = new Uint8Array(rows.length * line);
  rows.forEach(({ first: from, taps }, y) => {
    for (let x = 0; x < line; ++x) {
      let sum = HALF;
      for (let k = 0, at = (from - first) * line + x; k < taps.length; ++k, at += line) sum += rgb[at] * taps[k];
      out[y * line + x] = clip(sum);
    }
  });
  return out;
}

function nearest(rgb, width, [left, top, right, bottom], outWidth, outHeight) {
  const out = new Uint8Array(outWidth * outHeight * 3);
  const places = (begin, end, count) => {
    const step = Math.fround(end - begin) / count;
    const found = [];
    for (let i = 0, at = begin + step * 0.5; i < count; ++i, at += step) found.push(Math.floor(at));
    return found;
  };
  const columns = places(left, right, outWidth);
  let to = 0;
  for (const y of places(top, bottom, outHeight)) {
    for (const x of columns) {
      const at = (y * width + x) * 3;
      out[to++] = rgb[at];
      out[to++] = rgb[at + 1];
      out[to++] = rgb[at + 2];
    }
  }
  return out;
}
