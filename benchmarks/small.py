"""Load ten thousand small tensors: what each item costs.

python -m benchmarks.small --rounds 5
"""

from .compare import main

if __name__ == "__main__":
    main(__doc__, case=["small"], server="static")
