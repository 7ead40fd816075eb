// Makes elements, writes numbers as texts, and draws a chart of curves on a log axis that can be used with the keyboard.

const SVG = "http://www.w3.org/2000/svg";

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children); // the texts of the data are appended as text, never as markup
  return made;
}

function drawn(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const percent = (value) => `${(100 * value).toFixed(1)}%`;
const shown = (metric, value) => (value === null ? "–" : metric.share ? percent(value) : value.toFixed(1));
const compact = (value) => (value === null ? "–" : value >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(3)));

// The marker of the model with this number, so that curves can be told apart without colours.
function marker(number, x, y, size = 5) {
  const shapes = [
    () => drawn("circle", { cx: x, cy: y, r: size }),
    () => drawn("rect", { x: x - size, y: y - size, width: 2 * size, height: 2 * size }),
    () => drawn("path", { d: `M${x} ${y - size * 1.3}l${size * 1.3} ${size * 1.3}-${size * 1.3} ${size * 1.3}-${size * 1.3}-${size * 1.3}z` }),
    () => drawn("path", { d: `M${x} ${y - size * 1.2}l${size * 1.2} ${size * 2.2}h-${size * 2.4}z` }),
    () => drawn("path", { d: `M${x} ${y + size * 1.2}l${size * 1.2}-${size * 2.2}h-${size * 2.4}z` }),
  ];
  const made = shapes[number % shapes.length]();
  made.setAttribute("class", "mark");
  return made;
}

function niceStep(span, count) {
  const raw = span / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= raw);
}

// The ticks of a log axis: 1, 2 and 5, or only whole powers of 10 if these would be too many.
function logTicks(low, high) {
  const ticks = [];
  const factors = high / low < 400 ? [1, 2, 5] : [1];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const factor of factors) ticks.push(+(factor * 10 ** power).toPrecision(6));
  }
  return ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
}

// The lowest and the highest value of the y axis. It begins at 0, or, if `whole` is false, a little below the lowest value.
function range(points, y) {
  const ends = points.flatMap((point) => [point.y - (point.error ?? 0), point.y + (point.error ?? 0)]);
  const highest = Math.max(y.share ? 0.01 : 1, ...ends);
  if (y.whole) return [0, y.share ? Math.min(1, 1.08 * Math.max(highest, y.chance ?? 0)) : 1.08 * highest];
  const margin = 0.12 * Math.max(highest - Math.min(...ends), 0.02 * highest);
  return [Math.max(0, Math.min(...ends) - margin), y.share ? Math.min(1, highest + margin) : highest + margin];
}

// Whether the curves fill less than half of an axis that begins at 0, so that it is better cut off.
function isSqueezed(points) {
  const values = points.map((point) => point.y);
  return values.length > 1 && Math.min(...values) > 0.5 * Math.max(...values);
}

