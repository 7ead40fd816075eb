"""Reader of timm's Vision Transformers, `flexivit_*` and `vit_*`: safetensors, `.bin`, or folders with timm's config.json.

    flexiclip import flexivit_small.safetensors --format timm --arch flexivit_small --output models/flexivit_s

The sizes and the pool come from the tensors. The settings that shapes do not show (activation, epsilon, heads that are
not 64 wide, normalisation of the images) come from the architecture's name, or are timm's defaults for a plain ViT if no
name is given. Layer scale is folded into the layer before it. Every other part that our tower does not have raises an
error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from flexiclip.config.schema import PatchConfig, PreprocessConfig
from flexiclip.errors import UserError
from flexiclip.files import read_json
from flexiclip.formats.imported import Imported, Source, State, default_heads, image_half, preprocess_config, reader
from flexiclip.formats.layouts import TIMM, is_square, read_layout, set_grid
from flexiclip.libraries import library_errors, require
from flexiclip.models.sizes import check_layers
from flexiclip.tensor_files import misfits, read_checkpoint, read_folder, read_license

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

FLEXIVIT_SIZE, FLEXIVIT_SEQHW = 240, 15
_ACTIVATIONS = {
    "GELU": "gelu",
    "GELUTanh": "gelu_tanh",
    "QuickGELU": "quick_gelu",
    "GELUQuick": "quick_gelu",
    "QuickGELUActivation": "quick_gelu",
}
_IMAGES = ("mean", "std", "interpolation", "crop_pct", "crop_mode")  # keys of a pretrained_cfg
# Tensors that may differ in size from the architecture's: a file may have another resolution, base sizes, or any head.
_RESIZABLE = ("patch_embed.proj.weight", "pos_embed", "head.")


@reader
def import_timm(path: Path, arch: str | None = None, heads: int | None = None, image_size: int | None = None) -> Imported:
    """Read an image tower. A classifier in the file becomes the projection.

    `path` is a weight file or a folder, `arch` is timm's name of the architecture, `heads` is the number of heads, and
    `image_size` is in pixels. Raises UserError if the tower cannot be imported.
    """
    tensors, taken = read_folder(path) if path.is_dir() else read_checkpoint(path, averaged=True)
    license = read_license(path) if path.is_dir() else None
    said: Mapping[str, object] = {}
    if path.is_dir() and arch is None and (path / "config.json").is_file():
        said = read_json(path / "config.json")
        arch = _named_in(said)
    model, cfg = (None, None) if arch is None else describe(arch, said)
    if model is not None and cfg is not None:
        _check_shapes(tensors, model, f"{path}: --arch {arch}")
        license = license or (str(cfg["license"]) if "." in (arch or "") and cfg.get("license") else None)
    source = Source(tensors, str(path))
    bare_class = "cls_token" in source and "pos_embed" in source and is_square(tensors["pos_embed"].shape[1])
    flexible = bare_class and (arch or "flexivit").startswith("flexivit")
    state, head = tower_state(source), source.take_head("head")
    source.finish()
    settings = _plain_settings(state, str(path)) if model is None else settings_of(model, str(path))
    notes = _flexivit_notes(state) if flexible else []
    if flexible and arch is None:
        notes.append("a class token without a position: taken for a FlexiViT; name another one with --arch")
    size = image_size or (FLEXIVIT_SIZE if flexible else None)
    seqhw = FLEXIVIT_SEQHW if flexible and size is not None and size % FLEXIVIT_SEQHW == 0 else None
    image = image_half(state, head, heads or settings.heads, size, {**settings._asdict(), "default_seqhw": seqhw})
    preprocess, more = preprocess_of(cfg)
    if cfg is not None and "." not in (arch or "") and not said:
        tag = cfg.get("tag")
        more.append(
            f"mean and std are those of timm's weights {arch}.{tag}; --arch {arch}.TAG takes others, and notes their licence"
        )
    return Imported(
        image,
        preprocess=preprocess,
        seqhw=PatchConfig().seqhw if flexible and size == FLEXIVIT_SIZE else (),
        license=license,
        notes=taken + notes + more,
    )


def describe(arch: str, said: Mapping[str, object] | None = None) -> tuple[VisionTransformer, dict[str, object]]:
    """Build timm's model of that name without weights, on the meta device, and return it with its pretrained_cfg.

    `said` is the content of a folder's config.json. Its model_args change the architecture, and its pretrained_cfg says
    how images are prepared. Raises UserError if the model is not a plain ViT.
    """
    where = f"--arch {arch}"
    timm = require("timm", "timm", where)
    if not timm.is_model(arch):
        raise UserError(f"{where}: timm knows no such model; see timm.list_models('*vit*')")
    options = _section(said or {}, "model_args")
    check_layers(options.get("depth", 0), f"{where}: model_args")
    with library_errors(f"{where}: timm cannot build it"), torch.device("meta"):  # an unknown tag, or an unknown argument
        model = timm.create_model(arch, pretrained=False, **options)
    if not isinstance(model, timm.models.vision_transformer.VisionTransformer):
        raise UserError(f"{where}: a {type(model).__name__}; only plain Vision Transformers can be imported")
    own = _section(said or {}, "pretrained_cfg") or said or {}  # in older folders the settings are at the top level
    return model, {**model.pretrained_cfg, **{key: own[key] for key in _IMAGES if own.get(key) is not None}}


def _section(config: Mapping[str, object], key: str) -> Mapping[str, object]:
    """Return an object inside a config.json, or an empty one."""
    found = config.get(key)
    return found if isinstance(found, dict) else {}


def _named_in(config: Mapping[str, object]) -> str | None:
    """Return NAME or NAME.TAG from the config.json of a folder in the form that timm uploads to a hub."""
    name, tag = config.get("architecture"), _section(config, "pretrained_cfg").get("tag")
    return f"{name}.{tag}" if name and tag else str(name) if name else None


def tower_state(source: Source) -> State:
    """Return the state dict of a FlexiViT, from tensors with timm's names. The head, if there is one, is left in the source."""
    if "fc_norm.weight" in source:
        raise UserError(f"{source.what}: its last norm follows the pool, ours precedes it; it cannot be imported")
    state = read_layout(source, TIMM)
    kernel = state["kernel"]
    if kernel.ndim != 4 or kernel.shape[1] != 3:
        raise UserError(f"{source.what}: a patch kernel of {list(kernel.shape)}; expected [width, 3, height, width]")
    for name in [name for name in state if name.endswith("attn.qkv.weight")]:
        state.setdefault(name.replace("weight", "bias"), torch.zeros(len(state[name])))
    set_grid(state, source.what)
    return state


