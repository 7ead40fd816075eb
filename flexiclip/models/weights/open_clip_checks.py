"""What is refused before open_clip is asked, which only warns where a model would be wrong, and builds whatever is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flexiclip.errors import UserError
from flexiclip.models.sizes import check_build, check_layers
from flexiclip.models.weights.files import read_state

_WEIGHTS = (".safetensors", ".bin", ".pth")
_PREFERRED = (  # of open_clip.factory._find_checkpoint_in_dir
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)


def check_folder(folder: Path, described: dict[str, Any], source: str) -> Path:
    """The weight file that open_clip takes there.

    The config came with the folder, so anything may stand in it: sizes that the weights have no room for are refused.
    """
    import open_clip

    for half in ("vision_cfg", "text_cfg"):
        settings = described.get(half)
        if not isinstance(settings, dict):
            raise UserError(f"{source}: no {half} in its open_clip_config.json")
        layers = settings.get("layers", 0)
        for number in layers if isinstance(layers, list) else [layers]:  # a ResNet has four of them
            check_layers(number, f"{source}: {half}")
    halves = [dict(described[half]) for half in ("vision_cfg", "text_cfg")]
    files = sorted(path for path in folder.iterdir() if path.suffix in _WEIGHTS)
    if not files:
        raise UserError(f"{source}: no weights there, such as open_clip_model.safetensors")
    named = [folder / name for name in _PREFERRED if folder / name in files]
    file = (named or sorted(files, key=lambda path: path.suffix != ".safetensors"))[0]
    read_state(file)  # within bounds, which open_clip does not keep
    if not any(
        name in half for half in halves for name in ("timm_model_name", "hf_model_name")
    ):  # those are built by their names
        quick_gelu = described.get("quick_gelu", False)
        check_build(lambda: open_clip.CustomTextCLIP(described["embed_dim"], *halves, quick_gelu=quick_gelu), file, source)
    return file


def check_activation(name: str, tag: str | None, described: dict[str, Any], source: str) -> None:
    """open_clip only warns where weights meet the wrong GELU; the model would be off by some percent for good."""
    import open_clip

    trained = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu") if tag else None
    if trained is not None and trained != described.get("quick_gelu", False):
        mend = f"{name}-quickgelu/{tag}" if trained else f"{name.removesuffix('-quickgelu')}/{tag}"
        raise UserError(f"{source}: these weights were trained with the other GELU; name {mend}")
