"""Checkpoints that any number of ranks, any engine and any ZeRO stage can go on from.

    step-N/model/                  a model folder (model_folder.py): flexiclip eval opens it
    step-N/optimizer.safetensors   moments by parameter name, float32
    step-N/state.json              written last: the step, how many steps were skipped, the recipe, the order of the data, the
                                   size of every other file

Data, lengths and augmentation follow from the step and the seed. Where checkpoints lie and which of them is the newest is the
business of stores.py; writing them while training goes on, of writer.py. Nothing is unpickled: safetensors and JSON only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from flexiclip.errors import UserError
from flexiclip.files import sync_folder
from flexiclip.model_folder import LoadedModel, read_weights, save_model

OPTIMIZER, STATE = "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class Facts:
    """What state.json says besides the sizes of the files."""

    step: int
    skipped: int = 0  # steps among them that updated nothing: the optimisers count the others
    recipe: dict[str, Any] | None = None  # resolved, as plain data; None: written before recipes were kept
    data_order: str | None = None  # see data_order.py; None: a sequential source
    flops: int | None = None  # of all steps so far; None: written before they were kept


@dataclass(frozen=True)
class Snapshot:
    """All that a checkpoint will hold, on the CPU. `loaded` gives the config and the tokenizer; its weights are not read."""

    loaded: LoadedModel
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    facts: Facts

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"step-{self.facts.step}"

    def owned(self) -> Snapshot:
        """The same with tensors of its own, so that training may go on. Empties this one, tensor by tensor.

        `.cpu()` would hand back the live parameter itself where training runs on the CPU, and the next step would write into it.
        """
        return replace(self, weights=_copies(self.weights), moments=_copies(self.moments))


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint in a local folder. where: what it was opened as, for people; a URL that was fetched, say."""

    folder: Path
    where: str
    facts: Facts

    @property
    def step(self) -> int:
        """Finished steps."""
        return self.facts.step

    @property
    def skipped(self) -> int:
        """Steps among them that updated nothing."""
        return self.facts.skipped

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


def write_checkpoint(folder: Path, snapshot: Snapshot) -> None:
    """Write a checkpoint into a new folder and wait until it is on the disk."""
    folder.mkdir(parents=True)
    save_model(folder / "model", snapshot.loaded, snapshot.weights, step=snapshot.facts.step)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in snapshot.moments.items()}, folder / OPTIMIZER)
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    (folder / STATE).write_text(json.dumps({**vars(snapshot.facts), "files": files}) + "\n", encoding="utf-8")
    sync_folder(folder)


def open_checkpoint(folder: Path, where: str | None = None) -> Checkpoint:
    """A checkpoint in a local folder, all of its files there. where: see Checkpoint; default: the folder. Raises UserError."""
    where = where or str(folder)
    try:
        text = (folder / STATE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise incomplete(where, str(error)) from None
    facts, files = read_state(text, where)
    for name, size in files.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else 0
        if found != size:
            raise incomplete(where, f"{name} has {found} of {size} bytes")
    return Checkpoint(folder, where, facts)


def read_state(text: str, where: str) -> tuple[Facts, dict[str, int]]:
    """The facts of a state.json, and the size in bytes of every other file of the checkpoint. Raises UserError."""
    try:
        data = json.loads(text)
        files = {str(name): int(size) for name, size in data.get("files", {}).items()}
        flops = data.get("flops")
        facts = Facts(
            step=int(data["step"]),
            skipped=int(data.get("skipped", 0)),
            recipe=data.get("recipe"),
            data_order=data.get("data_order"),
            flops=None if flops is None else int(flops),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise incomplete(where, f"{STATE}: {error!r}") from None
    outside = [name for name in files if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name]
    if outside:  # the names become paths when the checkpoint is fetched
        raise incomplete(where, f"{STATE} names {outside[0]!r}, which lies outside of it")
    return facts, files


def incomplete(where: str, why: str) -> UserError:
    """The error for what is no checkpoint, or half of one."""
    return UserError(f"{where} is no complete checkpoint ({why}): give train.resume another one, or never")


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    copies = {}
    for name in list(tensors):
        tensor = tensors.pop(name).detach()
        copies[name] = tensor.to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
    return copies
