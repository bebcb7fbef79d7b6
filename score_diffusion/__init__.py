"""Score-based diffusion models: SDEs, networks, samplers, and the commands that train and use them.

    from score_diffusion.samplers import PCSampler
    from score_diffusion.sde_lib import VPSDE

An installation holds `sde_lib`, `models`, `samplers` and `run` inside this package, so that it adds one name
to site-packages. In a checkout they are the folders next to this one.
"""

from pathlib import Path

__version__ = "0.1.0"

_here = Path(__file__).parent
if not (_here / "sde_lib").is_dir():  # in a checkout
    __path__.append(str(_here.parent))
