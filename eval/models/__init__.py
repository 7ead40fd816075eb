"""Opens the models that the harness scores. protocol.py says what a model must have; the other modules open one kind each.

    flexiclip eval runs/NAME open_clip:ViT-B-16/openai open_clip:ViT-B-16/openai+pi --suite openmoji

A suffix of the source changes the model. With `+pi`, `+bilinear`, `+bicubic`, `+area` or `+norm`, a ViT with a fixed patch size
is scored at every length (flex.py). With `+exitN`, a model of flexiclip that was trained with exits is left after block N.
"""

from __future__ import annotations

from pathlib import Path

from flexiclip_eval.models.protocol import EvalModel

from flexiclip.errors import UserError

_KINDS = (
    "a model folder, a run folder, open_clip:NAME[/PRETRAINED], a folder of open_clip, transformers or timm, a .npz of "
    "big_vision, or a folder or prefix of .onnx files of `flexiclip export`"
)


def open_model(source: str, device: str) -> EvalModel:
    """Open the model that a source names, in evaluation mode on `device`. Raises UserError, which lists the kinds of sources."""
    from flexiclip_eval.models.flex import open_flexed, split_suffix
    from flexiclip_eval.models.readers import fixed, is_open_clip, is_ours, read_model

    plain, flex = split_suffix(source)
    exported = _exported(plain)
    if flex is not None:
        if exported:
            raise UserError(f"{source}: exported encoders hold their lengths; flex the model that {exported[0].name} comes from")
        return open_flexed(plain, flex, device)
    if exported:
        from flexiclip_eval.models.onnx import load_onnx

        return load_onnx(source, exported)
    if is_open_clip(source):
        from flexiclip_eval.models.open_clip import load_open_clip

        return load_open_clip(source, device)
    loaded = read_model(source, device)
    return loaded if is_ours(source) else fixed(loaded)


def _exported(source: str) -> list[Path]:
    """Return the exported encoders (.onnx) that a source names; none for other models that have .onnx files in their folder."""
    from flexiclip_eval.models.onnx import exported_files
    from flexiclip_eval.models.readers import is_open_clip, is_ours

    path = Path(source)
    others = is_ours(source) or is_open_clip(source) or (path / "config.json").is_file()
    return [] if others else exported_files(source)


def no_model(source: str) -> UserError:
    """Return the error for a source that is not a model of any kind."""
    return UserError(f"{source} is no model folder, nor another kind of model; give {_KINDS}")
