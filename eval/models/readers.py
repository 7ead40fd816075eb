"""Opens models that run in the towers of flexiclip: model folders, folders of transformers, timm and open_clip, and .npz files.

The .npz files are those of big_vision. The readers in flexiclip/formats are strict (a tensor that is left over is an error) and
unpickle nothing. They refuse a model that the towers cannot express, and give the reason. The result computes what the original
computes, and can run at any length.
"""

from __future__ import annotations

from pathlib import Path

from flexiclip_eval.models.protocol import OPEN_CLIP, EvalModel, ForeignModel, Geometry, Length, geometry_of

from flexiclip.errors import UserError
from flexiclip.formats.imported import Imported
from flexiclip.formats.run import build_imported
from flexiclip.model_folder import LoadedModel, is_model_folder, load_model
from flexiclip.models.exits import split_exit
from flexiclip.tensor_files import read_json


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
        from flexiclip_eval.models import no_model

        raise no_model(source)
    if "model_type" in read_json(path / "config.json"):
        from flexiclip.formats.transformers_reader import import_transformers

        return import_transformers(path)
    from flexiclip.formats.timm_reader import import_timm

    return import_timm(path)
