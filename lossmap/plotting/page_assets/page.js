// The page itself: state, controls, readout, tabs, exports; the state stands in the address.
const $ = (id) => document.getElementById(id);
const made = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  Object.entries(properties).forEach(([name, value]) => { if (name.includes('-') || name === 'role') { element.setAttribute(name, value); } });
  element.append(...children);
  return element;
};
const START = { turn: 35, tilt: 35, zoom: 1 };
const LAYERS = { contours: 'contour lines', spline: 'spline between the points, in contour lines and relief', zero: 'line where the smallest eigenvalue is 0', signs: 'hatches by the sign, of eigenvalues', path: 'training path', points: 'dots at the measured points', holes: 'marks of points without a value' };
let page, state, touched = 0;

async function start() {
  page = JSON.parse($('data').textContent);
  for (const file of page.files) { await open(file); }
  page.all = page.files; page.files = page.all.filter((f) => Object.keys(f.values).length); // those with a surface
  state = { field: page.first, scale: '', x: 0, y: 0, ...START, hide: [], tab: '', reload: 'on', ...fromAddress() };
  if (!page.fields.some((f) => f.name === state.field)) { state.field = page.first; }
  $('summary').textContent = page.summary;
  buildTabs();
  if (page.fields.length) { buildControls(); buildViews(); }
  buildProvenance();
  showTab(state.tab);
  if (state.focus && $(state.focus)) { $(state.focus).focus({ preventScroll: true }); delete state.focus; }
  if (page.reload) { growing(); }
  window.addEventListener('hashchange', () => { Object.assign(state, fromAddress()); syncControls(); showTab(state.tab); redraw(); });
  window.addEventListener('resize', () => redraw());
  document.documentElement.dataset.ready = 'yes';
}

// A field or status may be called as what every object has, such as `constructor`.
const bare = (table) => Object.assign(Object.create(null), table);
async function open(file) {
  ['values', 'errors', 'status', 'statusOf', 'signs'].forEach((table) => { file[table] = bare(file[table]); });
  for (const name of Object.keys(file.values)) { file.values[name] = await unpacked(file.values[name]); }
  if (file.between) { file.between = await unpacked(file.between); } // 1 where a refined surface was not measured
  for (const name of Object.keys(file.signs)) { file.signs[name] = await unpacked(file.signs[name]); }
  for (const name of Object.keys(file.status)) { file.status[name] = await unpacked(file.status[name]); }
  for (const name of Object.keys(file.errors)) { const e = file.errors[name]; if (e.data) { file.errors[name] = { values: await unpacked(e) }; } }
  file.isLine = file.y === null;
  if (file.isLine) { file.y = [0]; }
  file.statusAt = (name, i) => (file.statusOf[name] in file.status ? file.status[file.statusOf[name]][i] : 1);
  file.errorAt = (name, i) => {
    const e = file.errors[name];
    if (!e) { return NaN; }
    if (e.values) { return e.values[i]; }
    return e.field ? file.values[e.field][i] : e.relative * Math.abs(file.values[name][i]);
  };
}

// ---- the address
function fromAddress() {
  const given = {}, parts = new URLSearchParams(location.hash.slice(1));
  ['field', 'scale', 'tab', 'reload', 'focus'].forEach((k) => { if (parts.has(k)) { given[k] = parts.get(k); } });
  ['x', 'y', 'turn', 'tilt', 'zoom'].forEach((k) => { const v = Number(parts.get(k)); if (parts.has(k) && Number.isFinite(v)) { given[k] = v; } });
  if (given.zoom !== undefined) { given.zoom = Math.min(5, Math.max(0.4, given.zoom)); }
  if (given.tilt !== undefined) { given.tilt = Math.min(90, Math.max(5, given.tilt)); }
  if (parts.has('hide')) { given.hide = parts.get('hide').split(',').filter((k) => k in LAYERS); }
  return given;
}
function remember() {
  const parts = new URLSearchParams();
  ['field', 'scale', 'tab', 'x', 'y', 'turn', 'tilt', 'zoom', 'focus'].forEach((k) => { if (state[k] !== '' && state[k] !== undefined) { parts.set(k, state[k]); } });
  if (state.hide.length) { parts.set('hide', state.hide.join(',')); }
  if (state.reload === 'off') { parts.set('reload', 'off'); }
  try { history.replaceState(null, '', `#${parts}`); } catch { location.replace(`#${parts}`); }
}

