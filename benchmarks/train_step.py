"""Time and memory of a training step: a stage-2 network against its full-precision twin.

    python benchmarks/train_step.py                      both shapes, one thread and two, float32 and bfloat16, eager
    python benchmarks/train_step.py --mode compiled --shape small64 --threads 1 --precision fp32 --json step.json
    python benchmarks/train_step.py --device cuda --mode eager compiled graphs --batch 64      bfloat16 on a GPU

``graphs`` is torch.compile with CUDA graphs (mode reduce-overhead).

A step is forward, loss, backward and AdamW (without the teacher's forward pass, on either side) on one batch of random
pictures. The networks take turns, step by step, and the ratio is that of the medians. ``twin*`` is the twin with the
matrix library that the one-bit layers' gradients use (``gsb_vit.nn.matmul``): the part of the gain that a
full-precision network could have, too.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

import gsb_vit.models  # noqa: F401  (registers the models)
from gsb_vit.models.binarize import initialize_scales
from gsb_vit.nn import fused
from gsb_vit.nn.matmul import plane_product
from gsb_vit.train.precision import fast_attention

SHAPES = {
    "small64": (32, {"img_size": 64, "patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 3}),
    "deit-small": (4, {"img_size": 224}),
    "flowers20": (50, {"img_size": 48, "patch_size": 6, "embed_dim": 128, "depth": 4, "num_heads": 2}),
}
CLASSES = 102


@dataclass
class Row:
    """One line of the table; times in ms, bytes kept for the backward pass, peaks in bytes."""

    shape: str
    device: str
    precision: str
    mode: str
    threads: int
    gsb_ms: float
    twin_ms: float
    ratio: float
    twin_onednn_ms: float | None
    gsb_kept: int | None
    twin_kept: int | None
    gsb_peak: int | None
    twin_peak: int | None


class Training:
    """A network, its optimiser and one batch."""

    def __init__(self, shape: str, quantization: str, device: str, precision: str, batch_size: int | None = None):
        batch, options = SHAPES[shape]
        batch = batch_size or batch
        torch.manual_seed(0)
        model = timm.create_model(
            "gsb_vit_small_patch16_224",
            quantization=quantization,
            num_classes=CLASSES,
            drop_path_rate=0.1,
            **options,
        )
        self.model = model.train().to(device)
        self.model.set_distilled_training(True)
        generator = torch.Generator().manual_seed(1)
        size = options["img_size"]
        self.images = torch.randn(batch, 3, size, size, generator=generator).to(device)
        self.labels = torch.randint(0, CLASSES, (batch,), generator=generator).to(device)
        initialize_scales(self.model, self.images)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.05)
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")

    def loss(self) -> Tensor:
        """Forward pass and loss of the batch."""
        with self.autocast, fast_attention([self.model]):
            heads = self.model(self.images)
        first, second = (functional.cross_entropy(logits.float(), self.labels) for logits in heads)
        return (first + second) / 2

    def step(self) -> None:
        """One training step."""
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def kept(self) -> int:
        """Bytes that the forward pass keeps for the backward pass, beyond parameters, buffers and pictures."""
        known = [*self.model.parameters(), *self.model.buffers(), self.images]
        outside = {tensor.untyped_storage().data_ptr() for tensor in known}
        found: dict[int, int] = {}
        alive = []

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in outside:
                found[storage.data_ptr()] = storage.nbytes()
                alive.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.loss()
        return sum(found.values())

    def peak(self) -> int:
        """Most bytes that forward and backward pass hold at a time, gradients included, beyond what is there before."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.images.is_cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.loss().backward()
            result = torch.cuda.max_memory_allocated() - before
        else:
            with torch.profiler.profile(profile_memory=True) as profile:
                self.loss().backward()
            events = profile.profiler.kineto_results.events()
            sizes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
            now = result = 0
            for _, size in sorted(sizes, key=lambda pair: pair[0]):
                now += size
                result = max(result, now)
        self.optimizer.zero_grad(set_to_none=True)
        return result


