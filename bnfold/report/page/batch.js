"use strict";
(() => {
  const all = (selector, from) => [...(from || document).querySelectorAll(selector)];
  const one = selector => document.querySelector(selector);
  document.documentElement.classList.add("scripted");

  // An outcome and a word narrow the table, a column orders it, and all three stand in the address.
  const body = one("#table tbody"), search = one("#search"), count = one("#count");
  const rows = all("tr", body).map(row => ({ row, text: row.textContent.toLowerCase(), outcome: row.dataset.a }));
  const heads = all("#table th button");
  let outcome = "", column = -1, way = 1;
  const value = (row, index) => {
    const cell = row.children[index];
    return cell.dataset.v === undefined ? cell.textContent.trim().toLowerCase() : Number(cell.dataset.v);
  };
  const narrow = () => {
    const word = search.value.trim().toLowerCase();
    let shown = 0;
    for (const each of rows) {
      each.row.hidden = !((!outcome || each.outcome === outcome) && each.text.includes(word));
      shown += !each.row.hidden;
    }
    count.textContent = shown === rows.length ? `${shown} shown` : `${shown} of ${rows.length} shown`;
    for (const button of all("#choices button")) button.setAttribute("aria-pressed", button.dataset.filter === outcome);
  };
  const order = () => {
    if (column < 0) return;
    const sorted = rows.map(each => [value(each.row, column), each.row]);
    sorted.sort(([a], [b]) => way * (typeof a === "number" ? a - b : a < b ? -1 : a > b ? 1 : 0));
    body.append(...sorted.map(([, row]) => row));
    heads.forEach((head, index) => {
      if (index === column) head.parentElement.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
      else head.parentElement.removeAttribute("aria-sort");
    });
  };
  const remember = () => {
    const parts = new URLSearchParams();
    if (outcome) parts.set("filter", outcome);
    if (search.value.trim()) parts.set("search", search.value.trim());
    if (column >= 0) parts.set("sort", (way < 0 ? "-" : "") + heads[column].textContent);
    history.replaceState(null, "", parts.size ? "#" + parts : location.pathname + location.search);
  };
  const recall = () => {
    const parts = new URLSearchParams(location.hash.slice(1)), sort = parts.get("sort") || "";
    outcome = parts.get("filter") || "";
    search.value = parts.get("search") || "";
    way = sort.startsWith("-") ? -1 : 1;
    column = heads.findIndex(head => head.textContent === sort.replace(/^-/, ""));
    narrow(); order();
  };
  search.addEventListener("input", () => { narrow(); remember(); });
  one("#choices").addEventListener("click", event => {
    if (event.target.dataset.filter === undefined) return;
    outcome = event.target.dataset.filter;
    narrow(); remember();
  });
  heads.forEach((head, index) => head.addEventListener("click", () => {
    way = column === index ? -way : index < 2 ? 1 : -1; // of numbers the largest first
    column = index;
    order(); remember();
  }));
  addEventListener("hashchange", recall);
  recall();
})();
