"""What the benchmarks share: references with equal weights, timings, bytes, peaks, profiles."""

from __future__ import annotations

import ctypes
import platform
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from ir_peft.backbones.dat import DAT, REBUILT
from ir_peft.backbones.hat import HAT
from ir_peft.backbones.ipt import IPT, official_state_dict
from ir_peft.backbones.layers import shortest_ratio
from ir_peft.backbones.restormer import Restormer
from ir_peft.training_state import PROCESS, peak_memory, reset_peak_memory

Run = Callable[[], Any]

KINDS = {
    "attention": ("scaled_dot_product", "flash_attention", "efficient_attention"),
    "matrix products": ("mm", "matmul", "linear"),
    "convolutions": ("convolution", "conv2d"),
    "copies": (
        "copy",
        "clone",
        "contiguous",
        "cat",
        "pad",
        "roll",
        "index",
        "fill_",
        "zero",
        "_to",
    ),
    "norms and softmax": ("norm", "softmax"),
}
"""Groups of operators by parts of their names, in this order; what fits none is elementwise."""


class Bytes(nn.Module):
    """A network that takes and gives colours from 0 to 255, called with 0 to 1."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, h, w) -> (B, 3, scale * h, scale * w)."""
        return self.model(255 * x) / 255


def reference_of(model: nn.Module) -> nn.Module:
    """The public implementation of spandrel (extra arches), of the model's size and weights.

    Raises:
        TypeError: none is known for this model.
        ValueError: its weights are not those of the model.
    """
    builders = {DAT: _dat, HAT: _hat, IPT: _ipt, Restormer: _restormer}
    if type(model) not in builders:
        known = ", ".join(kind.__name__ for kind in builders)
        raise TypeError(f"no reference for {type(model).__name__}; there are {known}")
    reference = builders[type(model)](model)
    state = official_state_dict(model.state_dict()) if type(model) is IPT else model.state_dict()
    missing, unexpected = reference.load_state_dict(state, strict=False)
    rebuilt = (*REBUILT, "attn_mask", "relative_position_index_SA", "relative_position_index_OCA")
    missing = [key for key in missing if not key.endswith(rebuilt)]
    if missing or unexpected:
        raise ValueError(f"{model.name}: other weights in the reference: {missing} {unexpected}")
    like = next(model.parameters())
    reference = Bytes(reference) if type(model) is IPT else reference
    return reference.train(model.training).to(like.device, like.dtype)


def _dat(model: DAT) -> nn.Module:
    import spandrel.architectures.DAT

    first, groups = model.layers[0].blocks[0], [len(group.blocks) for group in model.layers]
    return spandrel.architectures.DAT.DAT(
        embed_dim=first.ffn.in_features,
        split_size=list(first.attn.attns[0].window),
        depth=groups,
        num_heads=[first.attn.heads] * len(groups),
        expansion_factor=first.ffn.fc1.out_features / first.ffn.in_features,
        upscale=model.scale,
        resi_connection="3conv" if model.light else "1conv",
        upsampler="pixelshuffledirect" if model.light else "pixelshuffle",
    )


def _hat(model: HAT) -> nn.Module:
    import spandrel.architectures.HAT

    groups = [group.residual_group for group in model.layers]
    block, overlap = groups[0].blocks[0], groups[0].overlap_attn
    dim = block.attn.in_features
    return spandrel.architectures.HAT.HAT(
        img_size=4 * overlap.window,
        embed_dim=dim,
        depths=tuple(len(group.blocks) for group in groups),
        num_heads=[block.attn.heads] * len(groups),
        window_size=overlap.window,
        compress_ratio=dim // block.conv_block.cab[0].out_channels,
        squeeze_factor=dim // block.conv_block.cab[3].attention[1].out_channels,
        conv_scale=block.conv_scale,
        overlap_ratio=overlap.reach / overlap.window - 1,
        mlp_ratio=block.mlp.fc1.out_features / dim,
        upscale=model.scale,
        upsampler="pixelshuffle",
    )


def _ipt(model: IPT) -> nn.Module:
    from spandrel.architectures.IPT.__arch import ipt as spandrel

    layers = model.body.encoder.layers
    reference = spandrel.IPT(
        patch_size=model.patch_size,
        patch_dim=model.body.patch_dim,
        n_feats=model.head[0][0].out_channels,
        rgb_range=model.rgb_range,
        scale=list(model.scales),
        num_heads=layers[0].self_attn.heads,
        num_layers=len(layers),
        num_queries=model.body.query_embed.num_embeddings,
    )
    reference.set_scale(model.tasks[model.task])
    return reference


def _restormer(model: Restormer) -> nn.Module:
    from spandrel_extra_arches.architectures.Restormer import Restormer as Reference

    first = model.encoder_level1[0]
    encoder = model.encoder_level1, model.encoder_level2, model.encoder_level3, model.latent
    widest = model.latent[0]
    return Reference(
        inp_channels=model.output.out_channels,
        out_channels=model.output.out_channels,
        dim=first.attn.in_features,
        num_blocks=[len(stage) for stage in encoder],
        num_refinement_blocks=len(model.refinement),
        heads=[stage[0].attn.heads for stage in encoder],
        ffn_expansion_factor=shortest_ratio(
            widest.ffn.project_out.in_channels, widest.attn.in_features
        ),
        bias=first.attn.qkv.bias is not None,
        LayerNorm_type="WithBias" if hasattr(first.norm1.body, "bias") else "BiasFree",
    )