// ---- tabs
function buildTabs() {
  const names = [...(page.fields.length ? ['Surface'] : []), ...new Set(page.all.flatMap((f) => f.figures.map((g) => g.tab)))];
  page.tabs = names;
  if (!page.fields.length) { $('panel-Surface').remove(); }
  names.forEach((name) => {
    const tab = made('button', { type: 'button', role: 'tab', id: `tab-${name}`, textContent: name, 'aria-controls': `panel-${name}` });
    tab.addEventListener('click', () => { showTab(name); remember(); });
    tab.addEventListener('keydown', (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) { return; }
      event.preventDefault();
      const next = names[(names.indexOf(name) + step + names.length) % names.length];
      showTab(next); remember(); $(`tab-${next}`).focus();
    });
    $('tabs').append(tab);
    if (name === 'Surface') { return; }
    const panel = made('section', { id: `panel-${name}`, role: 'tabpanel', 'aria-labelledby': `tab-${name}`, tabIndex: 0 });
    $('main').insertBefore(panel, $('origin'));
    page.all.forEach((file) => file.figures.filter((g) => g.tab === name).forEach((g) => showFigure(panel, file, g)));
  });
  $('tabs').hidden = names.length < 2;
}
async function showFigure(panel, file, figure) {
  panel.append(made('h2', { textContent: page.all.length > 1 ? `${figure.title}: ${file.title}` : figure.title }));
  const place = made('div', { className: 'figure', tabIndex: 0, role: 'region', 'aria-label': `figure, ${figure.title}` });
  panel.append(place);
  if (figure.svg) {
    const bytes = await Inflated(figure.svg);
    place.append(made('img', { alt: `${figure.title} of ${file.title}`, src: URL.createObjectURL(new Blob([bytes], { type: 'image/svg+xml' })) }));
  }
  if (figure.text) { panel.append(made('pre', { textContent: figure.text, tabIndex: 0 })); }
}
function showTab(name) {
  state.tab = page.tabs.includes(name) ? name : page.tabs[0] ?? '';
  page.tabs.forEach((other) => {
    const chosen = other === state.tab;
    $(`panel-${other}`).hidden = !chosen;
    $(`tab-${other}`).setAttribute('aria-selected', chosen); $(`tab-${other}`).tabIndex = chosen ? 0 : -1;
  });
  if (state.tab === 'Surface') { redraw(); }
}

// ---- what is chosen
const fieldNow = () => page.fields.find((f) => f.name === state.field);
function viewNow() {
  const field = fieldNow(), scale = field.scales.find((s) => s.kind === state.scale) ?? field.scales[0];
  const layers = Object.fromEntries(Object.keys(LAYERS).map((k) => [k, !state.hide.includes(k)]));
  const shown = [field, ...page.fields.filter((f) => f !== field && !f.more && f.unit === field.unit)];
  const word = scale.kind === 'linear' ? '' : `, ${scale.kind} scale`;
  return { field, scale, layers, shown, table: colourTable(field.colours), axis: `${shown.length > 1 ? field.unit || field.words : field.label}${word}` };
}
const columnOf = (file) => nearest(file.x, state.x), rowOf = (file) => nearest(file.y, state.y);
const chosenIn = (file) => rowOf(file) * file.x.length + columnOf(file);

