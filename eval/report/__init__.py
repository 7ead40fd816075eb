"""Writes the results of an evaluation: files of rows, tables, plots and a page."""
