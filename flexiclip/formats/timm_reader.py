"""Reader of timm's Vision Transformers, `flexivit_*` and `vit_*`: safetensors, `.bin`, or folders with timm's config.json.

    flexiclip import flexivit_small.safetensors --format timm --arch flexivit_small --output models/flexivit_s

The sizes and the pool come from the tensors. The settings that shapes do not show (activation, epsilon, heads that are
not 64 wide, normalisation of the images) come from the architecture's name, or are timm's defaults for a plain ViT if no
name is given. Layer scale is folded into the layer before it. Every other part that our tower does not have raises an
error that names it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flexiclip.config.schema import PatchConfig, PreprocessConfig
from flexiclip.errors import UserError
from flexiclip.files import short_reason
from flexiclip.formats.imported import (
    Imported,
    Source,
    State,
    default_heads,
    fold_class_position,
    fold_layer_scale,
    image_config,
    prefixed,
    projection_settings,
    reader,
    square_grid,
)
from flexiclip.models.sizes import check_layers
from flexiclip.tensor_files import read_checkpoint, read_folder, read_json, read_license

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
    said: dict[str, Any] = {}
    if path.is_dir() and arch is None and (path / "config.json").is_file():
        said = read_json(path / "config.json")
        arch = _named_in(said)
    model = None if arch is None else describe(arch, said)
    if model is not None:
        _check_shapes(tensors, model, f"{path}: --arch {arch}")
        license = license or (model.pretrained_cfg.get("license") if "." in (arch or "") else None)
    source = Source(tensors, str(path))
    own_position = "cls_token" in source and _is_square(tensors.get("pos_embed"))
    state = tower_state(source)
    head = source.take_layer("head", "head") if "head.weight" in source else {}
    head = {name.removeprefix("head."): tensor for name, tensor in head.items()}
    source.finish()
    settings = _plain_settings(state, str(path)) if model is None else settings_of(model, str(path))
    flexible = own_position and (arch or "flexivit").startswith("flexivit")
    notes = _flexivit_notes(state) if flexible else []
    if flexible and arch is None:
        notes.append("a class token without a position: taken for a FlexiViT; name another one with --arch")
    size = image_size or (FLEXIVIT_SIZE if flexible else None)
    found = heads or settings.pop("heads", None)
    settings.pop("heads", None)
    image = image_config(state, found, size, default_seqhw=_own_seqhw(flexible, size), **settings, **projection_settings(head))
    preprocess, more = preprocess_of(model)
    if model is not None and "." not in (arch or "") and not said:
        tag = model.pretrained_cfg.get("tag")
        more.append(
            f"mean and std are those of timm's weights {arch}.{tag}; --arch {arch}.TAG takes others, and notes their licence"
        )
    return Imported(
        image=image,
        embed_dim=len(head["weight"]) if head else len(state["kernel"]),
        state=prefixed(state, "image_tower") | prefixed(head, "image_projection"),
        preprocess=preprocess,
        seqhw=PatchConfig().seqhw if flexible and size == FLEXIVIT_SIZE else (),
        license=license,
        notes=taken + notes + more,
    )


def describe(arch: str, said: dict[str, Any] | None = None) -> Any:
    """Build timm's model of that name without weights, on the meta device.

    `said` is the content of a folder's config.json. Its model_args change the architecture, and its pretrained_cfg says
    how images are prepared. Raises UserError if the model is not a plain ViT.
    """
    try:
        import timm
        from timm.models.vision_transformer import VisionTransformer
    except ImportError:
        raise UserError(f"--arch {arch}: its settings are timm's; run `pip install timm`") from None
    if not timm.is_model(arch):
        raise UserError(f"--arch {arch}: timm knows no such model; see timm.list_models('*vit*')")
    said = said or {}
    options = said.get("model_args") or {}
    check_layers(options.get("depth", 0), f"--arch {arch}: model_args")
    try:
        with torch.device("meta"):
            model = timm.create_model(arch, pretrained=False, **options)
    except (RuntimeError, TypeError) as error:  # an unknown tag, or an argument that the model does not have
        raise UserError(f"--arch {arch}: timm cannot build it: {short_reason(error)}") from None
    if not isinstance(model, VisionTransformer):
        raise UserError(f"--arch {arch}: a {type(model).__name__}; only plain Vision Transformers can be imported")
    own = said.get("pretrained_cfg") or said  # in older folders the settings are at the top level
    described: Any = model
    described.pretrained_cfg = {**described.pretrained_cfg, **{key: own[key] for key in _IMAGES if own.get(key) is not None}}
    return described


def _named_in(config: dict[str, Any]) -> str | None:
    """NAME or NAME.TAG from the config.json of a folder in the form that timm uploads to a hub."""
    name, tag = config.get("architecture"), (config.get("pretrained_cfg") or {}).get("tag")
    return f"{name}.{tag}" if name and tag else name


def tower_state(source: Source) -> State:
    """The state dict of a FlexiViT, from tensors with timm's names. The head, if there is one, is left in the source."""
    kernel = source.take("patch_embed.proj.weight")
    if kernel.ndim != 4 or kernel.shape[1] != 3:
        raise UserError(f"{source.what}: a patch kernel of {list(kernel.shape)}; expected [width, 3, height, width]")
    positions = source.take("pos_embed")[0]
    state = {"kernel": kernel}
    if "patch_embed.proj.bias" in source:
        state["bias"] = source.take("patch_embed.proj.bias")
    if "cls_token" in source:
        state["cls"] = source.take("cls_token")
        if not _is_square(positions[None]):  # a FlexiViT's class token has no position
            state["cls"], positions = fold_class_position(state["cls"], positions)
    state["posemb"] = square_grid(positions, source.what)
    if "norm_pre.weight" in source:
        state |= source.take_layer("norm_pre", "norm_pre")
    depth = 0
    while f"blocks.{depth}.norm1.weight" in source:
        state |= _block(source, f"blocks.{depth}")
        depth += 1
    if "fc_norm.weight" in source:
        source.finish()  # raises the error that explains it
    state |= source.take_layer("norm", "norm")
    if "attn_pool.latent" in source:
        state["map_head.probe"] = source.take("attn_pool.latent")
        for layer in ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2"):
            state |= source.take_layer(f"attn_pool.{layer}", f"map_head.{layer}")
    return state


