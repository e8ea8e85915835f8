// The relief: the plane as a lit surface, drawn without WebGL (many machines that show results of a cluster have none).
// Coordinates: u, v from -1 to 1 along x and y; heights 0 to 1 between the ends of the scale; parallel projection.
const TALL = 1.1; // of the relief, where the plane is 2 wide

function camera(state, width, height) {
  const a = (state.turn * Math.PI) / 180, e = (state.tilt * Math.PI) / 180, size = (Math.min(width - 50, height * 1.2) / 3.25) * state.zoom;
  const [ca, sa, ce, se] = [Math.cos(a), Math.sin(a), Math.cos(e), Math.sin(e)], cx = width / 2 + 12, cy = height / 2;
  return (u, v, h) => { // pixels across and down, and how far from the eye
    const y = u * sa + v * ca, z = (h - 0.5) * TALL;
    return [cx + size * (u * ca - v * sa), cy - size * (z * ce + y * se), y * ce - z * se];
  };
}

const spanned = (ticks) => { const low = Math.min(...ticks), high = Math.max(...ticks); return (t) => (2 * (t - low)) / (high - low || 1) - 1; };

// The pixels of the surface: colour, and of each the grid cell that it shows (-1: none) and its distance.
function rasterised(plane, view, state, width, height) {
  const nx = plane.x.length, ny = plane.y.length, low = heightOn(view.scale)(view.scale.low), span = heightOn(view.scale)(view.scale.high) - low || 1;
  const project = camera(state, width, height), u = plane.x.map(spanned(plane.x)), v = plane.y.map(spanned(plane.y));
  const count = nx * ny, sx = new Float32Array(count), sy = new Float32Array(count), far = new Float32Array(count), heights = new Float32Array(count), light = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    heights[i] = Math.max(-50, Math.min(50, (plane.heights[i] - low) / span)); // far beyond the ends, where nothing is drawn
    if (Number.isNaN(heights[i])) { continue; }
    [sx[i], sy[i], far[i]] = project(u[i % nx], v[Math.floor(i / nx)], heights[i]);
  }
  for (let r = 0; r < ny; r++) {
    for (let c = 0; c < nx; c++) {
      const slope = (i, j, ticks, k, l) => { const d = (heights[j] - heights[i]) * TALL / (ticks[l] - ticks[k]); return Number.isFinite(d) ? d : 0; };
      const left = Math.max(0, c - 1), right = Math.min(nx - 1, c + 1), down = Math.max(0, r - 1), up = Math.min(ny - 1, r + 1);
      const gu = slope(r * nx + left, r * nx + right, u, left, right), gv = slope(down * nx + c, up * nx + c, v, down, up);
      light[r * nx + c] = 0.42 + 0.58 * Math.max(0, (0.35 * gu + 0.25 * gv + 0.9) / (Math.sqrt(1 + gu * gu + gv * gv) * 1.0));
    }
  }
  const depth = new Float32Array(width * height).fill(Infinity), cells = new Int32Array(width * height).fill(-1), tall = new Float32Array(width * height), lit = new Float32Array(width * height);
  const triangle = (a, b, c, cell) => {
    if (Number.isNaN(heights[a] + heights[b] + heights[c])) { return; }
    const area = (sx[b] - sx[a]) * (sy[c] - sy[a]) - (sx[c] - sx[a]) * (sy[b] - sy[a]);
    if (area === 0) { return; }
    const x0 = Math.max(0, Math.floor(Math.min(sx[a], sx[b], sx[c]))), x1 = Math.min(width - 1, Math.ceil(Math.max(sx[a], sx[b], sx[c])));
    const y0 = Math.max(0, Math.floor(Math.min(sy[a], sy[b], sy[c]))), y1 = Math.min(height - 1, Math.ceil(Math.max(sy[a], sy[b], sy[c])));
    for (let y = y0; y <= y1; y++) {
      for (let x = x0; x <= x1; x++) {
        const wb = ((x - sx[a]) * (sy[c] - sy[a]) - (sx[c] - sx[a]) * (y - sy[a])) / area, wc = ((sx[b] - sx[a]) * (y - sy[a]) - (x - sx[a]) * (sy[b] - sy[a])) / area, wa = 1 - wb - wc;
        if (wa < -1e-4 || wb < -1e-4 || wc < -1e-4) { continue; }
        const at = y * width + x, z = wa * far[a] + wb * far[b] + wc * far[c], h = wa * heights[a] + wb * heights[b] + wc * heights[c];
        if (z >= depth[at] || h > 1.0001 || h < -0.0001) { continue; } // beyond the ends: open, as a cut
        depth[at] = z; cells[at] = cell; tall[at] = h; lit[at] = wa * light[a] + wb * light[b] + wc * light[c];
      }
    }
  };
  for (let r = 0; r + 1 < ny; r++) {
    for (let c = 0; c + 1 < nx; c++) { const i = r * nx + c; triangle(i, i + 1, i + nx + 1, i); triangle(i, i + nx + 1, i + nx, i); }
  }
  return { width, height, depth, cells, tall, lit, project, u, v, heights };
}

