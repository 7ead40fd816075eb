"""Recipes: the frozen dataclasses that hold them (schema/), and how they are read (load.py) and explained (explain.py)."""

from flexiclip.config import schema
from flexiclip.config.keys import Duration, parse_duration, to_steps
from flexiclip.config.load import dump, from_dict, load, to_dict
from flexiclip.config.schema import *  # noqa: F403 (the sections, which schema lists)

__all__ = ["Duration", "dump", "from_dict", "load", "parse_duration", "to_dict", "to_steps"]
__all__ += schema.__all__
