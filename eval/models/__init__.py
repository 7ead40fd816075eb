"""The models that the harness scores: what it asks of one (protocol.py), and a module for each kind that is not ours."""

from __future__ import annotations

from .protocol import EvalModel


def open_model(source: str, device: str) -> EvalModel:
    """A model folder, a run folder (its newest model), or `open_clip:NAME[/PRETRAINED]`. Raises UserError."""
    if source.startswith("open_clip:"):
        from .open_clip import load_open_clip

        return load_open_clip(source, device)
    from flexiclip.bundle import load_model

    return load_model(source, device)
