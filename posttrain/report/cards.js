// Filters for the trajectories, the choice of what colours their tokens, and crops that light up with their boxes.
// The page is complete without them.
"use strict";

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
    calls: node.dataset.calls,
    failed: Number(node.dataset.failed),
    step: Number(node.dataset.step),
    reward: node.dataset.reward === "" ? null : Number(node.dataset.reward),
  }));
  const PAGE = 12;
  let limit = PAGE;

  const stages = [...new Set(cards.map((card) => card.stage))];
  const keys = ["stage", "task", "status", "calls"];
  for (const key of keys) {
    const values = [...new Set(cards.map((card) => card[key]))];
    if (key === "calls") values.sort((a, b) => a - b);
    for (const value of values) form.elements[key].add(new Option(value, value));
    if (values.length < 2) form.elements[key].closest("label").hidden = true;
  }
  form.elements.failed.closest("label").hidden = !cards.some((card) => card.failed);

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
    most: (a, b) => b.calls - a.calls || a.index - b.index,
  };

  function show() {
    const wanted = (name) => form.elements[name].value;
    const low = wanted("low") === "" ? null : Number(wanted("low"));
    const high = wanted("high") === "" ? null : Number(wanted("high"));
    const matching = cards.filter(
      (card) =>
        keys.every((key) => !wanted(key) || card[key] === wanted(key)) &&
        (!form.elements.failed.checked || card.failed) &&
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

  form.addEventListener("input", (event) => {
    if (event.target.name === "shade") {
      form.closest("section").dataset.shade = event.target.value;
      return;
    }
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

(function crops() {
  const list = document.querySelector(".cards");
  if (!list) return;
  let lit = [];
  const light = (event) => {
    const crop = event.target.closest("[data-crop]");
    for (const node of lit) node.classList.remove("lit");
    lit = crop ? [...crop.closest(".card").querySelectorAll(`[data-crop="${crop.dataset.crop}"]`)] : [];
    for (const node of lit) node.classList.add("lit");
  };
  for (const name of ["pointerover", "focusin"]) list.addEventListener(name, light);
  list.addEventListener("pointerleave", light);
})();
