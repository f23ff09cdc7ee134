/* Pages that answer a question come before lists that only contain the word. */
var Scorer = {
  score: (result) => {
    const page = result[0];
    const lists = ["papers", "benchmarks", "studies", "matrix", "faultgen", "field", "field_lm",
      "recipes", "methods", "howto", "tutorials"];
    if (lists.includes(page)) return result[4] - 6;
    if (/^(howto|tutorials|tutorial)/.test(page)) return result[4] + 3;
    return result[4];
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
