"""Pages of HTML that need no other file: pictures and curves are part of the page, and nothing is fetched.

All text is escaped where it becomes HTML. The only script is our own, which switches between light and dark
and moves the sliders: the page's policy names it by its digest, so that a browser runs no other and loads
nothing from anywhere. Without scripts the page shows everything too.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from string import Template

from score_diffusion.run import plots
from score_diffusion.run.web_theme import SCRIPT, STYLE

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<div class="layout">
<header><div><h1>$title</h1>
$lead</div><button class="switch" type="button" title="Light or dark">Dark</button></header>
<div class="body">
<nav aria-label="Contents"><ul>
$contents
</ul></nav>
<main>
$body
</main>
</div>
</div>
<script>$script</script>
</body>
</html>
""")
COLOURS = {  # of matplotlib, and what the page has in their place
    **{"#000000": "currentColor", "#ffffff": "none", "#b0b0b0": "currentColor"},
    **{"#1f77b4": "var(--line-1)", "#ff7f0e": "var(--line-2)", "#2ca02c": "var(--line-3)"},
    **{"#d62728": "var(--line-4)", "#cccccc": "var(--edge)"},
}

FIGURE_SIZE = (4.8, 3.3)  # inches; on a phone letters shrink to about 10 pixels


@dataclass(frozen=True)
class Section:
    """A part of a page with a title; without content it is left out."""

    title: str
    parts: Sequence[str]
    """HTML."""

    @property
    def anchor(self) -> str:
        """What links to the section name."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


def page(title: str, lead: str, sections: Iterable[Section]) -> str:
    """A page of sections.

    Args:
        title: Its title, a text.
        lead: One line below it, a text.
        sections: What is on the page.
    """
    shown = [section for section in sections if any(section.parts)]
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return PAGE.substitute(
        policy=policy,
        title=escape(title),
        style=STYLE,
        lead=paragraph(lead, "quiet"),
        contents="\n".join(f"<li><a href='#{s.anchor}'>{escape(s.title)}</a></li>" for s in shown),
        body="\n".join(map(_section, shown)),
        script=SCRIPT,
    )


def _section(section: Section) -> str:
    parts = "\n".join(part for part in section.parts if part)
    return f"<section><h2 id='{section.anchor}'>{escape(section.title)}</h2>\n{parts}\n</section>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of text, "quiet" for one in small grey letters."""
    return f"<p class='{kind}'>{escape(text)}</p>" if kind else f"<p>{escape(text)}</p>"


def heading(text: str) -> str:
    """A heading inside of a section."""
    return f"<h3>{escape(text)}</h3>"


def tiles(figures: Iterable[tuple[str, str, str]]) -> str:
    """The main figures: of each what it is, its value and a remark."""
    each = [
        f"<div class='tile'><span>{name}</span><b>{value}</b><span>{remark}</span></div>"
        for name, value, remark in (map(escape, figure) for figure in figures)
    ]
    return "<div class='tiles'>\n" + "\n".join(each) + "\n</div>" if each else ""


def table(rows: Iterable[Sequence[object]], header: Sequence[str] = ()) -> str:
    """A table of texts."""
    head = "<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in header) + "</tr>" if header else ""
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>\n" for row in rows
    )
    return f"<div class='scroll'><table>{head}\n{body}</table></div>"


def explained(rows: Iterable[tuple[str, str, Sequence[str]]], header: Sequence[str]) -> str:
    """A table of figures: of each its name, what it means, and a cell for each further column."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join(
        f"<tr><td>{escape(name)}<small>{escape(meaning)}</small></td>"
        + "".join(f"<td>{escape(cell).replace('± ', '±&nbsp;')}</td>" for cell in cells)
        + "</tr>"
        for name, meaning, cells in rows
    )
    return f"<div class='scroll'><table class='explained'><tr>{head}</tr>\n{body}</table></div>"


def folded(summary: str, content: str) -> str:
    """HTML that shows after a click on its summary."""
    return f"<details><summary>{escape(summary)}</summary>\n{content}</details>"


def gallery(images: Sequence[str], wide: bool = False) -> str:
    """Pictures next to each other, or wide ones one below the other."""
    kind = "pictures wide" if wide else "pictures"
    return f"<div class='{kind}'>\n" + "\n".join(images) + "\n</div>" if images else ""


def slides(images: Sequence[str], label: str) -> str:
    """Pictures in one place, of which a slider shows one; the last at first."""
    if len(images) < 2:
        return gallery(images)
    last = len(images) - 1
    slider = (
        f"<label class='slider'><span class='quiet'>{escape(label)}</span>"
        f"<input type='range' min='0' max='{last}' value='{last}'><output></output></label>"
    )
    return f"<div class='slides'>{gallery(images)}{slider}</div>"


def figure(figure: plots.Figure, caption: str, size: tuple[float, float] = FIGURE_SIZE) -> str:
    """A figure in the colours of the page, with its caption; resized to a width and a height in inches."""
    figure.set_size_inches(*size)
    text = escape(caption)
    return f"<figure>{_svg(figure, text)}<figcaption>{text}</figcaption></figure>"


def _svg(figure: plots.Figure, label: str) -> str:
    """A figure as an element of the page: its own names would clash with those of other figures."""
    text = plots.svg(figure).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[a-z0-9.]+_\d+"', "", text)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    view = re.search(r'viewBox="[^"]*"', text)
    head = f"<svg {view[0] if view else ''} role='img' aria-label='{label}'>"
    text = head + text[text.index(">") + 1 :]
    return re.sub("|".join(COLOURS), lambda match: COLOURS[match[0]], text)


def image(data: bytes, kind: str, caption: str) -> str:
    """A picture from the bytes of a file of a kind, "png"."""
    text = escape(caption)
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return f"<figure><img alt='{text}' src='{source}'><figcaption>{text}</figcaption></figure>"
