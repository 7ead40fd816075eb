"""Training: everything from a recipe to a trained model folder.

    trainer.py            the loop, and what happens around its steps; setup.py builds what the loop needs
    step.py               one training step, the same for every objective and engine
    objectives.py         what a run trains towards; text_features.py computes the features of captions before the first step
    engine.py             the torch engine, the optimizers and the precision; deepspeed.py is the other engine
    towers.py             the modules that an engine trains
    blocks.py             compiled and recomputed blocks, and memory that stays with the process on CPUs
    checkpoint.py         the format of a checkpoint; checkpoint_writer.py writes it while training goes on
    stores.py             where checkpoints are kept; remote_store.py does this for object stores
    resume.py             which checkpoint a run goes on from, and whether the recipe is still that run's
    run_lock.py           one run at a time in a run folder
    ranks.py              the processes of a run and their context; heartbeat.py notices lost ones, signals.py handles Ctrl-C and
                          SIGTERM
    feed.py               waiting for batches, with a time limit
    banner.py             the lines at the start of a run
    logs.py               the log files and the progress display; eval_table.py shows the evaluation inside a run
    nonfinite.py          steps with a NaN or Inf

The command is `flexiclip train RECIPE [key=value ...]`, also under torchrun or deepspeed. In Python it is
`flexiclip.train(RECIPE, OVERRIDES)`: this package can be called, because a function cannot have its name.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """A package that is also the function `train` of commands.py, which imports this package and is found by its name."""

    def __call__(self, recipe: Any, overrides: Any = ()) -> Any:
        """Train a recipe. See flexiclip.commands.train."""
        return importlib.import_module("flexiclip.commands").train(recipe, overrides)


sys.modules[__name__].__class__ = _Package
