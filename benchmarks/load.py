"""Load a whole model: every reader, other packages, files in memory, and raw sockets.

python -m benchmarks.load --server static --rounds 3 --json results.json
"""

from .compare import main

if __name__ == "__main__":
    main(__doc__)
