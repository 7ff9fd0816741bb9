"""What tests of this package, and of packages built on it, share: local S3 servers and suites."""
