"""`--help` names all that there is."""

from __future__ import annotations

from score_diffusion.run import help_text
from score_diffusion.run.config_files import config_names, system_names
from score_diffusion.run.keys import MODES


def test_every_mode_section_and_experiment_is_named():
    listed = help_text.help_text("", "score-diffusion:")
    assert all(f"  {mode} " in listed for mode in MODES)
    assert set(help_text.SECTIONS) == help_text.sections()
    files = {name if ":" not in name else f"{name.partition(':')[0]}:NAME" for name in config_names()}
    assert set(help_text.experiments()) == files
    assert set(help_text.systems()) == set(system_names()) >= {"cascade_mnist"}


def test_every_experiment_has_one_line_of_words():
    for name, text in (help_text.experiments() | help_text.systems()).items():
        assert 10 < len(text) < 130 and "\n" not in text, name
