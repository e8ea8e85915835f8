// What the page holds, as numbers: arrays unpacked, values on a scale, and numbers as text.
const Inflated = async (base64) => {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
};

// Arrays are little-endian, their bytes grouped by significance (which packs better), then deflated.
async function unpacked(packed) {
  const bytes = await Inflated(packed.data);
  if (packed.type === 'u1') { return bytes; }
  const size = packed.type === 'f4' ? 4 : 8, count = bytes.length / size;
  const view = new DataView(new ArrayBuffer(bytes.length)), values = new Float64Array(count);
  for (let i = 0; i < count; i++) {
    for (let b = 0; b < size; b++) { view.setUint8(i * size + b, bytes[b * count + i]); }
    values[i] = size === 4 ? view.getFloat32(i * size, true) : view.getFloat64(i * size, true);
  }
  return values;
}

// The height of a value: log10 of it, itself, or linear around 0 and by decades beyond (matplotlib's symlog).
function heightOn(scale) {
  if (scale.kind === 'log') {
    const low = Math.log10(scale.low);
    return (v) => (v === -Infinity || v <= scale.low ? low : Math.log10(v));
  }
  if (scale.kind === 'symlog') {
    const adjust = 1 / (1 - 0.1), linear = scale.linear;
    return (v) => Math.abs(v) <= linear ? v * adjust : Math.sign(v) * linear * (adjust + Math.log10(Math.abs(v) / linear));
  }
  return (v) => v;
}

// From 0 to 1 between the ends of the scale; beyond them below 0 or above 1; NaN for what is no number.
function sharesOn(scale) {
  const height = heightOn(scale), low = height(scale.low), span = height(scale.high) - low || 1;
  return (v) => (Number.isFinite(v) ? (height(v) - low) / span : NaN);
}

const colourTable = (colours) => {
  const table = new Uint8Array(3 * 256);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (colours.length - 1), left = Math.min(Math.floor(at), colours.length - 2), part = at - left;
    for (let k = 0; k < 3; k++) {
      table[3 * i + k] = Math.round(colours[left][k] * (1 - part) + colours[left + 1][k] * part);
    }
  }
  return table;
};
const colourIndex = (share) => Math.max(0, Math.min(255, Math.round(share * 255)));

const WORDS = { 0: 'not computed', 2: 'failed' };
// Why a point has no finite value; empty where it has one.
function holeAt(value, status) {
  if (status in WORDS) { return WORDS[status]; }
  return Number.isNaN(value) ? 'NaN' : Number.isFinite(value) ? '' : 'infinite';
}

const sevenDigits = (v) => (v === 0 ? '0' : String(Number(v.toPrecision(7))));
const short = (v, digits = 4) => String(Number(v.toPrecision(digits)));
// How many digits tell numbers apart: four, or more in a window such as 1000..1001.
function digitsOf(values) {
  const all = Array.from(values), count = new Set(all).size;
  for (let digits = 4; digits < 12; digits++) { if (new Set(all.map((v) => short(v, digits))).size === count) { return digits; } }
  return 12;
}
// Two digits, rounded up: a bar is never shown smaller than it is.
function bar(error) {
  if (!(error > 0) || !Number.isFinite(error)) { return ''; }
  const unit = 10 ** (Math.floor(Math.log10(error)) - 1);
  return String(Number((Math.ceil(error / unit - 1e-9) * unit).toPrecision(2)));
}

// A value as its words say it: a ratio is drawn with a minus where the smallest eigenvalue is not negative.
const plainly = (field, value) => (field.name === 'ratio' ? Math.abs(value) : value);

// The sign of the smallest eigenvalue behind a ratio, in words: as the map hatches it, and never beyond its error.
function signOfRatio(file, index) {
  const value = file.values.ratio[index], error = file.errorAt('ratio', index) ?? 0;
  if (file.signs.ratio?.[index] === 2 || Math.abs(value) <= error) { return 'of undecided sign'; }
  return value > 0 ? 'negative' : 'not negative';
}

// The number, its bar and unit, or why there is none.
function reading(file, field, index) {
  const values = file.values[field.name];
  if (!values) { return 'not in this file'; }
  const hole = holeAt(values[index], file.statusAt(field.name, index));
  if (hole) { return hole === 'infinite' ? (values[index] > 0 ? 'infinite' : '-infinite') : hole; }
  const value = plainly(field, values[index]), error = bar(file.errorAt(field.name, index)), unit = field.unit ? ` ${field.unit}` : '';
  const between = file.between?.[index] && field.name !== 'measured' ? `, between measured points${error ? '' : ', how far off is not known'}` : '';
  const sign = field.name === 'ratio' ? `, smallest ${signOfRatio(file, index)}` : '';
  const atLeast = file.errors[field.name]?.relative ? 'at least ' : ''; // spacings of a loss: what rounds within it is in no file
  return `${sevenDigits(value)}${error ? ` \u00b1 ${atLeast}${error}` : ''}${unit}${sign}${between}`;
}

// Borders of the cells around ticks: half-way to the neighbours.
function borders(ticks) {
  if (ticks.length === 1) { const half = 0.1 * Math.max(1, Math.abs(ticks[0])); return [ticks[0] - half, ticks[0] + half]; }
  const middle = ticks.slice(1).map((t, i) => (t + ticks[i]) / 2);
  return [2 * ticks[0] - middle[0], ...middle, 2 * ticks[ticks.length - 1] - middle[middle.length - 1]];
}

const nearest = (ticks, value) => {
  let best = 0;
  ticks.forEach((t, i) => { if (Math.abs(t - value) < Math.abs(ticks[best] - value)) { best = i; } });
  return best;
};

// About so many round ticks between two ends.
function roundTicks(low, high, count) {
  const rough = (high - low) / count || 1, unit = 10 ** Math.floor(Math.log10(rough));
  const steps = [0.2, 0.5, 1, 2, 5, 10], best = steps.findIndex((m) => m * unit >= rough * 0.999);
  for (let k = best; ; k--) { // smaller ones where a single tick would not tell the scale
    const step = steps[k] * unit, ticks = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step && ticks.length < 100; i++) { ticks.push(Number((i * step).toPrecision(12))); }
    if (ticks.length > 1 || k === 0) { return ticks; }
  }
}

// Of labels of levels as many as fit.
const thinned = (items, most) => items.filter((_, i) => i % Math.ceil(items.length / most) === 0);
