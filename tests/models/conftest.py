"""Here so that golden.py can be imported by the tests in folders below."""
