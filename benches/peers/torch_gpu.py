"""PyTorch's side of the comparison on a GPU: convolutions, instance norms and the whole training step in bf16.

    python torch_gpu.py [--seconds 1500] [--only WORD,...] [--device cuda|cpu] [--tiny]

Needs torch and torch_cpu.py beside it. Prints one JSON object per line, {"name", "variant", "ms", ...}, with the names of
our benches on cuda:0 (`cuda/` left out), so that gpu_table.py can put both side by side. A variant is a memory format and how the
work is launched: eager, replayed from a CUDA graph, compiled by torch.compile, or compiled and replayed. One that fails
prints {"name", "variant", "error"} and the others go on. After --seconds what is left is skipped and says so.

It is meant to be a strong baseline: the averaged views in one batch, no gradient where none is wanted, sub-views at fixed
places (in training they move), fused AdamW, one call for the whole average, cudnn.benchmark, and inputs copied from pinned memory as ours
are. `--device cpu --tiny` only shows that everything runs.
"""

import argparse
import copy
import gc
import json
import statistics
import sys
import time
from itertools import combinations, permutations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import torch_cpu as peer

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}
HALF = torch.bfloat16
# Calls in one captured graph, as in our benches, and groups whose median counts.
REPEATS, GROUPS = 10, 7
# With so many groups, no more are timed after so many seconds: a long step is as certain with fewer.
ENOUGH, LONG = 3, 1.5
VIEWS, SUB = 3, 16

# Name, images, extent, input and output channels, filter, stride, whether there is a bias: `real` in tests/common/cases.rs.
CONVS = [
    ("s_stem_1_to_16_at_32", 2, 32, 1, 16, 3, 1, False),
    ("s_16_to_16_at_32", 2, 32, 16, 16, 3, 1, False),
    ("s_16_to_32_s2_at_32", 2, 32, 16, 32, 3, 2, False),
    ("s_32_to_32_at_16", 2, 16, 32, 32, 3, 1, False),
    ("s_64_to_64_at_8", 2, 8, 64, 64, 3, 1, False),
    ("s_128_to_128_at_4", 2, 4, 128, 128, 3, 1, False),
    ("m_stem_1_to_32_at_64", 1, 64, 1, 32, 3, 1, False),
    ("m_32_to_32_at_64", 1, 64, 32, 32, 3, 1, False),
    ("m_64_to_32_at_64", 1, 64, 64, 32, 3, 1, False),
    ("m_32_to_64_s2_at_64", 1, 64, 32, 64, 3, 2, False),
    ("m_64_to_64_at_32", 1, 32, 64, 64, 3, 1, False),
    ("m_128_to_128_at_16", 1, 16, 128, 128, 3, 1, False),
    ("m_256_to_256_at_8", 1, 8, 256, 256, 3, 1, False),
    ("m_sub-views_32_to_64_k4_s2_at_16", 12, 16, 32, 64, 4, 2, True),
    ("m_sub-views_256_to_512_k4_s2_at_2", 12, 2, 256, 512, 4, 2, True),
]
# Transposed, filter and stride 2: name, images, extent, input and output channels.
UPSAMPLINGS = [("s_128_to_64_at_4", 2, 4, 128, 64), ("m_64_to_32_at_32", 1, 32, 64, 32)]
# Name, images, extent, channels, whether a residual is added before the activation.
NORMS = [
    ("s_16_at_32", 2, 32, 16, False),
    ("s_16_at_32_residual", 2, 32, 16, True),
    ("m_32_at_64", 1, 64, 32, False),
    ("m_32_at_64_residual", 1, 64, 32, True),
]
# Name, features, blocks, edge of a view, samples: benches/step.rs.
M = ((32, 64, 128, 256), (1, 3, 4, 6))
STEPS = [
    ("resenc-s_32_batch_2", (16, 32, 64, 128), (1, 2, 2, 2), 32, 2),
    ("32-to-256_64", *M, 64, 1),
    ("32-to-256_96_batch_2", *M, 96, 2),
    ("32-to-256_128_batch_2", *M, 128, 2),
]


