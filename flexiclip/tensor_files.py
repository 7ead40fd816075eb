"""Reading of `.npz`, `.npy` and weight files that may come from anyone: no code is run, and memory use is bounded.

numpy.load allocates what the header of an array declares before it reads the array, and it inflates whatever a zip member
contains, so a file of a kilobyte may ask for terabytes. Here an array must fit into its member, and the members must not
inflate too much.

Weight files (safetensors, `.bin`, `.pt` and `.pth`) become plain dicts of tensors. torch.load(weights_only=True)
unpickles tensors and containers and refuses everything else, so a file cannot run code. A file that cannot be read raises
an error of one line. From a training checkpoint, the state dict is taken, and the prefixes that torch.compile and
distributed training add to its names are removed.
"""

from __future__ import annotations

import io
import math
import mmap
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from flexiclip.errors import UserError, listed
from flexiclip.files import read_json, size_text, text_instead
from flexiclip.libraries import short_reason

T = TypeVar("T")
Array = NDArray[np.generic]

_RATIO = 200  # the largest ratio of inflated to stored bytes; that of weights is near 1
_HARMLESS = 2**24  # inflated bytes that are accepted at any ratio

WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")
_SHARED = 4  # how often a tied tensor may occur in a state dict
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_AVERAGES = ("state_dict_ema", "model_ema")  # timm's checkpoints have both, and timm loads these
_WRAPPED = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_SAVE_TENSORS = "if you trust the file, load it with torch.load(weights_only=False) and save its state dict alone, as safetensors"


def read_npz(path: str | Path) -> dict[str, Array]:
    """Return the arrays of an `.npz` file, by name without `.npy`.

    Raises OSError if the file is missing, and ValueError if it cannot be read.
    """
    with _value_errors(), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        inflated, stored = sum(member.file_size for member in members), Path(path).stat().st_size
        if inflated > _RATIO * stored + _HARMLESS:
            raise ValueError(f"{stored} bytes that would become {inflated}")
        found = {}
        for member in members:
            with archive.open(member) as stream:
                found[member.filename.removesuffix(".npy")] = _read_array(stream, member.file_size, member.filename)
        return found


def read_npy(data: bytes) -> Array:
    """Return the array of an `.npy` file, given as its bytes. Raises ValueError if it cannot be read."""
    with _value_errors():
        return _read_array(io.BytesIO(data), len(data), "npy")


@contextmanager
def _value_errors() -> Iterator[None]:
    """Turn the many errors of zipfile, zlib and numpy's header parser inside this block into a ValueError."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _read_array(stream: IO[bytes], size: int, name: str) -> Array:
    """Return the array in a stream of `size` bytes. `name` is used in errors."""
    version = np.lib.format.read_magic(stream)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read_header is None:
        raise ValueError(f"{name}: an array file of version {version}")
    shape, by_columns, dtype = read_header(stream)
    if dtype.hasobject:
        raise ValueError(f"{name}: pickled objects, which are not read")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"{name}: an array of shape {shape} in {size} bytes")
    data = stream.read(math.prod(shape) * dtype.itemsize)
    return np.frombuffer(bytearray(data), dtype=dtype, count=math.prod(shape)).reshape(shape, order="F" if by_columns else "C")


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors or torch file, by name.

    Raises UserError if the file is damaged, has another format or needs unpickling of other objects.
    """
    return read_checkpoint(path)[0]


