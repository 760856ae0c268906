// Draws faces for data_tools/avatars.py. A face is a function of its name, STYLE/NUMBER, alone.
//
//   node avatars.mjs PACKAGES list '{"lorelei": 100, ...}'   prints, for each style, its makers' own description
//       and the first so many numbers whose drawings all differ, as JSON
//   node avatars.mjs PACKAGES draw SIZE   reads names, one a line, and answers each with SIZE x SIZE x RGB bytes

import { createHash } from 'node:crypto';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

const BACKGROUNDS = [
  'f6d5c5', 'ffdfbf', 'ffd5dc', 'd1d4f9', 'c0aede', 'b6e3f4', 'c5ecd9', 'fff3b0',
];
const [, , packages, mode, argument] = process.argv;
const { Resvg } = createRequire(join(packages, 'package.json'))('@resvg/resvg-js');
const { createAvatar } = await load('core');
const styles = new Map();

function load(name) {
  return import(pathToFileURL(join(packages, 'node_modules/@dicebear', name, 'lib/index.js')));
}

async function styleOf(name) {
  if (!styles.has(name)) styles.set(name, await load(name));
  return styles.get(name);
}

// DiceBear's own generator draws seeds that look alike alike: a digest makes neighbours differ.
function svg(style, name) {
  const seed = createHash('sha256').update(name).digest('hex');
  return createAvatar(style, { seed, backgroundColor: BACKGROUNDS }).toString();
}

async function list(counts) {
  const found = {};
  for (const [name, count] of Object.entries(counts)) {
    const style = await styleOf(name);
    const seen = new Set();
    const numbers = [];
    for (let number = 0; numbers.length < count; number++) {
      if (number > 4 * count + 1000) throw new Error(`${name} has no ${count} different faces`);
      const digest = createHash('sha256').update(svg(style, `${name}/${number}`)).digest('base64');
      if (!seen.has(digest)) numbers.push(number);
      seen.add(digest);
    }
    found[name] = { meta: style.meta, numbers };
  }
  return found;
}

async function draw(name, size) {
  const drawing = svg(await styleOf(name.split('/')[0]), name);
  const options = { fitTo: { mode: 'width', value: size }, font: { loadSystemFonts: false } };
  const { width, height, pixels } = new Resvg(drawing, options).render();
  if (width !== size || height !== size) throw new Error(`${name} is ${width} x ${height}`);
  const rgb = Buffer.alloc(3 * size * size);
  for (let from = 0, to = 0; to < rgb.length; from += 4, to += 3) {
    if (pixels[from + 3] !== 255) throw new Error(`${name} is transparent`);
    rgb[to] = pixels[from];
    rgb[to + 1] = pixels[from + 1];
    rgb[to + 2] = pixels[from + 2];
  }
  return rgb;
}

if (mode === 'list') {
  process.stdout.write(JSON.stringify(await list(JSON.parse(argument))));
} else {
  for await (const name of createInterface({ input: process.stdin })) {
    const rgb = await draw(name, Number(argument));
    await new Promise((written) => process.stdout.write(rgb, written));
  }
}
