"""Checkpoints that any number of ranks, any engine and any ZeRO stage can go on from.

    checkpoints/step-N/model/                  a model folder (bundle.py): flexiclip eval opens it
    checkpoints/step-N/optimizer.safetensors   moments by parameter name, float32
    checkpoints/step-N/state.json              the step; data order, lengths and augmentation follow from it and the seed. Of its
                                               steps, how many were skipped
    checkpoints/latest                         the name of the newest complete one, as DeepSpeed writes it

A folder is written aside and renamed when it is whole; `latest` is replaced after that. RUN/model is the newest one's model,
hard-linked.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from flexiclip.bundle import LoadedModel, read_weights, replace_folder, save_model
from flexiclip.errors import UserError

OPTIMIZER, STATE, LATEST = "optimizer.safetensors", "state.json", "latest"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    step: int
    skipped: int
    """Steps among them that updated nothing: the optimisers count the others."""

    @property
    def model(self) -> Path:
        """Its model folder."""
        return self.folder / "model"

    def weights(self) -> dict[str, Tensor]:
        """Every parameter of the model, float32, by name."""
        return read_weights(self.model / "model.safetensors")

    def moments(self) -> dict[str, Tensor]:
        """The optimisers' moments: "exp_avg/NAME" for the towers, "scalars/exp_avg/INDEX" for the loss's scalars."""
        return read_weights(self.folder / OPTIMIZER)


def save_checkpoint(
    run: Path,
    loaded: LoadedModel,
    weights: dict[str, Tensor],
    moments: dict[str, Tensor],
    step: int,
    keep_last: int,
    skipped: int = 0,
) -> None:
    """Write checkpoints/step-N and RUN/model; remove all but the `keep_last` newest. One rank calls it."""
    root = run / "checkpoints"
    folder = root / f"step-{step}"
    aside = root / f".step-{step}.{os.getpid()}"
    for left in root.glob(".step-*"):  # by a run that was killed while it wrote
        shutil.rmtree(left, ignore_errors=True)
    aside.mkdir(parents=True)
    save_model(aside / "model", loaded, weights, step=step)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in moments.items()}, aside / OPTIMIZER)
    (aside / STATE).write_text(json.dumps({"step": step, "skipped": skipped}) + "\n", encoding="utf-8")
    replace_folder(aside, folder)
    write_whole(root / LATEST, folder.name + "\n")
    _publish(folder / "model", run / "model")
    for old in _complete(root)[:-keep_last]:
        if old.step != step:
            shutil.rmtree(old.folder, ignore_errors=True)


def find_checkpoint(run: Path, resume: str) -> Checkpoint | None:
    """The checkpoint that `train.resume` names: auto (latest, if there is one), never, or a folder."""
    if resume == "never":
        return None
    if resume != "auto":
        return _open(Path(resume))
    latest = run / "checkpoints" / LATEST
    return _open(latest.parent / latest.read_text(encoding="utf-8").strip()) if latest.is_file() else None


def _open(folder: Path) -> Checkpoint:
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return Checkpoint(folder, int(state["step"]), int(state.get("skipped", 0)))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} is no complete checkpoint ({error!r}): give train.resume another one, or never") from None


def _complete(root: Path) -> list[Checkpoint]:
    found = [_open(path) for path in root.glob("step-*") if (path / STATE).is_file()]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def _publish(source: Path, target: Path) -> None:
    """Put a hard-linked copy of a folder in the place of another; a plain copy where links are not to be had."""
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        shutil.copytree(source, aside, copy_function=os.link)
    except (OSError, shutil.Error):
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(source, aside)
    replace_folder(aside, target)


def write_whole(path: Path, text: str) -> None:
    """Write a file aside and put it in its place: no reader sees half of it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