def seconds(run: Run, device: torch.device) -> float:
    """Wall time of one call, the device's work included."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def processor_seconds(run: Run) -> float:
    """Processor time of one call, all threads together: what a busy machine does not change."""
    start = time.process_time()
    run()
    return time.process_time() - start


def alternate(
    runs: dict[str, Run],
    rounds: int,
    device: torch.device,
    warm_up: int = 1,
    clock: str = "wall",
) -> dict[str, list[float]]:
    """Seconds of each run; they take turns, so what else the machine does hits all of them.

    `clock` is "wall", or "cpu" for the processor time of this process.
    """
    for _ in range(warm_up):
        for run in runs.values():
            seconds(run, device)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            spent = processor_seconds(run) if clock == "cpu" else seconds(run, device)
            times[name].append(spent)
    return times


def ratio(theirs: list[float], ours: list[float]) -> dict[str, float]:
    """How many times faster ours is: median and quartiles of the ratios of neighbouring runs."""
    pairs = torch.tensor(theirs, dtype=torch.float64) / torch.tensor(ours, dtype=torch.float64)
    quartiles = pairs.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return dict(zip(("q25", "median", "q75"), quartiles, strict=True))


def saved_bytes(model: nn.Module, run: Run) -> int:
    """Bytes of the unique storages that autograd keeps for backward, without parameters."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # Held, so that no address is used twice.

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in kept.values())


def peak_bytes(run: Run, device: torch.device) -> int:
    """The most memory of one run above what was in use before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
    else:
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)  # Else the heap keeps what earlier runs have freed.
        status = (PROCESS / "status").read_text().splitlines()
        before = 1024 * next(int(s.split()[1]) for s in status if s.startswith("VmRSS"))
    reset_peak_memory(device)
    seconds(run, device)
    return peak_memory(device)[0] - before


def keep_heap() -> None:
    """Let the C library keep and reuse freed memory: no fresh pages in each step (glibc)."""
    if platform.libc_ver()[0] != "glibc":
        raise RuntimeError("keep_heap sets glibc's allocator, and there is another C library here")
    trim_threshold, mmap_threshold = -1, -3  # From malloc.h.
    libc = ctypes.CDLL(None)
    if not (libc.mallopt(trim_threshold, 2**31 - 1) and libc.mallopt(mmap_threshold, 2**25)):
        raise RuntimeError("mallopt refused the thresholds")


def profiled(run: Run, device: torch.device, top: int = 8) -> dict[str, Any]:
    """Where one run spends its time: shares of kinds of operators, the largest ones, page faults.

    Shares are of the operators' own time, on the device where it is a GPU.
    """
    import resource  # Unix only.

    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    before = resource.getrusage(resource.RUSAGE_SELF)
    wall = seconds(run, device)
    after = resource.getrusage(resource.RUSAGE_SELF)
    with profile(activities=activities) as trace:
        seconds(run, device)
    own = f"self_{device.type}_time_total" if device.type == "cpu" else "self_device_time_total"
    rows = {e.key: (getattr(e, own), e.count) for e in trace.key_averages()}
    if device.type == "cuda":  # Operators only: their kernels are listed once more by themselves.
        rows = {key: row for key, row in rows.items() if key.startswith("aten::")}
    total = sum(time for time, _ in rows.values())
    shares = dict.fromkeys([*KINDS, "elementwise and other"], 0.0)
    for key, (spent, _) in rows.items():
        shares[kind_of(key)] += spent / total
    largest = sorted(rows, key=lambda key: -rows[key][0])[:top]
    return {
        "seconds": wall,
        "user_seconds": after.ru_utime - before.ru_utime,
        "system_seconds": after.ru_stime - before.ru_stime,
        "page_faults": after.ru_minflt - before.ru_minflt,
        "copies": sum(count for key, (_, count) in rows.items() if key == "aten::copy_"),
        "shares": shares,
        "operators": [
            {"name": key, "share": rows[key][0] / total, "calls": rows[key][1]} for key in largest
        ],
    }


def kind_of(operator: str) -> str:
    """The group of `KINDS` that an operator belongs to."""
    for kind, words in KINDS.items():
        if any(word in operator for word in words):
            return kind
    return "elementwise and other"


def machine_rates(device: torch.device, clock: str = "wall") -> dict[str, float]:
    """What the machine does at best: GFLOP/s of a matrix product, GB/s of a copy, both fp32."""
    n, m = (8192, 2**28) if device.type == "cuda" else (1024, 2**24)
    a, b = torch.rand(n, n, device=device), torch.rand(m, device=device)
    c, d = torch.empty_like(a), torch.empty_like(b)

    def best(run: Run) -> float:
        return min(alternate({"run": run}, 5, device, clock=clock)["run"])

    return {
        "gflops": 2 * n**3 / best(lambda: torch.mm(a, a, out=c)) / 1e9,
        "gbytes": 2 * 4 * m / best(lambda: d.copy_(b)) / 1e9,
    }
