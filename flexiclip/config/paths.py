"""The one rule for relative paths: a path in a file is relative to the folder of that file.

    beside("shards/*.tar", "/data/recipes/my.yaml")     # /data/recipes/shards/*.tar, if something is there

If nothing is there but something is at the same path from the working folder, that is taken, and one line on stderr says so.
Recipes (`base`, `init`, shards, suites, tokenizers), suites and the tables of images follow this rule. A path on the command
line is relative to the working folder, and so are `run_dir` and `train.checkpoint_dir`, because they name what a run writes.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Mapping

from braceexpand import braceexpand

from flexiclip.config.yaml_text import YamlValue

_READ = (
    *("init", "model.image.init", "model.text.init", "model.text.name", "model.classes", "tokenizer.path"),
    *("distillation.teacher", "eval.suites", "data.train", "data.train.shards"),
)
"""The keys of a recipe that may name files or folders which a run reads."""

_ADDRESSES = ("~", "pipe:", "package:", "open_clip:", "hf-hub:", "local-dir:")

_said: set[tuple[str, str]] = set()


def beside(path: str, file: str | os.PathLike[str]) -> str:
    """Return where a path leads that `file` names, which may be a pattern with braces and wildcards.

    An absolute path, a URL or another address with a scheme is returned unchanged. If nothing is at the path from either
    folder, the path from the folder of `file` is returned.
    """
    found = beside_if_there(path, file)
    return os.path.join(os.path.dirname(file), path) if found is None else found


def beside_if_there(path: str, file: str | os.PathLike[str]) -> str | None:
    """Return the result of `beside`, or None if nothing is at the path from either folder, so that it may be a plain name."""
    if not path or os.path.isabs(path) or path.startswith(_ADDRESSES) or "://" in path:
        return path
    near = os.path.join(os.path.dirname(file), path)
    if _exists(near):
        return near
    if not _exists(path):
        return None
    _say_once(os.fspath(file), f"{path} is not beside {os.fspath(file)}, and is taken from the working folder {os.getcwd()}")
    return path


def place_paths(recipe: dict[str, YamlValue], file: str | os.PathLike[str]) -> dict[str, YamlValue]:
    """Return the data of a recipe file with the paths of what it reads, by the rule above. A plain name stays as it is."""

    def placed(path: str) -> str:
        found = beside_if_there(path, file)
        return path if found is None else found

    return {key: _placed(value, key, placed) for key, value in recipe.items()}


def _placed(value: YamlValue, key: str, placed: Callable[[str], str]) -> YamlValue:
    """Return a value with its paths placed: a section, a list of paths or of sources, or a path."""
    if isinstance(value, Mapping):
        return {name: _placed(item, f"{key}.{name}", placed) for name, item in value.items()}
    if isinstance(value, list):
        return [_placed(item, key, placed) for item in value]
    return placed(value) if isinstance(value, str) and key in _READ else value


def _exists(pattern: str) -> bool:
    """Whether there is something at a path, or at the first of the paths that a pattern stands for."""
    if "\0" in pattern:
        return False
    if os.path.lexists(pattern):
        return True
    try:
        first = next(iter(braceexpand(pattern)), pattern)
    except ValueError:  # braceexpand's UnbalancedBracesError is one of them
        return False
    return os.path.lexists(first) or (glob.has_magic(first) and next(glob.iglob(first), None) is not None)


def _say_once(file: str, line: str) -> None:
    """Print one line on stderr, once per file and working folder, and only on rank 0 because all ranks read the same files."""
    key = (file, os.getcwd())
    if key not in _said and os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)
    _said.add(key)