// Draws curves into `host`. A point without an x becomes a line across the chart.
// curves: [{model, dashed, ordered, small, points: [{x or null, y, error or null, hollow, text}]}].
// axis: {label, ticks: [[x, text, second line]] or null}. y: {share, chance, label, whole: whether the axis begins at 0}.
function drawChart(host, curves, axis, y) {
  const width = Math.max(280, host.clientWidth);
  const height = Math.min(380, Math.max(280, width * 0.5));
  const box = { left: 46, right: width - 14, top: 14, bottom: height - 56 };
  const xs = curves.flatMap((curve) => curve.points.map((point) => point.x)).filter((x) => x !== null);
  const low = Math.min(...xs) / 1.12;
  const high = Math.max(...xs) * 1.12;
  const [bottom, top] = range(curves.flatMap((curve) => curve.points), y);
  const across = (x) => box.left + ((box.right - box.left) * Math.log(x / low)) / Math.log(high / low);
  const up = (value) => box.bottom - ((box.bottom - box.top) * (value - bottom)) / (top - bottom);
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group", "aria-label": `${y.label} against ${axis.label}` });
  const step = niceStep(top - bottom, 6);
  for (let tick = Math.ceil(bottom / step - 1e-9) * step; tick <= top * 1.0001; tick += step) {
    svg.append(drawn("line", { class: "grid", x1: box.left, x2: box.right, y1: up(tick), y2: up(tick) }));
    const text = y.share ? `${+(100 * tick).toFixed(1)}%` : String(+tick.toPrecision(3));
    svg.append(drawn("text", { x: box.left - 6, y: up(tick) + 4, "text-anchor": "end" }, text));
  }
  let free = -Infinity;
  const ticks = xs.length ? axis.ticks ?? logTicks(low, high).map((tick) => [tick, compact(tick)]) : [];
  for (const [x, text, second] of ticks) {
    const half = 4 * Math.max(text.length, (second ?? "").length) + 4;
    if (across(x) - half < free) continue; // the label would overlap the one before it
    free = across(x) + half;
    svg.append(drawn("line", { class: "grid", x1: across(x), x2: across(x), y1: box.bottom, y2: box.bottom + 5 }));
    svg.append(drawn("text", { x: across(x), y: box.bottom + 18, "text-anchor": "middle" }, text));
    if (second) svg.append(drawn("text", { x: across(x), y: box.bottom + 33, "text-anchor": "middle" }, second));
  }
  svg.append(drawn("text", { x: (box.left + box.right) / 2, y: height - 4, "text-anchor": "middle" }, axis.label));
  if (y.chance !== null && y.chance >= bottom) svg.append(drawn("line", { class: "chance", x1: box.left, x2: box.right, y1: up(y.chance), y2: up(y.chance) }));
  const tip = element("div", { class: "tip", hidden: "" });
  const points = curves.flatMap((curve) => drawCurve(svg, curve, across, up, box, tip, host));
  walk(points);
  host.replaceChildren(svg, tip);
}

function drawCurve(svg, curve, across, up, box, tip, host) {
  const group = drawn("g", { class: `c${curve.model % 6}`, "data-model": curve.model });
  svg.append(group);
  const placed = curve.points.filter((point) => point.x !== null).sort((a, b) => curve.ordered ? 0 : a.x - b.x);
  const line = placed.map((point) => `${across(point.x).toFixed(1)},${up(point.y).toFixed(1)}`).join(" ");
  if (placed.length > 1) group.append(drawn("polyline", { class: curve.dashed ? "curve dashed" : "curve", points: line }));
  return curve.points.map((point) => {
    const x = point.x === null ? box.right - 8 : across(point.x);
    if (point.x === null) {
      group.append(drawn("line", { class: "curve dashed", x1: box.left, x2: box.right, y1: up(point.y), y2: up(point.y) }));
    }
    const node = drawn("g", { class: point.hollow ? "point hollow" : "point", tabindex: -1, role: "img", "aria-label": point.text.replaceAll("\n", ", ") });
    if (point.error) {
      const [y1, y2] = [point.y - point.error, point.y + point.error].map(up);
      const ends = [y1, y2].map((y) => `M${x - 4} ${y}h8`).join("");
      node.append(drawn("path", { class: "error", d: `M${x} ${y1}V${y2}${ends}` }));
    }
    node.append(drawn("circle", { class: "halo", cx: x, cy: up(point.y), r: 13 }), marker(curve.model, x, up(point.y), curve.small ? 3 : 5));
    const open = () => {
      tip.textContent = point.text;
      tip.hidden = false;
      const left = Math.min(Math.max(0, x - tip.offsetWidth / 2), host.clientWidth - tip.offsetWidth);
      const above = up(point.y) - tip.offsetHeight - 12;
      tip.style.left = `${left}px`;
      tip.style.top = `${above < 0 ? up(point.y) + 16 : above}px`;
    };
    const close = () => { tip.hidden = true; };
    for (const event of ["mouseenter", "focus"]) node.addEventListener(event, open);
    for (const event of ["mouseleave", "blur"]) node.addEventListener(event, close);
    group.append(node);
    return node;
  });
}

// Makes a whole chart one stop of the tab key; the arrow keys move from point to point.
function walk(points) {
  if (points.length) points[0].setAttribute("tabindex", 0);
  points.forEach((point, i) => {
    point.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      points.forEach((other) => other.setAttribute("tabindex", -1));
      const next = points[(i + step + points.length) % points.length];
      next.setAttribute("tabindex", 0);
      next.focus();
    });
  });
}