def _block(source: Source, name: str) -> State:
    """The state of one block, with layer scale folded into the layers."""
    state: State = {}
    for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
        state |= source.take_layer(f"{name}.{layer}", f"{name}.{layer}")
    lacking = [layer for layer in ("attn.proj", "mlp.fc1", "mlp.fc2") if f"{name}.{layer}.bias" not in state]
    if lacking:
        raise UserError(f"{source.what}: {name}.{lacking[0]}.bias is missing; our layers have biases")
    state.setdefault(f"{name}.attn.qkv.bias", torch.zeros(len(state[f"{name}.attn.qkv.weight"])))
    for scale, layer in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")):
        if f"{name}.{scale}.gamma" in source:
            fold_layer_scale(state, f"{name}.{layer}", source.take(f"{name}.{scale}.gamma"))
    return state


def settings_of(model: Any, what: str) -> dict[str, Any]:
    """The settings heads, activation and norm_eps of a timm VisionTransformer.

    Raises UserError for what our tower cannot express.
    """
    block = model.blocks[0]
    pool = "map" if model.attn_pool is not None else "tok" if model.cls_token is not None else "gap"
    if {"token": "tok", "avg": "gap", "map": "map"}.get(model.global_pool) != pool:
        raise UserError(f"{what}: it pools {model.global_pool!r}; ours are the class token, the mean without one, and a MAP head")
    if isinstance(model.norm, nn.Identity):
        raise UserError(f"{what}: its last norm follows the pool, ours precedes it; it cannot be imported")
    if type(block).__name__ != "Block":
        raise UserError(f"{what}: blocks of {type(block).__name__}, which our towers do not have")
    settings = {"heads": block.attn.num_heads, "activation": activation_of(block.mlp.act, what), "norm_eps": model.norm.eps}
    if pool == "map":
        head = model.attn_pool
        its = {"heads": head.num_heads, "activation": activation_of(head.mlp.act, what), "norm_eps": head.norm.eps}
        if its != settings or head.pool != "token":
            raise UserError(f"{what}: its MAP head pools {head.pool!r} with {its}, its blocks have {settings}; ours agree")
    return settings


