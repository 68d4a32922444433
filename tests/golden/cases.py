"""Golden values of the case table (tests/common/cases.rs), by PyTorch in float64.

    SPATIALSSL_CASES_OUT=FOLDER cargo test --test golden inputs_of_the_case_table
    python3 tests/golden/cases.py FOLDER

reads FOLDER/inputs.safetensors, which the first command writes, and writes tests/golden/cases.safetensors: outputs
y0.. and input gradients dx0.. of each case. Formulas are PyTorch's own functions, gradients its autograd. Layouts as in
the library: channels last; permuted here to what PyTorch takes.
"""

import itertools
import json
import pathlib
import re
import sys

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

WHOLE, SAMPLE = 16 * 1024, 4096  # as in tests/golden/table.rs


def attributes(text):
    """Fields of the Debug text of an operation, `Op(Op { name: value, .. })`."""
    fields = {}
    for name, value in re.findall(r"(\w+): (\[[^\]]*\]|Some\([^)]*\)|[\w.+-]+)", text):
        value = value.removeprefix("Some(").removesuffix(")")
        words = {"None": None, "true": True, "false": False}
        if value in words:
            fields[name] = words[value]
        elif re.match(r"[\[\d-]", value):
            fields[name] = json.loads(value)
        else:
            fields[name] = value
    return fields


def first(x):
    """Channels last to channels first."""
    return x.movedim(-1, 1)


def last(x):
    """Channels first to channels last."""
    return x.movedim(1, -1)


def conv3d(a, x, w, b=None):
    # A bias before a norm is not added.
    b = None if a["normed"] else b
    return last(F.conv3d(first(x), first(w), b, a["stride"], a["padding"]))


def conv_transpose3d(a, x, w, b=None):
    # The filter is [C, T, R, S, K]: PyTorch's [C, K, T, R, S] with K last.
    return last(F.conv_transpose3d(first(x), first(w), b, stride=w.shape[1:4]))


def norm(a, x, gamma, beta, residual=None):
    if x[0, ..., 0].numel() > 1:
        y = last(F.instance_norm(first(x), weight=gamma, bias=beta, eps=1e-5))
    else:
        # instance_norm refuses a single voxel; a layer norm over the voxels of one channel is the same.
        y = last(F.layer_norm(first(x), x.shape[1:4], eps=1e-5)) * gamma + beta
    y = y if residual is None else y + residual
    if a["slope"] is not None:
        # The float32 run must be on the same side of the kink.
        assert y.abs().min() > 1e-5, "an activation too close to its kink"
        y = F.leaky_relu(y, a["slope"])
    var, mean = torch.var_mean(x, (1, 2, 3), correction=0)
    return y, torch.stack([mean, torch.rsqrt(var + 1e-5)], -1)


def global_pool(a, x):
    return F.adaptive_avg_pool3d(first(x), 1).flatten(1)


def concat(a, *x):
    return torch.cat(x, -1 if a["axis"] == "Channel" else 0)


def pairwise(a, x):
    x = x.transpose(0, 1)
    i, j = torch.broadcast_tensors(x[:, :, None], x[:, None])
    return i - j if a["kind"] == "Difference" else torch.cat([i, j], -1)


def sub_view(a, boxes, *reps):
    views, (sz, sy, sx) = a["views"], a["size"]
    images = torch.cat(reps)  # view-major in either form
    batch = boxes.shape[0]
    pairs = list(itertools.combinations(range(views), 2))
    cuts = []
    for role, n, p in itertools.product(range(4), range(batch), range(len(pairs))):
        z, y, x = (int(v) for v in boxes[n, p, role])
        image = images.unflatten(0, (views, batch))[pairs[p][role % 2], n]
        cuts.append(image[z:z + sz, y:y + sy, x:x + sx])
    return torch.stack(cuts)


def route_loss(a, p, g):
    views = p.shape[1]

    def sums(d):
        # Over each route, and once more the diagonal entry (0, 0), as the authors' program does.
        return torch.stack([sum((d[:, i, j] for i, j in itertools.pairwise(order)), d[:, 0, 0])
                            for order in itertools.permutations(range(views))])

    return F.smooth_l1_loss(sums(p), sums(g))[None]


def cosine_loss(a, x):
    roles = x.unflatten(0, (4, -1))
    cosine = F.cosine_similarity(roles[a["first"]], roles[a["first"] + 1], dim=-1, eps=1e-8)
    return a["factor"] * cosine.mean()[None], cosine.mean((1, 2, 3))


def spread_loss(a, x):
    boxes = x.unflatten(0, (4, a["samples"], -1))
    pairs = boxes.shape[2]
    # [sample, voxel, (role, pair), channels]
    groups = boxes.permute(1, 3, 4, 5, 0, 2, 6).flatten(4, 5).flatten(0, 3)
    unit = F.normalize(groups, dim=-1, eps=1e-8)
    cosines = unit @ unit.transpose(1, 2)
    partner = torch.zeros(4, 4, dtype=x.dtype)
    partner[0, 1] = partner[1, 0] = 1
    counts = 1 - torch.eye(4 * pairs, dtype=x.dtype) - torch.kron(partner, torch.eye(pairs, dtype=x.dtype))
    loss = (cosines.square() * counts).sum() / (counts.sum() * len(groups))
    return loss[None], cosines, groups.norm(dim=-1)


def masked_mse(a, p, t, mask):
    # The mask at the size of the map: each block's weight for its voxels.
    weight = F.interpolate(mask[:, None], size=p.shape[1:4], mode="nearest")[:, 0, ..., None].expand_as(p)
    return (F.mse_loss(p, t, reduction="none") * weight).sum()[None] / weight.sum(), weight.sum()[None]