function buildControls() {
  const select = $('field');
  [[false, 'fields'], [true, 'more']].forEach(([more, label]) => {
    const own = page.fields.filter((f) => f.more === more);
    if (own.length) { select.append(made('optgroup', { label }, ...own.map((f) => made('option', { value: f.name, textContent: f.label })))); }
  });
  select.addEventListener('change', () => { state.field = select.value; state.scale = ''; syncControls(); redraw(); });
  $('scale').addEventListener('change', () => { state.scale = $('scale').value; redraw(); });
  Object.entries(LAYERS).forEach(([key, words]) => {
    const there = { contours: page.files.some((f) => !f.isLine), spline: page.files.some((f) => !f.isLine && factorFor(f, 200) > 1), zero: page.files.some((f) => !f.isLine && f.values.min_eig), signs: page.files.some((f) => Object.keys(f.signs).length), path: page.files.some((f) => f.path && !f.isLine), points: page.files.some((f) => f.between), holes: true }[key];
    if (!there) { return; }
    const box = made('input', { type: 'checkbox', id: `show-${key}` });
    box.addEventListener('change', () => { state.hide = Object.keys(LAYERS).filter((k) => ($(`show-${k}`) ? !$(`show-${k}`).checked : state.hide.includes(k))); redraw(); });
    $('layers').append(made('label', {}, box, ` ${words}`));
  });
  ['turn', 'tilt', 'zoom'].forEach((k) => $(k).addEventListener('input', () => { state[k] = Number($(k).value); redraw(false, true); }));
  $('camera').hidden = page.files.every((f) => f.isLine);
  $('png').addEventListener('click', savePng); $('svg').addEventListener('click', saveSvg); $('csv').addEventListener('click', saveCsv);
  $('values').addEventListener('toggle', fillTable);
  document.addEventListener('input', () => { touched = Date.now(); }); document.addEventListener('pointerdown', () => { touched = Date.now(); });
  document.addEventListener('keydown', () => { touched = Date.now(); });
  syncControls();
}
function syncControls() {
  if (!page.fields.length) { return; }
  if (!fieldNow()) { state.field = page.first; }
  $('field').value = state.field;
  $('scale').replaceChildren(...fieldNow().scales.map((s) => made('option', { value: s.kind, textContent: s.kind })));
  $('scale').value = viewNow().scale.kind; $('scale').disabled = fieldNow().scales.length < 2;
  Object.keys(LAYERS).forEach((k) => { if ($(`show-${k}`)) { $(`show-${k}`).checked = !state.hide.includes(k); } });
}

// ---- the views
function buildViews() {
  page.files.forEach((file, k) => {
    const section = made('section', { className: 'file' });
    if (page.all.length > 1) { section.append(made('h2', { textContent: file.title })); }
    const pair = made('div', { className: 'pair' });
    const keys = file.isLine ? 'Arrow keys move the chosen point along the line, with Shift by five.' : 'Arrow keys move the chosen point, with Shift by five; Home goes to the center, End to the smallest value.';
    file.map = made('canvas', { id: `map-${k}`, tabIndex: 0, role: 'application', 'aria-label': `${file.isLine ? 'chart' : 'map'} of ${file.title}. ${keys}`, 'aria-describedby': 'live' });
    pair.append(file.map);
    if (!file.isLine) {
      file.relief = made('canvas', { id: `relief-${k}`, tabIndex: 0, role: 'application', 'aria-label': `relief of ${file.title}. Arrow keys turn and tilt it, plus and minus zoom, Home resets the camera.` });
      pair.append(file.relief); listenToRelief(file);
    }
    listenToMap(file);
    section.append(pair); file.legend = made('ul', { className: 'legend' }); file.notes = made('p', { className: 'notes', textContent: file.notes_text });
    section.append(file.legend, file.notes); $('views').append(section);
  });
}