def use_onednn(model: nn.Module) -> None:
    """Give the linear layers the products of ``gsb_vit.nn.matmul``."""

    def forward(layer: nn.Linear, x: Tensor) -> Tensor:
        return plane_product(x, layer.weight) + layer.bias

    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = partial(forward, module)  # type: ignore[method-assign]


def alternate(steps: dict[str, Callable[[], None]], seconds: float, cuda: bool) -> dict[str, float]:
    """Median milliseconds of each, taking turns for that long after two rounds that do not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    end, rounds = 0.0, 0
    while rounds < 5 or time.perf_counter() < end:
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if cuda:
                torch.cuda.synchronize()
            times[name].append(1000 * (time.perf_counter() - started))
        rounds += 1
        if rounds == 2:
            end = time.perf_counter() + seconds
    return {name: statistics.median(values[2:]) for name, values in times.items()}


def measure(shape: str, precision: str, mode: str, threads: int, options: argparse.Namespace) -> Row:
    """Measure one line of the table."""
    torch.set_num_threads(threads)
    networks = {
        name: Training(shape, preset, options.device, precision, options.batch) for name, preset in PRESETS.items()
    }
    if mode != "eager":
        for network in networks.values():
            network.model.compile(mode=MODES[mode])
    in_pools = mode == "graphs"  # CUDA graphs hold memory of their own for good
    kept = {name: None if in_pools else network.kept() for name, network in networks.items()}
    peaks = {name: None if in_pools else network.peak() for name, network in networks.items()}
    if mode == "eager" and options.device == "cpu" and precision == "fp32":
        networks["twin*"] = Training(shape, "full_precision", options.device, precision, options.batch)
        use_onednn(networks["twin*"].model)
    steps = {name: network.step for name, network in networks.items()}
    times = alternate(steps, options.seconds, options.device == "cuda")
    return Row(
        *(shape, options.device, precision, mode, threads),
        *(times["gsb"], times["twin"], times["gsb"] / times["twin"], times.get("twin*")),
        *(kept["gsb"], kept["twin"], peaks["gsb"], peaks["twin"]),
    )


MODES = {"eager": None, "compiled": None, "graphs": "reduce-overhead"}  # of torch.compile
PRESETS = {"gsb": "stage2", "twin": "full_precision"}
HEADER = (
    "shape       precision mode     threads |  GSB ms  twin ms  ratio  twin* ms | kept MB    of twin  peak MB   of twin"
)


def line(row: Row) -> str:
    """One line of the printed table."""
    onednn = "-" if row.twin_onednn_ms is None else f"{row.twin_onednn_ms:.0f}"
    memory = [
        f"{ours / 1e6:7.1f} {ours / twins:10.2f}" if ours and twins else f"{'-':>7} {'-':>10}"
        for ours, twins in ((row.gsb_kept, row.twin_kept), (row.gsb_peak, row.twin_peak))
    ]
    return (
        f"{row.shape:11} {row.precision:9} {row.mode:8} {row.threads:7} | {row.gsb_ms:7.1f} {row.twin_ms:8.1f} "
        f"{row.ratio:6.2f} {onednn:>9} | {memory[0]} {memory[1]}"
    )


def main() -> None:
    """Print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["small64", "deit-small"])
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=None)
    parser.add_argument("--mode", nargs="+", choices=MODES, default=["eager"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, help="pictures a step, instead of the shape's own")
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing, a line")
    parser.add_argument("--json", help="write the rows, too")
    options = parser.parse_args()
    precisions = options.precision or (["fp32", "bf16"] if options.device == "cpu" else ["bf16"])
    print(f"PyTorch {torch.__version__}, kernels of training: {fused.kernel_name(options.device)}")
    print(HEADER)
    rows = []
    for shape in options.shape:
        for precision in precisions:
            for mode in options.mode:
                for threads in options.threads if options.device == "cpu" else [1]:
                    rows.append(measure(shape, precision, mode, threads, options))
                    print(line(rows[-1]), flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"torch": torch.__version__, "rows": [asdict(row) for row in rows]}, file, indent=1)


if __name__ == "__main__":
    main()
