"""The style of report.html: one column, dark on white, readable on a phone."""

CSS = """
:root { --ink: #1b2430; --soft: #55606e; --line: #dfe5ec; --blue: #1f5fa8;
  --grey: #a9b4c0; --right: #00785a; --wrong: #c24e00; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans",
    sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 36px 22px 70px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 14px; }
h2 { font-size: 1.3rem; margin: 46px 0 8px; }
h3 { font-size: 1.08rem; margin: 30px 0 6px; }
h4 { font-size: 1rem; margin: 0 0 4px; }
h2[id], section[id] { scroll-margin-top: 12px; }
nav { display: flex; flex-wrap: wrap; gap: 8px; margin: 22px 0 0; }
nav a { padding: 4px 12px; border: 1px solid var(--line); border-radius: 99px;
  color: var(--ink); text-decoration: none; font-size: .85rem; }
nav a:hover { border-color: var(--blue); color: var(--blue); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; color: var(--soft);
  font-size: .82rem; margin-bottom: 6px; }
.legend i, .strip i { display: inline-block; }
.dot { width: 10px; height: 10px; border-radius: 50%; background: var(--grey); }
.legend .dot { margin-right: 6px; }
.dot.this { width: 14px; height: 14px; background: var(--blue); }
.dot.untrained { background: #fff; border: 2px solid var(--grey); }
.dot.imagenet { background: #d68a00; border-radius: 2px; }
.dot.supervised { background: #00785a; border-radius: 2px; }
.dot.paper { width: 9px; height: 9px; background: #b9559b; transform: rotate(45deg);
  border-radius: 1px; opacity: .75; }
.tick { width: 2px; height: 16px; background: var(--ink); opacity: .45; }
.legend .tick { margin: 0 6px 0 0; vertical-align: middle; }
.board .line { display: grid; grid-template-columns: minmax(190px, 1fr) 2.2fr 7.2em;
  gap: 6px 22px; padding: 11px 0; border-bottom: 1px solid var(--line);
  align-items: start; }
.board small { display: block; color: var(--soft); font-size: .79rem; line-height: 1.35; }
.board .figure { text-align: right; font-variant-numeric: tabular-nums; }
.board .figure b { font-size: 1.15rem; }
.strip { display: block; position: relative; height: 20px; margin-top: 4px;
  background: linear-gradient(#eef2f6, #eef2f6) center / 100% 4px no-repeat; }
.strip i { position: absolute; top: 50%; translate: -50% -50%; }
.strip .range { translate: 0 -50%; height: 8px; border-radius: 4px; background: #1f5fa844; }
.papers { margin: 2px 0 0; color: var(--soft); font-size: .78rem; line-height: 1.4;
  max-width: none; }
details.how { margin: 0 0 14px; padding: 6px 12px; font-size: .9rem; }
details.how summary { font-weight: 400; color: var(--soft); }
.part { margin-top: 18px; }
p { margin: 0 0 12px; max-width: 46em; }
.facts { display: flex; flex-wrap: wrap; gap: 10px 34px; margin: 0; }
.facts dt { color: var(--soft); font-size: .8rem; }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.banner { margin: 24px 0 0; padding: 12px 16px; max-width: none; background: #fff6df;
  border-left: 5px solid #e0a100; border-radius: 4px; }
.headline { display: grid; grid-template-columns: minmax(200px, 1fr) 2.1fr;
  gap: 20px 44px; align-items: center; margin-top: 28px; padding: 24px 26px;
  border: 1px solid var(--line); border-radius: 12px; }
.big span { font-size: 4rem; font-weight: 700; line-height: 1; color: var(--blue); }
.big p { margin: 10px 0 0; color: var(--soft); font-size: .95rem; }
.step { display: grid; grid-template-columns: 13.5em 1fr 3em; gap: 12px;
  align-items: center; padding: 5px 0; font-size: .92rem; }
.step .name { text-align: right; color: var(--soft); line-height: 1.25; }
.step .track { background: #f2f5f8; border-radius: 5px; height: 20px; }
.step .bar { display: block; height: 20px; border-radius: 5px; background: var(--grey); }
.step .value { font-variant-numeric: tabular-nums; }
.step.this .bar { background: var(--blue); }
.step.this .name, .step.this .value { color: var(--ink); font-weight: 700; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .84rem; }
th, td { padding: 7px 8px; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); }
th.text, td.text { text-align: left; }
td.value { font-weight: 700; }
tbody tr:hover { background: #f7f9fb; }
.note { margin-top: 10px; color: var(--soft); font-size: .86rem; max-width: none; }
.skipped { margin-top: 18px; padding: 12px 16px; background: #f5f7fa;
  border-radius: 8px; font-size: .92rem; }
.skipped ul { margin: 4px 0 0; padding-left: 20px; }
.pictures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr));
  gap: 20px; align-items: stretch; }
figure { margin: 0; }
.pictures figure { padding: 14px; border: 1px solid var(--line); border-radius: 12px; }
.pictures figure.wide { grid-column: 1 / -1; }
.pictures img { display: block; width: 100%; max-height: 600px; object-fit: contain; }
.pictures figure.wide img { max-height: none; }
figcaption { margin-top: 8px; color: var(--soft); font-size: .86rem; }
.query { display: grid; grid-template-columns: minmax(170px, 1fr) 3.6fr; gap: 8px 22px;
  padding: 16px 0; border-bottom: 1px solid var(--line); }
.asks p { color: var(--soft); font-size: .92rem; overflow-wrap: anywhere; }
.films { display: grid; grid-template-columns: repeat(var(--n), minmax(0, 1fr));
  gap: 12px; }
.films img { display: block; width: 100%; border-radius: 6px; border: 4px solid; }
.films .right img { border-color: var(--right); }
.films .wrong img { border-color: var(--wrong); border-style: dashed; }
.films figcaption { margin-top: 4px; font-size: .8rem; line-height: 1.3; }
.films .right figcaption { color: var(--right); }
.films .wrong figcaption { color: var(--wrong); }
.leaks { margin-top: 14px; overflow-wrap: anywhere; }
.limits li { margin-bottom: 6px; max-width: 52em; }
details { margin-top: 14px; border: 1px solid var(--line); border-radius: 8px;
  padding: 10px 14px; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font-size: .8rem; line-height: 1.45; }
@media (max-width: 760px) {
  .headline, .pictures, .query { grid-template-columns: minmax(0, 1fr); }
  .board .line { grid-template-columns: minmax(0, 1fr) auto; }
  .board .scale { grid-column: 1 / -1; grid-row: 2; }
  .pictures figure.wide { grid-column: auto; }
  .step { grid-template-columns: 9em 1fr 2.6em; }
  .films { grid-template-columns: repeat(3, minmax(0, 1fr)); }
}
@media print { details { display: none; } section { break-inside: avoid; } }
"""
