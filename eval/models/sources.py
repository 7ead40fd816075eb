"""Opens the model that a user names, of any kind.

    flexiclip eval runs/NAME open_clip:ViT-B-16/openai open_clip:ViT-B-16/openai+pi --suite openmoji

flexiclip/model_source.py has the grammar of these names. Model folders, folders of transformers and timm, and .npz files of
big_vision run in the towers of flexiclip, and so does a model of open_clip with an ending such as +pi. The readers in
flexiclip/formats are strict (a tensor that is left over is an error) and unpickle nothing. They refuse a model that the towers
cannot express, and give the reason. The result computes what the original computes, and can run at any length. open_clip.py and
onnx.py open the models that open_clip and onnxruntime run.
"""

from __future__ import annotations

from flexiclip_eval.models.flex import flexed
from flexiclip_eval.models.onnx import load_onnx
from flexiclip_eval.models.protocol import EvalModel, ForeignModel, Geometry, Length, geometry_of

from flexiclip.errors import UserError
from flexiclip.formats.run import read_model
from flexiclip.model_folder import LoadedModel, load_parsed
from flexiclip.model_source import Accepted, Kind, ModelSource, parse_model

_IN_OUR_TOWERS = (Kind.MODEL, Kind.OPEN_CLIP, Kind.TRANSFORMERS, Kind.TIMM, Kind.BIG_VISION)
ANALYZED = Accepted(_IN_OUR_TOWERS, exits=True, flexes=True)
"""What `flexiclip analyze` accepts."""
SCORED = Accepted((*_IN_OUR_TOWERS, Kind.ONNX), exits=True, flexes=True)
"""What `flexiclip eval` accepts."""


def open_model(text: str, device: str, accepted: Accepted = SCORED) -> EvalModel:
    """Open the model with this name, in evaluation mode on `device`. Raises UserError, which lists what is accepted."""
    source = parse_model(text, accepted)
    if source.kind is Kind.ONNX:
        refuse_flexed_export(source)
        return load_onnx(text, source.files)
    if source.kind is Kind.OPEN_CLIP and source.flex is None:
        from flexiclip_eval.models.open_clip import load_open_clip

        return load_open_clip(source, device)
    ours = source.kind is Kind.MODEL
    loaded = load_parsed(source, device) if ours else read_model(source)
    loaded.model.to(device)
    if source.flex is not None:
        return flexed(loaded, text, source.flex)
    return loaded if ours else fixed(loaded)


def refuse_flexed_export(source: ModelSource) -> None:
    """Raise UserError if exported encoders have an ending such as +pi."""
    if source.flex is not None:
        raise UserError(
            f"{source.text}: exported encoders hold their lengths; flex the model that {source.files[0].name} comes from"
        )


def fixed(loaded: LoadedModel) -> EvalModel:
    """Restrict a model that was made for a single length to that length; return any other model unchanged.

    At other lengths the model would be flexed, which a user asks for with a suffix such as `+pi`.
    """
    if len(loaded.config.trained_seqhw) > 1:
        return loaded
    (own,) = loaded.config.trained_seqhw
    lengths: dict[Length, Geometry] = {own: geometry_of(loaded.config, own)}
    return ForeignModel(loaded.model, loaded.transform, loaded.tokenizer, lengths, (own,), loaded.config)
