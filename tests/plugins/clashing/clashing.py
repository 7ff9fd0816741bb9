"""A plug-in that claims the name ``good`` as well."""

from torch_s3dcp import SequentialS3Reader


class OtherReader(SequentialS3Reader):
    """Never reached: two distributions claim its name."""
