"""Code that comes with a Hugging Face model or tokenizer is never run: every call that could run it, with a folder that tries."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from flexiclip.config import TextTowerConfig, TokenizerConfig
from flexiclip.data.tokenizers import build_tokenizer, load_tokenizer
from flexiclip.errors import UserError
from flexiclip.formats.run import import_weights
from flexiclip.models.text import build_text_tower

BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20}


def with_code(folder: Path, marker: Path) -> Path:
    """A folder whose evil.py writes `marker` as soon as it is imported."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nclass Evil: pass\n")
    return folder


def rewrite(path: Path, **more: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | more))


def bert(folder: Path, marker: Path) -> Path:
    """A BERT that transformers knows, whose config names code for it as well."""
    transformers.BertModel(transformers.BertConfig(**BERT, max_position_embeddings=9)).save_pretrained(folder)
    with_code(folder, marker)
    rewrite(folder / "config.json", auto_map=dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForTextEncoding"), "evil.Evil"))
    return folder


def tower_config(name: Path) -> TextTowerConfig:
    return TextTowerConfig(kind="huggingface", name=str(name), pool="mean", pad_id=0)


def unknown_encoder(folder: Path, marker: Path) -> None:
    rewrite(with_code(folder, marker) / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Evil"})
    build_text_tower(tower_config(folder))


def known_encoder(folder: Path, marker: Path) -> None:
    build_text_tower(tower_config(bert(folder, marker)))


def known_encoder_without_weights(folder: Path, marker: Path) -> None:
    build_text_tower(tower_config(bert(folder, marker)), pretrained=False)


def encoder_of_a_model_folder(folder: Path, marker: Path) -> None:
    bert(folder / "text_tower", marker)
    build_text_tower(tower_config(Path("gone")), folder, pretrained=False)


def tokenizer_files(folder: Path, marker: Path) -> Path:
    (with_code(folder, marker) / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nfox\n")
    rewrite(folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]})
    rewrite(folder / "config.json", model_type="bert")
    return folder


def tokenizer_of_a_recipe(folder: Path, marker: Path) -> None:
    build_tokenizer(TokenizerConfig("huggingface", path=str(tokenizer_files(folder, marker)), context_length=8))


def tokenizer_of_a_model_folder(folder: Path, marker: Path) -> None:
    load_tokenizer(tokenizer_files(folder, marker), TokenizerConfig("huggingface", context_length=8), "")


def imported_model(folder: Path, marker: Path) -> None:
    """The code is for a CLIP, which transformers knows, so nothing but the switch keeps it from running."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision = transformers.CLIPVisionConfig(**sizes, image_size=8, patch_size=4)
    transformers.CLIPVisionModel(vision).save_pretrained(folder)
    with_code(folder, marker)
    rewrite(folder / "config.json", auto_map={"AutoConfig": "evil.Evil"})
    import_weights(str(folder), "transformers", folder.parent / "out")


ATTACKS = {
    ask.__name__: ask
    for ask in (
        unknown_encoder,
        known_encoder,
        known_encoder_without_weights,
        encoder_of_a_model_folder,
        tokenizer_of_a_recipe,
        tokenizer_of_a_model_folder,
        imported_model,
    )
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_code_that_comes_with_a_folder_is_never_run(attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused, or read as what transformers itself knows; either way the marker is not written, and nobody is asked."""
    marker, asked = tmp_path / "code_was_run", []
    monkeypatch.setattr("builtins.input", lambda *question: asked.append(question) or "y")
    with suppress(UserError):
        ATTACKS[attack](tmp_path / "folder", marker)
    assert not marker.exists()
    assert not asked


def outside_weights(folder: Path, name: str) -> str:
    """A folder of an image tower without weights of its own; a file with them, complete, lies beside the folder."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes, image_size=8, patch_size=4))
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    outside = folder.parent / "outside"
    outside.mkdir()
    save_file(state, outside / "part.safetensors")
    torch.save(state, outside / "part.bin")
    return str(outside / name)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("written", ["relative", "absolute", "through the folder"])
def test_shards_of_an_index_are_not_taken_from_elsewhere(kind: str, written: str, tmp_path: Path) -> None:
    """The file that the index names is there and complete: only the rule about folders keeps it from being read."""
    folder, part = tmp_path / "hf", f"part.{kind}"
    absolute = outside_weights(folder, part)
    name = {"relative": f"../outside/{part}", "absolute": absolute, "through the folder": f"x/../../outside/{part}"}[written]
    (folder / "x").mkdir()
    index = "model.safetensors.index.json" if kind == "safetensors" else "pytorch_model.bin.index.json"
    (folder / index).write_text(json.dumps({"weight_map": {"embeddings.class_embedding": name}}))
    with pytest.raises(UserError, match=f"hf/{part}: no such file"):
        import_weights(str(folder), "transformers", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (folder / part).write_bytes(Path(absolute).read_bytes())
    import_weights(str(folder), "transformers", tmp_path / "out")  # inside the folder the same name is read
