// Shows the mistakes of a classification: the confusion matrix, or the most frequent confusions, and wrong images.

const MATRIX = 40; // classes; of more, only the most frequent confusions are in the data

function addConfusion(section, data, task) {
  const rows = task.rows.filter((row) => row.confusion && row.confusion.length);
  if (!rows.length) return;
  let row = chosenRow(task, rows);
  const host = element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Confusions" });
  const whole = task.classes.length <= MATRIX;
  const draw = () => host.replaceChildren(whole ? matrix(task, row) : confusions(task, row));
  const note = whole ? "A line per class: how many of its images got which class. Darker: a larger share of the class." : "The most frequent wrong answers.";
  section.querySelector(".confusion").append(
    element("h3", {}, whole ? "Confusion matrix" : "Confusions"),
    rowBar(data, rows, row, "Model and length of the confusions", (value) => { row = value; draw(); }),
    element("p", { class: "note" }, note), host);
  draw();
}

function matrix(task, row) {
  const counts = new Map(row.confusion.map(([label, named, count]) => [`${label} ${named}`, count]));
  const totals = task.classes.map((_, label) => row.confusion.reduce((sum, [own, , count]) => sum + (own === label ? count : 0), 0));
  const head = element("tr", {}, element("th", { class: "length", scope: "col" }, "class ↓ named →"));
  task.classes.forEach((name) => head.append(element("th", { scope: "col", class: "named", title: name }, element("span", {}, name))));
  const body = element("tbody");
  task.classes.forEach((name, label) => {
    const line = element("tr", {}, element("th", { class: "length", scope: "row", title: name }, name));
    task.classes.forEach((other, named) => {
      const count = counts.get(`${label} ${named}`) ?? 0;
      const cell = element("td", { title: `${name} named ${other}: ${count} of ${totals[label]}` }, count ? count.toLocaleString("en") : "");
      if (count) {
        cell.className = label === named ? "cell right" : "cell wrong";
        cell.style.setProperty("--share", `${Math.round(12 + (60 * count) / totals[label])}%`);
      }
      line.append(cell);
    });
    body.append(line);
  });
  return element("table", { class: "matrix" }, element("thead", {}, head), body);
}

function confusions(task, row) {
  const head = element("tr", {}, ...["class", "named", "images"].map((text, i) => element("th", { scope: "col", class: i < 2 ? "text" : "" }, text)));
  const lines = row.confusion.map(([label, named, count]) => element("tr", {}, element("td", { class: "text" }, task.classes[label]), element("td", { class: "text" }, task.classes[named]), element("td", {}, count.toLocaleString("en"))));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...lines));
}

function addMistakes(section, data, task) {
  const rows = task.rows.filter((row) => row.mistakes && row.mistakes.length);
  if (!rows.length) return;
  let row = chosenRow(task, rows);
  const shots = element("div", { class: "shots wide" });
  const count = element("p", { class: "note", "aria-live": "polite" });
  const draw = () => {
    shots.replaceChildren(...row.mistakes.map((each) => {
      const told = element("span", {}, element("b", {}, task.classes[each.named]), element("br"), `is ${task.classes[each.label]}, at rank ${each.rank.toLocaleString("en")}`);
      return shot(data, task, each.image, false, told);
    }));
    count.textContent = `${row.mistakes.length} wrong images, spread over the data set. Bold: the class that the model named.`;
  };
  section.querySelector(".mistakes").append(
    element("h3", {}, "Wrong images"),
    rowBar(data, rows, row, "Model and length of the wrong images", (value) => { row = value; draw(); }),
    count, shots);
  draw();
}
