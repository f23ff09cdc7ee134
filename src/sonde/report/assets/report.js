"use strict";
(() => {
  const root = document.documentElement;
  const media = matchMedia("(prefers-color-scheme: dark)");
  const stored = { get: () => { try { return localStorage.getItem("sonde-theme"); } catch { return null; } },
    set: (v) => { try { localStorage.setItem("sonde-theme", v); } catch { /* private mode */ } } };

  // Light and dark: what the system says, until the reader chooses; the choice is remembered.
  const button = document.getElementById("theme");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : media.matches);
  const show = () => { button.textContent = dark() ? "Light" : "Dark"; };
  const chosen = stored.get();
  if (chosen === "dark" || chosen === "light") root.dataset.theme = chosen;
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    stored.set(root.dataset.theme);
    show();
  });
  media.addEventListener("change", show);
  show();

  // Copying: a command, a table as CSV, the JSON of the report.
  const drawn = (td) => td.querySelector("img")?.alt ?? td.querySelector("svg")?.ariaLabel ?? "";
  const cell = (td) => td.dataset.v ?? (td.textContent.trim() || drawn(td));
  const quoted = (s) => (/[",\n]/.test(s) ? `"${s.replaceAll('"', '""')}"` : s);
  // A spreadsheet would run a text that begins like a formula.
  const harmless = (s) => (/^[=+@\t\r]|^-(?![\d.])/.test(s) ? `'${s}` : s);
  const csv = (table) => [...table.rows]
    .map((row) => [...row.cells].map((td) => quoted(harmless(cell(td)))).join(",")).join("\n");
  const fallback = (text) => {
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "offscreen";
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  };
  const copy = async (text) => {
    try { await navigator.clipboard.writeText(text); return true; } catch { return fallback(text); }
  };
  document.addEventListener("click", async (event) => {
    const b = event.target.closest("button[data-copy],button[data-csv],button[data-json]");
    if (!b) return;
    const { copy: plain, csv: table, json } = b.dataset;
    const opened = table && document.getElementById(table);
    const text = plain ?? (opened ? csv(opened) : document.getElementById(json).textContent);
    const label = b.textContent;
    if (b.dataset.busy) return;
    b.dataset.busy = "1";
    b.textContent = (await copy(text)) ? "Copied" : "Not allowed";
    setTimeout(() => { b.textContent = label; delete b.dataset.busy; }, 1400);
  });

  // Tooltips of marks: pointer, touch, and the arrow keys inside a picture that has the focus.
  const tip = document.getElementById("tip");
  let current = null;
  const hide = () => { tip.hidden = true; current?.classList.remove("hot"); current = null; };
  const place = (mark) => {
    if (mark === current) return;
    hide();
    current = mark;
    mark.classList.add("hot");
    tip.textContent = mark.dataset.tip.split(" · ").join("\n");
    tip.hidden = false;
    const at = mark.getBoundingClientRect();
    const box = tip.getBoundingClientRect();
    const wide = root.clientWidth;
    const x = Math.min(Math.max(at.left + at.width / 2 - box.width / 2, 8), wide - box.width - 8);
    const above = at.top - box.height - 10;
    tip.style.left = `${x + scrollX}px`;
    tip.style.top = `${(above < 4 ? at.bottom + 10 : above) + scrollY}px`;
  };
  const over = (event) => {
    const mark = event.target.closest?.("[data-tip]");
    if (mark) place(mark); else if (!document.activeElement?.matches("svg.plot")) hide();
  };
  document.addEventListener("pointerover", over);
  document.addEventListener("click", over);
  document.addEventListener("focusout", hide);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { hide(); return; }
    const plot = event.target.closest?.("svg.plot");
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!plot || !step) return;
    event.preventDefault();
    const marks = [...plot.querySelectorAll("[data-tip]")];
    if (!marks.length) return;
    const i = marks.indexOf(current);
    place(marks[(i + step + (i < 0 && step < 0 ? 1 : 0) + marks.length) % marks.length]);
  });

  // On paper every drawer is open.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((d) => { d.open = true; });
  });
  addEventListener("afterprint", () => { closed.forEach((d) => { d.open = false; }); });

  // A link to something inside a drawer opens the drawer.
  const reveal = () => {
    let part = location.hash && document.getElementById(location.hash.slice(1));
    const target = part;
    for (; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
    target?.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  if (location.hash) reveal();
})();
