"""Load one rank's slices of a checkpoint that other ranks, or one, have saved.

`reshard-rows` and `reshard-columns`: saved by eight ranks, loaded by one of three.
`rows` and `columns`: saved by one, loaded by one of eight.

    python -m benchmarks.reshard --case reshard-rows
"""

from .compare import main

CASES = ["reshard-rows", "reshard-columns", "rows", "columns"]
# Not the floor, which reads all.
SYSTEMS = ["ours", "s3torchconnector", "fsspec", "filesystem"]

if __name__ == "__main__":
    main(__doc__, case=CASES, server="static", systems=SYSTEMS)
