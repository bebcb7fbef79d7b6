"""Which folders become packages. All else that an installation needs is in pyproject.toml.

In the checkout `sde_lib`, `models`, `samplers` and `run` stand side by side. An installation holds them
inside `score_diffusion`, so that it adds one name to site-packages and hides nobody's own `models` or `run`.
"""

from setuptools import find_packages, setup

FOLDERS = ("sde_lib", "models", "samplers", "run")
PACKAGES = find_packages(include=[pattern for folder in FOLDERS for pattern in (folder, f"{folder}.*")])

setup(
    package_dir={f"score_diffusion.{folder}": folder for folder in FOLDERS},
    packages=["score_diffusion", *(f"score_diffusion.{name}" for name in PACKAGES)],
)
