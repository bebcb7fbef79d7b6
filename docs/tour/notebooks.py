"""The pages of the tour as notebooks: `make notebooks`, or `python -m docs.tour.notebooks FOLDER`.

Pictures are kept inside the notebooks, and links lead to the other notebooks and to the documents of the
checkout, so that a notebook can be opened anywhere that has the package.
"""

from __future__ import annotations

import base64
import os
import re
import sys
from pathlib import Path

import jupytext
from nbformat import NotebookNode

TOUR = Path(__file__).resolve().parent
PICTURE = re.compile(r"!\[([^]]*)\]\(([^)]+\.png)\)")
LINK = re.compile(r"(?<=\]\()([\w./]+\.md)(?=[)#])")
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def notebook_of(page: Path, folder: Path) -> NotebookNode:
    """A page as a notebook that is to lie in a folder."""
    notebook = jupytext.reads(page.read_text(encoding="utf-8"), fmt="md")
    notebook.metadata = NotebookNode(kernelspec=KERNEL)
    for k, cell in enumerate(notebook.cells):
        cell.id = f"cell-{k}"  # random by default
        if cell.cell_type == "markdown":
            _keep_pictures(cell, page)
            cell.source = LINK.sub(lambda link: _target(link[1], page, folder), cell.source)
    return notebook


def _keep_pictures(cell: NotebookNode, page: Path) -> None:
    for _, name in PICTURE.findall(cell.source):
        path = page.parent / name
        content = base64.b64encode(path.read_bytes()).decode()
        cell.setdefault("attachments", {})[path.name] = {"image/png": content}
    cell.source = PICTURE.sub(lambda m: f"![{m[1]}](attachment:{Path(m[2]).name})", cell.source)


def _target(link: str, page: Path, folder: Path) -> str:
    if (TOUR / link).parent == TOUR and link != "index.md":
        return link.replace(".md", ".ipynb")
    return Path(os.path.relpath((page.parent / link).resolve(), folder.resolve())).as_posix()


def main(folder: Path) -> None:
    """Writes a notebook for each page."""
    folder.mkdir(parents=True, exist_ok=True)
    for page in sorted(TOUR.glob("[0-9]*.md")):
        jupytext.write(notebook_of(page, folder), folder / f"{page.stem}.ipynb")
    print(f"notebooks: {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
