"""The sections of the page that `--mode report` writes about a run.

A page of several runs takes `run_sections` of each, or the sections that it needs.
"""
