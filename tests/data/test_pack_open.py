"""What a source is, by its name and what lies there. test_pack_rows.py and test_pack_tables.py read the rows of each kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit.shards import jpeg

from flexiclip.data.pack_open import open_source
from flexiclip.errors import UserError


def images(folder: Path, *paths: str) -> str:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(jpeg(1))
    return str(folder)


def test_wrong_templates_and_folders_are_refused(tmp_path: Path) -> None:
    flat = images(tmp_path / "flat", "a.jpg")
    with pytest.raises(UserError, match=r"a\.jpg is in no folder that names its class"):
        open_source(flat, templates=["{c}"])
    with pytest.raises(UserError, match=r"write \{c\} where the name of the class belongs"):
        open_source(flat, templates=["a photo"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images"):
        open_source(str(tmp_path / "empty"))
    with pytest.raises(UserError, match="no such file or folder"):
        open_source(str(tmp_path / "nothing"))
