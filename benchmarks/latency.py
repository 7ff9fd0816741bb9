"""Load from far away: every request takes longer.

python -m benchmarks.latency --delay 0.03 0.1
"""

from .compare import main

if __name__ == "__main__":
    main(__doc__, case=["latency"], server="static", delay=[0.1])
