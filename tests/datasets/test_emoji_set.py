"""The builder of emoji sets on real drawings, at 32 pixels and a quarter of its size.

Packages are fetched by the real npm, from a registry on this machine.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from flexiclip.data.remote import expand_shards
from flexiclip.data.samples import Sample, open_samples
from flexiclip.datasets.emoji_names import concept_words
from flexiclip.datasets.emoji_set import EmojiBuild, NpmPackage, fetch
from flexiclip.datasets.vendors import build_openmoji
from flexiclip.errors import UserError

LIMIT, HELD_OUT = 450, 100  # concepts


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EmojiBuild]:
    folder = tmp_path_factory.mktemp("openmoji") / "set"
    build, fresh = build_openmoji(folder, pixels=32, heldout=HELD_OUT, limit=LIMIT)
    assert fresh
    return folder, build


def samples(folder: Path, name: str) -> list[Sample]:
    store = open_samples(expand_shards(str(folder / f"{name}-*.tar")), ("png",), ("txt", "json:captions"))
    return [store[number] for number in range(len(store))]


def test_no_concept_and_no_picture_is_on_both_sides(built: tuple[Path, EmojiBuild]) -> None:
    train, held_out = (samples(built[0], name) for name in ("train", "heldout"))
    assert not {s.meta["concept"] for s in train} & {s.meta["concept"] for s in held_out}
    assert not {s.image.tobytes() for s in train} & {s.image.tobytes() for s in held_out}
    # The concept rule once more, by words: no name of a training drawing reduces to the name of a held-out one.
    assert not {concept_words(s.meta["name"])[0] for s in train} & {concept_words(s.meta["name"])[0] for s in held_out}


def test_the_held_out_set_is_fit_for_scoring(built: tuple[Path, EmojiBuild]) -> None:
    folder, build = built
    held_out = samples(folder, "heldout")
    assert abs(len(held_out) - HELD_OUT) <= 5
    assert len({s.captions[0] for s in held_out}) == len({s.image.tobytes() for s in held_out}) == len(held_out)
    assert not any("skin tone" in caption for s in held_out for caption in s.captions)
    classes = (folder / "classnames.txt").read_text(encoding="utf-8").split("\n")[:-1]
    store = open_samples(expand_shards(str(folder / "heldout-0000.tar")), ("png",), ())
    for number, sample in enumerate(held_out):
        label = store.member(*store.locate(number), "cls")
        assert label is not None
        assert classes[int(label)] == sample.meta["category"]
    assert len(classes) == 9
    assert "Component" not in classes
    assert build.heldout_categories == {c: sum(s.meta["category"] == c for s in held_out) for c in classes}
    assert max(build.heldout_categories.values()) < 0.4 * len(held_out)


def test_training_shards_hold_all_the_rest(built: tuple[Path, EmojiBuild]) -> None:
    folder, build = built
    train = samples(folder, "train")
    assert len(train) == build.train > build.train_concepts == len({s.meta["concept"] for s in train})
    assert LIMIT - HELD_OUT - 10 <= build.train_concepts <= LIMIT - HELD_OUT + 5  # equal drawings unite a few
    assert any("skin tone" in s.captions[0] for s in train)
    for sample in train:
        assert sample.image.size == (32, 32)
        assert sample.captions[0] == sample.meta["name"]
        assert sample.meta["license"] == "CC-BY-SA-4.0"
    corners = np.stack([np.asarray(s.image)[0, 0] for s in train])
    assert (corners == 255).all(axis=1).mean() > 0.9  # transparency became white
    for name in ("LICENSE.txt", "DATASET.md"):
        assert "ShareAlike 4.0" in (folder / name).read_text(encoding="utf-8") or "CC-BY-SA-4.0" in (folder / name).read_text()


def test_the_same_packages_give_the_same_bytes(built: tuple[Path, EmojiBuild], tmp_path: Path) -> None:
    build, fresh = build_openmoji(tmp_path / "again", pixels=32, heldout=HELD_OUT, limit=LIMIT)
    assert fresh
    assert build == built[1]
    for path in sorted((tmp_path / "again").iterdir()):
        assert path.read_bytes() == (built[0] / path.name).read_bytes()


def test_build_openmoji_keeps_an_equal_set_and_refuses_another_folder(built: tuple[Path, EmojiBuild], tmp_path: Path) -> None:
    assert build_openmoji(built[0], pixels=32, heldout=HELD_OUT, limit=LIMIT) == (built[1], False)
    with pytest.raises(UserError, match="other settings"):
        build_openmoji(built[0], pixels=64, heldout=HELD_OUT, limit=LIMIT)
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="does not hold a build of OpenMoji"):
        build_openmoji(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def tarball() -> bytes:
    """A package with a picture, a script, a link and a name that leads out of it."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        about = {"name": "drawings", "version": "1.0.0", "scripts": {"prepare": "touch RAN", "postinstall": "touch RAN"}}
        members = {
            "package/package.json": json.dumps(about),
            "package/a/1.png": "png",
            "package/run.js": "js",
            "package/../../out.png": "out",
        }
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
        link = tarfile.TarInfo("package/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    return data.getvalue()


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """npm's registry on this machine with the one package drawings@1.0.0; its integrity."""
    content = tarball()
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            place = f"http://127.0.0.1:{server.server_port}/drawings.tgz"
            entry = {"name": "drawings", "version": "1.0.0", "dist": {"tarball": place, "integrity": integrity}}
            listing = {"name": "drawings", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": entry}}
            found = {"/drawings": json.dumps(listing).encode(), "/drawings.tgz": content}.get(self.path)
            self.send_response(404 if found is None else 200)
            self.end_headers()
            self.wfile.write(found or b"{}")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("NPM_CONFIG_CACHE", str(tmp_path / "npm-cache"))
    yield integrity
    server.shutdown()
    thread.join()
    server.server_close()


def test_npm_fetches_and_only_pictures_and_json_are_taken(registry: str, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    folder = fetch(NpmPackage("drawings", "1.0.0", registry), tmp_path / "scratch")
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) == ["a/1.png", "package.json"]
    assert not list(tmp_path.rglob("out.png")) + list(tmp_path.rglob("RAN"))
    for package, said in (
        (NpmPackage("drawings", "1.0.0", "sha512-other"), "is not the package that was published"),
        (NpmPackage("nothing", "1.0.0", registry), "npm could not fetch nothing@1.0.0: npm .*404"),
    ):
        scratch = tmp_path / package.name
        scratch.mkdir()
        with pytest.raises(UserError, match=said):
            fetch(package, scratch)
