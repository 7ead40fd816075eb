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
from flexiclip.formats.big_vision_reader import image_tower_state, read_npz, split_head, text_tower_state
from flexiclip.formats.written import State, Written, projection_bias, projection_weight, refuse, scalars
from flexiclip.model_folder import LoadedModel
from flexiclip.models.clip import FlexiCLIP
from flexiclip.models.text.base import TextTransformer
from flexiclip.tensor_files import beneath

FORMAT = "big_vision"
Arrays = dict[str, NDArray[np.float32]]


def write(loaded: LoadedModel, path: Path, name: str) -> Written:
    """Write the `.npz` and read it again. The tensors that the reader finds must equal the model's own bit for bit.

    `name` is the name of the file in the usage text. Raises UserError with the reason if the format cannot express the
    model.
    """
    model, config = loaded.model, loaded.config.model
    _check_image(config.image)
    image = _image_arrays(model)
    arrays = image
    if config.text is not None:
        _check_text(config.text)
        arrays = {f"img/{name}": array for name, array in image.items()}
        arrays |= {f"txt/{name}": array for name, array in _text_arrays(model).items()}
        single = scalars(model)
        arrays["t"] = single["logit_scale"].cpu().numpy()
        if "logit_bias" in single:
            arrays["b"] = single["logit_bias"].cpu().numpy()
    with path.open("wb") as file:  # given a file name, np.savez would add a suffix
        np.savez(file, **arrays)  # type: ignore[arg-type]
    _compare(path, model)
    (p, q), (gh, gw) = pair(config.image.base_patch_size), pair(config.image.base_grid)
    usage = (
        f"`big_vision.utils.load_params({name!r})`; the image tower is `vit` or `proj.flexi.vit` with "
        f"pool_type={config.image.pool!r}, a {p}x{q} kernel and a {gh}x{gw} grid."
    )
    return Written(usage, None, None, ("read again, every tensor is the model's own bit for bit",))


def _check_image(image: ImageTowerConfig) -> None:
    """Raise UserError if big_vision's image tower cannot express these settings."""
    _check_functions("image", image.activation, image.norm_eps)
    resize = (image.kernel_resize, image.kernel_antialias, image.grid_resize, image.grid_antialias)
    gh, gw = pair(image.base_grid)
    reasons = {
        "big_vision resizes the kernel bilinearly without antialias and the grid with it, "
        f"this model by {resize}: at other lengths it would be another model": resize != ("bilinear", False, "bilinear", True),
        "its image tower has a norm before the blocks (model.image.pre_norm)": image.pre_norm,
        f"its grid of {gh}x{gw} is not square": gh != gw,
    }
    for reason, holds in reasons.items():
        if holds:
            raise refuse(FORMAT, reason)


def _check_text(text: TextTowerConfig) -> None:
    """Raise UserError if big_vision's text tower cannot express these settings."""
    if text.kind != "transformer":
        raise refuse(FORMAT, f"its text tower is of another library (model.text.kind={text.kind})")
    _check_functions("text", text.activation, text.norm_eps)
    if text.causal or text.pad_mask:
        raise refuse(FORMAT, "its text tower masks attention (model.text.causal or pad_mask), big_vision's sees everything")
    if text.pool == "eos":
        raise refuse(FORMAT, "its text tower has model.text.pool=eos, big_vision's pools are last, mean and map")


def _check_functions(tower: str, activation: str, norm_eps: float) -> None:
    """Raise UserError unless activation and epsilon are those of big_vision's ViT."""
    if activation != "gelu_tanh" or norm_eps != 1e-6:
        found = f"model.{tower}.activation={activation}, norm_eps={norm_eps}"
        raise refuse(FORMAT, f"{found}, and big_vision's ViT has gelu_tanh and 1e-06")


def _image_arrays(model: FlexiCLIP) -> Arrays:
    """The arrays of the image tower and of its head."""
    tower = model.image_tower
    bias = torch.zeros(tower.width) if tower.bias is None else tower.bias
    arrays = {
        "embedding/kernel": _array(tower.kernel.permute(2, 3, 1, 0)),
        "embedding/bias": _array(bias),
        "pos_embedding": _array(tower.posemb.flatten(2).transpose(1, 2)),
    }
    if tower.cls is not None:
        arrays["cls"] = _array(tower.cls)
    arrays |= _encoder(tower, "Transformer")
    return arrays | _head(model.image_projection, tower.width)


def _text_arrays(model: FlexiCLIP) -> Arrays:
    """The arrays of the text tower and of its head."""
    tower = model.text_tower
    assert isinstance(tower, TextTransformer)
    arrays = {"Embed_0/embedding": _array(tower.token_embedding.weight), "pos_embedding": _array(tower.posemb)}
    return arrays | _encoder(tower, "Encoder_0") | _head(model.text_projection, tower.width)


