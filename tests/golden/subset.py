"""Copies chosen cases of the full golden fixtures into tests/golden/fixtures.

    python3 tests/golden/subset.py FULL_FIXTURES

The full set is what SPATIALSSL_FIXTURES names; the subset is what the plain test command runs. Needs Python only.
"""

import json
import math
import pathlib
import struct
import sys

KEEP = {
    "ops/conv3d": ["k1s1p0", "k133s122", "k3s1p1_odd", "k3s1p1_stem", "k3s2p1_odd", "k4s2p1_odd"],
    "ops/conv_transpose3d": ["k122", "k2_odd"],
    "ops/pointwise": None,
    "ops/norm_pool_linear": ["avg_pool_122", "global_avg_pool", "instance_norm_odd", "instance_norm_offset",
                             "instance_norm_tiny", "linear"],
    "ops/resample": None,
    "ops/optimiser": None,
    "geometry/targets": None,
    "tasks/gap": ["small"],
    "tasks/similarity": ["small"],
    "tasks/vector": ["small"],
    "tasks/all": ["small"],
    "encoder/no_conv_bias": None,
    "trajectory/steps8": None,
}


def read(path):
    raw = path.read_bytes()
    n = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8:8 + n]), raw[8 + n:]


def write(path, fixture, tensors):
    header, data = {"__metadata__": {"fixture": json.dumps(fixture)}}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def main():
    full = pathlib.Path(sys.argv[1])
    here = pathlib.Path(__file__).parent / "fixtures"
    for stem, names in KEEP.items():
        header, data = read(full / f"{stem}.safetensors")
        fixture = json.loads(header.pop("__metadata__")["fixture"])
        names = names or list(fixture["cases"])
        fixture["cases"] = {n: fixture["cases"][n] for n in names}
        tensors = {k: (v["dtype"], v["shape"], data[slice(*v["data_offsets"])])
                   for k, v in header.items() if k.split("/")[0] in names}
        if stem == "trajectory/steps8":
            trim(fixture, tensors)
        write(here / f"{stem}.safetensors", fixture, tensors)


def trim(fixture, tensors):
    """Keeps the small learning rate only, and of gradients and final weights the small ones."""
    for case, body in fixture["cases"].items():
        body["attrs"]["lr"].pop("lr1e-3")
        size = lambda v: math.prod(v["shape"])
        for key in [k for k, v in body["outputs"].items() if k.startswith("lr1e-3/") or size(v) > 1200]:
            body["outputs"].pop(key)
            for tail in ("", "#digest", "#sample"):
                tensors.pop(f"{case}/out/{key}{tail}", None)


if __name__ == "__main__":
    main()