function painted(raster, view) {
  const { width, height, depth, cells, tall, lit } = raster, table = view.table;
  const canvas = document.createElement('canvas'); canvas.width = width; canvas.height = height;
  const context = canvas.getContext('2d'), image = context.createImageData(width, height), data = image.data;
  const share = sharesOn(view.scale), bands = new Uint16Array(4096), levels = view.layers.contours && !view.scale.flat ? view.scale.levels.map(share) : [];
  for (let i = 0; i < 4096; i++) { bands[i] = levels.filter((l) => l < i / 4095).length; }
  const band = (at) => bands[Math.max(0, Math.min(4095, Math.round(tall[at] * 4095)))];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const at = y * width + x;
      if (cells[at] < 0) { continue; }
      const index = 3 * colourIndex(tall[at]), own = band(at);
      let shade = Math.min(1.12, lit[at]);
      for (const beside of [x + 1 < width ? at + 1 : -1, y + 1 < height ? at + width : -1]) { // a level between two neighbours
        if (beside >= 0 && cells[beside] >= 0 && Math.abs(depth[beside] - depth[at]) < 0.15 && band(beside) !== own) { shade *= 0.62; break; }
      }
      for (let k = 0; k < 3; k++) { data[4 * at + k] = Math.min(255, table[index + k] * shade); }
      data[4 * at + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// Height of the surface at coordinates between the points, and NaN beside a hole or outside.
function heightBetween(plane, raster, x, y) {
  const at = (ticks, t) => { for (let i = 0; i + 1 < ticks.length; i++) { const p = (t - ticks[i]) / (ticks[i + 1] - ticks[i]); if (p >= 0 && p <= 1) { return [i, p]; } } return null; };
  const a = at(plane.x, x), b = at(plane.y, y), nx = plane.x.length;
  if (!a || !b) { return NaN; }
  const [c, p] = a, [r, q] = b, h = (i, j) => raster.heights[i * nx + j];
  return (1 - q) * ((1 - p) * h(r, c) + p * h(r, c + 1)) + q * ((1 - p) * h(r + 1, c) + p * h(r + 1, c + 1));
}

const isSeen = (raster, [x, y, z]) => {
  const at = Math.round(y) * raster.width + Math.round(x);
  return !(Math.round(x) >= 0 && Math.round(x) < raster.width) || raster.depth[at] === undefined || z <= raster.depth[at] + 0.03;
};

function drawRelief(context, file, view, state, width, height, ratio, chosen) {
  if (!file.values[view.field.name]) { return null; }
  const w = Math.round(width * ratio), h = Math.round(height * ratio), plane = fineHeights(file, view, 120), raster = rasterised(plane, view, state, w, h);
  const project = (u, v, z) => raster.project(u, v, z).map((p, i) => (i < 2 ? p / ratio : p));
  const line = (...points) => { context.beginPath(); points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y))); context.stroke(); };
  const corners = [[-1, -1], [1, -1], [1, 1], [-1, 1]];
  context.strokeStyle = '#999'; context.lineWidth = 1;
  line(...[...corners, corners[0]].map(([u, v]) => project(u, v, 0)));
  const back = corners.map((k) => [k, project(...k, 0)[2]]).sort((a, b) => b[1] - a[1])[0][0];
  const edge = [[back[0], -back[1]], [-back[0], back[1]]].sort((a, b) => project(...a, 0)[0] - project(...b, 0)[0])[0]; // the upright one on the left
  [back, edge].forEach((k) => line(project(...k, 0), project(...k, 1)));
  line(project(...edge, 1), project(...back, 1), project(-edge[0], -edge[1], 1));
  context.fillStyle = INK; context.font = FONT; context.textAlign = 'right'; context.textBaseline = 'middle';
  const share = sharesOn(view.scale), values = file.values[view.field.name];
  thinned(view.scale.ticks, 6).forEach(([value, text]) => {
    if (share(value) < -0.001 || share(value) > 1.001) { return; }
    const [x, y] = project(...edge, share(value));
    line([x - 4, y], [x, y]); context.fillText(text, x - 6, y);
  });
  if (view.layers.holes) {
    const nx = file.x.length, cell = Math.max(3, (width / nx) * 0.5);
    const u = spanned(file.x), v = spanned(file.y);
    values.forEach((value, i) => { const why = holeAt(value, file.statusAt(view.field.name, i)); if (why) { const [x, y] = project(u(file.x[i % nx]), v(file.y[Math.floor(i / nx)]), 0); drawHole(context, x, y, cell, cell, why); } });
  }
  context.drawImage(painted(raster, view), 0, 0, width, height);
  context.textAlign = 'center';
  [['x', [0, -Math.sign(back[1]) * 1.16]], ['y', [-Math.sign(back[0]) * 1.16, 0]]].forEach(([text, k]) => { const [x, y] = project(...k, 0); context.fillText(text, x, y); });
  if (view.layers.path && file.path) { drawPathOnRelief(context, file, plane, raster, project, checkpointColours(file, view)); }
  return { raster, project, ratio, factor: (plane.x.length - 1) / (file.x.length - 1), share };
}

