// Starts the page's script. All charts share one state (axis, models shown) and are redrawn when the window changes its width.

const data = JSON.parse(document.getElementById("data").textContent);
const state = { axis: "seq_len", visible: new Set(data.models.keys()) };
const charts = [];
const redraw = () => charts.forEach((draw) => draw());

function axisButtons() {
  const bar = element("div", { class: "bar", role: "group", "aria-label": "Horizontal axis" }, element("span", {}, "Against"));
  for (const [axis, text] of [["seq_len", "tokens"], ["gflops", "GFLOPs"], ["images_per_s", "images/s"]]) {
    const button = element("button", { type: "button", "data-axis": axis, "aria-pressed": axis === state.axis }, text);
    button.addEventListener("click", () => {
      state.axis = axis;
      bar.querySelectorAll("button").forEach((each) => each.setAttribute("aria-pressed", each === button));
      redraw();
    });
    bar.append(button);
  }
  return bar;
}

function modelButtons() {
  const bar = element("div", { class: "bar", role: "group", "aria-label": "Models shown" });
  data.models.forEach((model, number) => {
    const sign = drawn("svg", { width: 14, height: 14, class: `chart c${number % 6}`, "aria-hidden": "true" }, marker(number, 7, 7, 4.5));
    sign.firstChild.setAttribute("fill", "var(--colour)");
    const button = element("button", { type: "button", class: "model", "data-model": number, "aria-pressed": true }, sign, element("span", { title: model.name }, model.short));
    button.addEventListener("click", () => {
      if (!state.visible.delete(number)) state.visible.add(number);
      button.setAttribute("aria-pressed", state.visible.has(number));
      redraw();
    });
    bar.append(button);
  });
  return bar;
}

document.documentElement.classList.add("scripted");
document.getElementById("controls").append(axisButtons(), ...(data.models.length > 1 ? [modelButtons()] : []));
data.tasks.forEach((task, number) => {
  const section = document.getElementById(`task-${number}`);
  charts.push(addCurves(section, data, task, state), addCascade(section, data, task, state));
  makeSortable(section.querySelector("table"));
  addClasses(section, data, task);
  addConfusion(section, data, task);
  addMistakes(section, data, task);
  addFound(section, data, task);
});
addEventListener("beforeprint", () => document.querySelectorAll("section details:not(.pictures)").forEach((each) => { each.open = true; }));
let width = 0;
new ResizeObserver(() => {
  if (document.body.clientWidth === width) return;
  width = document.body.clientWidth;
  redraw();
}).observe(document.body);
