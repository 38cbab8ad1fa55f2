#!/usr/bin/env bash
# safetensors writes the keys of a file's metadata in a random order.
#
# The same tensors with the same metadata, saved twice, are files with other bytes as soon as the
# metadata has two keys. The order differs from call to call, also within one process. Tensors are
# written in a fixed order, so a file with one metadata key is always the same.
# Whom it hurts: everybody who names files by their hash, compares builds byte by byte, or caches by
# content. What helps: one metadata key (a JSON text), or sorting the header afterwards.
#
# Versions: safetensors 0.8.0, numpy 2.4.6, Python 3.11. Seen: several different files of 20 with two
# keys, one file of 20 with one key.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
"$work/env/bin/python" - <<'PY'
import hashlib

import numpy as np
from safetensors.numpy import save

tensors = {"a": np.arange(3, dtype=np.float32), "b": np.zeros(2, np.float32)}


def different(metadata: dict[str, str]) -> int:
    return len({hashlib.sha256(save(tensors, metadata)).hexdigest() for _ in range(20)})


one = different({"format": "x"})
many = different({"format": "x", "model": "y", "made": "z", "by": "w"})
print(f"different files of 20: {one} with one metadata key, {many} with four")
assert one == 1, "one key: the bytes were the same"
assert many > 1, "several keys: the bytes differed"
PY
