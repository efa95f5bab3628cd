"""Script, style and frame of the inspection page."""

SCRIPT = """
for (const list of document.querySelectorAll(".list")) {
  const form = list.querySelector("form"), box = list.querySelector(".items"), items = [...box.children];
  const apply = () => {
    let shown = 0;
    for (const item of items) {
      item.hidden = [...form.querySelectorAll("[data-field]")].some(
        (select) => select.value !== "*" && item.dataset[select.dataset.field] !== select.value);
      shown += !item.hidden;
    }
    const order = form.querySelector("[data-order]")?.value ?? "", name = order.replace("-", "");
    const sign = order.startsWith("-") ? -1 : 1;
    box.append(...(order ? [...items].sort((a, b) => sign * (a.dataset[name] - b.dataset[name])) : items));
    form.querySelector("output").textContent = `${shown} of ${items.length} shown`;
  };
  form.addEventListener("change", apply);
  apply();
}
"""

CSS = """
:root { color-scheme: light; --text: #1c1e21; --line: #dfe2e7; --soft: #f5f6f8; --dim: #666d78; --blue: #3b6fd4;
  --orange: #e08a1e; --green: #2f9e6e }
* { box-sizing: border-box } [hidden] { display: none !important }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: #fff; max-width: 1280px;
  margin: 0 auto; padding: 24px 24px 64px }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 20px }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem }
h3 { font-size: .875rem; margin: 1.2rem 0 .3rem; font-weight: 600 } .chart h3 { margin-top: 0 }
nav a { color: var(--blue); margin-right: 14px; text-decoration: none } nav a:hover { text-decoration: underline }
p { margin: .4rem 0 } .note, .dim, figcaption { color: var(--dim); font-size: .8125rem } figure { margin: 0 }
code { font: .78rem/1.4 ui-monospace, monospace; overflow-wrap: anywhere }
.filters { display: flex; flex-wrap: wrap; gap: 8px 16px; align-items: center; padding: 10px 12px; margin: .5rem 0;
  background: var(--soft); border-radius: 8px; font-size: .875rem; position: sticky; top: 0; z-index: 1 }
.filters output { margin-left: auto; color: var(--dim) }
select { font: inherit; padding: 2px 4px; max-width: 15em; border: 1px solid var(--line); border-radius: 5px;
  background: #fff }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(500px, 100%), 1fr)); gap: 14px }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 8px; min-width: 0 }
.strip { display: flex; gap: 4px } .strip div { flex: 1 1 0; min-width: 0; text-align: center }
.strip img { width: 100%; display: block; border-radius: 4px; aspect-ratio: 1 }
.strip span { font-size: .7rem; color: var(--dim) } .card b { color: var(--text) }
.card code { display: block } .tag { font-style: normal; padding: 0 6px; border-radius: 8px; color: #fff }
.note i { display: inline-block; width: .8em; height: .8em; border-radius: 2px }
i.hand { background: rgb(255 190 0) } i.object { background: rgb(40 120 255) }
.train { background: var(--blue) } .val { background: var(--orange) } .test { background: var(--green) }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(282px, 1fr)); gap: 14px; margin-bottom: 14px }
.chart { border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; min-width: 0; overflow-x: auto }
svg { display: block; margin: 0 auto; max-width: 100% } svg text { font-size: 10px; fill: var(--dim) }
svg .bar { fill: var(--blue) } svg .axis { stroke: #aab0ba } svg .frame { fill: none; stroke: #9aa1ac }
svg .median { stroke: #15171a; stroke-dasharray: 3 3; stroke-width: 1.4 }
table { border-collapse: collapse; font-size: .8125rem; width: 100% }
th, td { text-align: left; vertical-align: top; padding: 4px 10px 4px 0; border-bottom: 1px solid var(--line) }
th { font-weight: 600 } .number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.bars th { font-weight: 400; overflow-wrap: break-word }
.bars td, .bars th { border: 0; padding: 2px 8px 2px 0; vertical-align: middle }
.bars td:nth-child(2) { width: 40% } .wide .bars td:nth-child(2) { width: 70% }
td .bar, td.stack span { display: inline-block; height: 11px; background: var(--blue); vertical-align: middle }
td .bar { border-radius: 2px } td.stack { font-size: 0; white-space: nowrap }
td.stack span.val { background: var(--orange) } td.stack span.test { background: var(--green) }
th i { display: inline-block; width: .7em; height: .7em; margin-right: 5px; border-radius: 2px }
.scroll { overflow-x: auto } .matrix .dim { display: block; font-weight: 400 }
.matrix td, .matrix th { padding: 4px 8px }
.matrix { width: auto } .matrix .sum th, .matrix .sum td { border: 0; font-weight: 600 }
.facts th { white-space: nowrap; width: 1% } summary { cursor: pointer; color: var(--dim); margin: .6rem 0 }
"""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'">
<title>{title}: HO3Pairs</title>
<style>{css}</style>
<header><h1>{title}</h1><p class="note">{lead}</p>
<nav><a href="#pairs">pairs</a><a href="#drops">drops</a><a href="#distributions">distributions</a>
<a href="#facts">facts</a></nav></header>
{body}
<script>{script}</script>
</html>
"""
