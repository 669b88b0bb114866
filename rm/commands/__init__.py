"""The commands of `python -m rm`: each a composition of the library's functions, meant to be read and copied."""
