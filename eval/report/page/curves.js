// Draws the curves of a task against tokens, GFLOPs or images/s, and its cascade, and makes its table sortable by a click.

const AXES = { seq_len: "tokens per image (patch size below)", gflops: "GFLOPs per image", images_per_s: "images/s (faster is to the right)" };

function choiceOf(label, options, chosen, onChange) {
  const select = element("select", { "aria-label": label });
  options.forEach(([value, text]) => select.append(element("option", { value }, text)));
  select.value = chosen;
  select.addEventListener("change", () => onChange(select.value));
  return select;
}

const patchText = (row) => (Array.isArray(row.patch_size) ? row.patch_size.join("×") : row.patch_size);

function rowText(data, metric, row) {
  const length = row.seqhw === null ? "one fixed length" : `seqhw ${row.seqhw} · ${row.seq_len} tokens · patch ${patchText(row) ?? "–"}`;
  const costs = `${compact(row.gflops)} GFLOPs · ${compact(row.images_per_s)} images/s`;
  return `${data.models[row.model].short}\n${metric.name} ${shown(metric, row.metrics[metric.key])}${errorText(metric, row)}\n${length}\n${costs}`;
}

const errorOf = (metric, row) => (row.standard_errors ?? {})[metric.key] ?? null;

function errorText(metric, row) {
  const error = errorOf(metric, row);
  return error === null ? "" : ` ±${((metric.share ? 100 : 1) * error).toFixed(1)}`;
}

function lengthCurves(data, task, metric, axis, visible) {
  return data.models.flatMap((model, number) => {
    const rows = task.rows.filter((row) => row.model === number && metric.key in row.metrics);
    if (!visible.has(number) || !rows.length) return [];
    const points = rows.map((row) => ({
      x: row[axis],
      y: row.metrics[metric.key],
      error: errorOf(metric, row),
      hollow: model.trained.length > 0 && !model.trained.includes(row.seqhw),
      text: rowText(data, metric, row),
    }));
    return [{ model: number, points }];
  });
}

function tokenTicks(task, visible) {
  const ticks = new Map();
  for (const row of task.rows) {
    const patch = patchText(row);
    if (visible.has(row.model) && row.seq_len !== null) ticks.set(row.seq_len, [row.seq_len, String(row.seq_len), patch === null ? "" : `${patch} px`]);
  }
  return [...ticks.values()].sort((a, b) => a[0] - b[0]);
}

function addCurves(section, data, task, state) {
  const host = element("div", { class: "chart" });
  const fromZero = element("button", { type: "button" }, "from 0");
  let metric = task.primary;
  let whole = null; // decided by the first curves that are drawn, then by the button
  const draw = () => {
    const axis = { label: AXES[state.axis], ticks: state.axis === "seq_len" ? tokenTicks(task, state.visible) : null };
    const { share, chance, name } = task.metrics[metric];
    const curves = lengthCurves(data, task, task.metrics[metric], state.axis, state.visible);
    const zero = whole ?? !isSqueezed(curves.flatMap((curve) => curve.points));
    fromZero.setAttribute("aria-pressed", zero);
    drawChart(host, curves, axis, { share, chance, label: name, whole: zero });
  };
  fromZero.addEventListener("click", () => { whole = fromZero.getAttribute("aria-pressed") !== "true"; draw(); });
  const options = task.metrics.map((each, i) => [String(i), each.name]);
  const select = choiceOf("Metric", options, String(metric), (value) => { metric = +value; draw(); });
  const partly = data.models.some((model) => model.trained.length && task.rows.some((row) => data.models[row.model] === model && !model.trained.includes(row.seqhw)));
  const bars = task.rows.some((row) => row.standard_errors) ? " Bars: one standard error." : "";
  const note = `Dotted: chance.${bars}${partly ? " Hollow: a length that the model was not trained at." : ""}`;
  const bar = element("div", { class: "bar" }, element("span", {}, "Metric"), select, element("span", {}, "Vertical axis"), fromZero);
  section.querySelector(".curves").append(bar, host, element("p", { class: "note" }, note));
  return draw;
}

function addCascade(section, data, task, state) {
  const curves = task.cascades.filter((curve) => curve.points.some((point) => point.gflops_per_image !== null));
  if (!curves.length) return () => {};
  const usable = task.metrics.flatMap((metric, i) => (metric.key in curves[0].points[0].metrics ? [[String(i), metric.name]] : []));
  let metric = usable.some(([i]) => +i === task.primary) ? task.primary : +usable[0][0];
  const host = element("div", { class: "chart" });
  const draw = () => {
    const { key, share, chance, name } = task.metrics[metric];
    const single = lengthCurves(data, task, task.metrics[metric], "gflops", state.visible).filter((curve) => curves.some((each) => each.model === curve.model));
    const cascades = curves.filter((curve) => state.visible.has(curve.model)).map((curve) => ({
      model: curve.model,
      dashed: true,
      small: true,
      ordered: true, // by K, because the last point, the long length alone, may cost less than the point before it
      points: curve.points.map((point) => ({
        x: point.gflops_per_image,
        y: point.metrics[key],
        hollow: true,
        text: `${data.models[curve.model].short}\nseqhw ${curve.short}, the first ${point.shortlist} again at ${curve.long}\n${name} ${shown(task.metrics[metric], point.metrics[key])}\n${compact(point.gflops_per_image)} GFLOPs per image, ${compact(point.gflops_per_query)} per new caption\n${percent(point.reranked)} of the images encoded twice`,
      })),
    }));
    drawChart(host, [...single, ...cascades], { label: "GFLOPs per gallery image, all captions asked once", ticks: null }, { share, chance, label: name, whole: true });
  };
  const select = choiceOf("Metric of the cascade", usable, String(metric), (value) => { metric = +value; draw(); });
  const gains = curves.some((curve) => gainsAnything(curve, task, task.metrics[metric].key));
  const fold = element("details", gains ? { open: "" } : {},
    element("summary", {}, element("h3", {}, "Cascade: rank with a short length, rank the first K again with a long one"), gains ? "" : " Here a single length is as good for the same cost."),
    element("div", { class: "bar" }, element("span", {}, "Metric"), select), host,
    element("p", { class: "note" }, "Filled: one length for every image. Hollow and dashed: the cascade as K grows, from the short length alone to the long one alone."),
  );
  fold.addEventListener("toggle", draw); // a chart that is folded has no width
  section.querySelector(".cascade").append(fold);
  return draw;
}

// Whether any point of a cascade is better than every single length of its model that costs no more.
function gainsAnything(curve, task, key) {
  const single = task.rows.filter((row) => row.model === curve.model && row.gflops !== null);
  return curve.points.slice(1, -1).some((point) => point.gflops_per_image !== null
    && single.every((row) => row.gflops > point.gflops_per_image || row.metrics[key] < point.metrics[key]));
}

function makeSortable(table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  heads.forEach((head, column) => {
    const button = element("button", { type: "button" }, ...head.childNodes);
    head.replaceChildren(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [row.cells[column].dataset.value, row]);
      rows.sort(([a], [b]) => {
        if (a === "" || b === "") return a === b ? 0 : a === "" ? 1 : -1; // unknown values come last in both orders
        const order = Number.isNaN(+a) || Number.isNaN(+b) ? a.localeCompare(b) : a - b;
        return down ? -order : order;
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}
