"""Reads suites: YAML files that list what a model is scored on.

    flexiclip eval MODEL --suite NAME|FILE|FOLDER|URL

A suite lists data sets. A data set gives the place of its samples and the tasks on them, so that one pass over the images serves
all tasks. The names of suites are those of the YAML files in this folder.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flexiclip_eval.suites.complete import complete
from flexiclip_eval.suites.dataset import DatasetConfig

from flexiclip.config import from_dict
from flexiclip.config.load import parse_yaml
from flexiclip.data.remote import is_remote
from flexiclip.errors import UserError

SUITES = Path(__file__).parent


@dataclass(frozen=True)
class SuiteConfig:
    """A suite: a list of data sets whose rows can be told apart. Raises UserError for an empty list or for equal names."""

    datasets: tuple[DatasetConfig, ...]
    """The data sets in the order in which they are scored."""

    def __post_init__(self) -> None:
        if not self.datasets:
            raise UserError("the suite has no datasets")
        names = [dataset.row_name(task) + task.row_kind for dataset in self.datasets for task in dataset.tasks]
        names += [dataset.name for dataset in self.datasets if not dataset.tasks]
        if len(set(names)) < len(names):
            raise UserError("two data sets of the suite share a name; their rows could not be told apart")


def load_suite(suite: str) -> SuiteConfig:
    """Read a suite from its name or from a YAML file.

    A folder or URL in CLIP_benchmark's layout (layout.py) becomes a suite of this one data set. Raises UserError: for a typo in
    a key it suggests the nearest key, and for an unknown name the nearest name, with a list of all names.
    """
    path = Path(suite)
    if not path.is_file():
        path = SUITES / f"{suite}.yaml"
    if not path.is_file() and (is_remote(suite) or Path(suite).is_dir()):
        return SuiteConfig((DatasetConfig(root=suite),))
    if not path.is_file():
        names = sorted(p.stem for p in SUITES.glob("*.yaml"))
        near = difflib.get_close_matches(suite[:100], names, n=1, cutoff=0.5)
        mend = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"no suite {suite!r}: {mend}neither a file nor one of {', '.join(names)}")
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: a suite is a mapping with the key datasets, not a {type(data).__name__}")
    try:
        return from_dict(SuiteConfig, data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def load_datasets(suites: Sequence[str]) -> list[DatasetConfig]:
    """Return the data sets of several suites, completed from their files. Raises UserError for equal names or a bad file."""
    found, failed = load_readable(suites)
    for error in failed.values():
        raise error
    return found


def load_readable(suites: Sequence[str]) -> tuple[list[DatasetConfig], dict[str, UserError]]:
    """Return (the data sets of several suites whose files can be read, {name: error} of the others).

    Raises UserError for a suite that cannot be read itself, and for two data sets of the same name.
    """
    if not suites:
        raise UserError("no suite to evaluate: give --suite NAME or eval.suites")
    found: list[DatasetConfig] = []
    failed: dict[str, UserError] = {}
    for dataset in [dataset for suite in suites for dataset in load_suite(suite).datasets]:
        try:
            found.append(complete(dataset))
        except UserError as error:
            failed[dataset.name] = error
    return list(SuiteConfig(tuple(found)).datasets) if found else [], failed
