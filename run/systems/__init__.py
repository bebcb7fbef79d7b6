"""Systems: several models that draw together, such as a cascade of a small and an enlarging model.

A *stage* is an ordinary run directory, trained, sampled and evaluated by the ordinary modes. A *system* is a
directory of stages:

    runs/cascade_mnist/system.json      its kind, and the names of its stages in order
    runs/cascade_mnist/base/            a run directory for each stage
    runs/cascade_mnist/x14/
    runs/cascade_mnist/samples/         what the whole system drew

A file in run/configs/ defines a system by

    KIND = "cascade"                                   a name in `KINDS`
    def get_stages() -> dict[str, ConfigDict]: ...     the configuration of each stage, in order

A value "../base" in such a configuration is the directory of the stage base, for keys that name another run.

A new kind takes two steps:

1. A file here with a `Chain`: `draw(indices, seed)` draws samples with these indices through all stages, and
   returns those after each stage. Sample k depends on (seed, k) only; `stage_seed` gives each stage its own
   seed. A function makes it of the stages of a directory: from {name: `StageRun`}, with their configurations
   in order, and the device. It refuses stages that do not fit each other, with a UserError of one sentence.
2. One line in `KINDS` (kinds.py).

Training, sampling from the command line and Python, pictures and files, and `--dry_run` then work.
"""