function choose(file, row, column) {
  state.x = file.x[column]; if (!file.isLine) { state.y = file.y[row]; }
  overlay(); readOut();
}
function listenToMap(file) {
  const inside = (event) => {
    const box = file.box, at = file.map.getBoundingClientRect(), x = event.clientX - at.left, y = event.clientY - at.top;
    if (!box || x < box.left || x > box.left + box.w || y < box.top || y > box.top + box.h) { return; }
    choose(file, file.isLine ? 0 : nearest(file.y, box.y(y)), nearest(file.x, box.x(x)));
  };
  file.map.addEventListener('pointermove', inside); file.map.addEventListener('pointerdown', inside);
  file.map.addEventListener('keydown', (event) => {
    const far = event.shiftKey ? 5 : 1, up = file.y[file.y.length - 1] >= file.y[0] ? 1 : -1, right = file.x[file.x.length - 1] >= file.x[0] ? 1 : -1;
    const step = { ArrowLeft: [0, -right], ArrowRight: [0, right], ArrowUp: [up, 0], ArrowDown: [-up, 0] }[event.key];
    let place = null;
    if (step) { place = [rowOf(file) + far * step[0], columnOf(file) + far * step[1]]; }
    if (event.key === 'Home') { place = [nearest(file.y, 0), nearest(file.x, 0)]; }
    if (event.key === 'End') { place = smallest(file); }
    if (!place) { return; }
    event.preventDefault();
    const within = (i, ticks) => Math.max(0, Math.min(ticks.length - 1, i));
    choose(file, within(place[0], file.y), within(place[1], file.x));
  });
}
function smallest(file) {
  const values = file.values[state.field];
  let best = -1;
  values?.forEach((v, i) => { if (Number.isFinite(v) && (best < 0 || plainly(fieldNow(), v) < plainly(fieldNow(), values[best]))) { best = i; } });
  return best < 0 ? null : [Math.floor(best / file.x.length), best % file.x.length];
}
function listenToRelief(file) {
  let from = null;
  const turned = (dx, dy) => { state.turn = Math.round((((state.turn + dx) % 360) + 540) % 360) - 180; state.tilt = Math.round(Math.max(5, Math.min(90, state.tilt + dy))); };
  const zoomed = (factor) => { state.zoom = Number(Math.min(5, Math.max(0.4, state.zoom * factor)).toFixed(3)); };
  file.relief.addEventListener('pointerdown', (event) => { from = [event.clientX, event.clientY]; file.relief.setPointerCapture(event.pointerId); });
  file.relief.addEventListener('pointerup', () => { from = null; redraw(false, true); });
  file.relief.addEventListener('pointercancel', () => { from = null; });
  file.relief.addEventListener('pointermove', (event) => {
    if (from) {
      turned((event.clientX - from[0]) / 2, (event.clientY - from[1]) / 2);
      from = [event.clientX, event.clientY]; redraw(true, true); return;
    }
    const at = file.relief.getBoundingClientRect(), drawn = file.drawn;
    if (!drawn) { return; }
    const cell = drawn.raster.cells[Math.round((event.clientY - at.top) * drawn.ratio) * drawn.raster.width + Math.round((event.clientX - at.left) * drawn.ratio)];
    const wide = (file.x.length - 1) * drawn.factor + 1, to = (i) => Math.round(i / drawn.factor);
    if (cell >= 0) { choose(file, to(Math.floor(cell / wide)), to(cell % wide)); }
  });
  file.relief.addEventListener('wheel', (event) => { if (document.activeElement !== file.relief) { return; } event.preventDefault(); zoomed(event.deltaY < 0 ? 1.1 : 1 / 1.1); redraw(true, true); }, { passive: false });
  file.relief.addEventListener('keydown', (event) => {
    const turns = { ArrowLeft: [-5, 0], ArrowRight: [5, 0], ArrowUp: [0, 5], ArrowDown: [0, -5] }[event.key];
    if (turns) { turned(...turns); } else if (event.key === '+' || event.key === '=') { zoomed(1.1); } else if (event.key === '-') { zoomed(1 / 1.1); } else if (event.key === 'Home') { Object.assign(state, START); } else { return; }
    event.preventDefault(); redraw(false, true);
  });
}

