"""Makes the seeds of the weight readers: tiny models in every format, each written by its own library, and hostile files."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from scripts.fuzz.case import Case
from scripts.fuzz.targets import OPEN_CLIP_ARCH

_SMALL = {"width": 8, "depth": 1, "heads": 2}
_OPEN_CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 8, "patch_size": 4, "layers": 1, "width": 8, "head_width": 4},
    "text_cfg": {"context_length": 6, "vocab_size": 60, "width": 8, "heads": 2, "layers": 1},
}
_PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 8},
    "crop_size": {"height": 8, "width": 8},
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": 0.5,
    "resample": 2,
    "do_rescale": False,
    "do_normalize": True,
}
_CAPTIONS = [f"a {colour} {thing}" for colour in ("red", "blue", "green") for thing in ("fox", "owl", "apple", "boat", "house")]


class MarkerBomb:
    """An object whose pickle runs a command when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pickle_was_run",)


def weight_seeds() -> list[Case]:
    """Return one case per format, and the attacks."""
    register_open_clip()
    with TemporaryDirectory() as folder:
        vocabulary = _vocabulary(Path(folder))
        model = _model_folder(Path(folder), vocabulary)
        hugging_face = _hugging_face(Path(folder))
    timm_state = _timm_state()
    open_clip_state = _open_clip_state()
    arrays = _big_vision_arrays()
    checkpoint = {"checkpoints/latest": b"step-3\n"}
    files = dict(model)
    files["optimizer.safetensors"] = save({"exp_avg/image_tower.kernel": torch.zeros(8, 3, 4, 4)})
    state = {"step": 3, "skipped": 1, "recipe": {}, "data_order": "x", "files": {name: len(data) for name, data in files.items()}}
    files["state.json"] = json.dumps(state).encode()
    checkpoint |= {f"checkpoints/step-3/{name}": content for name, content in files.items()}
    good: list[Case] = [
        {"w.npz": _npz(arrays)},
        {"w.npz": _npz({f"params/{name}": array for name, array in arrays.items()} | {"opt/0": np.zeros(1)})},
        {"w.npz": _npz({f"img/{n}": a for n, a in arrays.items()} | {"txt/x": np.zeros(2)}), "text.model": vocabulary},
        {"w.safetensors": save(timm_state)},
        {"w.bin": _torch(timm_state)},
        {"w.pt": _torch({"state_dict": timm_state}, legacy=True)},
        {"timm/config.json": b'{"architecture": "vit_tiny_patch16_224"}', "timm/model.safetensors": save(timm_state)},
        {"open_clip.pt": _torch(open_clip_state), "text.model": vocabulary},
        {"open_clip.safetensors": save(open_clip_state), "text.model": vocabulary},
        hugging_face | {"text.model": vocabulary},
        hugging_face
        | {"text.model": vocabulary, "hf/processor_config.json": json.dumps({"image_processor": _PROCESSOR}).encode()},
        _local_dir(json.dumps(_OPEN_CLIP))
        | {"local/open_clip_model.safetensors": save(open_clip_state), "text.model": vocabulary},
        model,
        checkpoint,
    ]
    return good + _attacks(model)


def register_open_clip() -> None:
    """Register the tiny architecture with open_clip in this process."""
    import open_clip

    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{OPEN_CLIP_ARCH}.json"
        path.write_text(json.dumps(_OPEN_CLIP), encoding="utf-8")
        open_clip.add_model_config(path)


def _local_dir(model_cfg: str) -> Case:
    return {"local/open_clip_config.json": f'{{"model_cfg": {model_cfg}, "preprocess_cfg": {{}}}}'.encode()}


def _attacks(model: Case) -> list[Case]:
    header = {"x": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 4]}}
    overlap = {
        "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "y": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    }
    zero = {"x": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}}
    bomb = {"x": MarkerBomb()}
    config = model["model/config.yaml"].decode()
    huge = [
        config.replace("width: 8", "width: 800000000"),
        config.replace("depth: 1", "depth: 800000000"),
        config.replace("image_size: 8", "image_size: 800000000000"),
        config.replace("embed_dim: 8", "embed_dim: 800000000000"),
        config.replace("context_length: 6", "context_length: 80000000000"),
        config.replace("base_grid: 2", "base_grid: 80000000"),
        config.replace("kind: sentencepiece", "kind: huggingface").replace("path:", "path: ../outside/secret #"),
        config.replace("kind: transformer", "kind: huggingface\n    name: ../outside"),
        config + "x: &x [*x]\n",
    ]
    local = json.dumps(_OPEN_CLIP)
    changes = [('"width": 8', '"width": 8000000'), ('"layers": 1', '"layers": 9000000'), ('"heads": 2', '"heads": 0')]
    changes += [('"image_size": 8', '"image_size": 8e9'), ('"text_cfg": {', '"text_cfg": {"hf_tokenizer_name": "a/b", ')]
    headers: list[object] = [header, overlap, zero, {}, []]
    return [
        *({"w.safetensors": _safetensors(json.dumps(h).encode())} for h in headers),
        {"w.safetensors": struct.pack("<Q", 2**62) + b"{}"},
        {"w.safetensors": _safetensors(b'{"a":' * 3000)},
        {"w.npz": _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,)}")},
        {"w.npz": _npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}")},
        {"w.npz": _npy("(" * 5000)},
        {"w.npz": _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}")},
        {"w.npz": _zip({"params/embedding/kernel.npy": b"\0" * 50_000_000})},
        {"w.npz": _zip({"../../outside/x.npy": b"x", "/etc/passwd.npy": b"y"})},
        *({name: _torch(bomb, legacy)} for legacy in (False, True) for name in ("w.pt", "open_clip.pt")),
        {"w.npz": _npz({"x": np.array([MarkerBomb()], dtype=object)})},
        *(model | {"model/config.yaml": text.encode()} for text in huge),
        *(_local_dir(local.replace(a, b)) | {"local/open_clip_pytorch_model.bin": _torch({})} for a, b in changes),
        {
            "hf/config.json": b'{"model_type": "clip", "auto_map": {"AutoConfig": "evil.X"}}',
            "hf/evil.py": b"import os; os.abort()",
        },
        {
            "hf/config.json": b'{"model_type": "clip_vision_model"}',
            "hf/model.safetensors.index.json": b'{"weight_map": {"a": "../../outside/secret"}}',
        },
        model | _foreign_code(config),
        {"checkpoints/latest": b"../../outside\n"},
        {"checkpoints/latest": b"step-1\0\n"},
        {"checkpoints/latest": b"step-" + b"9" * 5000},
        {"checkpoints/latest": b"step-\xff"},
        *(
            {"checkpoints/latest": b"step-1", "checkpoints/step-1/state.json": text}
            for text in (b'{"step": 1e999}', b"[" * 100_000, b"[]", b'{"step": 1, "files": {"../../../outside/secret": 22}}')
        ),
    ]


