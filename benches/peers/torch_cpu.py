"""PyTorch's side of the comparison on the CPU: four convolutions and the whole training step.

    python torch_cpu.py contiguous|channels_last [convs|step]

Prints one JSON object per line, as `cargo bench --bench peer_cpu` does, on OMP_NUM_THREADS threads. The step is the same method on the same
sizes, written so that PyTorch does well: the averaged views in one batch, no gradient where none is wanted, sub-views
whose gradient is one buffer, fused AdamW, one call for the whole average.
"""

import copy
import json
import math
import os
import statistics
import sys
import time
from itertools import combinations, permutations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}
# name, input channels, output channels, edge, stride
LAYERS = [
    ("32->32 k3 @64^3", 32, 32, 64, 1),
    ("64->64 k3 @32^3", 64, 64, 32, 1),
    ("128->128 k3 @16^3", 128, 128, 16, 1),
    ("32->64 k3 s2 @64^3", 32, 64, 64, 2),
]
FEATURES, BLOCKS, VIEWS, VIEW, SUB = (32, 64, 128, 256), (1, 3, 4, 6), 3, 64, 16
CONV_RUNS, STEP_RUNS = 15, 5


def times_ms(fn, warm, runs):
    seen = []
    for _ in range(warm + runs):
        start = time.perf_counter()
        fn()
        seen.append((time.perf_counter() - start) * 1e3)
    return seen[warm:]


def emit(case, what, flop, seen):
    line = {"case": case, "pass": what, "median_ms": statistics.median(seen), "min_ms": min(seen), "gflop": flop / 1e9}
    print(json.dumps(line), flush=True)


def convolutions(layout):
    for name, c, k, edge, stride in LAYERS:
        x = torch.rand(1, c, edge, edge, edge).to(memory_format=layout).requires_grad_()
        w = (torch.rand(k, c, 3, 3, 3) * 0.1 - 0.05).to(memory_format=layout).requires_grad_()
        b = torch.rand(k, requires_grad=True)
        y = F.conv3d(x, w, b, stride, 1)
        dy = torch.randn_like(y)
        flop = 2 * w.numel() * y[0, 0].numel()
        with torch.no_grad():
            emit(name, "forward", flop, times_ms(lambda: F.conv3d(x, w, b, stride, 1), 3, CONV_RUNS))
        back = lambda: torch.autograd.grad(y, (x, w, b), dy, retain_graph=True)
        emit(name, "backward", 2 * flop, times_ms(back, 3, CONV_RUNS))


