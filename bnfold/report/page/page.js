"use strict";
(() => {
  const all = (selector, from) => [...(from || document).querySelectorAll(selector)];
  const one = (selector, from) => (from || document).querySelector(selector);
  document.documentElement.classList.add("scripted");

  // The table: what says the same is one row until it is opened. A word and a kind narrow it, and both stand in the
  // address, so that a view can be sent on.
  const bodies = all("#table tbody").map(body => {
    const rows = all("tr[data-a]", body).map(row => ({ row, text: row.textContent.toLowerCase(), marks: row.dataset.a.split(" ") }));
    return { head: one("tr.group", body), opens: one("button.opens", body), rows, open: false };
  });
  const total = bodies.reduce((sum, part) => sum + part.rows.length, 0);
  const search = one("#search"), count = one("#count"), openAll = one("#open");
  let kind = "";
  const narrow = () => {
    const word = search ? search.value.trim().toLowerCase() : "";
    let shown = 0;
    for (const { head, opens, rows, open } of bodies) {
      const show = !head || open || word;  // who looks for a name wants to see it
      let fitting = 0;
      for (const { row, text, marks } of rows) {
        const fits = (!kind || marks.includes(kind)) && text.includes(word);
        row.hidden = !(fits && show);
        if (row.nextElementSibling && row.nextElementSibling.className === "more") row.nextElementSibling.hidden = row.hidden;
        fitting += fits;
      }
      if (head) {
        head.hidden = !fitting;
        opens.setAttribute("aria-expanded", Boolean(show));
        opens.disabled = Boolean(word);
      }
      shown += fitting;
    }
    if (count) count.textContent = shown === total ? `${shown} shown` : `${shown} of ${total} shown`;
    if (openAll) openAll.setAttribute("aria-pressed", bodies.every(body => !body.head || body.open));
    for (const button of all("#choices button")) button.setAttribute("aria-pressed", button.dataset.filter === kind);
  };
  const expand = (part, value) => { part.open = value; narrow(); };
  for (const part of bodies) if (part.head) part.opens.addEventListener("click", () => expand(part, !part.open));
  if (openAll) openAll.addEventListener("click", () => {
    const value = openAll.getAttribute("aria-pressed") !== "true";
    for (const part of bodies) part.open = value;
    narrow();
  });
  const reveal = id => {  // a link into the table opens what it points at
    const part = bodies.find(part => part.rows.some(({ row }) => row.id === id));
    if (part && part.head && !part.open) { expand(part, true); document.getElementById(id).scrollIntoView(); }
  };
  const remember = () => {
    const parts = new URLSearchParams();
    if (kind) parts.set("filter", kind);
    if (search.value.trim()) parts.set("search", search.value.trim());
    history.replaceState(null, "", parts.size ? "#" + parts : location.pathname + location.search);
  };
  const recall = () => {
    const hash = location.hash.slice(1);
    if (/^b\d+$/.test(hash)) reveal(hash);
    if (!/^(filter|search|find|zoom|plot)=/.test(hash)) return;
    const parts = new URLSearchParams(hash);
    if (search) {
      kind = parts.get("filter") || "";
      search.value = parts.get("search") || "";
      narrow();
    }
    if (parts.has("plot")) { reveal("b" + Number(parts.get("plot"))); const button = one(`button.plot[data-i="${Number(parts.get("plot"))}"]`); if (button) toggle(button); }
    for (const graph of graphs) {
      if (parts.has("zoom")) graph.zoom(parts.get("zoom"));
      if (parts.has("find")) graph.find(parts.get("find"));
    }
  };
  if (search) {
    search.addEventListener("input", () => { narrow(); remember(); });
    one("#choices").addEventListener("click", event => {
      if (event.target.dataset.filter === undefined) return;
      kind = event.target.dataset.filter;
      narrow(); remember();
    });
  }

  // A plot of every channel, drawn when it is asked for.
  const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  const affines = new Map(JSON.parse(one("#affines").textContent).map(item => [item.i, item]));
  const numbers = ([low, high, text]) => Array.from({ length: text.length / 2 }, (_, i) =>
    low + (high - low) * (digits.indexOf(text[2 * i]) * 64 + digits.indexOf(text[2 * i + 1])) / 4095);
  const make = (name, attributes, inside) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    if (inside) element.textContent = inside;
    return element;
  };
  const plot = (title, values, flags) => {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    const low = Math.min(0, ...values), high = Math.max(0, ...values), span = high - low || 1, n = values.length;
    const y = value => 96 - 92 * (value - low) / span;
    const paths = { up: "", down: "", near: "" };
    values.forEach((value, i) => {
      const way = "zb".includes(flags[i]) ? "near" : flags[i] === "n" ? "down" : "up";
      paths[way] += `M${i + 0.5} ${y(0).toFixed(2)}V${y(value).toFixed(2)}`;
      if (way === "near") paths.near += `M${i + 0.5} 0V4M${i + 0.5} 96V100`;
    });
    const svg = make("svg", { viewBox: `0 0 ${n} 100`, preserveAspectRatio: "none", role: "img" });
    const thick = Math.max(1, Math.min(6, 500 / n));
    svg.append(make("path", { class: "zero", d: `M0 ${y(0)}H${n}` }));
    for (const way in paths) svg.append(make("path", { class: way, d: paths[way], "stroke-width": thick }));
    const words = { ".": "", n: ", negative", z: ", near 0", b: ", negative, near 0" };
    const still = `${title}: ${low === 0 && Math.min(...values) > 0 ? Math.min(...values).toPrecision(3) : Math.min(...values).toPrecision(3)} to ${Math.max(...values).toPrecision(3)}, ${n} channels`;
    caption.textContent = still;
    svg.addEventListener("mousemove", event => {
      const i = Math.min(n - 1, Math.floor(n * event.offsetX / svg.clientWidth));
      if (i >= 0) caption.textContent = `channel ${i}: ${title} about ${values[i].toPrecision(3)}${words[flags[i]]}`;
    });
    svg.addEventListener("mouseleave", () => { caption.textContent = still; });
    figure.append(caption, svg);
    return figure;
  };
  const toggle = button => {
    const row = button.closest("tr"), opened = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", !opened);
    if (opened) { row.nextElementSibling.remove(); return; }
    const item = affines.get(Number(button.dataset.i)), more = document.createElement("tr"), cell = more.insertCell();
    more.className = "more";
    cell.colSpan = row.cells.length;
    const plots = document.createElement("div");
    plots.className = "plots";
    plots.append(plot("scale", numbers(item.a), item.f), plot("shift", numbers(item.b), ".".repeat(item.f.length)));
    cell.append(plots);
    row.after(more);
  };
  for (const button of all("button.plot")) button.addEventListener("click", () => toggle(button));

  // The graphs: find a layer, zoom.
  const graphs = all("section.graph").map(section => {
    const picture = one(".picture", section), field = one(".find", section), found = one(".found", section);
    let lines = null, hits = [], at = -1;
    const show = () => {
      for (const hit of hits) hit.classList.toggle("now", hit === hits[at]);
      found.textContent = field.value ? (hits.length ? `${at + 1} of ${hits.length}` : "nothing found") : "";
      if (!hits[at]) return;
      const box = hits[at].getBoundingClientRect(), frame = picture.getBoundingClientRect();
      picture.scrollTop += box.top - frame.top - picture.clientHeight / 2;
    };
    const find = word => {
      field.value = word;
      word = word.trim().toLowerCase();
      lines = lines || all("g.r", section).map(line => [line, line.textContent.toLowerCase()]);
      for (const hit of hits) hit.classList.remove("hit", "now");
      hits = word ? lines.filter(([, text]) => text.includes(word)).map(([line]) => line) : [];
      for (const hit of hits) hit.classList.add("hit");
      at = hits.length ? 0 : -1;
      show();
    };
    const next = () => { if (hits.length) { at = (at + 1) % hits.length; show(); } };
    const zoom = value => {
      const part = one(".part", picture), width = Number(part.style.getPropertyValue("--w"));
      const scale = value === "fit" ? Math.min(1.5, (picture.clientWidth - 2) / width) : Number(value);
      picture.style.setProperty("--zoom", Math.min(4, Math.max(0.1, scale || 1)));
      for (const button of all(".zoom button", section)) button.setAttribute("aria-pressed", button.dataset.zoom === value);
      show();
    };
    field.addEventListener("input", () => find(field.value));
    field.addEventListener("keydown", event => { if (event.key === "Enter") next(); });
    one(".next", section).addEventListener("click", next);
    one(".zoom", section).addEventListener("click", event => { if (event.target.dataset.zoom) zoom(event.target.dataset.zoom); });
    return { find, zoom };
  });

  narrow();
  recall();
  window.addEventListener("hashchange", recall);
})();