def _foreign_code(config: str) -> Case:
    """Return a model folder whose text tower is of a kind that only code in the folder defines."""
    return {
        "model/config.yaml": config.replace("kind: transformer", "kind: huggingface\n    name: x").encode(),
        "model/text_tower/config.json": b'{"model_type": "evil", "auto_map": {"AutoConfig": "evil.X"}}',
        "model/text_tower/evil.py": b"import os; os.abort()",
    }


def _vocabulary(folder: Path) -> bytes:
    from flexiclip.data.tokenizers import train_sentencepiece

    return train_sentencepiece(_CAPTIONS, folder / "text.model", 60, lowercase=True).read_bytes()


def _model_folder(folder: Path, vocabulary: bytes) -> Case:
    from flexiclip.config import Config, from_dict
    from flexiclip.model_folder import build_model, save_model

    image = {**_SMALL, "image_size": 8, "base_patch_size": 4, "base_grid": 2}
    tokenizer = {"path": str(folder / "text.model"), "context_length": 6}
    data = {"model": {"image": image, "text": _SMALL, "embed_dim": 8}, "tokenizer": tokenizer, "patch": {"seqhw": [1, 2]}}
    assert (folder / "text.model").read_bytes() == vocabulary
    save_model(folder / "model", build_model(from_dict(Config, data)))
    return _read(folder, "model")


def _read(folder: Path, name: str) -> Case:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted((folder / name).rglob("*")) if path.is_file()
    }


def _hugging_face(folder: Path) -> Case:
    import transformers

    shared = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    vision = shared | {"image_size": 8, "patch_size": 4}
    text = shared | {"vocab_size": 60, "max_position_embeddings": 6, "eos_token_id": 1}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(folder / "hf")
    return _read(folder, "hf")


def _timm_state() -> dict[str, torch.Tensor]:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=1, num_classes=0).state_dict()


def _open_clip_state() -> dict[str, torch.Tensor]:
    import open_clip

    return open_clip.create_model(OPEN_CLIP_ARCH, force_custom_text=True).state_dict()


def _big_vision_arrays() -> dict[str, Any]:
    block = "Transformer/encoderblock_0"
    attention = f"{block}/MultiHeadDotProductAttention_0"
    shapes: dict[str, tuple[int, ...]] = {
        "embedding/kernel": (4, 4, 3, 8),
        "embedding/bias": (8,),
        "pos_embedding": (1, 4, 8),
        "Transformer/encoder_norm/scale": (8,),
        "Transformer/encoder_norm/bias": (8,),
        f"{block}/MlpBlock_0/Dense_0/kernel": (8, 32),
        f"{block}/MlpBlock_0/Dense_0/bias": (32,),
        f"{block}/MlpBlock_0/Dense_1/kernel": (32, 8),
        f"{block}/MlpBlock_0/Dense_1/bias": (8,),
        f"{attention}/out/kernel": (2, 4, 8),
        f"{attention}/out/bias": (8,),
    }
    shapes |= {f"{block}/LayerNorm_{i}/{part}": (8,) for i in (0, 1) for part in ("scale", "bias")}
    shapes |= {f"{attention}/{part}/kernel": (8, 2, 4) for part in ("query", "key", "value")}
    shapes |= {f"{attention}/{part}/bias": (2, 4) for part in ("query", "key", "value")}
    return {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}


def _npz(arrays: dict[str, Any]) -> bytes:
    return _zip({f"{name}.npy": _array(array) for name, array in arrays.items()})


def _array(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def _npy(header: str) -> bytes:
    """Return an .npz file of one array with this header."""
    text = header.encode() + b"\n"
    return _zip({"embedding/kernel.npy": b"\x93NUMPY\x02\0" + struct.pack("<I", len(text)) + text + b"\0" * 64})


def _zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _safetensors(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + b"\0" * 8


def _torch(content: object, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()
