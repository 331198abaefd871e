"""How a page looks: one style sheet, for light and dark screens and for paper.

Colours are those of Okabe and Ito, which people with any colour vision tell apart
(https://jfly.uni-koeln.de/color/), lighter on dark. Text never has them: it stays black or white
enough to be read. Every colour has a second cue: a shape, a line or a word.
"""

from __future__ import annotations

_LIGHT = """
  --page: #ffffff; --card: #f6f7f9; --ink: #16191d; --muted: #4d5561; --line: #d9dde3;
  --axis: #6b7480; --link: #0b5394;
  --kept: #0072b2; --rounding: #d55e00; --limit: #b0005a;
  --good: #007a5a; --bad: #c2410c; --open: #5b6470;
  --good-tint: #e6f4ef; --bad-tint: #fdeee4; --open-tint: #eef0f3;
  --heat-1: #fff4d9; --heat-2: #ffe3a6; --heat-3: #ffc65c; --heat-4: #f59a3c;
"""

_DARK = """
  --page: #14171b; --card: #1d2127; --ink: #eef1f4; --muted: #b3bcc8; --line: #343b45;
  --axis: #8a94a1; --link: #8ec7ff;
  --kept: #56b4e9; --rounding: #e69f00; --limit: #f08ac0;
  --good: #3fc79a; --bad: #ff9a62; --open: #a4aebb;
  --good-tint: #12322a; --bad-tint: #3d2113; --open-tint: #262c34;
  --heat-1: #33290f; --heat-2: #4f3d0c; --heat-3: #6f4f00; --heat-4: #8a3f00;
"""

_RULES = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Noto Sans", "PingFang SC", "Microsoft YaHei",
    "Noto Sans CJK SC", sans-serif; }
