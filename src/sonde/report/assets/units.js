(() => {
  // An atlas: a drawer for each unit, filled when it is opened; a field that finds them by words.
  const list = document.getElementById("unit-list");
  if (!list) return;
  const found = JSON.parse(document.getElementById("sonde").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const el = (tag, text, cls) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (cls) made.className = cls;
    return made;
  };
  const said = (v) => (v === null || v === undefined ? "–" : String(Number(v.toPrecision(3))));
  const part = (box, title, body) => { if (body) box.append(el("h4", title), body); };

  const histogram = ({ low, width, counts }) => {
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${counts.length * 4} 60`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    svg.setAttribute("class", "unit-histogram");
    const high = low + width * counts.length;
    svg.setAttribute("aria-label", `values from ${said(low)} to ${said(high)}`);
    const top = Math.log1p(Math.max(...counts));
    counts.forEach((n, i) => {
      const bar = document.createElementNS(SVG, "rect");
      const tall = (56 * Math.log1p(n)) / top;
      const at = { x: 4 * i, y: 60 - tall, width: 3.4, height: tall };
      Object.entries(at).forEach(([k, v]) => bar.setAttribute(k, v));
      bar.dataset.tip = `${said(low + i * width)} to ${said(low + (i + 1) * width)} · ${n} rows`;
      svg.append(bar);
    });
    return svg;
  };

  const passage = (one) => {
    const text = el("span", one.t[0], "unit-text");
    text.append(el("mark", one.t[1]), one.t[2]);
    return text;
  };
  const picture = (one) => {
    const image = el("img");
    image.src = found.inputs[one.e];
    image.alt = one.l === undefined ? `input ${one.e}` : `input ${one.e}, ${one.l}`;
    image.className = "unit-picture";
    return image;
  };
  const row = (one) => {
    const item = el("li");
    item.append(el("span", said(one.v), "unit-value"));
    if (one.t) item.append(passage(one));
    if (found.inputs[one.e]) item.append(picture(one));
    const label = one.l === undefined ? "" : `${one.l} · `;
    const place = one.e === undefined ? "" : `${label}input ${one.e}, place ${one.p}`;
    item.append(el("span", place, "unit-place"));
    return item;
  };
  const rows = (some) => {
    if (!some.length) return null;
    const made = el("ol", undefined, "unit-rows");
    made.append(...some.map(row));
    return made;
  };
  const words = (pairs) => pairs && el("p", pairs.map(([t, v]) => `${JSON.stringify(t)} ${said(v)}`).join(", ") || "none");

  // What a unit is highest on stands beside its name: some pictures, or one passage.
  const THUMBNAILS = 6;
  const show = (drawer) => {
    const box = drawer.querySelector(".unit-seen");
    const best = found.units[Number(drawer.dataset.unit)].rows.filter((one) => one.r === "top");
    const known = new Map(best.filter((one) => found.inputs[one.e]).map((one) => [one.e, one]));
    const text = best.find((one) => one.t);
    if (known.size) box.append(...[...known.values()].slice(0, THUMBNAILS).map(picture));
    else if (text) box.append(passage(text));
  };
  const watcher = new IntersectionObserver((seen) => seen.filter((one) => one.isIntersecting).forEach((one) => {
    watcher.unobserve(one.target);
    show(one.target);
  }), { rootMargin: "400px" });

  const fill = (drawer) => {
    const box = drawer.querySelector(".inside");
    if (!drawer.open || box.childElementCount) return;
    const unit = found.units[Number(drawer.dataset.unit)];
    part(box, "Values of all rows (height: logarithm of their number)", histogram(unit.histogram));
    box.append(el("p", `Above 0 on ${said(100 * unit.above)} % of the rows.`));
    if (unit.concept !== undefined) {
      const label = `${unit.concept}: overlap ${said(unit.overlap)}, by chance ${said(unit.chance)}`;
      part(box, unit.labelled ? "Label" : "Nearest concept, no label", el("p", label));
    }
    if (unit.writes) {
      part(box, "Tokens that it writes", words(unit.writes));
      part(box, "Tokens that it writes against", words(unit.against));
    }
    if (unit.clamped) {
      const moved = el("p", `Held at ${said(unit.clamped.to)}, the answers move by ${said(unit.clamped.kl)} nats. More likely: `);
      moved.append(words(unit.clamped.up).textContent, ". Less likely: ", words(unit.clamped.down).textContent, ".");
      part(box, "What clamping it changes", moved);
    }
    part(box, "Highest", rows(unit.rows.filter((one) => one.r === "top")));
    const ranges = [...new Set(unit.rows.map((one) => one.r))].filter((r) => r !== "top");
    ranges.forEach((r) => {
      const title = r === "rest" ? "Lower" : `From ${r}`;
      part(box, title, rows(unit.rows.filter((one) => one.r === r)));
    });
  };
  list.addEventListener("toggle", (event) => fill(event.target), true);
  list.querySelectorAll("details[open]").forEach(fill);

  const field = document.getElementById("unit-search");
  const count = document.getElementById("unit-count");
  const drawers = [...list.children];
  const texts = drawers.map((d) => d.dataset.words.toLowerCase());
  const search = () => {
    const asked = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let n = 0;
    drawers.forEach((drawer, i) => {
      const is = asked.every((w) => (/^\d+$/.test(w) ? drawer.dataset.unit === w : texts[i].includes(w)));
      drawer.hidden = !is;
      n += is;
    });
    count.textContent = `${n} of ${drawers.length}`;
  };
  field.addEventListener("input", search);

  const rank = {
    unit: (unit) => unit.unit,
    max: (unit) => -unit.max,
    overlap: (unit) => -(unit.labelled ? 1 + unit.overlap : unit.overlap),
    kl: (unit) => (unit.clamped ? -unit.clamped.kl : 1),
  };
  const order = document.getElementById("unit-order");
  order.addEventListener("change", () => {
    const key = rank[order.value];
    const of = (drawer) => key(found.units[Number(drawer.dataset.unit)]);
    list.append(...[...drawers].sort((a, b) => of(a) - of(b)));
  });
  drawers.forEach((drawer) => watcher.observe(drawer));
  search();
})();
