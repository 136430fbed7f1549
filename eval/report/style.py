"""The style of the HTML report: light and dark, and on a narrow screen every row of a table as a block.

Charts and bars take their colours from variables, so that both schemes share one drawing.
"""

from generalist.eval.report.colours import CLASSES, palette

_COLOURS = f"""
:root {{ color-scheme: light dark; --ink: #1d2430; --paper: #fff; --soft: #667085; --rule: #e3e6ec; --track: #eef0f4;
  --good: #2f9e5f; --fair: #d9992b; --poor: #cf4b4b; {palette(dark=False)} }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e4e8ef; --paper: #14171d; --soft: #98a2b3; --rule: #2b313c;
  --track: #222730; --good: #46b877; --fair: #e0ad4d; --poor: #e06c6c; {palette(dark=True)} }} }}
{CLASSES}"""

_PAGE = """
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 76rem;
  margin: 2rem auto; padding: 0 1.2rem; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem } p { margin: .4rem 0 }
.headline { font-size: 1.2rem; font-weight: 600 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } .wide { overflow-x: auto }
th, td { text-align: right; padding: .22rem .7rem; border-bottom: 1px solid var(--rule); white-space: nowrap }
th { color: var(--soft); font-weight: 500 } th:first-child, td:first-child { text-align: left; padding-left: 0 }
.text td { white-space: normal } .text td:last-child { text-align: left }
.note, figcaption { color: var(--soft); font-size: .88rem } .failed { color: var(--poor) }
summary { cursor: pointer; font-weight: 600; font-size: 1.05rem; margin-top: 1.2rem } figure { margin: 0 }
pre { font-size: .82rem; background: var(--track); padding: .8rem; border-radius: 4px; white-space: pre-wrap }
"""

_CHARTS = """
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem }
.chart { max-width: 34rem } .chart strong { display: block; font-size: .88rem; font-weight: 500 }
.chart svg { width: 100%; height: auto }
svg text { font-size: 11px; fill: var(--soft) } svg .axis { font-style: italic } svg .grid { stroke: var(--rule) }
.line { fill: none; stroke: var(--c); stroke-width: 1.8 } .line.dashed { stroke-dasharray: 6 4 }
.band { fill: var(--c); opacity: .14 } .dot { fill: var(--c) } .key { margin-right: 1rem; display: inline-block }
.key::before { content: ""; display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .35em;
  background: var(--c) } .key.dashed::before { background: repeating-linear-gradient(90deg, var(--c) 0 3px, transparent 3px 5px) }
"""

_COLUMNS = """
.column { fill: var(--c5) } .problems li { margin: .5rem 0 } .problems b { color: var(--poor) }
.strip { display: flex; flex-wrap: wrap; gap: .3rem; margin: .3rem 0 } .strip img { height: 5.5rem; border-radius: 3px }
"""

_BARS = """
.bar { vertical-align: middle } .track { fill: var(--track) } .good { fill: var(--good) } .fair { fill: var(--fair) }
.poor { fill: var(--poor) } .zero, .half, .full { stroke: var(--soft) } .half { stroke-dasharray: 2 2 }
.zero { stroke: var(--ink) } .whisker { stroke: var(--ink); stroke-width: 2 }
.entry { margin-right: 1rem; display: inline-block } .entry i { display: inline-block; margin-right: .4em }
.swatch { width: .8em; height: .8em; border-radius: 2px } .swatch.good { background: var(--good) }
.swatch.fair { background: var(--fair) } .swatch.poor { background: var(--poor) }
.mark { width: 0; height: .9em; vertical-align: -.1em; border-left: 1px solid var(--soft) }
.mark.zero { border-color: var(--ink) } .mark.half { border-left-style: dashed }
.mark.whisker { width: 1.4em; height: 0; border-left: 0; border-top: 2px solid var(--ink); vertical-align: .3em }
"""

_PICTURES = """
.clips { display: flex; flex-wrap: wrap; gap: .8rem; margin: .8rem 0 } .clips figure { width: 11rem }
.clips img { width: 100%; border-radius: 4px; display: block }
.shots { display: flex; flex-wrap: wrap; gap: .5rem; align-items: end; margin: .5rem 0; padding-bottom: .5rem;
  border-bottom: 1px solid var(--rule) } .shots figure { text-align: center; max-width: 14rem }
.shots img { max-width: 6rem; max-height: 6rem; border-radius: 4px } .asked img { outline: 2px solid var(--ink) }
.right { color: var(--good) } .wrong { color: var(--poor) }
"""

# On a phone a wide table would hide its numbers beyond the edge: there each cell has its own line, after its header.
_NARROW = """
@media (max-width: 700px) { body { margin: 1rem auto; padding: 0 .8rem }
  table, tbody, tr, td { display: block } thead { display: none }
  tr { padding: .45rem 0; border-bottom: 1px solid var(--rule) } td:empty { display: none }
  td { display: flex; justify-content: space-between; gap: 1rem; padding: .05rem 0; border: 0; white-space: normal }
  td::before { content: attr(data-label); color: var(--soft); text-align: left } td:first-child { font-weight: 600 }
  .text td { display: block }
  td:first-child::before, td[data-label=""]::before { content: none } td .bar { width: 100% } }
"""

STYLE = _COLOURS + _PAGE + _CHARTS + _COLUMNS + _BARS + _PICTURES + _NARROW
