"use strict";
// Filters for the trajectories and a read-out for the charts. The page is complete without either.

(function filters() {
  const form = document.querySelector(".filters");
  if (!form) return;
  document.documentElement.classList.add("js");
  const list = document.querySelector(".cards");
  const more = document.querySelector(".more");
  const cards = [...list.children].map((node, index) => ({
    node,
    index,
    stage: node.dataset.stage,
    task: node.dataset.task,
    status: node.dataset.status,
    step: Number(node.dataset.step),
    reward: node.dataset.reward === "" ? null : Number(node.dataset.reward),
  }));
  const PAGE = 12;
  let limit = PAGE;

  const stages = [...new Set(cards.map((card) => card.stage))];
  for (const key of ["stage", "task", "status"]) {
    const values = [...new Set(cards.map((card) => card[key]))];
    for (const value of values) form.elements[key].add(new Option(value, value));
    if (values.length < 2) form.elements[key].closest("label").hidden = true;
  }

  // Unscored trajectories come last in either order.
  const byReward = (a, b, sign) => {
    if (a.reward === null || b.reward === null) return (a.reward === null) - (b.reward === null);
    return sign * (a.reward - b.reward);
  };
  const position = (card) => stages.indexOf(card.stage) * 1e9 + card.step;
  const orders = {
    late: (a, b) => position(b) - position(a) || a.index - b.index,
    early: (a, b) => position(a) - position(b) || a.index - b.index,
    best: (a, b) => byReward(a, b, -1) || a.index - b.index,
    worst: (a, b) => byReward(a, b, 1) || a.index - b.index,
  };

  function show() {
    const wanted = (name) => form.elements[name].value;
    const low = wanted("low") === "" ? null : Number(wanted("low"));
    const high = wanted("high") === "" ? null : Number(wanted("high"));
    const matching = cards.filter(
      (card) =>
        ["stage", "task", "status"].every((key) => !wanted(key) || card[key] === wanted(key)) &&
        (low === null || (card.reward !== null && card.reward >= low)) &&
        (high === null || (card.reward !== null && card.reward <= high)),
    );
    matching.sort(orders[wanted("order")]);
    for (const card of cards) card.node.hidden = true;
    matching.forEach((card, rank) => {
      card.node.hidden = rank >= limit;
      list.append(card.node);
    });
    more.hidden = matching.length <= limit;
    more.textContent = `Show ${Math.min(PAGE, matching.length - limit)} more of ${matching.length - limit}`;
    form.querySelector("output").textContent =
      matching.length === cards.length ? "" : `${matching.length} of ${cards.length} match`;
  }

  form.addEventListener("input", () => {
    limit = PAGE;
    show();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => {
    limit += PAGE;
    show();
  });
  show();
})();

(function readOuts() {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);

  const write = (value) => {
    if (value === null) return "–";
    const size = Math.abs(value);
    return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  };

  function cell(tag, text, className) {
    const node = document.createElement(tag);
    node.textContent = text;
    if (className) node.className = className;
    return node;
  }

  for (const chart of document.querySelectorAll(".chart[data-hover]")) {
    const svg = chart.querySelector("svg");
    const cursor = svg.querySelector(".cursor");
    const colours = [...svg.querySelectorAll("g")].map((group) => group.getAttribute("class"));
    let data = null;

    svg.addEventListener("pointermove", (event) => {
      data = data || JSON.parse(chart.dataset.hover);
      const frame = svg.getBoundingClientRect();
      const x = ((event.clientX - frame.left) / frame.width) * svg.viewBox.baseVal.width;
      let nearest = 0;
      data.px.forEach((px, index) => {
        if (Math.abs(px - x) < Math.abs(data.px[nearest] - x)) nearest = index;
      });
      cursor.setAttribute("d", `M${data.px[nearest]} 8V${svg.viewBox.baseVal.height - 22}`);
      tip.replaceChildren(cell("div", `step ${data.x[nearest].toLocaleString("en")}`, "tip-step"));
      data.rows.slice(0, 12).forEach(([label, values, smoothed], index) => {
        const row = cell("div", "", `tip-row ${colours[index]}`);
        row.append(cell("b", ""), cell("span", label), cell("em", write(values[nearest])));
        if (smoothed.length) row.append(cell("small", `~ ${write(smoothed[nearest])}`));
        tip.append(row);
      });
      tip.hidden = false;
      const left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8);
      const above = event.clientY + 18 + tip.offsetHeight > window.innerHeight;
      tip.style.left = `${Math.max(8, left)}px`;
      tip.style.top = `${above ? event.clientY - tip.offsetHeight - 12 : event.clientY + 18}px`;
    });
    svg.addEventListener("pointerleave", () => {
      tip.hidden = true;
      cursor.setAttribute("d", "");
    });
  }
})();
