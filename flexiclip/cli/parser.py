"""The parser of every command."""

from __future__ import annotations

import argparse
from typing import NoReturn

from flexiclip.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are UserErrors: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse for a wrong command line."""
        raise UserError(f"{message}; see {self.prog} --help")