def hide_blocks(a, x, mask):
    hidden = F.interpolate(mask[:, None], size=x.shape[1:4], mode="nearest")[:, 0, ..., None]
    return torch.where(hidden == 1, torch.zeros_like(x), x)


def cross_entropy(a, x, target, weights):
    # Rows whose target is no class are those that PyTorch is told to ignore.
    classes = weights.numel()
    target = target.flatten().long()
    target = torch.where((target >= 0) & (target < classes), target, -100)
    counted = weights[target[target >= 0]].sum()
    return F.cross_entropy(x.reshape(-1, classes), target, weight=weights, ignore_index=-100)[None], counted[None]


OPS = {
    "conv3d": conv3d,
    "conv_transpose3d": conv_transpose3d,
    "norm": norm,
    "gelu": lambda a, x: F.gelu(x),
    "leaky_relu": lambda a, x: F.leaky_relu(x, a["slope"]),
    "grad_norm_tap": lambda a, x: x * 1,
    "residual_add": lambda a, x, residual: x + residual,
    "avg_pool": lambda a, x: last(F.avg_pool3d(first(x), a["window"])),
    "global_pool": global_pool,
    "concat": concat,
    "pairwise": pairwise,
    "linear": lambda a, x, w, b=None: F.linear(x, w, b),
    "sub_view": sub_view,
    "gap_axis_loss": lambda a, p, g: F.mse_loss(p, g)[None],
    "gap_norm_loss": lambda a, p, g: F.mse_loss(p.norm(dim=-1), g.norm(dim=-1))[None],
    "vector_loss": lambda a, p, g: F.smooth_l1_loss(p, g)[None],
    "route_loss": route_loss,
    "cosine_loss": cosine_loss,
    "spread_loss": spread_loss,
    "masked_mse": masked_mse,
    "hide_blocks": hide_blocks,
    "cross_entropy": cross_entropy,
}
# Inputs that have no gradient: targets, boxes.
CONSTANT = {"gap_axis_loss": {1}, "gap_norm_loss": {1}, "vector_loss": {1}, "route_loss": {1}, "sub_view": {0}, "masked_mse": {1, 2},
            "hide_blocks": {1}, "cross_entropy": {1, 2}}


def differentiable(op, a, given):
    inputs = [given[f"x{i}"] for i in range(sum(k.startswith("x") for k in given))]
    for i, x in enumerate(inputs):
        x.requires_grad_(i not in CONSTANT.get(op, ()))
    made = OPS[op](a, *inputs)
    made = made if isinstance(made, tuple) else (made,)
    dy = given["dy"].view(made[0].shape)
    made[0].backward(dy)
    if op == "grad_norm_tap":
        made = (made[0], torch.linalg.vector_norm(dy)[None])
    results = {f"y{i}": y for i, y in enumerate(made)}
    # An input that reaches the output nowhere (the bias before a norm) has no gradient in the library either.
    results |= {f"dx{i}": x.grad for i, x in enumerate(inputs) if x.grad is not None}
    return results


def adamw(a, given):
    lr, bias1, bias2, _ = given["x0"].tolist()
    # The scalars are those of the first step, which PyTorch computes from the step's number.
    assert abs(bias1 - (1 - a["beta1"])) < 1e-7 and abs(bias2 - (1 - a["beta2"])) < 1e-7
    p = torch.nn.Parameter(given["s0"])
    p.grad = given["x2"] * given["x1"][1]
    rule = torch.optim.AdamW([p], lr, (a["beta1"], a["beta2"]), a["eps"], a["weight_decay"])
    rule.state[p] = {"step": torch.tensor(0.0), "exp_avg": given["s1"], "exp_avg_sq": given["s2"]}
    rule.step()
    return {"y0": p, "y1": rule.state[p]["exp_avg"], "y2": rule.state[p]["exp_avg_sq"]}


def ema(a, given):
    return {"y0": torch.lerp(given["s0"], given["x1"], given["x0"][3])}


def grad_norm(a, given):
    params = []
    for i in range(len(given)):
        params.append(torch.nn.Parameter(torch.zeros_like(given[f"x{i}"])))
        params[-1].grad = given[f"x{i}"].clone()
    limit = float("inf") if a["max_norm"] is None else a["max_norm"]
    norm = torch.nn.utils.clip_grad_norm_(params, limit)
    factor = params[0].grad[0] / given["x0"][0]
    return {"y0": torch.stack([norm, factor])}


UPDATES = {"adamw": adamw, "ema": ema, "grad_norm": grad_norm}


def stored(values):
    """As in table.rs: all elements, or every k-th. An array of nothing but the rounding of zeros is stored as zeros."""
    values = values.detach().contiguous().flatten()
    if values.abs().max() < 1e-13:
        values = torch.zeros_like(values)
    stride = 1 if len(values) <= WHOLE else -(-len(values) // SAMPLE) | 1
    return values[::stride].float().clone()


def main():
    folder = pathlib.Path(sys.argv[1])
    golden = {}
    with safe_open(folder / "inputs.safetensors", "pt") as file:
        ops = json.loads(file.metadata()["ops"])
        for label, text in ops.items():
            given = {k.rsplit("/", 1)[1]: file.get_tensor(k).double()
                     for k in file.keys() if k.rsplit("/", 1)[0] == label}
            op, a = label.split("/", 1)[0], attributes(text)
            results = UPDATES[op](a, given) if op in UPDATES else differentiable(op, a, given)
            golden |= {f"{label}/{name}": stored(values) for name, values in results.items()}
        metadata = {"cases": file.metadata()["cases"], "torch": torch.__version__}
    path = pathlib.Path(__file__).parent / "cases.safetensors"
    save_file(golden, path, metadata)
    print(f"{len(ops)} cases, {len(golden)} arrays, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
