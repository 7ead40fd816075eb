"""Arrays of an `.npz` file from anywhere: nothing unpickled, and never more memory than the file itself accounts for.

numpy.load allocates what an array's header declares before it reads, and inflates what a zip member holds: a file of a kilobyte
may ask for terabytes. Here an array must fit into its member, and the members must not be a bomb.

Weight files of torch's world as plain dicts of tensors: safetensors, and `.bin`, `.pt`, `.pth` without running a pickle.

torch.load(weights_only=True) unpickles tensors and containers and refuses everything else, so that a file from elsewhere cannot
run code here. What cannot be read is one line.

Of a training checkpoint the state dict is taken, without what torch.compile and distributed training put before the names.
"""

from __future__ import annotations

import io
import json
import math
import mmap
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from flexiclip.errors import UserError
from flexiclip.files import short_reason, stands_there, text_there

_RATIO = 200  # of inflated to stored bytes, above which a file is a bomb; weights stand near 1
_HARMLESS = 2**24  # bytes that may inflate as they like


def read_npz(path: str | Path) -> dict[str, NDArray[Any]]:
    """The arrays of the file, by name without `.npy`. Raises OSError when there is none, ValueError when it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            inflated, stored = sum(member.file_size for member in members), Path(path).stat().st_size
            if inflated > _RATIO * stored + _HARMLESS:
                raise ValueError(f"{stored} bytes that would become {inflated}")
            found = {}
            for member in members:
                with archive.open(member) as stream:
                    found[member.filename.removesuffix(".npy")] = _read_array(stream, member.file_size, member.filename)
            return found
    except (OSError, ValueError):
        raise
    except Exception as error:  # zipfile, zlib and numpy's parser of headers each have errors of their own
        raise ValueError(f"{type(error).__name__}: {error}") from None


def read_npy(data: bytes) -> NDArray[Any]:
    """The array of a whole `.npy` file. Raises ValueError when it cannot be read."""
    try:
        return _read_array(io.BytesIO(data), len(data), "npy")
    except ValueError:
        raise
    except Exception as error:  # of numpy's parser of headers
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _read_array(stream: IO[bytes], size: int, name: str) -> NDArray[Any]:
    """The array in a stream of `size` bytes; name: for what is raised."""
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


WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")
_SHARED = 4  # times that a tied tensor may stand in a state dict
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_AVERAGES = ("state_dict_ema", "model_ema")  # timm's checkpoints hold both, and timm loads these
_WRAPPED = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_SAVE_TENSORS = "if you trust the file, load it with torch.load(weights_only=False) and save its state dict alone, as safetensors"


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or torch file, by name. Raises UserError when it is damaged, foreign or needs unpickling."""
    return read_checkpoint(path)[0]


def read_checkpoint(path: Path, averaged: bool = False) -> tuple[dict[str, Tensor], list[str]]:
    """(the tensors of a file by name, notes). averaged: of a checkpoint that has averaged weights (EMA) as well, take those."""
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
            found = text_there(path) or f"{short_reason(error)}; download or copy it again"
            raise UserError(f"{path}: not a safetensors file: {found}") from None
    try:
        loaded = _load_torch(path)
    except Exception as error:  # torch's unpickler, zipfile and the constructors of tensors each have errors of their own
        raise UserError(f"{path}: {_why_not(path, error)}") from None
    return _state_of(loaded, path, averaged)


