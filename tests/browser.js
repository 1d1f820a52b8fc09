// Rules of WCAG 2.2 that a program can check; see browser.py.
const found = [];
const short = (e) => e.outerHTML.replace(/\s+/g, " ").slice(0, 140);
const shown = (e) => e.checkVisibility({visibilityProperty: true, opacityProperty: true}) && e.getClientRects().length;
const all = (selector) => [...document.querySelectorAll(selector)].filter(shown);
const text = (id) => document.getElementById(id)?.textContent.trim() ?? "";

const name = (e) =>
  (e.getAttribute("aria-labelledby") || "").split(" ").filter(Boolean).map(text).join(" ") ||
  (e.getAttribute("aria-label") || "").trim() ||
  [...(e.labels || [])].map((l) => l.textContent.trim()).join(" ") ||
  (e.getAttribute("alt") || "").trim() || e.textContent.trim() || (e.getAttribute("title") || "").trim();

if (!document.documentElement.lang) found.push("the document has no language");
if (!document.title.trim()) found.push("the document has no title");
if (all("h1").length !== 1) found.push(`${all("h1").length} h1`);
if (all("main").length !== 1) found.push(`${all("main").length} main`);
if (!document.querySelector("meta[name=viewport]")) found.push("no viewport");
if (/maximum-scale|user-scalable=no/.test(document.querySelector("meta[name=viewport]")?.content)) found.push("no zoom");

let level = 0;
for (const heading of all("h1, h2, h3, h4, h5, h6")) {
  const own = Number(heading.tagName[1]);
  if (own > level + 1) found.push(`h${own} after h${level}: ${short(heading)}`);
  if (!heading.textContent.trim()) found.push(`an empty heading: ${short(heading)}`);
  level = own;
}
const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
for (const id of new Set(ids.filter((id, at) => ids.indexOf(id) !== at))) found.push(`id ${id} is there twice`);
for (const control of all("a[href], button, input:not([type=hidden]), textarea, select, summary, [role=region], nav, section, form[aria-label]"))
  if (!name(control)) found.push(`without a name: ${short(control)}`);
for (const label of document.querySelectorAll("label"))
  if (!label.control) found.push(`a label of nothing: ${short(label)}`);
for (const reference of document.querySelectorAll("[aria-labelledby], [aria-describedby]"))
  for (const id of ((reference.getAttribute("aria-labelledby") || "") + " " + (reference.getAttribute("aria-describedby") || "")).split(" ").filter(Boolean))
    if (!document.getElementById(id)) found.push(`refers to ${id}, which is not there: ${short(reference)}`);
for (const picture of document.querySelectorAll("img")) if (!picture.hasAttribute("alt")) found.push(`img without alt: ${short(picture)}`);
for (const drawing of document.querySelectorAll("svg"))
  if (drawing.getAttribute("role") !== "img" || !name(drawing)) found.push(`svg without a name: ${short(drawing)}`);
for (const table of document.querySelectorAll("table")) {
  if (!table.caption) found.push("a table without a caption");
  for (const head of table.querySelectorAll("th")) if (!head.scope) found.push(`th without scope: ${short(head)}`);
  for (const row of table.tBodies[0]?.rows ?? []) {
    const columns = [...row.cells].reduce((sum, cell) => sum + cell.colSpan, 0);
    if (columns !== [...table.tHead.rows[0].cells].reduce((sum, cell) => sum + cell.colSpan, 0)) found.push(`a row of ${columns} cells: ${short(row)}`);
  }
}
for (const list of document.querySelectorAll("ul, ol"))
  if ([...list.children].some((e) => e.tagName !== "LI")) found.push(`a list of something else: ${short(list)}`);
for (const list of document.querySelectorAll("dl"))
  if ([...list.children].some((e) => !["DT", "DD"].includes(e.tagName))) found.push(`a dl of something else: ${short(list)}`);
for (const nested of document.querySelectorAll("a a, a button, button a, button button, form form")) found.push(`nested: ${short(nested)}`);
if (document.querySelector("[tabindex]:not([tabindex='0'], [tabindex='-1'])")) found.push("an order of tabs of its own");
for (const box of all("*")) // who uses the keys alone must be able to scroll
  if (/auto|scroll/.test(getComputedStyle(box).overflowX) && box.scrollWidth > box.clientWidth + 1 && box.tabIndex < 0 && box !== document.documentElement)
    found.push(`scrolls, and not with the keys: ${short(box)}`);
if (document.documentElement.scrollWidth > innerWidth + 1) {
  const wide = all("main *, header *, footer *").filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll"));
  found.push(`wider than the window: ${document.documentElement.scrollWidth} > ${innerWidth}: ${wide.slice(0, 2).map(short)}`);
}

// Contrast of text on what lies behind it (WCAG 1.4.3), and of a control's border or ground (1.4.11).
const parse = (colour) => { const [r, g, b, a] = colour.match(/[\d.]+/g).map(Number); return [r, g, b, a ?? 1]; };
const over = (top, below) => [0, 1, 2].map((i) => top[3] * top[i] + (1 - top[3]) * below[i]).concat(1);
const ground = (e) => {
  const layers = [];
  for (let at = e; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
  const page = matchMedia("(prefers-color-scheme: dark)").matches ? [0, 0, 0, 1] : [255, 255, 255, 1];
  return layers.reverse().reduce((below, top) => over(top, below), page);
};
const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const ratio = (one, other) => { const [a, b] = [luminance(one), luminance(other)].sort((x, y) => y - x); return (a + 0.05) / (b + 0.05); };
const seen = new Set();
for (const e of all("body *")) {
  const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!own || ["TITLE", "SCRIPT", "STYLE"].includes(e.tagName)) continue;
  const style = getComputedStyle(e), drawn = e instanceof SVGElement;
  const behind = ground(drawn ? e.closest("svg").parentElement : e);
  const found_ratio = ratio(over(parse(drawn ? style.fill : style.color), behind), behind);
  const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
  const key = `${e.tagName}.${e.getAttribute("class")}: ${found_ratio.toFixed(2)}`;
  if (found_ratio < (large ? 3 : 4.5) && !seen.has(key)) { seen.add(key); found.push(`contrast ${key}: ${short(e)}`); }
}
for (const e of all("input:not([type=hidden], [type=checkbox]), textarea, select, button")) {
  const style = getComputedStyle(e), behind = ground(e.parentElement);
  const edge = Math.max(ratio(over(parse(style.borderTopColor), behind), behind), ratio(over(parse(style.backgroundColor), behind), behind));
  if (edge < 3) found.push(`a control that cannot be told from its ground, ${edge.toFixed(2)}: ${short(e)}`);
}
return found;
