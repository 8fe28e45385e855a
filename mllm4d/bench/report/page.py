"""The page around everything, and its tables; colours for light and dark, a layout for wide and narrow."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

COLORS = 6
"""Runs of one suite that have a colour of their own; more begin again."""

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --card: #f6f7f9; --text: #1c2024; --soft: #5b6069; --line: #d8dce2;
  --track: #e9ecf0; --blind: #c2410c; --bad: #b42318; --bad-back: #fef1f0; --good: #067647; --good-back: #e7f6ee;
  --odd: #8a5a00; --odd-back: #fdf3d8;
  --run0: #3b76d6; --run1: #0f9488; --run2: #9255d6; --run3: #b98900; --run4: #d1477f; --run5: #64748b }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --card: #1d2026; --text: #e8eaed; --soft: #a3a9b3;
  --line: #363b44; --track: #2a2e36; --blind: #fb923c; --bad: #ff8a80; --bad-back: #3b1a18; --good: #5fd49a;
  --good-back: #123524; --odd: #f2c45f; --odd-back: #3a2d0d;
  --run0: #5b93ee; --run1: #2bb5a8; --run2: #ab78e8; --run3: #cfa02b; --run4: #e5689c; --run5: #8696ad } }
* { box-sizing: border-box }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em;
  background: var(--page); color: var(--text); overflow-wrap: break-word }
h1 { font-size: 1.7em; line-height: 1.2; margin: 0 0 .2em } h2 { font-size: 1.35em; margin: 2.2em 0 .3em;
  padding-top: .8em; border-top: 2px solid var(--line) } h3 { font-size: 1.08em; margin: 1.8em 0 .4em }
p { margin: .4em 0; max-width: 75ch } .soft { color: var(--soft) } small, .small { font-size: .86em }
code { font-size: .9em; overflow-wrap: anywhere }
.scroll { overflow-x: auto; margin: .8em 0 } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { border-bottom: 1px solid var(--line); padding: .4em .9em .4em 0; text-align: left; vertical-align: top }
th { font-weight: 600; font-size: .86em; color: var(--soft); white-space: nowrap; vertical-align: bottom }
td.number, th.number { text-align: right; white-space: nowrap } tr.differs td { background: var(--odd-back) }
.cards table { width: 100% } td.hash { overflow-wrap: anywhere; min-width: 12em } .nowrap { white-space: nowrap }
.dot { display: inline-block; width: .75em; height: .75em; border-radius: 50%; margin-right: .45em }
.warning { border: 2px solid var(--bad); background: var(--bad-back); border-radius: 6px; padding: .7em 1em;
  margin: 1em 0 } .warning strong { color: var(--bad) } .warning ul { margin: .3em 0 0; padding-left: 1.2em }
.mark { font-size: .8em; font-weight: 600; border-radius: 4px; padding: .1em .5em; white-space: nowrap }
.mark.right { color: var(--good); background: var(--good-back) } .mark.wrong { color: var(--bad);
  background: var(--bad-back) } .mark.invalid { color: var(--odd); background: var(--odd-back) }
.task { display: grid; grid-template-columns: 17em 1fr 10.5em; gap: 0 1em; align-items: center; padding: .4em 0;
  border-bottom: 1px solid var(--line) } .task.all { font-weight: 600 } .task.all .value { font-weight: 600 }
.name small { display: block; font-weight: 400 }
.tracks { position: relative; background-image: linear-gradient(to right, var(--track) 1px, transparent 1px);
  background-size: 25% 100%; border-right: 1px solid var(--track); padding: 2px 0 }
.bar, .value { height: 20px; line-height: 20px } .bar { position: relative; margin: 2px 0 } .value { margin: 2px 0;
  font-variant-numeric: tabular-nums; white-space: nowrap } .value small { color: var(--soft) }
.fill { position: absolute; left: 0; top: 3px; bottom: 3px; border-radius: 0 3px 3px 0 }
.error { position: absolute; top: 5px; bottom: 5px; border: solid var(--text); border-width: 0 1.5px; min-width: 3px }
.error::after { content: ""; position: absolute; left: 0; right: 0; top: 50%; border-top: 1.5px solid var(--text);
  transform: translateY(-50%) }
.point { position: absolute; top: 50%; width: 10px; height: 10px; margin: -5px; border-radius: 50% }
.base { position: absolute; top: -2px; bottom: -2px; width: 0 } .base.chance { border-left: 2px dashed var(--soft) }
.base.blind { border-left: 2.5px solid var(--blind) } .base.zero { border-left: 1px solid var(--soft) }
.task.axis-row { border: 0; padding: 0; color: var(--soft) } .axis { position: relative; height: 1.4em }
.axis span { position: absolute; transform: translateX(-50%); font-size: .8em }
.legend { display: flex; flex-wrap: wrap; gap: .2em 1.6em; margin: .5em 0; font-size: .92em }
.key { display: inline-block; height: 1em; vertical-align: -.15em; margin-right: .5em; position: relative; width: 4px }
details { margin: .5em 0 } summary { cursor: pointer; padding: .25em 0 } summary:hover { color: var(--run0) }
.sample { background: var(--card); border-radius: 8px; padding: .9em 1.1em; margin: .7em 0 }
.sample p { margin: .2em 0 }
.frames { display: grid; grid-template-columns: repeat(4, minmax(0, 208px)); gap: .5em; margin: .6em 0 }
.frames figure { margin: 0 } .frames img { width: 100%; display: block; border-radius: 4px }
.frames figcaption { font-size: .8em; color: var(--soft) }
.options { list-style: none; padding: 0; margin: .4em 0 } .options .truth { font-weight: 600; color: var(--good) }
.asked { display: grid; grid-template-columns: minmax(11em, 2fr) 5fr; gap: 0 1.5em } .asked > * { min-width: 0 }
.said { display: grid; grid-template-columns: 11em 1fr; gap: .5em 1em; margin: .4em 0; align-items: start }
.said > div { min-width: 0 } pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 12em;
  overflow-y: auto; font: .88em/1.45 ui-monospace, monospace }
@media (max-width: 700px) {
  body { margin: 1em auto } .task { grid-template-columns: 1fr 9em } .task .name { grid-column: 1 / -1 }
  .frames { grid-template-columns: repeat(2, minmax(0, 1fr)) } .said, .asked { grid-template-columns: 1fr; gap: .1em }
  .said pre { margin-bottom: .6em }
  .cards table, .cards tbody, .cards tr, .cards td { display: block } .cards tr.head { display: none }
  .cards tr { border-bottom: 2px solid var(--line); padding: .5em 0 } .cards td { border: 0; padding: .15em 0 }
  .cards td.number { text-align: left } .cards td[data-label]:not([data-label=""])::before {
    content: attr(data-label) ": "; color: var(--soft); font-size: .86em }
}
@media print { * { print-color-adjust: exact } .scroll { overflow: visible } }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head><body>
{body}
</body></html>
"""


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        html: Its content, already escaped.
        kind: A class of the style, such as "number".
    """

    html: str
    kind: str = ""


def page(title: str, body: Sequence[str]) -> str:
    """The whole page.

    Args:
        title: Plain text.
        body: Its parts, HTML.
    """
    return _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(body))


def table(header: Sequence[str], rows: Sequence[Sequence[Cell | str]], cards: bool = False, marked: str = "") -> str:
    """A table; on a narrow screen it scrolls by itself, or each row becomes a card.

    Args:
        header: Plain texts; a column whose cells are numbers has its name over them.
        rows: Cells; plain texts are escaped.
        cards: Rows become cards where there is no room.
        marked: Class of all rows.
    """
    if not rows:
        return ""
    cells = [[cell if isinstance(cell, Cell) else Cell(escape(cell)) for cell in row] for row in rows]
    kinds = [cell.kind if cell.kind == "number" else "" for cell in cells[0]]
    head = "".join(f'<th class="{kind}">{escape(name)}</th>' for name, kind in zip(header, kinds, strict=True))
    body = "".join(
        f'<tr class="{marked}">'
        + "".join(
            f'<td class="{cell.kind}" data-label="{escape(name)}">{cell.html}</td>'
            for name, cell in zip(header, row, strict=True)
        )
        + "</tr>"
        for row in cells
    )
    return f'<div class="scroll{" cards" * cards}"><table><tr class="head">{head}</tr>{body}</table></div>'


def number(text: str) -> Cell:
    """A cell that is a number, as it is to be read."""
    return Cell(escape(text), "number")


def warning(title: str, sentences: Sequence[str]) -> str:
    """A box that cannot be overlooked; nothing where there is no sentence.

    Args:
        title: Plain text.
        sentences: Plain texts.
    """
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<div class="warning" role="alert"><strong>{escape(title)}</strong><ul>{items}</ul></div>' if items else ""


def folded(title: str, content: str, open_: bool = False) -> str:
    """Something that is shown when its title is clicked; nothing where there is no content.

    Args:
        title: Plain text.
        content: HTML.
        open_: Shown from the start.
    """
    if not content:
        return ""
    return f"<details{' open' * open_}><summary>{escape(title)}</summary>{content}</details>"


def percent(value: float, digits: int = 1) -> str:
    """A share as people read it."""
    return f"{100 * value:.{digits}f} %"


def span(low: float, high: float) -> str:
    """An interval of shares, in percent."""
    return f"{100 * low:.1f} to {100 * high:.1f}" if low < 0 else f"{100 * low:.1f}–{100 * high:.1f}"


def dot(run: int) -> str:
    """The colour of a run.

    Args:
        run: Its number in its suite.
    """
    return f'<span class="dot" style="background:var(--run{run % COLORS})"></span>'
