"""Peak memory of loads of two sizes, from a fast and a slow server: the column `+MiB`.

`convert` and `convert-large` load bfloat16 into float32, so that nothing can be received where
it ends.

    python -m benchmarks.memory --bandwidth 20e6
"""

from .compare import main

CASES = ["memory", "memory-large", "convert", "convert-large"]

if __name__ == "__main__":
    main(
        __doc__,
        case=CASES,
        server="static",
        bandwidth=[0.0, 100e6],
        rounds=1,
        systems=["ours", "s3torchconnector"],
    )