class Bench:
    """Prints measurements, survives what fails, and stops at the deadline."""

    def __init__(self, options):
        self.device = torch.device(options.device)
        self.is_gpu = self.device.type == "cuda"
        self.only, self.tiny = options.only.split(","), options.tiny
        self.deadline = time.monotonic() + options.seconds

    def emit(self, **line):
        print(json.dumps(line), flush=True)

    def run(self, name, variant, measure, **more):
        """`measure()` returns milliseconds, or that and what else is known."""
        if not any(word in name for word in self.only):
            return
        if time.monotonic() > self.deadline:
            self.emit(name=name, variant=variant, error="skipped: the time given by --seconds is over")
            return
        try:
            found = measure()
            ms, known = found if isinstance(found, tuple) else (found, {})
            self.emit(name=name, variant=variant, ms=ms, **more, **known)
        except Exception as error:  # one failure must not hide the others
            text = (str(error).splitlines() or [""])[0][:200]
            self.emit(name=name, variant=variant, error=f"{type(error).__name__}: {text}")
        # A compiled program refers to itself: without this its memory is lost to the rows after it.
        gc.collect()
        if self.is_gpu:
            try:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
            except RuntimeError as error:  # a fault, after which a process can do nothing more on the GPU
                self.emit(name=name, variant=variant, error=f"the rest is lost: {str(error).splitlines()[0][:200]}")
                sys.exit(1)

    def median_ms(self, call, inner):
        """Median over groups of the mean time of `inner` calls."""
        for _ in range(1 if self.tiny else 3):
            call()
        seen, began = [], time.monotonic()
        for _ in range(1 if self.tiny else GROUPS):
            if len(seen) >= ENOUGH and time.monotonic() - began > LONG:
                break
            if self.is_gpu:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                torch.cuda.synchronize()
                start.record()
                for _ in range(inner):
                    call()
                end.record()
                torch.cuda.synchronize()
                seen.append(start.elapsed_time(end) / inner)
            else:
                start = time.perf_counter()
                for _ in range(inner):
                    call()
                seen.append((time.perf_counter() - start) * 1e3 / inner)
        return statistics.median(seen)

    def captured(self, call, repeats):
        """A CUDA graph of `repeats` calls, captured on the stream that is current."""
        if not self.is_gpu:
            raise RuntimeError("CUDA graphs need a GPU")
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            for _ in range(repeats):
                call()
        return graph

    def time(self, call, is_graph):
        inner = 2 if self.tiny else 10
        if not is_graph:
            return self.median_ms(call, inner)
        graph = self.captured(call, REPEATS)
        return self.median_ms(graph.replay, inner) / REPEATS

    def side_stream(self):
        """Capture is refused on the default stream, and a backward pass runs where its forward pass ran."""
        return torch.cuda.stream(torch.cuda.Stream() if self.is_gpu else None)

    def launches(self):
        return [("eager", False), ("graph", True)] if self.is_gpu else [("eager", False)]


# ------------------------------------------------------------------------------------------------ layers


def convolution(bench, layout, shape, filter_shape, stride, padding, transposed, bias, what):
    """The call of one pass of a convolution."""
    make = lambda s: torch.randn(s, device=bench.device, dtype=HALF).to(memory_format=layout)
    x, w = make(shape), make(filter_shape) * 0.05
    out_channels = filter_shape[1] if transposed else filter_shape[0]
    b = torch.randn(out_channels, device=bench.device, dtype=HALF) if bias else None
    geometry = ([stride] * 3, [padding] * 3, [1] * 3, transposed, [0] * 3, 1)
    forward = lambda: torch.ops.aten.convolution(x, w, b, *geometry)
    if what == "forward":
        return forward
    dy = torch.randn_like(forward())
    sizes = [out_channels] if bias else None
    mask = {"dgrad": [True, False, False], "wgrad": [False, True, bias], "backward": [True, True, bias]}[what]
    return lambda: torch.ops.aten.convolution_backward(dy, x, w, sizes, *geometry, mask)


def convolutions(bench):
    layers = []
    for name, n, edge, c, k, size, stride, bias in CONVS:
        out = (edge + 2 - size) // stride + 1
        work = 2 * n * out**3 * c * k * size**3
        layers.append((f"conv3d/{name}", (n, c, edge, edge, edge), (k, c, size, size, size), stride, 1, False, bias, work))
    for name, n, edge, c, k in UPSAMPLINGS:
        work = 2 * n * edge**3 * c * k * 8
        layers.append((f"conv_transpose3d/{name}", (n, c, edge, edge, edge), (c, k, 2, 2, 2), 2, 0, True, True, work))
    for name, *layer, work in layers[-3:-1] if bench.tiny else layers:
        for what in ("forward", "dgrad", "wgrad", "backward"):
            gflop = work * (2 if what == "backward" else 1) / 1e9
            for layout in FORMATS:
                for launch, is_graph in bench.launches():

                    def measure():
                        with torch.no_grad(), bench.side_stream():
                            return bench.time(convolution(bench, FORMATS[layout], *layer, what), is_graph)

                    bench.run(f"{name}/{what}", f"{layout} {launch}", measure, gflop=gflop)


