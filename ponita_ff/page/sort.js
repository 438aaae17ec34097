// Tables that are sorted by a click (or Enter) on the head of a column: those of the class "sortable", and on the site
// all of a page with the class on its article. Rows move inside their own <tbody>, and a row of headings stays first.
(() => {
  "use strict";

  const number = (text) => {
    const found = text.replace(/[−–](?=\d)/g, "-").replace(/,(?=\d{3})/g, "").match(/-?\d+(\.\d+)?(e-?\d+)?/i);
    return found ? Number(found[0]) : NaN;
  };

  const value = (row, column) => {
    const cell = row.cells[column];
    return cell ? (cell.dataset.sort ?? cell.textContent).trim() : "";
  };

  const compare = (column) => (one, other) => {
    const [a, b] = [value(one, column), value(other, column)];
    const [x, y] = [number(a), number(b)];
    if (column > 0 || (/^[-−\d.]/.test(a) && /^[-−\d.]/.test(b))) {
      if (!Number.isNaN(x) && !Number.isNaN(y)) return x - y;
      if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;  // without a number: last
    }
    return a.localeCompare(b);
  };

  const sort = (table, head) => {
    const descending = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    for (const body of table.tBodies) {
      const rows = [...body.rows].filter((row) => !row.classList.contains("check"));
      rows.sort(compare(head.cellIndex));
      if (descending) rows.reverse();
      body.append(...rows);
    }
  };

  const prepare = (table) => {
    if (!table.tHead || table.dataset.prepared) return;
    table.dataset.prepared = "yes";
    for (const head of table.tHead.rows[0].cells) {
      if (!head.textContent.trim()) continue;
      head.setAttribute("aria-sort", "none");
      head.tabIndex = 0;
      head.addEventListener("click", () => sort(table, head));
      head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(table, head); });
    }
  };

  const start = () => document.querySelectorAll("table.sortable, .sortable table").forEach(prepare);
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
