"""One question per file; each prints a table and writes JSON to benchmarks/out/. Run by `nox -s bench`."""
