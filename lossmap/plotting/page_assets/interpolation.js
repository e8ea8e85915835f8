// Between the measured points, for contour lines and relief alone: the spline of `interpolation.py`, which says why.
// Matrices are arrays of rows; values (ny, nx) are rows of numbers, NaN where there is none.
const MAX_FACTOR = 8, OVERSHOOT = 2;

const rowsOf = (flat, ny, nx) => Array.from({ length: ny }, (_, r) => Array.from({ length: nx }, (_, c) => flat[r * nx + c]));
const turned = (m) => m[0].map((_, c) => m.map((row) => row[c]));
const differences = (ticks) => ticks.slice(1).map((t, i) => t - ticks[i]);
function product(a, b) {
  return a.map((row) => {
    const sum = new Float64Array(b[0].length);
    row.forEach((v, k) => { if (v !== 0) { const other = b[k]; for (let c = 0; c < sum.length; c++) { sum[c] += v * other[c]; } } });
    return Array.from(sum);
  });
}
// The solution of left x = right, by elimination with row exchanges.
function solved(left, right) {
  const n = left.length, rows = left.map((row, i) => [...row, ...right[i]]);
  for (let k = 0; k < n; k++) {
    let best = k;
    for (let i = k + 1; i < n; i++) { if (Math.abs(rows[i][k]) > Math.abs(rows[best][k])) { best = i; } }
    [rows[k], rows[best]] = [rows[best], rows[k]];
    for (let i = 0; i < n; i++) {
      const part = rows[i][k] / rows[k][k];
      if (i !== k && part !== 0) { for (let c = k; c < rows[i].length; c++) { rows[i][c] -= part * rows[k][c]; } }
    }
  }
  return rows.map((row, i) => row.slice(n).map((v) => v / row[i]));
}

// Steps to an interval that make enough intervals along the longer axis; 1 for a line.
function factorFor(file, enough) {
  const longest = Math.max(file.x.length, file.y.length) - 1;
  return Math.min(file.x.length, file.y.length) < 2 ? 1 : Math.max(1, Math.min(MAX_FACTOR, Math.ceil(enough / longest)));
}
const between = (n, factor) => Array.from({ length: factor * (n - 1) + 1 }, (_, i) => { const interval = Math.min(Math.floor(i / factor), n - 2); return [interval, i / factor - interval]; });
const fineTicks = (ticks, factor) => between(ticks.length, factor).map(([i, s]) => ticks[i] * (1 - s) + ticks[i + 1] * s);
const linearMatrix = (n, factor) => between(n, factor).map(([i, s]) => { const row = new Array(n).fill(0); row[i] = 1 - s; row[i + 1] += s; return row; });

// From values at the ticks to the second derivatives of their not-a-knot spline there.
function bendMatrix(ticks) {
  const n = ticks.length, h = differences(ticks), zero = () => Array.from({ length: n }, () => new Array(n).fill(0)), left = zero(), right = zero();
  if (n === 2) { return left; }
  for (let i = 1; i < n - 1; i++) {
    [h[i - 1], 2 * (h[i - 1] + h[i]), h[i]].forEach((v, k) => { left[i][i - 1 + k] = v; });
    [6 / h[i - 1], -6 / h[i - 1] - 6 / h[i], 6 / h[i]].forEach((v, k) => { right[i][i - 1 + k] = v; });
  }
  const m = h.length - 1;
  (n === 3 ? [1, -1, 0] : [h[1], -(h[0] + h[1]), h[0]]).forEach((v, k) => { left[0][k] = v; });
  (n === 3 ? [0, 1, -1] : [h[m], -(h[m - 1] + h[m]), h[m - 1]]).forEach((v, k) => { left[n - 1][n - 3 + k] = v; });
  return solved(left, right);
}
function splineMatrix(ticks, factor) {
  const h = differences(ticks), bends = bendMatrix(ticks), linear = linearMatrix(ticks.length, factor);
  return between(ticks.length, factor).map(([i, s], r) => {
    const scale = h[i] ** 2 / 6, a = scale * ((1 - s) ** 3 - (1 - s)), b = scale * (s ** 3 - s);
    return linear[r].map((v, c) => v + a * bends[i][c] + b * bends[i + 1][c]);
  });
}

