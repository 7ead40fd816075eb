"""The models that the harness scores: what it asks of one (protocol.py), and a module for each kind that is not ours.

    flexiclip eval runs/NAME open_clip:ViT-B-16/openai open_clip:ViT-B-16/openai+pi --suite openmoji

A fixed-patch ViT of any kind may end in `+pi`, `+bilinear`, `+bicubic`, `+area` or `+norm` (flex.py): it is then scored at every
length. A model of ours that was trained with exits may end in `+exitN`: it is then left after block N.
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
    """The model that a user names, in evaluation mode on `device`. Raises UserError that lists the kinds for none of them."""
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
    """The encoders that a source names, where it is no other library's folder that holds .onnx files beside its own."""
    from flexiclip_eval.models.onnx import exported_files
    from flexiclip_eval.models.readers import is_open_clip, is_ours

    path = Path(source)
    others = is_ours(source) or is_open_clip(source) or (path / "config.json").is_file()
    return [] if others else exported_files(source)


def no_model(source: str) -> UserError:
    """What is said of a source of no kind."""
    return UserError(f"{source} is no model folder, nor another kind of model; give {_KINDS}")
