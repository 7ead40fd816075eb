"""The models that the harness scores: what it asks of one (protocol.py), and a module for each kind that is not ours.

    flexiclip eval runs/NAME open_clip:ViT-B-16/openai open_clip:ViT-B-16/openai+pi --suite openmoji

A fixed-patch ViT of any kind may end in `+pi` or `+bilinear` (flex.py): it is then scored at every length.
"""

from __future__ import annotations

from pathlib import Path

from flexiclip.errors import UserError

from .protocol import EvalModel

_KINDS = (
    "a model folder, a run folder, open_clip:NAME[/PRETRAINED], a folder of open_clip, transformers or timm, or a .npz of "
    "big_vision"
)


def open_model(source: str, device: str) -> EvalModel:
    """The model that a user names, in evaluation mode on `device`. Raises UserError that lists the kinds for none of them."""
    from .flex import open_flexed, split_suffix

    plain, flex = split_suffix(source)
    if flex is not None:
        return open_flexed(plain, flex, device)
    path = Path(source)
    if source.startswith("open_clip:") or (path / "open_clip_config.json").is_file():
        from .open_clip import load_open_clip

        return load_open_clip(source, device)
    from .readers import fixed, is_ours, read_model

    loaded = read_model(source, device)
    return loaded if is_ours(path) else fixed(loaded)


def no_model(source: str) -> UserError:
    """What is said of a source of no kind."""
    return UserError(f"{source} is no model folder, nor another kind of model; give {_KINDS}")
