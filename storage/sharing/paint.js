// Masks as an image in a browser: what paint.py does, and one mask alone. Included in pages.

const EDGE = 0.35;  // light left on an outline
const DIM = 0.65, TINT = 0.3;  // shade off the mask shown alone, colour on it
const BLACK = [0, 0, 0], WHITE = [255, 255, 255];

// A colour per mask number: hue by the golden ratio, full value.
function colour(mask) {
  const hue = mask * 0.618034 % 1, saturation = 0.55 + 0.4 * (mask * 0.317 % 1);
  return [5, 3, 1].map(n => {
    const k = (n + 6 * hue) % 6;
    return 255 * (1 - saturation * Math.max(0, Math.min(k, 4 - k, 1)));
  });
}

// One pixel of a canvas over the image. The 32-bit words of ImageData are little-endian wherever browsers run.
const pixel = ([red, green, blue], alpha) => (Math.round(alpha * 255) << 24 | blue << 16 | green << 8 | red) >>> 0;

// Three tables by atom: the region it belongs to, and its pixels inside a region and on the border of one.
function paintTables(atoms, {fill, outlines, mask}) {
  const shade = 1 - EDGE * (1 - fill);
  const regions = new Uint16Array(atoms.length);
  const fills = new Uint32Array(atoms.length), borders = new Uint32Array(atoms.length);
  atoms.forEach((masks, atom) => {
    if (mask !== undefined) {  // one mask: clear with a white rim, the rest in shade
      regions[atom] = masks.includes(mask);
      fills[atom] = regions[atom] ? pixel(colour(mask), TINT) : pixel(BLACK, DIM);
      borders[atom] = regions[atom] ? pixel(WHITE, 1) : fills[atom];
    } else {  // every atom in the colour of its smallest mask
      const light = masks.length ? colour(masks[0]) : BLACK;
      regions[atom] = atom;
      fills[atom] = pixel(light, fill);
      borders[atom] = outlines === "dark" ? pixel(light.map(value => EDGE * fill * value / shade), shade)
        : outlines === "bright" ? pixel(light, 1) : fills[atom];
    }
  });
  return {regions, fills, borders};
}

// Fill a canvas that lies over an image.
//   labels: Uint16Array, the atom of each pixel of the canvas
//   atoms: for each atom the masks that cover it, the smallest first
//   look: fill 0..1; outlines "dark", "bright" or "none"; mask, the number of the one to show alone, or undefined
function paintMasks(canvas, labels, atoms, look) {
  const {width, height} = canvas, bothSides = look.mask !== undefined;  // the rim of a mask is on its own pixels
  const {regions, fills, borders} = paintTables(atoms, look);
  const data = new ImageData(width, height), words = new Uint32Array(data.data.buffer);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      const region = regions[labels[i]];
      const border = x > 0 && regions[labels[i - 1]] !== region || y > 0 && regions[labels[i - width]] !== region
        || bothSides && (x + 1 < width && regions[labels[i + 1]] !== region
          || y + 1 < height && regions[labels[i + width]] !== region);
      words[i] = (border ? borders : fills)[labels[i]];
    }
  }
  canvas.getContext("2d").putImageData(data, 0, 0);
}

// The record of a mask as [name, values]: bbox_x, bbox_y, ... as one; nothing for a column without a value.
function recordFields(columns, record) {
  const fields = new Map();
  columns.forEach((column, i) => {
    const name = column.replace(/_[xywh]$/, "");
    if (record[i] !== null) fields.set(name, [...fields.get(name) ?? [], record[i]]);
  });
  return [...fields];
}
