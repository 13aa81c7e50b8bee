"""The page's style sheet: light and dark by the reader's setting, one column on a phone."""

from sslmed_dist.report.plots import ARM_COLOURS, DARK, LIGHT, Theme


def arm_class(arm: str) -> str:
    """The class that gives an arm its colour; only known names, for arms come from files."""
    return f"arm-{arm.replace('_', '-')}" if arm in ARM_COLOURS else "arm-other"


def arm_rules(theme: Theme) -> str:
    """The colours of the arms, the same as in the plots."""
    return " ".join(f".{arm_class(arm)} {{ --tone: {theme.colour(hue)}; }}" for arm, hue in ARM_COLOURS.items())


SHEET = """
:root { --ink: #1f2328; --soft: #59636e; --page: #f6f7f9; --card: #fff; --line: #d9dee3; --accent: #0072b2;
  --warm: #fff4dc; --warm-ink: #6b4700; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa4af; --page: #0d1117; --card: #161b22;
  --line: #30363d; --accent: #56b4e9; --warm: #3a2e10; --warm-ink: #f3d48a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; font-variant-numeric: tabular-nums; -webkit-text-size-adjust: 100%; }
header, main, footer { max-width: 72rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2rem; }
.kicker { margin: 0; color: var(--soft); font-size: .85rem; letter-spacing: .02em; }
h1 { margin: .1rem 0 1rem; font-size: clamp(1.5rem, 5vw, 2.2rem); line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .5rem; font-size: 1.25rem; }
h2.experiment { padding-top: 1rem; border-top: 2px solid var(--line); font-size: 1.6rem; }
h3 { margin: 0; font-size: 1.05rem; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: 0 0 1rem; font-size: .92rem; }
nav a, summary { color: var(--accent); }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.25rem; margin: 0; font-size: .92rem; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.lead, .hint { margin: .15rem 0 .75rem; color: var(--soft); font-size: .9rem; }
.absent { color: var(--soft); font-style: italic; }
.banner { margin: .75rem 0; padding: .6rem .9rem; border-radius: .5rem; background: var(--warm); color: var(--warm-ink);
  font-size: .92rem; }
.banner.phantom { border: 1px solid currentColor; font-size: 1.05rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 0;
  padding: 0; list-style: none; }
.tiles li { display: flex; flex-direction: column; padding: .7rem .9rem; border: 1px solid var(--line);
  border-top: 4px solid var(--tone, var(--accent)); border-radius: .5rem; background: var(--card); }
.tiles span, .tiles small { color: var(--soft); font-size: .85rem; }
.tiles strong { font-size: 1.7rem; font-weight: 650; line-height: 1.3; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem;
  margin: .75rem 0; align-items: start; }
figure { margin: 0; padding: .8rem; border: 1px solid var(--line); border-radius: .5rem; background: var(--card); }
figure img { display: block; width: 100%; max-width: 30rem; height: auto; margin: 0 auto; }
figcaption { margin-bottom: .4rem; font-size: .9rem; font-weight: 600; }
.sheet { margin: .75rem 0; } .sheet img { width: auto; max-width: none; margin: 0; }
.sheet figcaption { margin: .5rem 0 0; font-weight: 400; }
.card { margin: 1rem 0; padding: 1rem; border: 1px solid var(--line); border-radius: .5rem; background: var(--card); }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .92rem; }
th, td { padding: .35rem .7rem; border-top: 1px solid var(--line); text-align: right; white-space: nowrap; }
thead th { border-top: 0; color: var(--soft); font-weight: 500; line-height: 1.25; white-space: normal;
  vertical-align: bottom; }
thead .group { border-bottom: 1px solid var(--line); color: var(--ink); font-weight: 600; text-align: center; }
tr > :first-child { position: sticky; left: 0; background: var(--card); text-align: left; }
tbody th { padding-left: .6rem; border-left: 4px solid var(--tone, var(--line)); font-weight: 500; }
td small { display: block; color: var(--soft); font-size: .8rem; }
table.plain td, table.plain th { text-align: left; }
details { margin-top: .75rem; } summary { cursor: pointer; }
pre { overflow-x: auto; padding: .75rem; border: 1px solid var(--line); border-radius: .5rem; background: var(--card);
  font-size: .82rem; }
footer { margin-top: 3rem; padding-bottom: 2rem; color: var(--soft); font-size: .9rem; }
footer p { padding-top: 1rem; border-top: 1px solid var(--line); }
@media (max-width: 34rem) { .facts { grid-template-columns: 1fr; gap: 0; } .facts dd { margin-bottom: .5rem; }
  .card { padding: .75rem; } .tiles { grid-template-columns: 1fr 1fr; } .tiles strong { font-size: 1.4rem; }
  th, td { padding: .35rem .4rem; } tbody th { white-space: normal; line-height: 1.25; }
  td small { font-size: .75rem; } }
.tools { margin: 1rem 0 .25rem; } .tools input { padding: .3rem .5rem; border: 1px solid var(--soft);
  border-radius: .35rem; background: var(--card); color: var(--ink); font: inherit; }
table.runs { background: var(--card); font-size: .85rem; }
table.runs td, table.runs th { padding: .4rem .5rem; white-space: normal; vertical-align: top;
  overflow-wrap: break-word; min-width: 4.5rem; }
table.runs td.long { min-width: 9rem; }
table.runs tbody th { min-width: 8rem; } table.runs tbody th small { display: block; color: var(--soft);
  font-weight: 400; } table.runs a { color: var(--accent); }
table.runs button { padding: 0; border: 0; background: none; color: inherit; font: inherit; text-align: left;
  cursor: pointer; text-decoration: underline dotted; } table.runs button:disabled { cursor: default;
  text-decoration: none; } th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
.curve { display: block; } .curve polyline { fill: none; stroke: var(--accent); stroke-width: 1.5; }
a:focus-visible, button:focus-visible, summary:focus-visible, .scroll:focus-visible { outline: 3px solid var(--accent);
  outline-offset: 2px; }
"""
# A printed page is light, whatever the screen was, and shows whole tables.
PRINT = """
@media print { :root { --ink: #000; --soft: #444; --page: #fff; --card: #fff; --line: #bbb; --accent: #00557f;
  --warm: #fff; --warm-ink: #000; } header, main, footer { max-width: none; } body { font-size: 10pt; }
  .card, figure, tr { break-inside: avoid; } .scroll { overflow: visible; } .tools, nav { display: none; }
  table, table.runs { font-size: 8pt; } th, td { padding: .15rem .3rem; white-space: normal; }
  tr > :first-child { position: static; } }
"""
STYLE = f"{SHEET}{arm_rules(LIGHT)}\n@media (prefers-color-scheme: dark) {{ {arm_rules(DARK)} }}\n{PRINT}"