def read_checkpoint(path: Path, averaged: bool = False) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of a file by name, and notes.

    If a checkpoint has averaged weights (EMA) as well as plain ones, `averaged` takes the averaged ones. Raises UserError
    if the file is missing or cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            return _plain_names(load_file(path), path), []
        except (SafetensorError, OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            if _begins(path, b"PK\3\4", b"\x80"):
                raise UserError(
                    f"{path}: torch.save wrote it, it is not a safetensors file; give it a name that ends in .pt"
                ) from None
            found = text_instead(path) or f"{short_reason(error)}; download or copy it again"
            raise UserError(f"{path}: not a safetensors file: {found}") from None
    try:
        loaded = _load_torch(path)
    except Exception as error:  # torch's unpickler, zipfile and tensor constructors raise errors of many types
        raise UserError(f"{path}: {_why_not(path, error)}") from None
    return _state_of(loaded, path, averaged)


def _begins(path: Path, *starts: bytes) -> bool:
    """Return whether a file starts with one of the byte strings."""
    with path.open("rb") as file:
        return file.read(8).startswith(starts)


def _why_not(path: Path, error: Exception) -> str:
    """Return why torch could not load a file, and how to fix that."""
    text = str(error)
    if found := _GLOBAL.search(text):
        return f"it holds an object of {found[1]}, which is not unpickled because that can run code; {_SAVE_TENSORS}"
    if "TorchScript" in text:
        return f"it is a TorchScript program, which is not run; {_SAVE_TENSORS}"
    with path.open("rb") as file:
        if file.read(10)[8:] == b'{"':
            return "it is a safetensors file; give it a name that ends in .safetensors"
    found_there = text_instead(path)
    if found_there is not None:
        return f"not a torch file: {found_there}"
    if isinstance(error, zipfile.BadZipFile) or "zip archive" in text:
        return "a torch file, but cut short or damaged; download or copy it again"
    fix = "give a safetensors file, or what torch.save wrote from a state dict"
    return f"no tensors can be read from it ({short_reason(error)}); {fix}"


def _load_torch(path: Path) -> object:
    """Load what torch.save wrote. No code is run, and no more memory is used than the size of the file justifies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of unusual pickles, which are read or raise an error
        if _begins(path, b"PK\3\4"):  # torch checks the same bytes; zipfile would also open files that only end like an archive
            with zipfile.ZipFile(path) as archive:
                inflated = sum(member.file_size for member in archive.infolist())
            if inflated > path.stat().st_size:
                raise ValueError(f"a compressed archive that would become {inflated} bytes; torch writes none")
            return torch.load(path, map_location="cpu", weights_only=True)
        # The older format is a sequence of pickles, in which a string may claim to be 4 GB long. Reading it from a file would
        # allocate that much, while reading it from a memory map returns only the bytes that exist.
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return torch.load(cast(BinaryIO, view), map_location="cpu", weights_only=True)


def read_folder(folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights of a Hugging Face folder, from one file or from the shards that an index lists, and notes.

    Raises UserError if there are none.
    """
    for name in WEIGHT_NAMES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return read_checkpoint(folder / name, averaged=True)
        if index.is_file():
            shards = _shards(read_json(index).get("weight_map"), index)
            return {key: tensor for shard in shards for key, tensor in read_state(folder / shard).items()}, []
    raise UserError(f"{folder}: no weights there; expected one of {', '.join(WEIGHT_NAMES)}")


def _shards(weight_map: object, index: Path) -> list[str]:
    """Return the file names in an index, without their folders, so that no file outside the folder is read."""
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{index}: its weight_map is not a mapping from tensors to files; download it again")
    return sorted({Path(name).name for name in weight_map.values()})


def read_license(folder: Path) -> str | None:
    """Return the licence that the model card of a folder states in its first lines (`license: ...` in README.md), or None."""
    try:
        head = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:4000]
    except OSError:
        return None
    for line in head.splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() == "license" and value.strip():
            return value.strip().strip("\"'")
    return None


def _state_of(loaded: object, path: Path, averaged: bool) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state dict in a loaded file, checked, and notes."""
    loaded, notes = _unwrapped(loaded, averaged)
    if not isinstance(loaded, dict) or not loaded:
        raise UserError(f"{path}: not a state dict but a {type(loaded).__name__}: expected names with tensors")
    state: dict[str, Tensor] = {}
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{path}: not a state dict: {name!r} has the type {type(value).__name__}; expected names with tensors"
            )
        state[name] = value
    numbers, stored = sum(tensor.nbytes for tensor in state.values()), path.stat().st_size
    if numbers > _SHARED * stored + 2**20:  # a tensor of stride 0 can be of any size with only four stored bytes
        raise UserError(f"{path}: its tensors would take {size_text(numbers)}, the file has {size_text(stored)}")
    return _plain_names(state, path), notes


def _unwrapped(loaded: object, averaged: bool) -> tuple[object, list[str]]:
    """Return the state dict inside a training checkpoint, or the object itself if it is not a checkpoint, and notes."""
    if not isinstance(loaded, dict):
        return loaded, []
    found = [name for name in (*_AVERAGES, *_WRAPPERS) if isinstance(loaded.get(name), dict) and loaded[name]]
    average = next((name for name in found if name in _AVERAGES), None)
    plain = next((name for name in found if name in _WRAPPERS), None)
    if average is not None and (averaged or plain is None):
        return loaded[average], [f"the averaged weights of the checkpoint ({average}) were taken, as timm does"]
    if plain is None:
        return loaded, []
    return loaded[plain], [f"the averaged weights of the checkpoint ({average}) were left out"] if average else []


def _plain_names(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Remove the prefixes of torch.compile, FSDP, activation checkpointing, DDP and AveragedModel from the names."""
    plain = {_WRAPPED.sub("", name): tensor for name, tensor in tensors.items()}
    if all(name.startswith("module.") or name == "n_averaged" for name in plain) and plain.keys() != {"n_averaged"}:
        plain = {name.removeprefix("module."): tensor for name, tensor in plain.items() if name != "n_averaged"}
    if len(plain) < len(tensors) - ("n_averaged" in tensors):
        raise UserError(f"{path}: two tensors have the same name without `_orig_mod.` and its like; save one state dict alone")
    return plain


def misfits(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Return in words how the names and shapes of weights differ from the wanted ones, or "" if they do not."""
    both = weights.keys() & wanted.keys()
    shapes = {name: (list(weights[name].shape), list(wanted[name].shape)) for name in both}
    wrong = {
        "missing": wanted.keys() - both,
        "unused": weights.keys() - both,
        "of another shape": [f"{name} {found} instead of {right}" for name, (found, right) in shapes.items() if found != right],
    }
    return "; ".join(f"{what}: {listed(names)}" for what, names in wrong.items() if names)


def beneath(tensors: Mapping[str, T], prefix: str) -> dict[str, T]:
    """Return the entries whose names start with `prefix`, under names without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
