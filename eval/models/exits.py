"""A model of ours left after one of its exits: `MODEL+exitN`, N blocks deep (flexiclip/models/exits.py).

flexiclip eval runs/NAME runs/NAME+exit2 --suite openmoji
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from flexiclip.bundle import LoadedModel, load_model
from flexiclip.models.exits import leave_after


def exit_of(source: str) -> tuple[str, int] | None:
    """`A+exit2` -> ("A", 2); None for a source without the ending, and for a path that exists."""
    match = re.fullmatch(r"(.+)\+exit(\d{1,4})", source)
    return (match[1], int(match[2])) if match and not Path(source).exists() else None


def open_exit(source: str, depth: int, device: str) -> LoadedModel:
    """The model at all its lengths, its image tower `depth` blocks deep. Raises UserError that lists the exits."""
    loaded = load_model(source, device)
    model = leave_after(loaded.model, depth, f"{source}+exit{depth}")
    return replace(loaded, model=model, config=replace(loaded.config, model=model.config))
