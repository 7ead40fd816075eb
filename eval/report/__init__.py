"""What an evaluation leaves behind: rows, tables, plots and a page."""
