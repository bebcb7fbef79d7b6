"""The pages of the site that follow from the code, and the folders of its navigation."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the project of these pages, whatever is installed

from score_diffusion.run import help_text  # noqa: E402
from score_diffusion.run.command_line import SHORT_FLAGS, define_flags  # noqa: E402

PACKAGES = ("sde_lib", "models", "samplers", "samplers.guidance", "samplers.inverse")
PYTHON = {  # what `load_run` and `Trainer` give and raise, by module
    "score_diffusion.run.python.results": ["Samples", "LogLikelihoods", "Restorations"],
    "score_diffusion.run.errors": ["UserError"],
}
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MODULE = """::: {module}
    options:
      show_root_heading: false
      show_root_toc_entry: false
      members: false"""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Replaces the folders in the navigation by their pages, and leaves out those without any."""
    docs = Path(config.docs_dir)
    assert config.nav is not None, "mkdocs.yml has one"
    nav = []
    for section in config.nav:
        ((title, pages),) = section.items()
        if isinstance(pages, str) and pages.endswith("/"):
            found = (path.relative_to(docs).as_posix() for path in (docs / pages).glob("*.md"))
            pages = sorted(found, key=lambda page: (not page.endswith("/index.md"), page))
        if pages:
            nav.append({title: pages})
    config.nav = nav
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that follow from the code."""
    pages = {package: package_page(package) for package in PACKAGES}
    pages |= {"score_diffusion": top_page(), "command_line": command_line_page()}
    pages = {f"reference/{name}.md": text for name, text in pages.items()}
    pages |= {f"examples/{path.stem}.md": example_page(path) for path in EXAMPLES}
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Leads links to the examples' files to their pages."""
    return re.sub(r"\]\(\.\./examples/(\w+)\.py\)", r"](examples/\1.md)", markdown)


def on_page_content(content: str, page: Page, **_: object) -> str:
    """Gives each configuration key an anchor, SECTION.KEY; site.css shows its row as a block on phones."""
    if page.file.src_uri != "configuration.md":
        return content
    sections = re.split(r"(?=<h2 id=)", content)
    return "".join(map(_with_anchors, sections)).replace("<table>", '<table class="keys">')


def _with_anchors(section: str) -> str:
    title = re.match(r"<h2 id=[^>]*>([^<]+)", section)
    if not title:
        return section
    return re.sub(r"<tr>\s*<td><code>([^<]+)</code>", rf'<tr id="{title[1]}.\1"><td><code>\1</code>', section)


def example_page(path: Path) -> str:
    """An example as it is, after a heading."""
    title = path.stem.replace("_", " ").capitalize()
    code = path.read_text(encoding="utf-8")
    return f"# {title}\n\n`examples/{path.name}` of the repository:\n\n```python\n{code}```\n"


def package_page(package: str) -> str:
    """A package's public names, by the modules that define them, with what these say at their beginning."""
    path = f"score_diffusion.{package}"
    tree = _parsed(package.replace(".", "/"))
    parts = [f"# {path}", MODULE.format(module=path), f"`from {path} import NAME` imports what is below."]
    for module, names in public_names(tree, path).items():
        heading = "Tables" if module == path else module.rpartition(".")[2]
        parts += [f"## {heading}", *([] if module == path else [MODULE.format(module=module)])]
        parts += [f"::: {module}.{name}" for name in names]
    return "\n\n".join(parts) + "\n"


def top_page() -> str:
    """The names of the package itself, and those that come from them."""
    path = "score_diffusion"
    parts = ["# score_diffusion", MODULE.format(module=path)]
    names = public_names(_parsed(path), path)
    for title, modules in (("Runs and training", names), ("What they return and raise", PYTHON)):
        parts.append(f"## {title}")
        parts += [f"::: {module}.{name}" for module, found in modules.items() for name in found]
    return "\n\n".join(parts) + "\n"


def public_names(tree: ast.Module, package: str) -> dict[str, list[str]]:
    """The names of a package's `__all__` by the module that defines them, in the order of the imports."""
    assigned = dict(_assigned(tree))
    public = set(ast.literal_eval(assigned["__all__"]))
    found = {
        node.module: [alias.name for alias in node.names if alias.name in public]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(package)
    }
    found[package] = [name for name in assigned if name in public]
    missing = public.difference(*found.values())
    assert not missing, f"the site does not find {missing} of {package}"
    return {module: names for module, names in found.items() if names}


def _parsed(package: str) -> ast.Module:
    return ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))


def _assigned(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(targets[0], ast.Name) and node.value:
            yield targets[0].id, node.value


def command_line_page() -> str:
    """Modes, flags and experiments."""
    flags = define_flags()
    rows = {}
    for name in sorted(flags):
        flag = flags[name]
        values = getattr(flag.parser, "enum_values", None)
        words = f" One of {', '.join(f'`{value}`' for value in values)}." if values else ""
        default = f" Default: `{flag.default}`." if flag.default not in (None, False) else ""
        if name == flag.name:
            rows[f"--{name}"] = flag.help + words + default
    return "\n\n".join(
        [
            "# Command line",
            "`score-diffusion --mode MODE`, and `python run/main.py --mode MODE` in a checkout, take the "
            "flags below and `--config.section.key=value` for every [configuration key](../configuration.md)."
            " `--help` prints this page, `--help_config training.` the keys of a section.",
            _table("Modes", "mode", {f"--mode {name}": text for name, text in help_text.MODES.items()}),
            _table("Flags", "flag", rows),
            _table(
                "Flags that are short for a key",
                "flag",
                {f"--{flag}": f"`--config.{key}`" for flag, key in SHORT_FLAGS.items()},
            ),
            _table(
                "Experiments",
                "config",
                {f"--config {name}": text for name, text in help_text.experiments().items()},
            ),
            _table(
                "Systems of several runs",
                "config",
                {f"--config {name}": text for name, text in help_text.systems().items()},
            ),
            _table("Sections of the configuration", "section", help_text.SECTIONS),
        ]
    )


def _table(title: str, column: str, rows: dict[str, str]) -> str:
    lines = [f"| `{name}` | {text} |" for name, text in rows.items()]
    return "\n".join([f"## {title}", "", f"| {column} | |", "|---|---|", *lines])