def norm_plain(x, scale, shift):
    return F.leaky_relu(F.instance_norm(x, weight=scale, bias=shift), 0.01)


def norm_residual(x, scale, shift, residual):
    return F.leaky_relu(F.instance_norm(x, weight=scale, bias=shift) + residual, 0.01)


def norm(bench, layout, n, edge, c, is_residual, what, is_compiled):
    """The call of one pass of a norm with its activation."""
    make = lambda: torch.randn(n, c, edge, edge, edge, device=bench.device, dtype=HALF).to(memory_format=layout)
    scale, shift = (torch.rand(c, device=bench.device, requires_grad=True) for _ in range(2))
    inputs = [make().requires_grad_(), scale, shift, *([make().requires_grad_()] if is_residual else [])]
    function = norm_residual if is_residual else norm_plain
    function = torch.compile(function, dynamic=False) if is_compiled else function

    def forward():
        with torch.autocast(bench.device.type, HALF):
            return function(*inputs)

    if what == "forward":
        return torch.no_grad()(forward)
    y = forward()
    dy = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


def norms(bench):
    for compiled in (False, True):
        for name, n, edge, c, is_residual in NORMS:
            edge = 4 if bench.tiny else edge
            for what in ("forward", "backward"):
                for layout in FORMATS:
                    for launch, is_graph in bench.launches():

                        def measure():
                            with bench.side_stream():
                                call = norm(bench, FORMATS[layout], n, edge, c, is_residual, what, compiled)
                                return bench.time(call, is_graph)

                        kind = f"compile {launch}" if compiled else launch
                        bench.run(f"norm/{name}/{what}", f"{layout} {kind}", measure)


# -------------------------------------------------------------------------------------------------- step


class Cut(torch.autograd.Function):
    """Sub-views (source, image, box) of two tensors; the first receives its gradient in one buffer."""

    @staticmethod
    def forward(ctx, dense, rest, places):
        ctx.shape, ctx.places = dense.shape, places
        return torch.stack([(dense, rest)[source][image][(slice(None), *box)] for source, image, box in places])

    @staticmethod
    def backward(ctx, dy):
        dx = dy.new_zeros(ctx.shape)
        for (source, image, box), piece in zip(ctx.places, dy):
            if source == 0:
                dx[image][(slice(None), *box)] += piece
        return dx, None, None


class Heads(peer.Heads):
    """The same heads, for a whole batch: representations are view after view, in each the samples."""

    def batch_losses(self, dense, rest, samples, gap, places, routes):
        parts = [dense] if rest is None else [dense, rest]

        def pool(convs):
            pooled = torch.cat([peer.gelu_chain(x, convs).mean((2, 3, 4)) for x in parts])
            return pooled.unflatten(0, (VIEWS, samples)).transpose(0, 1)

        pairs = lambda f: f[:, :, None] - f[:, None]
        length = lambda g: torch.linalg.vector_norm(g, dim=-1)
        walk = lambda g: g[:, routes[..., 0], routes[..., 1]].sum(-2)
        axis = self.gap_out(pairs(pool(self.gap)))
        vector = pairs(self.vector_out(pool(self.vector)))
        a, b, c, d = peer.gelu_chain(Cut.apply(dense, rest, places), self.similar).unflatten(0, (4, -1))
        return (
            F.mse_loss(axis.float(), gap),
            F.mse_loss(length(axis.float()), length(gap)),
            -F.cosine_similarity(a, b).mean(),
            F.cosine_similarity(c, d).mean(),
            F.smooth_l1_loss(vector.float(), gap),
            F.smooth_l1_loss(walk(vector.float()), walk(gap)),
        )