main, header, footer { max-width: 76rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 1.75rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: .1rem 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 0 0 .35rem; }
h3 { font-size: 1rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
p { margin: .4rem 0; max-width: 46rem; }
a { color: var(--link); }
.kicker, .lead, .note, .tile small, figcaption, footer { color: var(--muted); }
.kicker { font-size: .875rem; letter-spacing: .02em; margin: 0; }
section { margin: 2.25rem 0; padding-top: 1.25rem; border-top: 1px solid var(--line); }
.verdict { display: flex; gap: 1rem; align-items: flex-start; margin: 1rem 0 1.25rem;
  padding: 1rem 1.25rem; border-radius: .6rem; border-left: .5rem solid var(--open);
  background: var(--open-tint); }
.verdict.good { border-color: var(--good); background: var(--good-tint); }
.verdict.bad { border-color: var(--bad); background: var(--bad-tint); }
.verdict svg { flex: none; width: 2.5rem; height: 2.5rem; margin-top: .15rem; fill: none;
  stroke: var(--open); stroke-width: 3; stroke-linecap: round; stroke-linejoin: round; }
.verdict.good svg { stroke: var(--good); }
.verdict.bad svg { stroke: var(--bad); }
.verdict strong { display: block; font-size: 1.6rem; line-height: 1.25; }
.verdict div { min-width: 0; overflow-wrap: anywhere; }
.tiles { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .75rem 1rem; min-width: 0; }
.tile h3 { font-size: .875rem; font-weight: 500; color: var(--muted); }
.tile .big { font-size: 1.5rem; font-weight: 650; line-height: 1.3; margin: 0;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.tile small { display: block; font-size: .8125rem; line-height: 1.4; }
.gauge { display: block; width: 100%; max-width: 14rem; height: 1rem; margin: .35rem 0; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; padding: 0; margin: 1.25rem 0 0;
  list-style: none; font-size: .9375rem; }
.charts { display: grid; gap: 1rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
figure { margin: 0; padding: .75rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; min-width: 0; }
figcaption { font-size: .875rem; line-height: 1.4; }
svg.chart { display: block; width: 100%; max-width: 30rem; height: auto; margin: .35rem auto 0; }
svg text { fill: var(--muted); font-size: 12px; font-family: inherit; }
.grid { stroke: var(--line); stroke-width: 1; }
.axis { stroke: var(--axis); stroke-width: 1; }
.zero { stroke: var(--ink); stroke-width: 2; }
.limit { stroke: var(--limit); stroke-width: 2; stroke-dasharray: 6 3; }
.track { fill: var(--line); }
.way { fill: none; stroke-width: 1.5; }
.kept { fill: var(--kept); stroke: var(--kept); }
.way.kept { fill: none; }
.mark.kept, .bar.kept { stroke: none; }
.mark.rounding { fill: none; stroke: var(--rounding); stroke-width: 1.5; }
.mark:hover, .bar:hover { stroke: var(--ink); stroke-width: 2; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: 0; margin: .5rem 0;
  list-style: none; font-size: .9375rem; }
.key { width: .9rem; height: .9rem; vertical-align: -.1rem; margin-right: .4rem; }
.scroll { overflow-x: auto; margin: .75rem 0; max-width: 100%; }
table { border-collapse: collapse; font-size: .875rem; line-height: 1.4;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0;
  border-bottom: 1px solid var(--line); font-weight: 400; }
thead th { font-weight: 600; color: var(--muted); vertical-align: bottom; }
.files th { overflow-wrap: anywhere; min-width: 9rem; }
.numbers td { text-align: right; white-space: nowrap; }
.numbers thead th + th { text-align: right; min-width: 6.5rem; }
code, .hash { font: .8125rem/1.5 ui-monospace, "SF Mono", Consolas, "Liberation Mono",
  "Noto Sans Mono", monospace; overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .4rem;
  padding: .6rem .8rem; margin: .4rem 0 .9rem; white-space: pre-wrap; overflow-wrap: anywhere; }
dl { margin: .75rem 0; }
.pair { display: grid; grid-template-columns: minmax(9rem, 14rem) 1fr; gap: 0 1rem;
  padding: .3rem 0; border-bottom: 1px solid var(--line); font-size: .9375rem; }
dt { color: var(--muted); }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
details { margin: .75rem 0; }
summary { cursor: pointer; color: var(--link); width: fit-content; }
ul.plain { padding-left: 1.2rem; margin: .5rem 0; max-width: 52rem; overflow-wrap: anywhere; }
.words { list-style: none; padding: 0; margin: 1rem 0; display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
.words > li { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .75rem 1rem; min-width: 0; }
.words p { margin: 0 0 .4rem; }
.passage { font-size: 1rem; line-height: 2; overflow-wrap: anywhere; white-space: pre-wrap; }
.passage span, .scale span { padding: .15em 0; }
.heat-1 { background: var(--heat-1); border-bottom: 1px dotted var(--axis); }
.heat-2 { background: var(--heat-2); border-bottom: 2px dotted var(--axis); }
.heat-3 { background: var(--heat-3); border-bottom: 2px solid var(--axis); }
.heat-4 { background: var(--heat-4); border-bottom: 3px double var(--ink); }
.passage .target { outline: 2px solid var(--ink); font-weight: 700; padding: .1em 3px;
  margin: 0 2px;
  -webkit-box-decoration-break: clone; box-decoration-break: clone; }
.scale { display: flex; flex-wrap: wrap; gap: .4rem .75rem; padding: 0; list-style: none;
  font-size: .875rem; }
.scale span { padding: .1em .5em; }
article { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .75rem 1rem; margin: .75rem 0; }
article dl { margin: .25rem 0 0; }
article .pair:last-child { border-bottom: 0; }
.severity { font-weight: 700; white-space: nowrap; }
.severity::before { display: inline-block; width: 1.2em; }
.severity.error { color: var(--bad); } .severity.error::before { content: "✘"; }
.severity.warning::before { content: "▲"; }
.severity.note::before { content: "●"; color: var(--muted); }
footer { font-size: .8125rem; padding-bottom: 2rem; border-top: 1px solid var(--line);
  padding-top: 1rem; margin-top: 2.5rem; }
@media (max-width: 34rem) { .pair { grid-template-columns: 1fr; }
  .verdict { padding: .85rem 1rem; gap: .75rem; } .verdict svg { width: 2rem; height: 2rem; } }
@page { size: A4; margin: 14mm 12mm; }
@media print {
  body { font-size: 10pt; }
  main, header, footer { max-width: none; padding: 0; }
  nav, details:not([open]) { display: none; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  .charts { grid-template-columns: repeat(2, 1fr); }
  .words { grid-template-columns: repeat(2, 1fr); }
  .tiles { grid-template-columns: repeat(3, 1fr); }
  figure, .tile, .verdict, .words > li, article, tr, pre, .pair { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  section { margin: 1.2rem 0; padding-top: .8rem; }
  .scroll { overflow: visible; }
  table { width: 100%; }
  th, td, .numbers td { overflow-wrap: anywhere; white-space: normal; }
  .numbers thead th + th, .files th { min-width: 0; }
  code, .hash { font-size: 7pt; }
}
"""

# Paper is light, whatever the screen is.
STYLE = (
    f":root {{ color-scheme: light dark; {_LIGHT} }}\n"
    f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}\n{_RULES}"
)