def activation_of(module: nn.Module, what: str) -> str:
    """Our name of an activation module. Raises UserError for an activation that we do not have."""
    name = type(module).__name__
    if name not in _ACTIVATIONS:
        raise UserError(f"{what}: its activation {name} is none of gelu, gelu_tanh and quick_gelu")
    return "gelu_tanh" if getattr(module, "approximate", "none") == "tanh" else _ACTIVATIONS[name]


def preprocess_of(model: Any | None) -> tuple[PreprocessConfig, list[str]]:
    """How timm prepares images for a model, and notes on what differs here.

    Without a model, the values are those of big_vision's ViTs and of timm's augreg ViTs.
    """
    if model is None:
        return PreprocessConfig(), ["pixels are normalised with mean and std 0.5; --arch would say what timm does"]
    cfg = model.pretrained_cfg
    interpolation, mode = cfg.get("interpolation") or "bicubic", cfg.get("crop_mode") or "center"
    if interpolation not in ("bilinear", "bicubic") or mode not in ("center", "squash"):
        asked = f"interpolation {interpolation!r} and crop_mode {mode!r}"
        raise UserError(f"timm prepares its images with {asked}; ours are bilinear or bicubic, and center or squash")
    preprocess = PreprocessConfig(
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        resize="squash" if mode == "squash" else "shortest",
        interpolation="bilinear" if interpolation == "bilinear" else "bicubic",
    )
    crop = cfg.get("crop_pct", 1.0)
    return preprocess, [f"timm evaluates on the central {crop:.0%}; here the whole short side is used"] if crop < 1 else []


def _plain_settings(state: State, what: str) -> dict[str, Any]:
    """The settings of a ViT whose name is not known."""
    if "norm_pre.weight" in state:
        raise UserError(f"{what}: a CLIP tower, and whether its activation is GELU or QuickGELU no shape says: give --arch NAME")
    return {"heads": default_heads(len(state["kernel"])), "activation": "gelu", "norm_eps": 1e-6}


def _check_shapes(tensors: dict[str, Tensor], model: nn.Module, what: str) -> None:
    """Raise UserError unless the file has the named architecture. Its settings would be silently wrong for another one."""
    wanted = {name: t.shape for name, t in model.state_dict().items() if not name.startswith(_RESIZABLE)}
    for name, shape in wanted.items():
        if name in tensors and tensors[name].shape != shape:
            raise UserError(f"{what}: {name} is {list(tensors[name].shape)} in the file, {list(shape)} in that architecture")
    missing = sorted(wanted.keys() - tensors.keys())
    if missing:
        raise UserError(f"{what}: the file lacks {len(missing)} tensors of it, the first {missing[0]}")


def _is_square(positions: Tensor | None) -> bool:
    """Whether the number of positions is a square number."""
    return positions is not None and round(positions.shape[1] ** 0.5) ** 2 == positions.shape[1]


def _own_seqhw(flexible: bool, size: int | None) -> int | None:
    """The default length of a FlexiViT, if it divides the image."""
    return FLEXIVIT_SEQHW if flexible and size is not None and size % FLEXIVIT_SEQHW == 0 else None


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