def _begins(path: Path, *starts: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(8).startswith(starts)


def _why_not(path: Path, error: Exception) -> str:
    """Why torch could not load a file, and what to do about it."""
    text = str(error)
    if found := _GLOBAL.search(text):
        return f"it holds an object of {found[1]}, which is not unpickled because that can run code; {_SAVE_TENSORS}"
    if "TorchScript" in text:
        return f"it is a TorchScript program, which is not run; {_SAVE_TENSORS}"
    with path.open("rb") as file:
        if file.read(10)[8:] == b'{"':
            return "it is a safetensors file; give it a name that ends in .safetensors"
    found_there = text_there(path)
    if found_there is not None:
        return f"not a torch file: {found_there}"
    if isinstance(error, zipfile.BadZipFile) or "zip archive" in text:
        return "a torch file, but cut short or damaged; download or copy it again"
    fix = "give a safetensors file, or what torch.save wrote from a state dict"
    return f"no tensors can be read from it ({short_reason(error)}); {fix}"


def _load_torch(path: Path) -> Any:
    """What torch.save wrote, nothing of it run, and no more memory taken than the file accounts for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of unusual pickles; either they are read, or the error says it
        if _begins(path, b"PK\3\4"):  # what torch goes by; zipfile also takes what only ends like an archive
            with zipfile.ZipFile(path) as archive:
                inflated = sum(member.file_size for member in archive.infolist())
            if inflated > path.stat().st_size:
                raise ValueError(f"a compressed archive that would become {inflated} bytes; torch writes none")
            return torch.load(path, map_location="cpu", weights_only=True)
        # Before its zip files torch wrote pickles one after the other, in which a text may say that it is 4 GB long: a file would
        # make room for it, a mapped one gives what there is.
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return torch.load(cast(BinaryIO, view), map_location="cpu", weights_only=True)


def read_folder(folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """(the weights of a Hugging Face folder, in one file or in shards that an index lists; notes)."""
    for name in WEIGHT_NAMES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return read_checkpoint(folder / name, averaged=True)
        if index.is_file():
            shards = _shards(read_json(index).get("weight_map"), index)
            return {key: tensor for shard in shards for key, tensor in read_state(folder / shard).items()}, []
    raise UserError(f"{folder}: no weights there; expected one of {', '.join(WEIGHT_NAMES)}")


def _shards(weight_map: Any, index: Path) -> list[str]:
    """The file names of an index. They are taken without their folders, so that none lies elsewhere."""
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{index}: its weight_map is no mapping from tensors to files")
    return sorted({Path(name).name for name in weight_map.values()})


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; UserError when it is none."""
    try:
        data = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file: {stands_there(path) or short_reason(error)}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a JSON object, not a {type(data).__name__}")
    return data


def read_license(folder: Path) -> str | None:
    """The licence that the model card of a folder names in its first lines (README.md, `license: ...`), if any."""
    try:
        head = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:4000]
    except OSError:
        return None
    for line in head.splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() == "license" and value.strip():
            return value.strip().strip("\"'")
    return None


def _state_of(loaded: Any, path: Path, averaged: bool) -> tuple[dict[str, Tensor], list[str]]:
    loaded, notes = _unwrapped(loaded, averaged)
    if not isinstance(loaded, dict) or not loaded:
        raise UserError(f"{path}: not a state dict but a {type(loaded).__name__}: expected names with tensors")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{path}: not a state dict: {name!r} has the type {type(value).__name__}; expected names with tensors"
            )
    numbers, stored = sum(tensor.nbytes for tensor in loaded.values()), path.stat().st_size
    if numbers > _SHARED * stored + 2**20:  # a tensor of stride 0 is as large as it says, out of four bytes
        raise UserError(f"{path}: its tensors would take {numbers} bytes, the file has {stored}")
    return _plain_names(loaded, path), notes


def _unwrapped(loaded: Any, averaged: bool) -> tuple[Any, list[str]]:
    """(the state dict of a training checkpoint or what was given, notes)."""
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
    """The tensors without what torch.compile, FSDP, activation checkpointing, DDP and AveragedModel put before their names."""
    plain = {_WRAPPED.sub("", name): tensor for name, tensor in tensors.items()}
    if all(name.startswith("module.") or name == "n_averaged" for name in plain) and plain.keys() != {"n_averaged"}:
        plain = {name.removeprefix("module."): tensor for name, tensor in plain.items() if name != "n_averaged"}
    if len(plain) < len(tensors) - ("n_averaged" in tensors):
        raise UserError(f"{path}: two tensors have the same name without `_orig_mod.` and its like; save one state dict alone")
    return plain


def beneath(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
