// The pointer's read-out of the charts. The page is complete without it.
"use strict";

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
