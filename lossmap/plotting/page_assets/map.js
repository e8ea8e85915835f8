// The map of a plane and the chart of a line, drawn into a canvas or, by the same commands, into an SVG.
const FONT = '12px "DejaVu Sans", system-ui, sans-serif', INK = '#222', SOFT = '#444';
const LINE_COLOURS = ['#1f5a99', '#b5442c', '#2f7d4f', '#6b4c9a', '#8a6500', '#3b3b3b'];
const DASHES = [[5, 3], [1.5, 2], [8, 2.5, 1.5, 2.5], [11, 3], [6, 2, 1.5, 2, 1.5, 2]]; // of curves beside the chosen one
// The colour and the dashes of the curve of this number, 0 for the chosen one; six colours and five dashes come together again at the thirtieth.
const lookOf = (k) => ({ colour: LINE_COLOURS[k % LINE_COLOURS.length], dash: k ? DASHES[(k - 1) % DASHES.length] : [] });

// A canvas's drawing commands, as far as they are used here, written as SVG.
class SvgContext {
  constructor(width, height) {
    this.size = [width, height]; this.parts = []; this.stack = []; this.clips = 0;
    Object.assign(this, { fillStyle: '#000', strokeStyle: '#000', lineWidth: 1, font: FONT, textAlign: 'left', textBaseline: 'alphabetic', dash: [], move: '', clipId: '' });
    this.beginPath();
  }
  beginPath() { this.d = ''; }
  moveTo(x, y) { this.d += `M${x.toFixed(2)} ${y.toFixed(2)}`; }
  lineTo(x, y) { this.d += `L${x.toFixed(2)} ${y.toFixed(2)}`; }
  closePath() { this.d += 'Z'; }
  rect(x, y, w, h) { this.moveTo(x, y); this.lineTo(x + w, y); this.lineTo(x + w, y + h); this.lineTo(x, y + h); this.closePath(); }
  arc(x, y, r) { this.d += `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`; }
  setLineDash(dash) { this.dash = dash; }
  add(text) { this.parts.push(text); }
  get around() { return `${this.move ? ` transform="${this.move}"` : ''}${this.clipId ? ` clip-path="url(#${this.clipId})"` : ''}`; }
  stroke() { this.add(`<path d="${this.d}" fill="none" stroke="${this.strokeStyle}" stroke-width="${this.lineWidth}"${this.dash.length ? ` stroke-dasharray="${this.dash}"` : ''}${this.around}/>`); }
  fill() { this.add(`<path d="${this.d}" fill="${this.fillStyle}"${this.around}/>`); }
  fillRect(x, y, w, h) { this.beginPath(); this.rect(x, y, w, h); this.fill(); }
  strokeRect(x, y, w, h) { this.beginPath(); this.rect(x, y, w, h); this.stroke(); }
  clip() { this.clipId = `c${this.clips++}`; this.add(`<clipPath id="${this.clipId}"><path d="${this.d}"/></clipPath>`); }
  save() { this.stack.push({ fillStyle: this.fillStyle, strokeStyle: this.strokeStyle, lineWidth: this.lineWidth, font: this.font, textAlign: this.textAlign, textBaseline: this.textBaseline, dash: this.dash, move: this.move, clipId: this.clipId }); }
  restore() { Object.assign(this, this.stack.pop()); }
  translate(x, y) { this.move += `translate(${x} ${y})`; }
  rotate(angle) { this.move += `rotate(${(angle * 180) / Math.PI})`; }
  fillText(text, x, y) {
    const anchor = { left: 'start', center: 'middle', right: 'end' }[this.textAlign];
    const shift = { middle: 4, top: 11, alphabetic: 0, bottom: -2 }[this.textBaseline];
    const safe = String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
    this.add(`<text x="${x}" y="${y + shift}" text-anchor="${anchor}" font-size="${parseInt(this.font, 10)}" fill="${this.fillStyle}"${this.around}>${safe}</text>`);
  }
  drawImage(canvas, x, y, w, h) { this.add(`<image x="${x}" y="${y}" width="${w}" height="${h}" preserveAspectRatio="none" href="${canvas.toDataURL('image/png')}"${this.around}/>`); }
  toString() {
    const [w, h] = this.size;
    return `<svg xmlns="http://www.w3.org/2000/svg" width="${w}" height="${h}" viewBox="0 0 ${w} ${h}" font-family="DejaVu Sans, sans-serif"><rect width="${w}" height="${h}" fill="#fff"/>${this.parts.join('')}</svg>`;
  }
}

