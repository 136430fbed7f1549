"""Hashes that decide splits and names of caches."""

import hashlib


def stable_hash(name: str) -> int:
    """A number of 64 bits that is the same on every machine and in every process, unlike Python's own salted hash."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