class Program:
    """The training step: three views a sample, of which the first or all carry a gradient, and three tasks."""

    def __init__(self, bench, features, blocks, edge, samples, all_views, layout, compiled):
        torch.manual_seed(1)
        peer.FEATURES, peer.BLOCKS = features, blocks
        device, self.samples, self.all_views = bench.device, samples, all_views
        self.device = device
        self.net, self.heads = (m().to(device, memory_format=layout) for m in (peer.Encoder, Heads))
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        self.weights, self.averages = list(self.net.parameters()), list(self.average.parameters())
        self.trained = [*self.weights, *self.heads.parameters()]
        kind = {"fused": True, "capturable": True} if bench.is_gpu else {}
        self.optimiser = torch.optim.AdamW(self.trained, lr=1e-5, weight_decay=1e-2, **kind)
        with_gradient = VIEWS * samples if all_views else samples
        counts = [with_gradient, VIEWS * samples - with_gradient]
        pin = (lambda t: t.pin_memory()) if bench.is_gpu else (lambda t: t)
        self.hosts = [pin(torch.randn(n, 1, edge, edge, edge).to(HALF)) for n in counts if n]
        self.views = [host.to(device).to(memory_format=layout) for host in self.hosts]
        self.gap = (torch.rand(samples, VIEWS, VIEWS, 3) - 0.5).to(device)
        walks = [[*zip(order, order[1:]), (0, 0)] for order in permutations(range(VIEWS))]
        self.routes = torch.tensor(walks, device=device)
        self.places = []  # four roles one behind the other, in each the samples' pairs of views
        for end in (0, 1, 0, 1):
            for sample in range(samples):
                for pair in combinations(range(VIEWS), 2):
                    image = pair[end] * samples + sample
                    is_other = image >= with_gradient
                    start = torch.randint(0, edge - SUB + 1, (3,)).tolist()
                    box = tuple(slice(s, s + SUB) for s in start)
                    self.places.append((int(is_other), image - with_gradient * is_other, box))
        compile_ = (lambda m: torch.compile(m, dynamic=False)) if compiled else (lambda m: m)
        self.run_net, self.run_average = compile_(self.net), compile_(self.average)

    def step(self):
        for view, host in zip(self.views, self.hosts):
            view.copy_(host, non_blocking=True)
        with torch.autocast(self.device.type, HALF):
            rest = None
            if not self.all_views:
                with torch.no_grad():
                    rest = self.run_average(self.views[1])
            dense = self.run_net(self.views[0])
            losses = self.heads.batch_losses(dense, rest, self.samples, self.gap, self.places, self.routes)
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.weights, 0.5)
        self.optimiser.zero_grad(set_to_none=True)
        total = sum(losses)
        total.backward()
        nn.utils.clip_grad_norm_(self.trained, 12.0, foreach=True)
        self.optimiser.step()
        return total.detach()


def one_step(bench, size, all_views, layout, compiled, is_graph):
    """Milliseconds of a step, with its work and peak memory."""
    if bench.is_gpu:
        torch.cuda.reset_peak_memory_stats()
    with bench.side_stream():
        program = Program(bench, *size, all_views, FORMATS[layout], compiled)
        known = {}
        if not compiled and not is_graph:
            with FlopCounterMode(display=False) as counter:
                program.step()
            known["gflop"] = counter.get_total_flops() / 1e9
        call = program.step
        if is_graph:
            call = bench.captured(call, 1).replay
        ms = bench.median_ms(call, 1 if bench.tiny else 10)
        if not bool(torch.isfinite(program.step())):
            raise RuntimeError("the loss is not finite")
    if bench.is_gpu:
        known["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return ms, known


def steps(bench):
    sizes = [("tiny", (8, 16), (1, 1), 32, 2)] if bench.tiny else STEPS
    # In order of value for their time: compilation takes long, and the gradient of all views is not the default.
    for compiled, all_views in ((False, False), (True, False), (False, True)):
        for name, *size in sizes:
            for layout in FORMATS:
                for launch, is_graph in bench.launches():
                    measure = lambda: one_step(bench, size, all_views, layout, compiled, is_graph)
                    kind = f"compile {launch}" if compiled else launch
                    bench.run(f"step/{name}/{'All' if all_views else 'First'}", f"{layout} {kind}", measure)
            if compiled:
                torch._dynamo.reset()


def main():
    arguments = argparse.ArgumentParser(description="PyTorch's times of our layers and of the training step, in bf16.")
    arguments.add_argument("--seconds", type=float, default=1500.0, help="skip what is left after so long")
    arguments.add_argument("--only", default="", help="measure names that contain one of these words, which commas separate")
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--tiny", action="store_true", help="tiny sizes: only shows that everything runs")
    options = arguments.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("torch finds no GPU; --device cpu --tiny shows that everything runs")
    bench = Bench(options)
    torch.backends.cudnn.benchmark = True
    # Compiled backward passes are run more than once.
    try:
        torch._functorch.config.donated_buffer = False
    except AttributeError:
        pass  # older versions have no such setting
    about = {"torch": torch.__version__, "device": "CPU"}
    if bench.is_gpu:
        about |= {"device": torch.cuda.get_device_name(), "cudnn": torch.backends.cudnn.version()}
    bench.emit(about=about)
    convolutions(bench)
    norms(bench)
    steps(bench)


if __name__ == "__main__":
    main()