// A label in lines of at most so many pixels: broken at blanks, and within a word that is longer by itself.
const LINE = 15, MOST_LINES = 4, measuring = document.createElement('canvas').getContext('2d');
function labelLines(text, wide) {
  measuring.font = FONT;
  const fits = (part) => measuring.measureText(part).width <= wide, lines = [''];
  for (const word of text.split(' ')) {
    const longer = lines[lines.length - 1] ? `${lines[lines.length - 1]} ${word}` : word;
    if (fits(longer)) { lines[lines.length - 1] = longer; continue; }
    if (lines[lines.length - 1]) { lines.push(''); }
    let rest = Array.from(word);
    while (rest.length > 1 && !fits(rest.join(''))) {
      let count = rest.length - 1;
      while (count > 1 && !fits(rest.slice(0, count).join(''))) { count--; }
      lines[lines.length - 1] = rest.slice(0, count).join(''); lines.push(''); rest = rest.slice(count);
    }
    lines[lines.length - 1] = rest.join('');
  }
  return lines.length > MOST_LINES ? [...lines.slice(0, MOST_LINES - 1), `${lines[MOST_LINES - 1]} \u2026`] : lines;
}

// Where the plane lies within the picture: its box in pixels, and coordinates to pixels and back.
function mapBox(file, width, height) {
  const bx = borders(file.x), by = borders(file.y);
  const [x0, x1] = [Math.min(...bx), Math.max(...bx)], [y0, y1] = [Math.min(...by), Math.max(...by)];
  const ratio = (x1 - x0) / (y1 - y0), top = 12;
  let left = 58, below = 46, w, h, lines = [];
  for (let k = 0; k < 3; k++) { // the labels' lines take from the room that they have
    if (k) { left = 58 + LINE * (lines[1].length - 1); below = 46 + LINE * (lines[0].length - 1); }
    [w, h] = [width - left - 84, height - top - below];
    if (ratio > 0.4 && ratio < 2.5) { w = Math.min(w, h * ratio); h = w / ratio; }
    lines = [labelLines(file.axes[0], w + 100), labelLines(file.axes[1], h + 16)];
  }
  return {
    left, top, w, h, bx, by, lines,
    px: (x) => left + ((x - x0) / (x1 - x0)) * w, py: (y) => top + ((y1 - y) / (y1 - y0)) * h,
    x: (p) => x0 + ((p - left) / w) * (x1 - x0), y: (p) => y1 - ((p - top) / h) * (y1 - y0), x0, x1, y0, y1,
  };
}

