"""What `--help` says: examples, modes, experiments, sections of the configuration, flags.

Nothing here imports torch or an experiment: the experiments' files are read, not run.
"""

from __future__ import annotations

import ast

from score_diffusion.run.config_files import SYSTEM, experiment_files
from score_diffusion.run.keys import KEYS, MODES

SECTIONS = {
    "data": "which data, and how they are prepared",
    "sde": "the SDE and its numbers",
    "model": "the network and what it predicts",
    "training": "steps, batches, learning rate, objective, averages, checkpoints",
    "sampling": "sampler, evaluations, classes, guidance, seed, what is written",
    "interpolate": "between which samples, and how exactly",
    "restore": "what was measured, and the method",
    "likelihood": "which figures, and how exactly",
    "evaluation": "metrics, features, numbers of samples",
    "compare": "what is compared",
    "demo": "address of the page, size of uploads",
}
STAGES = "A system's stages: --config.STAGE.section.key=VALUE sets a key of one, --config.section.key of all."


def help_text(usage: str, flags: str) -> str:
    """The whole text.

    Args:
        usage: What the program is for, with examples.
        flags: The flags with their explanations.
    """
    parts = [
        usage.strip(),
        _table("Modes, --mode NAME", MODES),
        _table("Experiments, --config NAME", experiments()),
        _table("Systems of several runs, --config NAME", systems()) + f"\n  {STAGES}",
        _table("Sections of the configuration, --help_config NAME", SECTIONS),
        "Flags:" + flags.strip().partition(":")[2],  # after the module that defines them
    ]
    return "\n\n".join(parts)


def _table(title: str, rows: dict[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join([f"{title}:", *(f"  {name:<{width}}  {text}" for name, text in rows.items())])


def experiments() -> dict[str, str]:
    """The experiments with the first sentence of their files; NAME:EXPERIMENT for files of several."""
    found = {}
    for stem, tree in _files().items():
        several = any(
            "EXPERIMENTS" in ast.dump(node) for node in tree.body if isinstance(node, ast.AnnAssign)
        )
        if not _defines_system(tree):
            name = f"{stem}:NAME" if several else stem
            found[name] = _first_sentence(ast.get_docstring(tree) or "")
    return found


def systems() -> dict[str, str]:
    """The systems with the first sentence of their files."""
    return {
        stem: _first_sentence(ast.get_docstring(tree) or "")
        for stem, tree in _files().items()
        if _defines_system(tree)
    }


def _files() -> dict[str, ast.Module]:
    return {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in experiment_files()}


def _defines_system(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == SYSTEM for node in tree.body)


def _first_sentence(text: str) -> str:
    """Up to the first colon or full stop that ends a clause, on one line."""
    line = " ".join(text.split())
    ends = [end for mark in (". ", ": ") if (end := line.find(mark)) > 0]
    return line[: min(ends, default=len(line))].removesuffix(".")


def sections() -> set[str]:
    """The sections that there are."""
    return {name.partition(".")[0] for name in KEYS if "." in name}