let waiting = 0, isRough = false, isStale = true; // stale: more than the camera changed
function redraw(rough = false, camera = false) {
  isRough = rough; isStale = isStale || !camera;
  if (waiting || !page.fields.length) { return; }
  waiting = requestAnimationFrame(() => { waiting = 0; drawAll(); });
}
function sized(canvas, tall, isAlone = false) {
  const width = isAlone ? Math.max(240, Math.min(900, canvas.parentElement.clientWidth)) : Math.max(240, Math.floor(canvas.parentElement.clientWidth > 900 ? canvas.parentElement.clientWidth / 2 - 8 : canvas.parentElement.clientWidth)), height = Math.round(tall(width));
  canvas.style.width = `${width}px`; canvas.style.height = `${height}px`;
  return [width, height];
}
const withBack = (file, key, width, height, ratio, draw) => { // a picture without the chosen point, kept to be drawn under it
  const canvas = document.createElement('canvas'); canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
  const context = canvas.getContext('2d'); context.scale(ratio, ratio); context.fillStyle = '#fff'; context.fillRect(0, 0, width, height);
  const result = draw(context); file[key] = { canvas, width, height, ratio };
  return result;
};
const mapHeight = (file) => (width) => {
  if (file.isLine) { return Math.min(420, Math.max(250, width * 0.6)); }
  const bx = borders(file.x), by = borders(file.y), ratio = Math.abs((bx[bx.length - 1] - bx[0]) / (by[by.length - 1] - by[0]));
  return ratio > 0.4 && ratio < 2.5 ? Math.min(640, (width - 142) / ratio + 58) : width * 0.75;
};
function drawAll() {
  if (state.tab !== 'Surface') { return; }
  const view = viewNow(), ratio = Math.min(2, window.devicePixelRatio || 1), ends = endsOfLines(view);
  page.files.forEach((file) => {
    const [width, height] = sized(file.map, mapHeight(file), file.isLine);
    file.size = [width, height];
    if (isStale || file.isLine) { file.box = withBack(file, 'under', width, height, ratio, (c) => (file.isLine ? drawChart(c, file, view, width, height, ends) : drawMap(c, file, view, width, height, ratio))); }
    if (file.relief) {
      const [w, h] = sized(file.relief, () => height);
      const own = isRough ? Math.min(1, ratio) : ratio;
      file.drawn = withBack(file, 'relieved', w, h, ratio, (c) => drawRelief(c, file, view, state, w, h, own));
    }
    if (isStale) { fillLegend(file, view); }
  });
  isStale = false;
  ['turn', 'tilt', 'zoom'].forEach((k) => { $(k).value = state[k]; });
  $('shown').textContent = `${view.field.label}${view.scale.kind === 'linear' ? '' : `, ${view.scale.kind} scale`}${view.field.note ? ` (${view.field.note})` : ''}`;
  overlay(); readOut();
  if ($('values').open) { fillTable(); }
}
function endsOfLines(view) {
  const own = page.files.filter((f) => f.isLine).flatMap((f) => view.shown.flatMap((q) => Array.from(f.values[q.name] ?? []))).filter((v) => Number.isFinite(v) && (view.scale.kind !== 'log' || v > 0));
  let low = own.reduce((a, b) => Math.min(a, b), Infinity), high = own.reduce((a, b) => Math.max(a, b), -Infinity);
  if (!(low <= high)) { [low, high] = [view.scale.kind === 'log' ? 0.1 : 0, 1]; }
  if (view.scale.kind === 'log') { [low, high] = [low / 1.1, high * 1.1]; } else { const margin = 0.05 * (high - low || Math.abs(high) || 1); [low, high] = [low - margin, high + margin]; }
  const set = view.field.ends ?? [null, null], fits = (e) => e !== null && (view.scale.kind !== 'log' || e > 0);
  return [fits(set[0]) ? set[0] : low, fits(set[1]) ? set[1] : high];
}
function overlay() {
  page.files.forEach((file) => {
    const index = chosenIn(file);
    [[file.map, file.under], [file.relief, file.relieved]].forEach(([canvas, back]) => {
      if (!canvas || !back) { return; }
      canvas.width = back.canvas.width; canvas.height = back.canvas.height;
      const context = canvas.getContext('2d'); context.drawImage(back.canvas, 0, 0); context.scale(back.ratio, back.ratio);
      if (canvas === file.relief) { if (file.drawn) { drawChosen(context, file.drawn, file, index, file.values[state.field][index]); } return; }
      const box = file.box, x = box.px(file.x[columnOf(file)]), y = file.isLine ? 0 : box.py(file.y[rowOf(file)]);
      context.strokeStyle = '#d0103a'; context.lineWidth = 1.5; context.beginPath();
      context.moveTo(x, box.top); context.lineTo(x, box.top + box.h);
      if (!file.isLine) { context.moveTo(box.left, y); context.lineTo(box.left + box.w, y); }
      context.globalAlpha = 0.45; context.stroke(); context.globalAlpha = 1;
      if (!file.isLine) { context.beginPath(); context.arc(x, y, 5, 0, 7); context.stroke(); }
    });
  });
}
const points = (count) => `${count} ${count === 1 ? 'point' : 'points'}`;
function pathInWords(file, view) {
  if (!checkpointColours(file, view)) { return 'training path, from open to filled circle'; }
  return `training path: its points have the colours of their own losses${new Set(file.path.sizes).size > 1 ? ', larger farther from the plane' : ''}`;
}
function signsInWords(file, field) {
  const ofSmallest = ['min_eig', 'ratio'].includes(field.name), count = (code) => file.signs[field.name].filter((s) => s === code).length;
  const beyond = ofSmallest && file.values.min_eig_error ? ' beyond its error' : '', name = ofSmallest ? 'smallest eigenvalue' : field.words;
  return [[1, 'key negative', `${name} < 0${beyond}`], [2, 'key undecided', `sign of the ${name} undecided`]]
    .filter(([code]) => count(code)).map(([code, key, words]) => [key, `${words}: ${points(count(code))}`]);
}
// A piece of a curve; its look in attributes, as the policy takes no style of an element's own.
function curveKey(look) {
  const [svg, line] = ['svg', 'line'].map((tag) => document.createElementNS('http://www.w3.org/2000/svg', tag));
  const set = (element, values) => Object.entries(values).forEach(([name, value]) => element.setAttribute(name, value));
  set(svg, { class: 'curve', width: 36, height: 8, 'aria-hidden': 'true' });
  set(line, { x1: 0, x2: 36, y1: 4, y2: 4, stroke: look.colour, 'stroke-width': look.dash.length ? 2 : 3, 'stroke-dasharray': look.dash.join(' ') || 'none' });
  svg.append(line);
  return svg;
}
function fillLegend(file, view) {
  const items = [];
  const values = file.values[view.field.name] ?? [];
  if (file.isLine) { view.shown.forEach((f, k) => { if (file.values[f.name]) { items.push(['key line', `${f.words}${f === view.field ? ', chosen' : ', dashed'}`, lookOf(k)]); } }); }
  if (!file.isLine && view.layers.contours && !view.scale.flat) { items.push(['key contour', 'levels, at the ticks of the colour bar and between them']); }
  if (!file.isLine && view.layers.zero && file.values.min_eig) { const low = Array.from(file.values.min_eig).filter(Number.isFinite); items.push(['key zero', `smallest eigenvalue = 0${low.some((v) => v < 0) && low.some((v) => v > 0) ? '' : ': nowhere here'}`]); }
  if (!file.isLine && view.layers.path && file.path) { items.push(['key path', pathInWords(file, view)]); }
  if (!file.isLine && view.layers.points && file.between) { items.push(['key sign', '\u00b7 measured; all else lies between measured points']); }
  if (view.layers.signs && file.signs[view.field.name] && !view.scale.flat) { items.push(...signsInWords(file, view.field)); }
  const counts = {};
  Array.from(values).forEach((v, i) => { const why = holeAt(v, file.statusAt(view.field.name, i)); if (why) { counts[why] = (counts[why] ?? 0) + 1; } });
  const signs = { 'not computed': '\u2215', failed: '\u2715', NaN: '\u2217', infinite: '\u25b3' };
  if (file.isLine && view.scale.kind === 'log') {
    view.shown.forEach((f) => {
      const below = Array.from(file.values[f.name] ?? []).filter((v) => Number.isFinite(v) && v <= 0).length;
      if (below) { items.push(['key sign', `${f === view.field ? '' : `${f.words}, `}not positive, which a log axis has no place for: ${points(below)}`]); }
    });
  }
  const keys = file.isLine ? {} : { 'not computed': 'key todo', failed: 'key failed' };
  Object.entries(counts).forEach(([why, count]) => items.push([keys[why] ?? 'key sign', `${signs[why]} ${why}: ${count} ${count === 1 ? 'point' : 'points'}`]));
  const share = sharesOn(view.scale), beyond = file.isLine ? [] : Array.from(values).filter((v) => share(v) > 1.0001 || share(v) < -0.0001);
  if (beyond.length) {
    const far = beyond.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a));
    items.push(['key sign', `beyond the ends of the colours, where the relief is cut: ${beyond.length} ${beyond.length === 1 ? 'point' : 'points'}, as far as ${short(plainly(view.field, far))}`]);
  }
  const models = file.box ? modelsWithin(file, file.box) : [], at = (m) => (file.isLine ? `at ${file.along} ${short(m.x)}` : `at x ${short(m.x)}, y ${short(m.y)}`);
  const places = models.length > 1 ? models.map((m) => `${m.name} ${at(m)}`) : models.map((m) => m.name);
  if (places.length) { items.push(['key sign', `${file.isLine ? '\u250a' : '+'} ${places.join('; ')}`]); }
  file.legend.replaceChildren(...items.map(([className, text, look]) => made('li', { look }, look ? curveKey(look) : made('span', { className, 'aria-hidden': 'true' }), ` ${text}`)));
}