// The path over the surface, where it is not hidden by it; its checkpoints where there are colours for them.
function drawPathOnRelief(context, file, plane, raster, project, colours) {
  const ux = spanned(file.x), uy = spanned(file.y), { x, y } = file.path, steps = 24;
  const at = (px, py) => { const h = heightBetween(plane, raster, px, py); return h >= 0 && h <= 1 ? [ux(px), uy(py), h + 0.012] : null; };
  context.strokeStyle = '#000'; context.lineWidth = 1.6;
  for (let i = 0; i + 1 < x.length; i++) {
    for (let k = 0; k < steps; k++) {
      const [a, b] = [k / steps, (k + 1) / steps].map((t) => at(x[i] + t * (x[i + 1] - x[i]), y[i] + t * (y[i + 1] - y[i])));
      if (!a || !b || !isSeen(raster, raster.project(...a))) { continue; }
      const [p, q] = [project(...a), project(...b)];
      context.beginPath(); context.moveTo(p[0], p[1]); context.lineTo(q[0], q[1]); context.stroke();
    }
  }
  colours?.forEach((colour, i) => {
    const a = at(x[i], y[i]);
    if (a && isSeen(raster, raster.project(...a))) { drawCheckpoint(context, project(...a), colour, file.path.sizes[i]); }
  });
}

// The chosen point on the relief; hollow where the surface hides it, on the floor where it has no value.
function drawChosen(context, drawn, file, index, value) {
  const { raster, project } = drawn, nx = file.x.length, h = drawn.share(value), place = [spanned(file.x)(file.x[index % nx]), spanned(file.y)(file.y[Math.floor(index / nx)])];
  const height = Number.isNaN(h) ? 0 : Math.max(0, Math.min(1, h)), [x, y] = project(...place, height), [fx, fy] = project(...place, 0);
  context.strokeStyle = '#d0103a'; context.lineWidth = 1; context.setLineDash([3, 3]);
  context.beginPath(); context.moveTo(fx, fy); context.lineTo(x, y); context.stroke(); context.setLineDash([]);
  context.beginPath(); context.arc(x, y, 5, 0, 7); context.lineWidth = 2; context.strokeStyle = '#fff'; context.stroke();
  context.strokeStyle = '#d0103a'; context.stroke();
  if (isSeen(raster, raster.project(...place, height))) { context.fillStyle = '#d0103a'; context.fill(); }
}
