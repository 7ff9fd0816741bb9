"""Load every third tensor: near, where requests cost little, and far, where gaps are cheaper.

python -m benchmarks.partial --case partial-small --delay 0.001 0.01 0.1
"""

from .compare import main

CASES = ["partial", "partial-small"]
# Not the floor, which reads all.
SYSTEMS = ["ours", "s3torchconnector", "fsspec", "filesystem"]

if __name__ == "__main__":
    main(__doc__, case=CASES, server="static", delay=[0.001, 0.1], systems=SYSTEMS)