// The cells of a map as an image of so many pixels; points without a value stay transparent.
function cellImage(file, field, scale, table, box, ratio) {
  const w = Math.max(1, Math.round(box.w * ratio)), h = Math.max(1, Math.round(box.h * ratio));
  const canvas = document.createElement('canvas'); canvas.width = w; canvas.height = h;
  const context = canvas.getContext('2d'), image = context.createImageData(w, h);
  const share = sharesOn(scale), values = file.values[field.name], nx = file.x.length;
  const indices = values.map((v) => { const s = share(v); return Number.isNaN(s) ? -1 : colourIndex(s); });
  const cellOf = (edges, value) => { // ascending or descending
    const up = edges[edges.length - 1] > edges[0];
    let low = 0, high = edges.length - 2;
    while (low < high) { const mid = (low + high + 1) >> 1; if ((value >= edges[mid]) === up) { low = mid; } else { high = mid - 1; } }
    return low;
  };
  const columns = Array.from({ length: w }, (_, i) => cellOf(box.bx, box.x0 + ((i + 0.5) / w) * (box.x1 - box.x0)));
  for (let r = 0; r < h; r++) {
    const row = cellOf(box.by, box.y1 - ((r + 0.5) / h) * (box.y1 - box.y0)) * nx;
    for (let c = 0; c < w; c++) {
      const index = indices[row + columns[c]];
      if (index < 0) { continue; }
      const at = 4 * (r * w + c);
      image.data[at] = table[3 * index]; image.data[at + 1] = table[3 * index + 1]; image.data[at + 2] = table[3 * index + 2]; image.data[at + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// Where heights cross levels: line by line through each cell between four points, linear in the height.
function crossings(file, heights, levels, draw) {
  const nx = file.x.length, ny = file.y.length;
  for (let r = 0; r + 1 < ny; r++) {
    for (let c = 0; c + 1 < nx; c++) {
      const i = r * nx + c, h0 = heights[i], h1 = heights[i + 1], h2 = heights[i + nx + 1], h3 = heights[i + nx];
      if (Number.isNaN(h0 + h1 + h2 + h3)) { continue; }
      const low = Math.min(h0, h1, h2, h3), high = Math.max(h0, h1, h2, h3);
      if (!levels.some((level) => level > low && level <= high)) { continue; } // most cells
      const corners = [[r, c], [r, c + 1], [r + 1, c + 1], [r + 1, c]].map(([k, j]) => [file.x[j], file.y[k], heights[k * nx + j]]);
      const own = [h0, h1, h2, h3], middle = (h0 + h1 + h2 + h3) / 4;
      for (const level of levels) {
        if (level <= low || level > high) { continue; }
        const points = [];
        corners.forEach(([x, y, v], k) => {
          const [x2, y2, v2] = corners[(k + 1) % 4];
          if ((v < level) !== (v2 < level)) { const t = (level - v) / (v2 - v); points.push([x + t * (x2 - x), y + t * (y2 - y)]); }
        });
        if (points.length === 4 && (middle < level) === (own[0] < level)) { points.push(points.shift()); }
        for (let k = 0; k + 1 < points.length; k += 2) { draw(points[k], points[k + 1]); }
      }
    }
  }
}

function strokeCrossings(context, box, file, heights, levels) {
  context.beginPath();
  crossings(file, heights, levels, (a, b) => { context.moveTo(box.px(a[0]), box.py(a[1])); context.lineTo(box.px(b[0]), box.py(b[1])); });
  context.stroke();
}

// The mark of a point without a value, by its reason, within a cell of so many pixels.
function drawHole(context, x, y, w, h, reason) {
  const s = Math.max(1.5, Math.min(w, h, 10) * 0.4);
  context.strokeStyle = reason === 'failed' ? '#b5442c' : '#555'; context.lineWidth = 1;
  context.beginPath();
  if (reason === 'not computed' || reason === 'failed') { context.moveTo(x - s, y + s); context.lineTo(x + s, y - s); }
  if (reason === 'failed' || reason === 'NaN') { context.moveTo(x - s, y - s); context.lineTo(x + s, y + s); }
  if (reason === 'NaN') { context.moveTo(x - s, y); context.lineTo(x + s, y); context.moveTo(x - s, y + s); context.lineTo(x + s, y - s); }
  if (reason === 'infinite') { context.moveTo(x, y - s); context.lineTo(x + s, y + s); context.lineTo(x - s, y + s); context.closePath(); }
  context.stroke();
}

// Cells without a value by their reason, as in print: hatched where it is still to do, hatched crosswise in red where it
// failed, white with a mark where the result is no finite number.
function drawHoles(context, box, file, field) {
  const nx = file.x.length, cells = { 'not computed': [], failed: [], NaN: [], infinite: [] };
  file.values[field.name].forEach((v, i) => { const why = holeAt(v, file.statusAt(field.name, i)); if (why) { cells[why].push(i); } });
  const area = (i) => {
    const c = i % nx, r = Math.floor(i / nx), [x0, x1] = [box.px(box.bx[c]), box.px(box.bx[c + 1])], [y0, y1] = [box.py(box.by[r]), box.py(box.by[r + 1])];
    return [Math.min(x0, x1), Math.min(y0, y1), Math.abs(x1 - x0), Math.abs(y1 - y0)];
  };
  [['not computed', '#555'], ['failed', '#b5442c']].forEach(([why, colour]) => {
    if (!cells[why].length) { return; }
    context.save(); context.beginPath(); cells[why].forEach((i) => context.rect(...area(i))); context.clip();
    context.strokeStyle = colour; context.lineWidth = 1; context.beginPath();
    for (let k = -box.h; k < box.w; k += 5) { // lines across the whole map, cut to the cells, so that they join
      context.moveTo(box.left + k, box.top + box.h); context.lineTo(box.left + k + box.h, box.top);
      if (why === 'failed') { context.moveTo(box.left + k, box.top); context.lineTo(box.left + k + box.h, box.top + box.h); }
    }
    context.stroke(); context.restore();
  });
  ['NaN', 'infinite'].forEach((why) => cells[why].forEach((i) => {
    const [x, y, w, h] = area(i);
    context.fillStyle = '#fff'; context.fillRect(x, y, w, h);
    drawHole(context, x + w / 2, y + h / 2, w, h, why);
  }));
}

// Hatches of a signed field, as in print: lines where it is below 0, dots where the sign is undecided; a cell each.
function drawSigns(context, box, file, field) {
  const signs = file.signs[field.name], nx = file.x.length, step = 6, [left, bottom] = [box.left, box.top + box.h];
  context.save(); context.beginPath();
  signs.forEach((sign, i) => {
    if (sign !== 1) { return; }
    const c = i % nx, r = Math.floor(i / nx), [x0, x1] = [box.px(box.bx[c]), box.px(box.bx[c + 1])], [y0, y1] = [box.py(box.by[r]), box.py(box.by[r + 1])];
    context.rect(Math.min(x0, x1), Math.min(y0, y1), Math.abs(x1 - x0), Math.abs(y1 - y0));
  });
  context.clip(); context.strokeStyle = '#737373'; context.lineWidth = 0.9; context.beginPath();
  for (let k = -box.h; k < box.w; k += step) { context.moveTo(left + k, box.top); context.lineTo(left + k + box.h, bottom); } // across the whole map, so that they join
  context.stroke(); context.restore();
  context.fillStyle = '#4d4d4d'; context.beginPath();
  const within = (edges, value) => { for (let k = 0; k + 1 < edges.length; k++) { if ((value - edges[k]) * (value - edges[k + 1]) <= 0) { return k; } } return -1; };
  const columns = [], rows = [];
  for (let x = left + step / 2; x < left + box.w; x += step) { columns.push([x, within(box.bx, box.x(x))]); }
  for (let y = box.top + step / 2; y < bottom; y += step) { rows.push([y, within(box.by, box.y(y))]); }
  rows.forEach(([y, r]) => columns.forEach(([x, c]) => { if (signs[r * nx + c] === 2) { context.rect(x - 0.9, y - 0.9, 1.8, 1.8); } }));
  context.fill();
}

// Colours of the checkpoints by their own losses, where the map is of that loss; null where it is not.
function checkpointColours(file, view) {
  const { loss, field } = file.path, share = sharesOn(view.scale);
  if (!loss || view.field.name !== field) { return null; }
  return loss.map((v) => { if (v === null) { return '#fff'; } const s = share(v), at = 3 * colourIndex(Number.isNaN(s) ? 0 : s); return `rgb(${view.table[at]},${view.table[at + 1]},${view.table[at + 2]})`; });
}
const PIXELS = 96 / 72; // of the page, to a typographic point

function drawCheckpoint(context, [x, y], colour, size) {
  context.fillStyle = colour; context.strokeStyle = '#000'; context.lineWidth = 0.8; context.beginPath();
  context.arc(x, y, (PIXELS * Math.sqrt(size)) / 2, 0, 7); context.fill(); context.stroke();
}
// The path: its checkpoints in the colours of their own losses, else dots between an open start and a filled end.
function drawPath(context, points, file, view) {
  const line = () => { context.beginPath(); points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y))); context.stroke(); };
  context.strokeStyle = '#fff'; context.lineWidth = 3; line();
  context.strokeStyle = '#000'; context.lineWidth = 1.2; line();
  const colours = checkpointColours(file, view), last = points.length - 1;
  if (colours) { points.forEach((point, i) => drawCheckpoint(context, point, colours[i], file.path.sizes[i])); return; }
  points.forEach((point, i) => { if (i && i < last) { drawCheckpoint(context, point, '#000', 5); } });
  drawCheckpoint(context, points[0], '#fff', 36); drawCheckpoint(context, points[last], '#000', 36);
}

function drawBar(context, box, field, scale, table, label) {
  const left = box.left + box.w + 12, share = sharesOn(scale);
  const canvas = document.createElement('canvas'); canvas.width = 1; canvas.height = 256;
  const own = canvas.getContext('2d'), image = own.createImageData(1, 256);
  for (let i = 0; i < 256; i++) { for (let k = 0; k < 3; k++) { image.data[4 * i + k] = table[3 * (255 - i) + k]; } image.data[4 * i + 3] = 255; }
  own.putImageData(image, 0, 0);
  context.drawImage(canvas, left, box.top, 14, box.h);
  context.strokeStyle = SOFT; context.lineWidth = 0.7; context.strokeRect(left, box.top, 14, box.h);
  context.fillStyle = INK; context.textAlign = 'left'; context.textBaseline = 'middle';
  thinned(scale.ticks, Math.max(3, Math.floor(box.h / 24))).forEach(([value, text]) => {
    const y = box.top + (1 - share(value)) * box.h;
    if (y < box.top - 1 || y > box.top + box.h + 1) { return; }
    context.beginPath(); context.moveTo(left + 14, y); context.lineTo(left + 18, y); context.stroke();
    context.fillText(text, left + 21, y);
  });
}

function drawAxes(context, box, ticksX, ticksY) {
  context.strokeStyle = SOFT; context.lineWidth = 1; context.strokeRect(box.left, box.top, box.w, box.h);
  context.fillStyle = INK; context.font = FONT; context.textAlign = 'center'; context.textBaseline = 'top';
  ticksX.forEach(([value, text]) => {
    context.beginPath(); context.moveTo(box.px(value), box.top + box.h); context.lineTo(box.px(value), box.top + box.h + 4); context.stroke();
    context.fillText(text, box.px(value), box.top + box.h + 6);
  });
  box.lines[0].forEach((text, k) => context.fillText(text, box.left + box.w / 2, box.top + box.h + 24 + LINE * k));
  context.textAlign = 'right'; context.textBaseline = 'middle';
  ticksY.forEach(([value, text]) => {
    context.beginPath(); context.moveTo(box.left - 4, box.py(value)); context.lineTo(box.left, box.py(value)); context.stroke();
    context.fillText(text, box.left - 6, box.py(value));
  });
  context.save(); context.translate(12, box.top + box.h / 2); context.rotate(-Math.PI / 2); context.textAlign = 'center';
  box.lines[1].forEach((text, k) => context.fillText(text, 0, LINE * k)); context.restore();
}

const BEYOND = 0.25; // of the scale's span, that heights reach beyond its ends: a spline through a spike would swing all over the map
const named = (values) => { const digits = digitsOf(values); return values.map((v) => [v, short(v, digits)]); };

// Heights on the scale of the view between the points, where the spline is chosen; kept until another one is asked for.
function fineHeights(file, view, enough) {
  const key = [view.field.name, view.scale.kind, view.layers.spline, enough].join();
  file.fine = file.fine ?? {};
  if (file.fine[enough]?.key !== key) {
    const height = heightOn(view.scale), own = view.scale.kind === 'log' ? (v) => (v > 0 ? Math.log10(v) : -Infinity) : height;
    const [low, high] = [height(view.scale.low), height(view.scale.high)], margin = BEYOND * (high - low || Math.abs(high) || 1);
    const heights = Array.from(file.values[view.field.name], (v) => (Number.isFinite(v) ? Math.max(low - margin, Math.min(high + margin, own(v))) : NaN));
    const fine = refined(file.x, file.y, heights, view.layers.spline ? factorFor(file, enough) : 1);
    // no gap in the relief, and no line, where the spline alone reaches beyond the scale, as in print
    const share = sharesOn(view.scale), shares = Array.from(file.values[view.field.name], share);
    const bottom = shares.some((s) => s < -0.0001) ? -Infinity : low, top = shares.some((s) => s > 1.0001) ? Infinity : high;
    file.fine[enough] = { key, ...fine, heights: fine.heights.map((h) => Math.max(bottom, Math.min(top, h))) };
  }
  return file.fine[enough];
}

// Values with those whose size is far beyond nearly all others nearer to 0, of the same sign, as in print: the spline
// through one spike would make the zero line swing all over the map.
function tamedAroundZero(values) {
  const sizes = values.filter(Number.isFinite).map(Math.abs).sort((a, b) => a - b);
  const most = sizes.length ? 2 * sizes[Math.floor(0.95 * (sizes.length - 1))] : 0;
  return values.map((v) => (!Number.isFinite(v) ? NaN : most > 0 ? Math.max(-most, Math.min(most, v)) : v));
}

// The smallest eigenvalue between the points, along the spline of its values or straight; kept.
function fineSigns(file, spline) {
  const factor = spline ? factorFor(file, 200) : 1;
  file.signs = file.signs ?? {};
  file.signs[factor] = file.signs[factor] ?? refined(file.x, file.y, tamedAroundZero(Array.from(file.values.min_eig)), factor);
  return file.signs[factor];
}

// The levels between the smallest and the largest value: a flat part at a level has no line, but for rounding.
function levelsWithin(levels, values, height) {
  let low = Infinity, high = -Infinity;
  values.forEach((v) => { if (Number.isFinite(v)) { low = Math.min(low, height(v)); high = Math.max(high, height(v)); } });
  const margin = 1e-9 * (high - low);
  return levels.filter((level) => level > low + margin && level < high - margin);
}

const modelsWithin = (file, box) => file.models.filter((m) => box.x0 <= m.x && m.x <= box.x1 && box.y0 <= m.y && m.y <= box.y1);

function drawMap(context, file, view, width, height, ratio) {
  const box = mapBox(file, width, height), { field, scale, table, layers } = view;
  context.font = FONT;
  if (!file.values[field.name]) { context.fillStyle = INK; context.textAlign = 'left'; context.textBaseline = 'top'; context.fillText('this file does not hold the field', 20, 20); return box; }
  context.fillStyle = '#dcdcdc'; context.fillRect(box.left, box.top, box.w, box.h);
  context.drawImage(cellImage(file, field, scale, table, box, ratio), box.left, box.top, box.w, box.h);
  const values = file.values[field.name];
  if (layers.holes) { drawHoles(context, box, file, field); }
  if (layers.signs && file.signs[field.name] && !scale.flat) { drawSigns(context, box, file, field); }
  context.save(); context.beginPath(); context.rect(box.left, box.top, box.w, box.h); context.clip();
  if (layers.contours && !scale.flat) {
    const height = heightOn(scale), fine = fineHeights(file, view, 200);
    context.strokeStyle = field.signed ? '#777' : '#fff'; context.lineWidth = 0.7;
    strokeCrossings(context, box, fine, fine.heights, levelsWithin(scale.levels.map(height), values, height));
  }
  if (layers.zero && file.values.min_eig) {
    const fine = fineSigns(file, layers.spline);
    context.strokeStyle = '#000'; context.lineWidth = 2.4;
    strokeCrossings(context, box, fine, fine.heights, [0]);
  }
  if (layers.points && file.between) {
    context.fillStyle = '#000'; context.strokeStyle = 'rgba(255, 255, 255, 0.8)'; context.lineWidth = 0.8; context.beginPath();
    file.between.forEach((b, i) => { if (!b) { const [x, y] = [box.px(file.x[i % file.x.length]), box.py(file.y[Math.floor(i / file.x.length)])]; context.moveTo(x + 1.5, y); context.arc(x, y, 1.5, 0, 7); } });
    context.fill(); context.stroke();
  }
  if (layers.path && file.path) { drawPath(context, file.path.x.map((x, i) => [box.px(x), box.py(file.path.y[i])]), file, view); }
  context.restore();
  modelsWithin(file, box).forEach((model) => {
    [['#fff', 3.5], ['#000', 1.2]].forEach(([colour, wide]) => {
      const x = box.px(model.x), y = box.py(model.y);
      context.strokeStyle = colour; context.lineWidth = wide; context.beginPath(); context.moveTo(x - 6, y); context.lineTo(x + 6, y); context.moveTo(x, y - 6); context.lineTo(x, y + 6); context.stroke();
    });
  });
  const few = Math.max(2, Math.floor(box.w / 70));
  drawAxes(context, box, named(roundTicks(box.x0, box.x1, few)), named(roundTicks(box.y0, box.y1, Math.max(2, Math.floor(box.h / 50)))));
  drawBar(context, box, field, scale, table);
  return box;
}

// The chart of a line: the field and those of its unit, with bands of their errors; ends: common to all files.
function drawChart(context, file, view, width, height, ends) {
  const scale = view.scale, level = scale.kind === 'log' ? (v) => (v > 0 ? Math.log10(v) : NaN) : (v) => v;
  const top = 12, names = [labelLines(file.axes[0], width - 90), labelLines(view.axis, height - 50)];
  const left = 70 + LINE * (names[1].length - 1), w = width - left - 16, h = height - top - 46 - LINE * (names[0].length - 1);
  const alone = file.x.length === 1 ? 0.5 : 0; // one point stands in the middle
  const x0 = Math.min(...file.x) - alone, x1 = Math.max(...file.x) + alone, y0 = level(ends[0]), y1 = level(ends[1]);
  const box = { left, top, w, h, x0, x1, y0: -Infinity, y1: Infinity, lines: names, px: (x) => left + ((x - x0) / (x1 - x0 || 1)) * w, py: (y) => top + ((y1 - level(y)) / (y1 - y0 || 1)) * h, x: (p) => x0 + ((p - left) / w) * (x1 - x0) };
  context.font = FONT;
  const order = Array.from(file.x.keys()).sort((a, b) => file.x[a] - file.x[b]);
  context.save(); context.beginPath(); context.rect(left, top, w, h); context.clip();
  context.strokeStyle = '#777'; context.lineWidth = 1; context.setLineDash([2, 3]);
  modelsWithin(file, box).forEach((model) => { context.beginPath(); context.moveTo(box.px(model.x), top); context.lineTo(box.px(model.x), top + h); context.stroke(); });
  context.setLineDash([]);
  if (view.layers.holes && file.values[view.field.name]) {
    order.forEach((i) => { const why = holeAt(file.values[view.field.name][i], file.statusAt(view.field.name, i)); if (why) { drawHole(context, box.px(file.x[i]), top + h - 10, 14, 14, why); } });
  }
  view.shown.forEach((field, k) => {
    const values = file.values[field.name];
    if (!values) { return; }
    const look = lookOf(k);
    context.strokeStyle = look.colour; context.fillStyle = look.colour; context.lineWidth = field === view.field ? 2 : 1.2;
    context.setLineDash(look.dash);
    context.beginPath();
    let isDown = false;
    order.forEach((i) => {
      const y = box.py(values[i]);
      if (!Number.isFinite(y)) { isDown = false; return; }
      if (isDown) { context.lineTo(box.px(file.x[i]), y); } else { context.moveTo(box.px(file.x[i]), y); }
      isDown = true;
    });
    context.stroke(); context.setLineDash([]);
    order.forEach((i, place) => {
      const isMissing = (at) => !Number.isFinite(box.py(values[order[at]] ?? NaN));
      const v = values[i], e = file.errorAt(field.name, i), x = box.px(file.x[i]);
      if (!Number.isFinite(box.py(v))) { return; }
      if (order.length <= 101 || (isMissing(place - 1) && isMissing(place + 1))) { context.beginPath(); context.arc(x, box.py(v), alone ? 4 : 2, 0, 7); context.fill(); }
      if (e > 0 && Number.isFinite(box.py(v - e)) && Math.abs(box.py(v - e) - box.py(v + e)) > 3) {
        context.beginPath(); context.moveTo(x, box.py(v - e)); context.lineTo(x, box.py(v + e)); context.stroke();
      }
    });
  });
  context.restore();
  const ticks = scale.kind === 'log' ? logTicks(ends[0], ends[1]) : roundTicks(ends[0], ends[1], 6);
  drawAxes(context, box, named(roundTicks(x0, x1, Math.max(2, Math.floor(w / 80)))), named(ticks));
  return box;
}

function logTicks(low, high) {
  const ticks = [];
  const steps = high / low < 1e4 ? [1, 2, 5] : [1]; // whole decades where there are many
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) { steps.forEach((m) => { const t = m * 10 ** e; if (t >= low && t <= high) { ticks.push(Number(t.toPrecision(3))); } }); }
  return thinned(ticks, 8);
}