// ---- the chosen point in words
let speaking = 0;
function readOut() {
  const files = page.files, head = ['', ...files.map((f) => f.title)], main = page.fields.filter((f) => !f.more), more = page.fields.filter((f) => f.more);
  const place = files.map((f) => `${f.along} ${short(f.x[columnOf(f)], digitsOf(f.x))}${f.isLine ? '' : `, y ${short(f.y[rowOf(f)], digitsOf(f.y))}`}`);
  $('place').textContent = [...new Set(place)].join('; ');
  const rows = (fields) => fields.map((field) => made('tr', {}, made('th', { scope: 'row', textContent: field.words }), ...files.map((f) => made('td', { textContent: reading(f, field, chosenIn(f)) }))));
  const top = () => made('thead', {}, made('tr', {}, ...head.map((t, i) => made(i ? 'th' : 'td', i ? { scope: 'col', textContent: t } : { textContent: '' }))));
  $('readout').replaceChildren(made('caption', { className: 'unseen', textContent: 'values at the chosen point' }), top(), made('tbody', {}, ...rows(main)));
  $('more').hidden = !more.length;
  $('readout-more').replaceChildren(made('caption', { className: 'unseen', textContent: 'further values at the chosen point' }), top(), made('tbody', {}, ...rows(more)));
  clearTimeout(speaking);
  speaking = setTimeout(() => {
    const words = (f, k) => `${files.length > 1 ? `${f.title}, ` : ''}${place[k]}: ${main.filter((q) => f.values[q.name]).map((q) => `${q.words} ${reading(f, q, chosenIn(f))}`).join('; ')}`;
    $('live').textContent = files.map(words).join('. ');
    remember();
  }, 150);
}
const MOST = 21; // rows and columns of the table
function fillTable() {
  if (!$('values').open) { return; }
  const field = fieldNow(), every = (ticks) => thinned(Array.from(ticks.keys()), MOST);
  $('tables').replaceChildren(...page.files.map((file) => {
    const columns = every(file.x), rows = every(file.y), all = columns.length === file.x.length && rows.length === file.y.length;
    const text = (i) => { const v = file.values[field.name]; if (!v) { return 'not in this file'; } return holeAt(v[i], file.statusAt(field.name, i)) || `${sevenDigits(plainly(field, v[i]))}${field.name === 'ratio' && signOfRatio(file, i) !== 'not negative' ? `, smallest ${signOfRatio(file, i)}` : ''}`; };
    const caption = `${file.title}: ${field.label}${all ? '' : `; ${rows.length} x ${columns.length} of ${file.y.length} x ${file.x.length} points, the CSV holds all`}`;
    const head = made('tr', {}, made('th', { scope: 'col', textContent: file.isLine ? file.along : 'y, below; x, across' }), ...(file.isLine ? [made('th', { scope: 'col', textContent: field.words })] : columns.map((c) => made('th', { scope: 'col', textContent: short(file.x[c], digitsOf(file.x)) }))));
    const body = file.isLine ? columns.map((c) => made('tr', {}, made('th', { scope: 'row', textContent: short(file.x[c], digitsOf(file.x)) }), made('td', { textContent: text(c) })))
      : rows.map((r) => made('tr', {}, made('th', { scope: 'row', textContent: short(file.y[r], digitsOf(file.y)) }), ...columns.map((c) => made('td', { textContent: text(r * file.x.length + c) }))));
    return made('div', { className: 'scroll', tabIndex: 0, role: 'region', 'aria-label': `table of ${file.title}` }, made('table', {}, made('caption', { textContent: caption }), made('thead', {}, head), made('tbody', {}, ...body)));
  }));
}
function buildProvenance() {
  page.all.forEach((file) => {
    if (page.all.length > 1) { $('provenance').append(made('h3', { textContent: file.title })); }
    const list = made('dl');
    file.provenance.forEach(([name, value]) => list.append(made('dt', { textContent: name }), made('dd', { textContent: value })));
    $('provenance').append(list);
  });
}