class ConvNorm(nn.Sequential):
    """Convolution and instance norm, with a leaky ReLU if `active`."""

    def __init__(self, c, k, size=3, stride=1, active=True, bias=True):
        parts = [nn.Conv3d(c, k, size, stride, size // 2, bias=bias), nn.InstanceNorm3d(k, affine=True)]
        super().__init__(*parts, *([nn.LeakyReLU(0.01, inplace=True)] if active else []))


class Residual(nn.Module):
    def __init__(self, c, k, stride):
        super().__init__()
        self.main = nn.Sequential(ConvNorm(c, k, stride=stride), ConvNorm(k, k, active=False))
        pool = nn.AvgPool3d(stride, stride) if stride > 1 else nn.Identity()
        project = ConvNorm(c, k, size=1, active=False, bias=False) if c != k else nn.Identity()
        self.skip = nn.Sequential(pool, project)

    def forward(self, x):
        return F.leaky_relu_(self.main(x) + self.skip(x), 0.01)


class Encoder(nn.Module):
    """nnU-Net's residual-encoder U-Net up to its last decoder stage."""

    def __init__(self):
        super().__init__()
        wide = (FEATURES[0], *FEATURES)
        self.stem = ConvNorm(1, FEATURES[0])
        self.down, self.up, self.merge = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for s, blocks in enumerate(BLOCKS):
            first = Residual(wide[s], FEATURES[s], 2 if s else 1)
            self.down.append(nn.Sequential(first, *(Residual(FEATURES[s], FEATURES[s], 1) for _ in range(blocks - 1))))
        for below, here in zip(FEATURES[:0:-1], FEATURES[-2::-1]):
            self.up.append(nn.ConvTranspose3d(below, here, 2, 2))
            self.merge.append(ConvNorm(2 * here, here))

    def forward(self, x):
        x, kept = self.stem(x), []
        for stage in self.down:
            x = stage(x)
            kept.append(x)
        kept.pop()
        for up, merge in zip(self.up, self.merge):
            x = merge(torch.cat((up(x), kept.pop()), 1))
        return x


class Cut(torch.autograd.Function):
    """Sub-views of the views in `dense` and `rest`; only `dense`, view 0, receives a gradient, in one buffer."""

    @staticmethod
    def forward(ctx, dense, rest, places):
        ctx.shape, ctx.places = dense.shape, places
        pick = lambda v, at: (dense[0] if v == 0 else rest[v - 1])[(slice(None), *at)]
        return torch.stack([pick(v, at) for v, at in places])

    @staticmethod
    def backward(ctx, dy):
        dx = dy.new_zeros(ctx.shape)
        for (v, at), piece in zip(ctx.places, dy):
            if v == 0:
                dx[0][(slice(None), *at)] += piece
        return dx, None, None


def gelu_chain(x, convs):
    for conv in convs:
        x = F.gelu(conv(x))
    return x


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        c = FEATURES[0]
        trunk = lambda: nn.ModuleList(nn.Conv3d(c >> k, c >> k + 1, 3, 2, 1) for k in range(3))
        self.gap, self.gap_out = trunk(), nn.Linear(c >> 3, 3)
        self.vector, self.vector_out = trunk(), nn.Linear(c >> 3, 3)
        self.similar = nn.ModuleList(nn.Conv3d(c << k, c << k + 1, 4, 2, 1) for k in range(4))

    def losses(self, dense, rest, gap, places, routes):
        """The six losses of one sample. `dense` [1, C, ...]: view 0, `rest` [V - 1, C, ...]: the others, detached."""
        pool = lambda convs: torch.cat([gelu_chain(x, convs).mean((2, 3, 4)) for x in (dense, rest)])
        pairs = lambda f: f[:, None] - f[None]
        norm = lambda g: torch.linalg.vector_norm(g, dim=-1)
        axis = self.gap_out(pairs(pool(self.gap)))
        vector = pairs(self.vector_out(pool(self.vector)))
        walk = lambda g: g[routes[..., 0], routes[..., 1]].sum(-2)
        a, b, c, d = gelu_chain(Cut.apply(dense, rest, places), self.similar).unflatten(0, (4, -1))
        return (
            F.mse_loss(axis, gap),
            F.mse_loss(norm(axis), norm(gap)),
            -F.cosine_similarity(a, b).mean(),
            F.cosine_similarity(c, d).mean(),
            F.smooth_l1_loss(vector, gap),
            F.smooth_l1_loss(walk(vector), walk(gap)),
        )


def all_routes(views):
    """Steps (from, to) of every order of all views; the last step is (0, 0), as in the authors' program."""
    walk = lambda order: [*zip(order, order[1:]), (0, 0)]
    return torch.tensor([walk(order) for order in permutations(range(views))])


class Program:
    def __init__(self, layout):
        torch.manual_seed(1)
        self.net, self.heads = (m().to(memory_format=layout) for m in (Encoder, Heads))
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        self.weights, self.averages = list(self.net.parameters()), list(self.average.parameters())
        self.optimiser = torch.optim.AdamW([*self.weights, *self.heads.parameters()], lr=1e-4, weight_decay=1e-2, fused=True)
        self.view = torch.randn(1, 1, VIEW, VIEW, VIEW).to(memory_format=layout)
        self.others = torch.randn(VIEWS - 1, 1, VIEW, VIEW, VIEW).to(memory_format=layout)
        self.gap = torch.rand(VIEWS, VIEWS, 3) - 0.5
        self.routes = all_routes(VIEWS)
        self.places = []  # four roles after one another, in each the pairs of views: (view, box)
        for end in (0, 1, 0, 1):
            for pair in combinations(range(VIEWS), 2):
                start = torch.randint(0, VIEW - SUB + 1, (3,)).tolist()
                self.places.append((pair[end], tuple(slice(s, s + SUB) for s in start)))

    def step(self):
        with torch.no_grad():
            rest = self.average(self.others)
        losses = self.heads.losses(self.net(self.view), rest, self.gap, self.places, self.routes)
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.weights, 0.5)
        self.optimiser.zero_grad(set_to_none=True)
        total = sum(losses)
        total.backward()
        self.optimiser.step()
        return total.item()


def whole_step(layout):
    program = Program(layout)
    with FlopCounterMode(display=False) as counter:
        total = program.step()
    seen = times_ms(program.step, 2, STEP_RUNS)
    assert math.isfinite(total), "the loss is not finite"
    emit("training step", "all", counter.get_total_flops(), seen)
    count = lambda module: sum(p.numel() for p in module.parameters())
    about = {"encoder_parameters": count(program.net), "head_parameters": count(program.heads)}
    print(json.dumps({**about, "threads": torch.get_num_threads(), "torch": torch.__version__}), flush=True)


def main():
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    layout, what = FORMATS[sys.argv[1]], sys.argv[2] if len(sys.argv) > 2 else "all"
    if what in ("convs", "all"):
        convolutions(layout)
    if what in ("step", "all"):
        whole_step(layout)


if __name__ == "__main__":
    main()
