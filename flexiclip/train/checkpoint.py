"""The format of a checkpoint, which does not depend on the number of ranks, the engine or the ZeRO stage.

    step-N/model/                  a model folder (model_folder.py): flexiclip eval opens it
    step-N/optimizer.safetensors   moments by parameter name, float32
    step-N/state.json              written last: the step, how many steps were skipped, the recipe, the order of the data, the
                                   size of every other file

The order of the data, the lengths and the augmentation follow from the step and the seed, so they are not stored. All files are
safetensors or JSON; nothing is unpickled. stores.py decides where checkpoints are kept and which one is the newest, and
checkpoint_writer.py writes them while training goes on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from flexiclip.errors import UserError
from flexiclip.files import save_tensors, sync_folder
from flexiclip.model_folder import LoadedModel, read_weights, save_model

OPTIMIZER, STATE = "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class Facts:
    """The contents of state.json, except for the sizes of the files."""

    step: int  # finished steps
    skipped: int = 0  # finished steps that updated nothing, which the optimizers do not count
    recipe: dict[str, object] | None = None  # resolved, as plain data; None if the checkpoint is older than this field
    data_order: str | None = None  # the hash that data_order in ranks.py returns; None for a sequential source
    flops: int | None = None  # of all steps so far; None if the checkpoint is older than this field


@dataclass(frozen=True)
class Snapshot:
    """The contents of a checkpoint before it is written, on the CPU.

    Only the config and the tokenizer of `loaded` are used. The weights come from `weights`.
    """

    loaded: LoadedModel
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    facts: Facts

    @property
    def name(self) -> str:
        """The name of the checkpoint's folder."""
        return f"step-{self.facts.step}"

    def owned(self) -> Snapshot:
        """Return a snapshot with copies of the tensors, so that training can go on. Empties this one, tensor by tensor.

        `.cpu()` is not enough: if training runs on the CPU, it returns the parameter itself, which the next step changes.
        """
        return replace(self, weights=_copies(self.weights), moments=_copies(self.moments))


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint in a local folder. `where` is its name in messages, for example the URL it was fetched from."""

    folder: Path
    where: str
    facts: Facts

    @property
    def step(self) -> int:
        """Number of finished steps."""
        return self.facts.step

    @property
    def model(self) -> Path:
        """Path of the model folder inside the checkpoint."""
        return self.folder / "model"

    def weights(self) -> dict[str, Tensor]:
        """Read every parameter of the model, float32, by name."""
        return read_weights(self.model / "model.safetensors")

    def moments(self) -> dict[str, Tensor]:
        """Read the optimizers' moments: "exp_avg/NAME" for the towers, "scalars/exp_avg/INDEX" for the scalars of the loss."""
        return read_weights(self.folder / OPTIMIZER)


def write_checkpoint(folder: Path, snapshot: Snapshot) -> None:
    """Write a checkpoint into a new folder and wait until it is on the disk."""
    folder.mkdir(parents=True)
    save_model(folder / "model", snapshot.loaded, snapshot.weights, step=snapshot.facts.step)
    save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in snapshot.moments.items()}, folder / OPTIMIZER)
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    (folder / STATE).write_text(json.dumps({**vars(snapshot.facts), "files": files}) + "\n", encoding="utf-8")
    sync_folder(folder)


def open_checkpoint(folder: Path, where: str | None = None) -> Checkpoint:
    """Open a checkpoint in a local folder. where: its name in messages, by default the folder.

    Raises UserError if a file is missing or does not have the size that state.json states.
    """
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
    """Parse the text of a state.json into its facts and the size in bytes of every other file of the checkpoint.

    Raises UserError if the text is not valid, or if it names a file outside of the checkpoint.
    """
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
    if outside:  # the names are used as paths when the checkpoint is fetched
        raise incomplete(where, f"{STATE} names {outside[0]!r}, which lies outside of it")
    return facts, files


def incomplete(where: str, why: str) -> UserError:
    """Return the error for a checkpoint that is missing or incomplete."""
    return UserError(f"{where} is not a complete checkpoint ({why}): give train.resume another one, or never")


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    copies = {}
    for name in list(tensors):
        tensor = tensors.pop(name).detach()
        copies[name] = tensor.to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
    return copies