// ---- files to take away
function handOut(blob, ending) {
  const link = made('a', { href: URL.createObjectURL(blob), download: `${page.stem}.${ending}` });
  document.body.append(link); link.click(); link.remove(); setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
// The legend and the notes below a view, in lines that fit: a picture that is taken away has no page around it.
const KEYS = { contour: ['#888', 1], zero: ['#000', 3], path: ['#000', 2] };
function legendLines(file, width) {
  const entries = Array.from(file.legend.children).map((item) => {
    const key = item.look ? [item.look.colour, 3, item.look.dash] : KEYS[item.firstChild.className.split(' ').pop()];
    return [item.textContent.trim(), key];
  });
  const notes = file.notes_text.split('\n').filter((text) => text).map((text) => [text]);
  return [...entries, ...notes].flatMap(([text, key]) => labelLines(text, width - 50).map((line, k) => ({ line, key: k ? null : key })));
}
// All views below each other, each with its title and legend, into a context that is made for their size.
function drawExport(make, ratio) {
  const view = viewNow(), ends = endsOfLines(view), heads = 26, legends = page.files.map((f) => legendLines(f, f.size[0] * (f.relief ? 2 : 1)));
  const width = Math.max(...page.files.map((f) => f.size[0] * (f.relief ? 2 : 1))), height = page.files.reduce((sum, f, k) => sum + f.size[1] + heads + LINE * legends[k].length, 0) + 26;
  const context = make(width, height);
  context.font = FONT; context.fillStyle = INK; context.textAlign = 'left'; context.textBaseline = 'top';
  context.fillText($('shown').textContent, 8, 6);
  let top = 22;
  page.files.forEach((file, k) => {
    const [w, h] = file.size;
    context.fillStyle = INK; context.textAlign = 'left'; context.textBaseline = 'top'; context.fillText(file.title, 8, top + 6);
    context.save(); context.translate(0, top + heads);
    if (file.isLine) { drawChart(context, file, view, w, h, ends); } else { drawMap(context, file, view, w, h, ratio); }
    context.restore();
    if (file.relief && file.relieved) { context.drawImage(file.relieved.canvas, w, top + heads, file.relieved.width, file.relieved.height); }
    top += h + heads;
    legends[k].forEach(({ line, key }) => {
      if (key) { [context.strokeStyle, context.lineWidth] = key; context.setLineDash(key[2] ?? []); context.beginPath(); context.moveTo(4, top + 7); context.lineTo(34, top + 7); context.stroke(); context.setLineDash([]); }
      context.fillStyle = INK; context.font = FONT; context.textAlign = 'left'; context.textBaseline = 'top'; context.fillText(line, 38, top);
      top += LINE;
    });
  });
  return context;
}
function savePng() {
  const canvas = document.createElement('canvas'), ratio = 2;
  drawExport((width, height) => {
    canvas.width = width * ratio; canvas.height = height * ratio;
    const context = canvas.getContext('2d'); context.scale(ratio, ratio); context.fillStyle = '#fff'; context.fillRect(0, 0, width, height);
    return context;
  }, ratio);
  canvas.toBlob((blob) => handOut(blob, 'png'));
}
function saveSvg() { handOut(new Blob([drawExport((w, h) => new SvgContext(w, h), 2).toString()], { type: 'image/svg+xml' }), 'svg'); }
// A name that a spreadsheet would take for a formula is no longer one.
const cell = (text) => { const safe = /^[=+\-@\t]/.test(text) ? `'${text}` : text; return /[",\n]/.test(safe) ? `"${safe.replace(/"/g, '""')}"` : safe; };
function saveCsv() {
  const names = page.fields.map((f) => f.name), lines = [['file', 'x', 'y', ...names].map(cell).join(',')];
  const number = (v) => (Number.isFinite(v) ? String(Number(v.toPrecision(9))) : String(v));
  page.files.forEach((file) => {
    for (let i = 0; i < file.x.length * file.y.length; i++) {
      const own = page.fields.map((f) => { const v = file.values[f.name]; if (!v) { return ''; } const s = file.statusAt(f.name, i); return s in WORDS ? WORDS[s] : number(plainly(f, v[i])); });
      const first = file.x[i % file.x.length], place = file.along === 'y' ? [file.fixed, first] : [first, file.isLine ? file.fixed ?? '' : file.y[Math.floor(i / file.x.length)]];
      lines.push([cell(file.title), ...place, ...own].join(','));
    }
  });
  handOut(new Blob([lines.join('\r\n') + '\r\n'], { type: 'text/csv' }), 'csv');
}

// ---- while the survey grows
function growing() {
  const box = made('input', { type: 'checkbox', id: 'reload', checked: state.reload !== 'off' });
  box.addEventListener('change', () => { state.reload = box.checked ? 'on' : 'off'; remember(); });
  $('growing').append(made('label', {}, box, ` reload every ${short(page.reload)} s while the survey grows`)); $('growing').hidden = false;
  setInterval(() => {
    if (state.reload === 'off' || document.hidden || Date.now() - touched < 3000) { return; }
    state.focus = document.activeElement?.id || undefined; remember(); location.reload();
  }, 1000 * page.reload);
}

start().catch((error) => { $('summary').textContent = `This page could not be shown: ${error}`; throw error; });