def _head(projection: nn.Module, width: int) -> Arrays:
    """The projection as flax's Dense, which always has a bias. The result is empty if there is no projection."""
    if not isinstance(projection, nn.Linear):
        return {}
    bias = projection_bias(projection, projection.out_features)
    return {"head/kernel": _array(projection_weight(projection, width).T), "head/bias": _array(bias)}


def _encoder(tower: nn.Module, prefix: str) -> Arrays:
    """The arrays of the blocks, the last norm and the MAP head."""
    state = tower.state_dict()
    heads = tower.blocks[0].attn.heads  # type: ignore[union-attr, index]
    arrays = _norm(state, "norm", f"{prefix}/encoder_norm")
    for i in range(len(tower.blocks)):  # type: ignore[arg-type]
        ours, theirs = f"blocks.{i}", f"{prefix}/encoderblock_{i}"
        arrays |= _norm(state, f"{ours}.norm1", f"{theirs}/LayerNorm_0")
        arrays |= _norm(state, f"{ours}.norm2", f"{theirs}/LayerNorm_1")
        arrays |= _mlp(state, f"{ours}.mlp", f"{theirs}/MlpBlock_0")
        qkv = state[f"{ours}.attn.qkv.weight"].chunk(3), state[f"{ours}.attn.qkv.bias"].chunk(3)
        attention = f"{theirs}/MultiHeadDotProductAttention_0"
        arrays |= _attention(attention, heads, qkv, state, f"{ours}.attn.proj")
    if "map_head.probe" in state:
        (key, value), (key_bias, value_bias) = state["map_head.kv.weight"].chunk(2), state["map_head.kv.bias"].chunk(2)
        found = (state["map_head.q.weight"], key, value), (state["map_head.q.bias"], key_bias, value_bias)
        arrays["MAPHead_0/probe"] = _array(state["map_head.probe"])
        arrays |= _attention("MAPHead_0/MultiHeadDotProductAttention_0", heads, found, state, "map_head.proj")
        arrays |= _norm(state, "map_head.norm", "MAPHead_0/LayerNorm_0")
        arrays |= _mlp(state, "map_head.mlp", "MAPHead_0/MlpBlock_0")
    return arrays


def _attention(theirs: str, heads: int, qkv: tuple[tuple[Tensor, ...], tuple[Tensor, ...]], state: State, output: str) -> Arrays:
    """The arrays of an attention: weights [D, D] of q, k and v as kernels (D, H, K), that of the output as (H, K, D)."""
    arrays = {}
    for part, weight, bias in zip(("query", "key", "value"), *qkv, strict=True):
        arrays[f"{theirs}/{part}/kernel"] = _array(weight.T.unflatten(1, (heads, -1)))
        arrays[f"{theirs}/{part}/bias"] = _array(bias.unflatten(0, (heads, -1)))
    arrays[f"{theirs}/out/kernel"] = _array(state[f"{output}.weight"].T.unflatten(0, (heads, -1)))
    arrays[f"{theirs}/out/bias"] = _array(state[f"{output}.bias"])
    return arrays


def _norm(state: State, ours: str, theirs: str) -> Arrays:
    return {f"{theirs}/scale": _array(state[f"{ours}.weight"]), f"{theirs}/bias": _array(state[f"{ours}.bias"])}


def _mlp(state: State, ours: str, theirs: str) -> Arrays:
    arrays = {}
    for layer, dense in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
        arrays[f"{theirs}/{dense}/kernel"] = _array(state[f"{ours}.{layer}.weight"].T)
        arrays[f"{theirs}/{dense}/bias"] = _array(state[f"{ours}.{layer}.bias"])
    return arrays


def _array(tensor: Tensor) -> NDArray[np.float32]:
    """The tensor as a contiguous float32 array."""
    found: NDArray[np.float32] = np.ascontiguousarray(tensor.detach().cpu().float().numpy())
    return found


def _compare(path: Path, model: FlexiCLIP) -> None:
    """Assert that the reader finds the model's own tensors in the file."""
    arrays = read_npz(path)
    two = any(name.startswith("img/") for name in arrays)
    tower, head = split_head(beneath(arrays, "img/") if two else arrays)
    pairs = [(model.image_tower, image_tower_state(tower)), (model.image_projection, head)]
    if two:
        tower, head = split_head(beneath(arrays, "txt/"))
        pairs += [(model.text_tower, text_tower_state(tower)), (model.text_projection, head)]
    for module, read in pairs:
        for name, tensor in module.state_dict().items():
            assert torch.equal(read[name], tensor.detach().cpu().float()), f"{path}: {name} is not what was written"