// How far a parabola with the smaller bend of both ends reaches below and above each interval of each row.
function reach(ticks, rows) {
  const h = differences(ticks);
  if (ticks.length === 2) { return [rows.map(() => [0]), rows.map(() => [0])]; }
  const valleys = [], hills = [];
  rows.forEach((row) => {
    const slopes = h.map((d, i) => (row[i + 1] - row[i]) / d), inner = slopes.slice(1).map((s, i) => (2 * (s - slopes[i])) / (h[i] + h[i + 1]));
    const bends = [inner[0], ...inner, inner[inner.length - 1]], at = h.map((d, i) => [bends[i] * d * d / 8, bends[i + 1] * d * d / 8]);
    valleys.push(at.map(([a, b]) => Math.max(0, Math.min(a, b)))); hills.push(at.map(([a, b]) => Math.max(0, -Math.max(a, b))));
  });
  return [valleys, hills];
}
function limits(x, y, rows) {
  const [valleyX, hillX] = reach(x, rows), [valleyY, hillY] = reach(y, turned(rows)), low = [], high = [];
  for (let r = 0; r + 1 < y.length; r++) {
    low.push([]); high.push([]);
    for (let c = 0; c + 1 < x.length; c++) {
      const corners = [rows[r][c], rows[r][c + 1], rows[r + 1][c], rows[r + 1][c + 1]];
      low[r].push(Math.min(...corners) - OVERSHOOT * (Math.max(valleyX[r][c], valleyX[r + 1][c]) + Math.max(valleyY[c][r], valleyY[c + 1][r])));
      high[r].push(Math.max(...corners) + OVERSHOOT * (Math.max(hillX[r][c], hillX[r + 1][c]) + Math.max(hillY[c][r], hillY[c + 1][r])));
    }
  }
  return [low, high];
}
// Holes continued from around them, ring by ring, by parabolas where three points lie in a row.
function continued(rows) {
  let now = rows.map((row) => [...row]);
  const known = now.flat().filter((v) => !Number.isNaN(v)), low = known.reduce((a, b) => Math.min(a, b), Infinity), high = known.reduce((a, b) => Math.max(a, b), -Infinity);
  const at = (r, c) => now[r]?.[c] ?? NaN;
  while (now.some((row) => row.some(Number.isNaN))) {
    now = now.map((row, r) => row.map((v, c) => {
      if (!Number.isNaN(v)) { return v; }
      let total = 0, count = 0;
      for (let i = -1; i <= 1; i++) {
        for (let j = -1; j <= 1; j++) {
          const [near, far, beyond] = [1, 2, 3].map((k) => at(r + k * i, c + k * j));
          if ((i === 0 && j === 0) || Number.isNaN(near)) { continue; }
          total += Number.isNaN(far) ? near : Number.isNaN(beyond) ? 2 * near - far : 3 * (near - far) + beyond;
          count += 1;
        }
      }
      return count ? Math.max(low, Math.min(high, total / count)) : NaN;
    }));
  }
  return now;
}

// Heights, (ny nx) flat, between the points: ticks and heights of a plane with `factor` steps to an interval.
function refined(x, y, heights, factor) {
  const flat = Array.from(heights);
  if (factor === 1 || flat.every(Number.isNaN)) { return { x, y, heights: flat }; }
  const ny = y.length, nx = x.length, rows = rowsOf(flat, ny, nx), filled = continued(rows);
  const straight = product(product(linearMatrix(ny, factor), filled), turned(linearMatrix(nx, factor)));
  const smooth = product(product(splineMatrix(y, factor), filled), turned(splineMatrix(x, factor)));
  const isHole = (r, c) => r >= 0 && c >= 0 && r < ny && c < nx && Number.isNaN(rows[r][c]), around = [-1, 0, 1];
  const sound = rows.map((row, r) => row.map((_, c) => (around.some((i) => around.some((j) => isHole(r + i, c + j))) ? 0 : 1)));
  const weight = product(product(linearMatrix(ny, factor), sound), turned(linearMatrix(nx, factor)));
  const [low, high] = limits(x, y, filled), alongX = between(nx, factor), alongY = between(ny, factor);
  const isWhole = (r, c) => r >= 0 && c >= 0 && r + 1 < ny && c + 1 < nx && ![[r, c], [r, c + 1], [r + 1, c], [r + 1, c + 1]].some(([i, j]) => isHole(i, j));
  const fine = [];
  alongY.forEach(([r], i) => alongX.forEach(([c], j) => {
    if (i % factor === 0 && j % factor === 0) { fine.push(rows[i / factor][j / factor]); return; }
    const own = (k) => (k % factor ? [Math.floor(k / factor)] : [k / factor - 1, k / factor]);
    if (!own(i).some((a) => own(j).some((b) => isWhole(a, b)))) { fine.push(NaN); return; }
    const curve = Math.max(low[r][c], Math.min(high[r][c], smooth[i][j]));
    fine.push(weight[i][j] * curve + (1 - weight[i][j]) * straight[i][j]);
  }));
  return { x: fineTicks(x, factor), y: fineTicks(y, factor), heights: fine };
}
