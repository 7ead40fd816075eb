"""Opens the model that a user names, of any kind.

    flexiclip eval runs/NAME open_clip:ViT-B-16/openai open_clip:ViT-B-16/openai+pi --suite openmoji

Model folders, folders of transformers and timm, and .npz files of big_vision run in the towers of flexiclip, and so does a model
of open_clip with a suffix. The readers in flexiclip/formats are strict (a tensor that is left over is an error) and unpickle
nothing. They refuse a model that the towers cannot express, and give the reason. The result computes what the original computes,
and can run at any length. open_clip.py and onnx.py open the models that open_clip and onnxruntime run.

A suffix of the source changes the model. With `+pi`, `+bilinear`, `+bicubic`, `+area` or `+norm`, a ViT with a fixed patch size
is scored at every length (flex.py). With `+exitN`, a model of flexiclip that was trained with exits is left after block N.
"""

from __future__ import annotations

from pathlib import Path

from flexiclip_eval.models.flex import flexed, split_suffix
from flexiclip_eval.models.onnx import exported_files, load_onnx
from flexiclip_eval.models.protocol import OPEN_CLIP, EvalModel, ForeignModel, Geometry, Length, geometry_of

from flexiclip.errors import UserError
from flexiclip.formats.imported import Imported
from flexiclip.formats.run import build_imported
from flexiclip.model_folder import LoadedModel, is_model_folder, load_model
from flexiclip.models.exits import split_exit
from flexiclip.tensor_files import read_json

_KINDS = (
    "a model folder, a run folder, open_clip:NAME[/PRETRAINED], a folder of open_clip, transformers or timm, a .npz of "
    "big_vision, or a folder or prefix of .onnx files of `flexiclip export`"
)


def open_model(source: str, device: str) -> EvalModel:
    """Open the model that a source names, in evaluation mode on `device`. Raises UserError, which lists the kinds of sources."""
    plain, flex = split_suffix(source)
    exported = _exported(plain)
    if flex is not None:
        if exported:
            raise UserError(f"{source}: exported encoders hold their lengths; flex the model that {exported[0].name} comes from")
        return flexed(read_model(plain, device), plain, flex)
    if exported:
        return load_onnx(source, exported)
    if is_open_clip(source):
        from flexiclip_eval.models.open_clip import load_open_clip

        return load_open_clip(source, device)
    loaded = read_model(source, device)
    return loaded if is_ours(source) else fixed(loaded)


def _exported(source: str) -> list[Path]:
    """Return the exported encoders (.onnx) that a source names; none for other models that have .onnx files in their folder."""
    others = is_ours(source) or is_open_clip(source) or (Path(source) / "config.json").is_file()
    return [] if others else exported_files(source)


def read_model(source: str, device: str) -> LoadedModel:
    """Open a model in the towers of flexiclip, in evaluation mode on `device`. Raises UserError."""
    if is_ours(source):
        return load_model(source, device)
    try:
        loaded = build_imported(_read(source), source)
    except UserError as error:
        if " --" not in str(error):
            raise
        raise UserError(f"{error}; that is an option of `flexiclip import`: evaluate the folder that it writes") from None
    loaded.model.to(device)
    return loaded


def is_ours(source: str) -> bool:
    """Return whether a source is a model folder or a run folder of flexiclip, or one of its exits (`+exitN`)."""
    path = Path(split_exit(source)[0])
    return is_model_folder(path) or is_model_folder(path / "model")


def is_open_clip(source: str) -> bool:
    """Return whether a source names a model of open_clip, or is a folder that open_clip has written."""
    return source.startswith(OPEN_CLIP) or (Path(source) / "open_clip_config.json").is_file()


def fixed(loaded: LoadedModel) -> EvalModel:
    """Restrict a model that was made for a single length to that length; return any other model unchanged.

    At other lengths the model would be flexed, which a user asks for with a suffix such as `+pi`.
    """
    if len(loaded.config.trained_seqhw) > 1:
        return loaded
    (own,) = loaded.config.trained_seqhw
    lengths: dict[Length, Geometry] = {own: geometry_of(loaded.config, own)}
    return ForeignModel(loaded.model, loaded.transform, loaded.tokenizer, lengths, (own,), loaded.config)


def _read(source: str) -> Imported:
    path = Path(source)
    if is_open_clip(source):
        from flexiclip.formats.open_clip_reader import import_open_clip

        return import_open_clip(source.removeprefix(OPEN_CLIP) if source.startswith(OPEN_CLIP) else f"local-dir:{source}")
    if path.suffix == ".npz":
        from flexiclip.formats.big_vision_reader import import_big_vision

        return import_big_vision(path, None, None, None)
    if not (path / "config.json").is_file():
        raise UserError(f"{source} is no model folder, nor another kind of model; give {_KINDS}")
    if "model_type" in read_json(path / "config.json"):
        from flexiclip.formats.transformers_reader import import_transformers

        return import_transformers(path)
    from flexiclip.formats.timm_reader import import_timm

    return import_timm(path)
