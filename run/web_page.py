"""Pages of HTML that need no other file: pictures are part of the page, and there is no script.

All text is escaped where it becomes HTML.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from string import Template

from score_diffusion.run import plots

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { margin: 0 auto; max-width: 64rem; padding: 0 1rem 3rem; color: #222; background: #fff;
       font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1rem; margin-bottom: 0.5rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { text-align: left; vertical-align: top; padding: 0.15rem 1rem 0.15rem 0; overflow-wrap: anywhere; }
.pictures { display: grid; gap: 1rem;
            grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
figure { margin: 0; }
figcaption { font-size: 0.85rem; color: #555; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; }
summary { cursor: pointer; margin: 0.5rem 0; }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")


def page(title: str, body: str) -> str:
    """A page with a title, which is text, and a body, which is HTML."""
    return PAGE.substitute(title=escape(title), body=body)


def table(rows: Iterable[Sequence[object]], header: Sequence[str] = ()) -> str:
    """A table of texts."""
    head = "<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in header) + "</tr>" if header else ""
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>\n" for row in rows
    )
    return f"<div class='scroll'><table>{head}\n{body}</table></div>"


def folded(summary: str, content: str) -> str:
    """HTML that shows after a click on its summary."""
    return f"<details><summary>{escape(summary)}</summary>\n{content}</details>"


def gallery(images: Sequence[str]) -> str:
    """Pictures next to each other."""
    return "<div class='pictures'>\n" + "\n".join(images) + "\n</div>" if images else ""


def figure(figure: plots.Figure, caption: str) -> str:
    """A figure with its caption."""
    return image(plots.svg(figure), "svg+xml", caption)


def image(data: bytes, kind: str, caption: str) -> str:
    """A picture from the bytes of a file of a kind, "png" or "svg+xml"."""
    text = escape(caption)
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return f"<figure><img alt='{text}' src='{source}'><figcaption>{text}</figcaption></figure>"
