// Filter the table of studies by words, verdict and family; ?words=, ?verdict= and ?family= preset it.
(() => {
  const form = document.querySelector(".study-filter");
  const rows = [...document.querySelectorAll("table.studies tbody tr")];
  const texts = rows.map((row) => `${row.dataset.systems} ${row.textContent}`.toLowerCase());
  const given = new URLSearchParams(location.search);
  for (const name of ["words", "verdict", "family"]) {
    if (given.has(name)) form.elements[name].value = given.get(name);
  }
  const show = () => {
    const words = form.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const verdict = form.elements.verdict.value;
    const family = form.elements.family.value;
    let shown = 0;
    rows.forEach((row, index) => {
      const fits =
        words.every((word) => texts[index].includes(word)) &&
        (!verdict || row.dataset.verdict === verdict) &&
        (!family || row.dataset.family.split(" ").includes(family));
      row.hidden = !fits;
      shown += fits;
    });
    form.elements.count.value = `${shown} of ${rows.length} rows`;
  };
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  show();
})();
