"""The features of a reference and their moments on disk, so that no evaluation computes them twice.

    OUT/features/reference-NAME-KEY/features.safetensors   features (n, d), their mean and covariance
    OUT/features/reference-NAME-KEY/features.json          what they are of, and the file's SHA-256

The key is a hash of what decides them: the digest of the data card, the feature network (weights included), and the rows. The
directory appears by one rename. What is damaged is computed again, and that is said.
"""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from indm_core.metrics import Moments
from pipelines.data.card import Card
from pipelines.evaluation.results.estimates import ReferenceFeatures
from pipelines.storage.files import new_directory, write_tensors
from pipelines.storage.manifest import read_manifest, write_manifest
from pipelines.storage.messages import one_line

__all__ = ["Statistics"]

VERSION = 1
"""Part of the key: raise it when a feature network's code changes what it gives."""
TENSORS, MANIFEST = "features.safetensors", "features.json"


class Statistics:
    """What is known of a reference.

    Args:
        directory: Of the output directory, where features are kept.
        card: Of the data.
        extractor: The feature network's key.
        rows: How many rows of the training split.
        seed: By which they were drawn; 0 where they are all of them.
    """

    def __init__(self, directory: Path, card: Card, *, extractor: str, rows: int, seed: int) -> None:
        self.described: dict[str, Any] = {
            "version": VERSION,
            "data": card.digest,
            "split": "train",
            "rows": rows,
            "seed": seed,
            "features": extractor,
        }
        key = hashlib.sha256(json.dumps(self.described, sort_keys=True).encode()).hexdigest()
        self.home = directory / f"reference-{re.sub(r'[^A-Za-z0-9_-]', '_', card.name)}-{key[:16]}"
        self.found: ReferenceFeatures | None = self._read() if self.home.is_dir() else None

    def put(self, features: Tensor) -> ReferenceFeatures:
        """Keeps the features; a directory that cannot be written is said and costs a later evaluation their computation."""
        self.found = ReferenceFeatures(features)
        if not features.isfinite().all():
            return self.found
        moments = self.found.moments
        try:
            with new_directory(self.home) as made:
                tensors = {"features": features, "mean": moments.mean, "cov": moments.cov}
                write_manifest(made / MANIFEST, self.described, {TENSORS: write_tensors(made / TENSORS, tensors)})
        except OSError as error:
            print(f"{self.home}: not kept ({one_line(error, 200)}); a later evaluation computes it again", flush=True)
        return self.found

    def _read(self) -> ReferenceFeatures | None:
        try:
            manifest = read_manifest(self.home / MANIFEST)
            if manifest.content != self.described:
                raise ValueError(f"{MANIFEST} describes another one")
            manifest.verify()
            tensors = load_file(self.home / TENSORS)
            features = tensors["features"]
            return ReferenceFeatures(features, Moments.known(len(features), tensors["mean"], tensors["cov"]))
        except (OSError, ValueError, LookupError, SafetensorError) as error:
            reason = textwrap.shorten(one_line(error, 300).replace(f"{self.home}/", ""), 200)
            print(f"{self.home}: damaged ({reason}); the features of the reference are computed again", flush=True)
            return None
