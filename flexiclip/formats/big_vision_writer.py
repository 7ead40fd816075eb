"""Writer of big_vision's `.npz` files, with the base kernel and the base grid, so the model keeps all its lengths.

The arrays of an image tower alone are at the top level. Those of two towers are under img/ and txt/, with the scalars t
and b next to them, as in big_vision's models/proj/image_text/two_towers.py. What big_vision_reader.py reads from a file,
this module writes again bit for bit.

Shapes: D width, H heads, K = D / H.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flexiclip.config import ImageTowerConfig, TextTowerConfig
from flexiclip.config.schema import pair
from flexiclip.formats.big_vision_reader import read_npz, read_tower
from flexiclip.formats.layouts import (
    BIG_VISION_HEAD,
    BIG_VISION_IMAGE,
    BIG_VISION_SCALARS,
    BIG_VISION_TEXT,
    Layout,
    set_rows,
    write_layout,
)
from flexiclip.formats.written import State, Written, check, projection_bias, projection_weight, scalars, shape_facts
from flexiclip.model_folder import LoadedModel
from flexiclip.models.clip import FlexiCLIP
from flexiclip.models.flexivit import FlexiViT
from flexiclip.models.text.base import TextTransformer
from flexiclip.tensor_files import beneath

FORMAT = "big_vision"


def write(loaded: LoadedModel, path: Path, name: str) -> Written:
    """Write the `.npz` and read it again. The tensors that the reader finds must equal the model's own bit for bit.

    `name` is the name of the file in the usage text. Raises UserError with the reason if the format cannot express the
    model.
    """
    model, config = loaded.model, loaded.config.model
    check(FORMAT, _image_misfits(config.image))
    arrays = _tower_arrays(model.image_tower, model.image_projection, BIG_VISION_IMAGE)
    if config.text is not None:
        check(FORMAT, _text_misfits(config.text))
        arrays = {f"img/{name}": array for name, array in arrays.items()}
        text = _tower_arrays(model.text_tower, model.text_projection, BIG_VISION_TEXT)
        arrays |= {f"txt/{name}": array for name, array in text.items()}
        arrays |= write_layout(scalars(model), BIG_VISION_SCALARS)
    with path.open("wb") as file:  # given a file name, np.savez would add a suffix
        np.savez(file, **{name: _array(tensor) for name, tensor in arrays.items()})  # type: ignore[arg-type]
    _compare(path, model)
    (p, q), (gh, gw) = pair(config.image.base_patch_size), pair(config.image.base_grid)
    usage = (
        f"`big_vision.utils.load_params({name!r})`; the image tower is `vit` or `proj.flexi.vit` with "
        f"pool_type={config.image.pool!r}, a {p}x{q} kernel and a {gh}x{gw} grid."
    )
    return Written(usage, None, None, ("read again, every tensor is the model's own bit for bit",))


def _image_misfits(image: ImageTowerConfig) -> dict[str, bool]:
    """Return the reasons why big_vision cannot express an image tower, and whether each of them applies."""
    resize = (image.kernel_resize, image.kernel_antialias, image.grid_resize, image.grid_antialias)
    gh, gw = pair(image.base_grid)
    return _function_misfits("image", image) | {
        "big_vision resizes the kernel bilinearly without antialias and the grid with it, "
        f"this model by {resize}: at other lengths it would be another model": resize != ("bilinear", False, "bilinear", True),
        "its image tower has a norm before the blocks (model.image.pre_norm)": image.pre_norm,
        f"its grid of {gh}x{gw} is not square": gh != gw,
    }


def _text_misfits(text: TextTowerConfig) -> dict[str, bool]:
    """Return the reasons why big_vision cannot express a text tower, and whether each of them applies."""
    foreign = {f"its text tower is of another library (model.text.kind={text.kind})": text.kind != "transformer"}
    return (
        foreign
        | _function_misfits("text", text)
        | {
            "its text tower masks attention (model.text.causal or pad_mask), big_vision's sees everything": text.causal
            or text.pad_mask,
            "its text tower has model.text.pool=eos, big_vision's pools are last, mean and map": text.pool == "eos",
        }
    )


def _function_misfits(name: str, tower: ImageTowerConfig | TextTowerConfig) -> dict[str, bool]:
    found = f"model.{name}.activation={tower.activation}, norm_eps={tower.norm_eps}"
    differs = tower.activation != "gelu_tanh" or tower.norm_eps != 1e-6
    return {f"{found}, and big_vision's ViT has gelu_tanh and 1e-06": differs}


def _tower_arrays(tower: nn.Module, projection: nn.Module, layout: Layout) -> State:
    """Return the tensors of a tower and of its head as big_vision names and shapes them.

    A head of flax always has a bias. A tower without a projection has no head.
    """
    assert isinstance(tower, FlexiViT | TextTransformer)
    state, heads = dict(tower.state_dict()), shape_facts(tower)[2]
    if isinstance(tower, FlexiViT):
        set_rows(state, bias_apart=True, class_row=False)
        state["posemb"] = state["posemb"][None]
    head: State = {}
    if isinstance(projection, nn.Linear):
        bias = projection_bias(projection, projection.out_features)
        head = {"weight": projection_weight(projection, tower.width), "bias": bias}
    return write_layout(state, layout, heads) | write_layout(head, BIG_VISION_HEAD)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    """Return the tensor as a contiguous float32 array."""
    found: NDArray[np.float32] = np.ascontiguousarray(tensor.detach().cpu().float().numpy())
    return found


def _compare(path: Path, model: FlexiCLIP) -> None:
    """Assert that the reader finds the model's own tensors in the file."""
    arrays = read_npz(path)
    two = any(name.startswith("img/") for name in arrays)
    read = [*read_tower(beneath(arrays, "img/") if two else arrays, BIG_VISION_IMAGE)]
    read += read_tower(beneath(arrays, "txt/"), BIG_VISION_TEXT) if two else ()
    modules = (model.image_tower, model.image_projection, model.text_tower, model.text_projection)
    for module, found in zip(modules, read, strict=False):
        for name, tensor in module.state_dict().items():
            assert torch.equal(found[name], tensor.detach().cpu().float()), f"{path}: {name} is not what was written"
