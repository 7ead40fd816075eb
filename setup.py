"""The packages that pip installs. Everything else about them is in pyproject.toml.

pyproject.toml can make setuptools find packages, but not where a folder and its package have different names.
"""

from setuptools import find_packages, setup

FOLDERS = {"flexiclip": "flexiclip", "flexiclip_eval": "eval", "flexiclip_recipes": "recipes"}
"""Package -> its folder."""

setup(
    packages=[*FOLDERS, *(f"{package}.{name}" for package, folder in FOLDERS.items() for name in find_packages(folder))],
    package_dir=FOLDERS,
)
