// Shows the details behind a number: the recall of each class, and the images that sampled captions found.

const rowName = (data, row) => `${row.seqhw === null ? "one length" : `seqhw ${row.seqhw}`}${data.models.length > 1 ? ` · ${data.models[row.model].short}` : ""}`;

// The bar over a list of details: a menu of the rows, and what else belongs there.
function rowBar(data, rows, row, label, onChange, ...more) {
  const names = rows.map((each, i) => [String(i), rowName(data, each)]);
  return element("div", { class: "bar" }, choiceOf(label, names, String(rows.indexOf(row)), (value) => onChange(rows[+value])), ...more);
}

// The row that is shown first: the first length that a rule chose, else the longest length.
function chosenRow(task, rows) {
  const choice = task.choices.find((each) => each.seqhw !== null);
  const chosen = choice && rows.find((row) => row.model === choice.model && row.seqhw === choice.seqhw);
  return chosen ?? rows[rows.length - 1];
}

const ORDERS = {
  worst: ["worst first", (a, b) => a.recall - b.recall],
  best: ["best first", (a, b) => b.recall - a.recall],
  loss: ["largest difference first", (a, b) => Math.abs(b.recall - b.other) - Math.abs(a.recall - a.other)],
  name: ["by name", (a, b) => a.name.localeCompare(b.name)],
};

function addClasses(section, data, task) {
  const rows = task.rows.filter((row) => row.perClass);
  if (!rows.length) return;
  let row = chosenRow(task, rows);
  let other = rows.find((each) => each.model === row.model);
  let order = "worst";
  const bars = element("div", { class: "bars", tabindex: 0, role: "list", "aria-label": "Recall of each class" });
  const draw = () => {
    const classes = task.classes.map((name, i) => ({ name, recall: row.perClass[i], other: other.perClass[i] })).filter((each) => each.recall !== null);
    classes.sort(ORDERS[order][1]);
    bars.className = `bars c${row.model % 6}`;
    bars.replaceChildren(...classes.map((each) => {
      const fill = element("div", { class: "fill" });
      const tick = element("div", { class: "tick" });
      fill.style.width = percent(each.recall);
      tick.style.left = `calc(${percent(each.other)} - 1px)`;
      const title = `${each.name}: ${percent(each.recall)}, ${percent(each.other)} with ${rowName(data, other)}`;
      return element("div", { class: "class", role: "listitem", title }, element("span", {}, each.name), element("div", { class: "track" }, fill, tick), element("span", {}, percent(each.recall)));
    }));
  };
  const names = rows.map((each, i) => [String(i), rowName(data, each)]);
  const orders = Object.entries(ORDERS).map(([key, [text]]) => [key, text]);
  section.querySelector(".classes").append(
    element("h3", {}, "Recall of each class"),
    rowBar(data, rows, row, "Model and length of the bars", (value) => { row = value; draw(); },
      element("span", {}, "compared with ", element("span", { class: "tick sample" })),
      choiceOf("Model and length of the ticks", names, String(rows.indexOf(other)), (value) => { other = rows[+value]; draw(); }),
      choiceOf("Order of the classes", orders, order, (value) => { order = value; draw(); })),
    element("p", { class: "note" }, "Bar: the recall of the first choice. Black line: that of the second."),
    bars);
  draw();
}

function shot(data, task, record, positive, caption) {
  const picture = (data.thumbs[task.dataset] ?? {})[record];
  const name = `image ${record}${positive ? ", a right one" : ""}`;
  const image = picture ? element("img", { src: `data:image/jpeg;base64,${picture}`, alt: name }) : element("div", { class: "none" }, `#${record}`);
  return element("figure", { class: positive ? "shot positive" : "shot" }, image, element("figcaption", {}, caption));
}

function hit(data, task, found) {
  const right = found.rank === 1;
  const verdict = element("span", { class: right ? "verdict right" : "verdict wrong" }, right ? "✓ right" : `✗ rank ${found.rank.toLocaleString("en")}`);
  const positives = new Set(found.positives);
  const shots = found.ranked.map((record, i) => shot(data, task, record, positives.has(record), `${i + 1}${positives.has(record) ? " ✓" : ""}`));
  if (!found.ranked.some((record) => positives.has(record))) {
    const wanted = shot(data, task, found.positives[0], true, "wanted");
    wanted.classList.add("wanted");
    shots.push(wanted);
  }
  return element("article", { class: "hit" }, element("p", {}, verdict, ` “${found.caption}”`), element("div", { class: "shots" }, ...shots));
}

function addFound(section, data, task) {
  const rows = task.rows.filter((row) => row.found && row.found.length);
  if (!rows.length) return;
  let row = chosenRow(task, rows);
  let which = "all";
  const hits = element("div", { class: "hits" });
  const count = element("p", { class: "note", "aria-live": "polite" });
  const draw = () => {
    const found = row.found.filter((each) => which === "all" || (each.rank === 1) === (which === "right"));
    hits.replaceChildren(...found.map((each) => hit(data, task, each)));
    count.textContent = `${found.length} of ${row.found.length} sampled captions. Right and wrong are sampled apart, so their shares here are not the recall.`;
  };
  section.querySelector(".found").append(
    element("h3", {}, "What captions found"),
    rowBar(data, rows, row, "Model and length", (value) => { row = value; draw(); },
      choiceOf("Which captions", [["all", "right and wrong"], ["right", "right at rank 1"], ["wrong", "wrong at rank 1"]], which, (value) => { which = value; draw(); })),
    count, hits);
  draw();
}
