"""Packages that npm's registry holds: fetched by npm itself, held to a pinned hash; only pictures and JSON are unpacked.

`npm pack` downloads one tarball from the registry that npm is set to (NPM_CONFIG_REGISTRY, .npmrc) and runs nothing of it. Its
hash is checked here once more, against the one in the code: a registry or mirror can only give the bytes that were looked at.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from flexiclip.errors import UserError

_TAKEN = {".json", ".png", ".svg", ".webp"}


@dataclass(frozen=True)
class NpmPackage:
    """integrity: of the tarball, as npm publishes it: `sha512-` and base64."""

    name: str
    version: str
    integrity: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


def fetch(package: NpmPackage, folder: Path) -> Path:
    """Download the package into `folder`, an empty one; the folder with its pictures and JSON files. Raises UserError."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"npm is not installed; install it, or unpack {package} yourself and give --package DIR")
    command = [npm, "pack", str(package), "--ignore-scripts", "--pack-destination", str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
    tarballs = list(folder.glob("*.tgz"))
    if done.returncode or len(tarballs) != 1:
        said = [line for line in done.stderr.splitlines() if "npm error" in line or "npm ERR!" in line]
        raise UserError(f"npm could not fetch {package}: {said[0].strip() if said else f'exit code {done.returncode}'}")
    digest = "sha512-" + base64.b64encode(hashlib.sha512(tarballs[0].read_bytes()).digest()).decode()
    if digest != package.integrity:
        raise UserError(f"{package} from npm's registry is not the package that was published: its hash is {digest}")
    return unpack(tarballs[0], folder / "package")


def unpack(tarball: Path, folder: Path) -> Path:
    """Write the pictures and JSON files of a package into `folder`; links and paths that lead out of it are passed over."""
    with tarfile.open(tarball, "r:gz") as archive:
        for member in archive:
            inside = PurePosixPath(*PurePosixPath(member.name).parts[1:])  # the first is the package's own folder
            content = archive.extractfile(member) if member.isreg() and inside.suffix in _TAKEN else None
            if content is None or inside.is_absolute() or ".." in inside.parts:
                continue
            place = folder / inside
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content.read())
    return folder


def installed_version(folder: Path, package: NpmPackage) -> str:
    """The version in a package's folder. Raises UserError when it is no folder of that package."""
    try:
        about = json.loads((folder / "package.json").read_text(encoding="utf-8"))
        name, version = about["name"], str(about["version"])
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(
            f"{folder} is no package of npm: no package.json with a name and version; give {package} unpacked"
        ) from None
    if name != package.name:
        raise UserError(f"{folder} holds the npm package {name!r}; needed is {package}")
    return version
