r"""Formulas: LaTeX between $ signs becomes MathML, which browsers draw without a script.

Chromium draws brackets of every height only in a font that is made for formulas. STIX Two Math comes with the
package ziamath, and the site gets a copy.
"""

from __future__ import annotations

import html
import re
from importlib.util import find_spec
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<bracket>[(\[])(?P<latex>.*?)\\[)\]]</(?P=tag)>', re.S
)
FUNCTION = "<mi>(?:log|exp|sin|cos|det|max|min)</mi>"
NAMED_FUNCTION = re.compile(rf"(?<!<msup>)(?<!<msub>){FUNCTION}(?!<mo)")
NOT_UNDERSTOOD = re.compile(r"\\\w+|>&<")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the font."""
    package = find_spec("ziamath")
    assert package and package.origin, "the extra [docs] has it"
    font = Path(package.origin).with_name("fonts") / "STIXTwoMath-Regular.ttf"
    files.append(File.generated(config, "assets/stix_two_math.ttf", abs_src_path=str(font)))
    return files


def on_page_content(content: str, page: Page, **_: object) -> str:
    """Replaces the formulas of a page.

    Raises:
        ValueError: If a formula holds something that is not known.
    """
    return FORMULA.sub(lambda match: _drawn(match, page.file.src_uri), content)


def _drawn(match: re.Match[str], where: str) -> str:
    latex = html.unescape(match["latex"])
    displayed = match["bracket"] == "["
    # `split` is the same as `aligned`, which the converter does not know.
    code = convert(latex.replace("{aligned}", "{split}"), display="block" if displayed else "inline")
    unknown = NOT_UNDERSTOOD.search(code)
    if unknown:
        raise ValueError(f"{where}: {unknown[0]} of the formula {latex!r} is not known")
    code = NAMED_FUNCTION.sub(r'\g<0><mspace width="0.17em" />', code)  # log p, not logp
    code = code.replace("&#x0007E;", "&#x0223C;")  # x ~ p as a relation, with space on both sides
    return f'<div class="formula">{code}</div>' if displayed else code