class BlockSettings(NamedTuple):
    """The settings of a tower's blocks that the shapes of its weights do not show."""

    heads: int
    activation: str
    norm_eps: float


def settings_of(model: VisionTransformer, what: str) -> BlockSettings:
    """Return the settings of a timm VisionTransformer. Raises UserError for what our tower cannot express."""
    block: Any = model.blocks[0]
    head: Any = model.attn_pool
    pool = "map" if head is not None else "tok" if model.cls_token is not None else "gap"
    if {"token": "tok", "avg": "gap", "map": "map"}.get(model.global_pool) != pool:
        raise UserError(f"{what}: it pools {model.global_pool!r}; ours are the class token, the mean without one, and a MAP head")
    if isinstance(model.norm, nn.Identity):
        raise UserError(f"{what}: its last norm follows the pool, ours precedes it; it cannot be imported")
    if type(block).__name__ != "Block":
        raise UserError(f"{what}: blocks of {type(block).__name__}, which our towers do not have")
    settings = BlockSettings(block.attn.num_heads, activation_of(block.mlp.act, what), model.norm.eps)
    if head is not None:
        its = BlockSettings(head.num_heads, activation_of(head.mlp.act, what), head.norm.eps)
        if its != settings or head.pool != "token":
            raise UserError(f"{what}: its MAP head pools {head.pool!r} with {its}, its blocks have {settings}; ours agree")
    return settings


def activation_of(module: nn.Module, what: str) -> str:
    """Return our name of an activation module. Raises UserError for an activation that we do not have."""
    name = type(module).__name__
    if name not in _ACTIVATIONS:
        raise UserError(f"{what}: its activation {name} is none of gelu, gelu_tanh and quick_gelu")
    return "gelu_tanh" if getattr(module, "approximate", "none") == "tanh" else _ACTIVATIONS[name]


def preprocess_of(cfg: Mapping[str, object] | None) -> tuple[PreprocessConfig, list[str]]:
    """Return how timm prepares images for a model with this pretrained_cfg, and notes on what differs here.

    Without a pretrained_cfg, the values are those of big_vision's ViTs and of timm's augreg ViTs.
    """
    if cfg is None:
        return PreprocessConfig(), ["pixels are normalised with mean and std 0.5; --arch would say what timm does"]
    mode, crop = cfg.get("crop_mode") or "center", cfg.get("crop_pct", 1.0)
    resize = "shortest" if mode == "center" else mode
    preprocess = preprocess_config("timm", cfg["mean"], cfg["std"], resize, cfg.get("interpolation") or "bicubic")
    cut = isinstance(crop, int | float) and crop < 1
    return preprocess, [f"timm evaluates on the central {crop:.0%}; here the whole short side is used"] if cut else []


def _plain_settings(state: State, what: str) -> BlockSettings:
    """Return the settings of a ViT whose name is not known."""
    if "norm_pre.weight" in state:
        raise UserError(f"{what}: a CLIP tower, and whether its activation is GELU or QuickGELU no shape says: give --arch NAME")
    return BlockSettings(default_heads(len(state["kernel"])), "gelu", 1e-6)


def _check_shapes(tensors: State, model: nn.Module, what: str) -> None:
    """Raise UserError unless the file has the named architecture. Its settings would be silently wrong for another one."""
    wanted = {name: t for name, t in model.state_dict().items() if not name.startswith(_RESIZABLE)}
    if said := misfits({name: t for name, t in tensors.items() if name in wanted}, wanted):
        raise UserError(f"{what}: the file is not of that architecture ({said})")


def _flexivit_notes(state: State) -> list[str]:
    """Notes on a FlexiViT, whose kernel may already be resized to one patch size."""
    side = state["kernel"].shape[-1]
    if side >= 32:
        return [f"a FlexiViT with its base kernel of {side}x{side}: every length is the original's"]
    lost = f"patches above {side} px (seqhw below {FLEXIVIT_SIZE // side}) are blurred, 32 -> {side} -> 32 does not come back"
    return [
        f"a FlexiViT whose kernel is already resized to {side}x{side}, as timm publishes it: at {side} px it is exact, "
        f"but {lost}; the .npz of big_vision holds the 32x32 base"
    ]
