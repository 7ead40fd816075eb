"""Readers of foreign weight formats, one module a format; none of them unpickles anything."""
