"""One training step at paper scale: built, counted without a device, timed on one.

A step is that of `ir_peft.train`: forward under autocast, L1 loss in float32, backward, AdamW.
"""

from __future__ import annotations

import gc
import math
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from harness import reference_of, seconds
from paper_scale_bills import BILLS, Bill, Job
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ir_peft import Stereo, attach_adapter, count_parameters, create_backbone
from ir_peft.adapters import adapter_names, adapter_state_dict, train_mode
from ir_peft.adapters.config import resolve_config
from ir_peft.training_state import peak_memory, reset_peak_memory

WARM_UP, FEWEST, MOST = 3, 5, 50
"""Steps before the timed ones (the first apart), and how many are timed."""
BLOCKS = {
    "Block", "OverlapBlock", "EncoderLayer", "DecoderLayer",
    "HAB", "OCAB", "TransformerBlock", "TransformerEncoderLayer", "TransformerDecoderLayer",
}  # fmt: skip
"""Classes of repeated blocks, ours and the reference's: what is compiled, each by itself."""


class NoReferenceError(Exception):
    """There is nothing public to compare with."""


def build(bill: Bill, method: str, size: str, device: torch.device) -> nn.Module:
    """The backbone with random weights in the state in which `ir_peft.train` trains it."""
    whole, _, adapter = method.rpartition("+")
    with device:
        model = create_backbone(bill.backbone, scale=bill.scale, **bill.arguments(size))
        if method != "full":
            attach_adapter(model, adapter)
    if whole or method == "full":
        return model.requires_grad_(True).train()
    return train_mode(model)


def build_reference(bill: Bill, method: str, size: str, device: torch.device) -> nn.Module:
    """The public implementation of the same size; LoRA at the same layers by Hugging Face's peft.

    Raises:
        NoReferenceError: none is known, or it is not installed.
    """
    if method not in ("full", "lora"):
        raise NoReferenceError(f"no public module for {method} on {bill.backbone}")
    model = build(bill, "full", size, device)
    try:
        reference = reference_of(model)
        if method == "full":
            return reference
        from peft import LoraConfig, inject_adapter_in_model
    except (TypeError, ModuleNotFoundError) as error:
        raise NoReferenceError(str(error)) from error
    own = resolve_config(model, method, {})
    theirs = LoraConfig(r=own.r, lora_alpha=own.alpha, target_modules=own.target_modules)
    try:
        return inject_adapter_in_model(theirs, reference)
    except ValueError as error:  # Its layers are not ours.
        raise NoReferenceError(str(error)) from error


class Step:
    """One training step of a model on random samples of a bill's shape."""

    def __init__(self, model: nn.Module, bill: Bill, size: str, batch: int, precision: str):
        device = next(model.parameters()).device
        self.bf16 = precision == "bf16"
        shape = bill.shape(size, batch)
        self.network = model
        if bill.views == 2 and hasattr(model, "adapter_defaults"):
            self.network = Stereo(model)
        elif bill.views == 2:
            shape = (2 * batch, *shape[2:])  # A reference takes the views as so many images.
        *lead, h, w = shape
        self.x = torch.rand(shape, device=device)  # (..., 3, h, w)
        self.target = torch.rand(*lead, bill.scale * h, bill.scale * w, device=device)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6)
        self.loss: Tensor | None = None

    def __call__(self) -> None:
        """Forward, backward, update."""
        with torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.bf16):
            out = self.network(self.x)
        loss = F.l1_loss(out.float(), self.target)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.loss = loss.detach()

    def optimizer_bytes(self) -> int:
        """Bytes of the optimiser's state after the first step."""
        states = self.optimizer.state.values()
        return sum(v.nbytes for s in states for v in s.values() if isinstance(v, Tensor))


def sizes(model: nn.Module, method: str, step: Step) -> dict[str, int]:
    """Parameters and bytes; stored is the whole model, or the adapter alone."""
    if method.startswith("full"):
        stored = model.state_dict()
    elif adapter_names(model):
        stored = adapter_state_dict(model)
    else:  # Of a reference.
        stored = {name: p for name, p in model.named_parameters() if p.requires_grad}
    trainable, total = count_parameters(model)
    return {
        "trainable": trainable,
        "total": total,
        "optimizer_bytes": step.optimizer_bytes(),
        "checkpoint_bytes": sum(tensor.nbytes for tensor in stored.values()),
    }


def convolution_backward(
    grad, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups, mask,
    **_,
) -> int:  # fmt: skip
    """FLOPs of a convolution's backward pass: as many as forward for each gradient asked for.

    torch counts the weight's gradient of a grouped convolution `groups` times.
    """
    places = math.prod((x if transposed else grad)[2:])
    return 2 * (mask[0] + mask[1]) * x[0] * places * math.prod(weight)


def count(bill: Bill, method: str, size: str = "paper") -> dict[str, int]:
    """What needs no device: parameters, bytes, and FLOPs of a step of the schedule's batch in fp32.

    Two FLOPs a multiplication and addition, of convolutions and matrix products, attention's
    included and not recomputed in the backward pass; FFTs, norms and elementwise work are left out.
    """
    model = build(bill, method, size, torch.device("meta"))
    step = Step(model, bill, size, bill.batch, "fp32")
    rules = {torch.ops.aten.convolution_backward: convolution_backward}
    flops = FlopCounterMode(display=False, custom_mapping=rules)
    # The meta device has no autocast, and no fused attention hides its products there.
    with (
        mock.patch.object(torch, "autocast", lambda *_, **__: nullcontext()),
        mock.patch.object(torch, "is_autocast_enabled", lambda *_: False),
        sdpa_kernel(SDPBackend.MATH),
        flops,
    ):
        step()
    return sizes(model, method, step) | {"flops": flops.get_total_flops()}


def compile_blocks(model: nn.Module) -> int:
    """Compiles every transformer block by itself and returns their number."""
    torch._dynamo.reset()
    # Blocks of other sizes are compiled anew, never replaced by slow ones in silence.
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    blocks = [module for module in model.modules() if type(module).__name__ in BLOCKS]
    if not blocks:
        raise ValueError(f"{type(model).__name__} has none of the blocks {sorted(BLOCKS)}")
    for block in blocks:
        block.compile(dynamic=False)
    return len(blocks)


def release(device: torch.device) -> None:
    """Frees what no one holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measure(job: Job, batch: int, spend: float, device: torch.device) -> dict[str, Any]:
    """Step time, peak memory and sizes of a job at one batch.

    Args:
        job: what is measured.
        batch: samples a step.
        spend: seconds of timed steps, of which there are `FEWEST` at least.
        device: where.

    Raises:
        NoReferenceError: see `build_reference`.
        torch.OutOfMemoryError: the batch does not fit.
        FloatingPointError: the loss is not finite.
    """
    bill = BILLS[job.bill]
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    release(device)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    make = build if job.implementation == "ours" else build_reference
    model = make(bill, job.method, job.size, device)
    found: dict[str, Any] = {}
    if job.mode == "compiled":
        found["compiled_blocks"] = compile_blocks(model)
    step = Step(model, bill, job.size, batch, job.precision)
    first = seconds(step, device)
    for _ in range(WARM_UP - 1):
        seconds(step, device)
    reset_peak_memory(device)
    times: list[float] = []
    while len(times) < FEWEST or (sum(times) < spend and len(times) < MOST):
        times.append(seconds(step, device))
    peak, kind = peak_memory(device)
    if not math.isfinite(float(step.loss)):
        raise FloatingPointError(f"the loss is {float(step.loss)}")
    if job.mode == "compiled":
        counters = torch._dynamo.utils.counters
        found["graphs"] = counters["stats"]["unique_graphs"]
        found["graph_breaks"] = sum(counters["graph_break"].values())
    found |= sizes(model, job.method, step)
    quartiles = torch.tensor(times, dtype=torch.float64).quantile(
        torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    )
    return found | {
        "first_step_seconds": first,
        "step_seconds": dict(zip(("q25", "median", "q75"), quartiles.tolist(), strict=True)),
        "timed_steps": len(times),
        "peak_bytes": peak - before,
        "memory_kind": kind,
    }


def largest(run: Callable[[int], dict[str, Any]], batch: int) -> dict[str, Any]:
    """`run` at the largest of batch, batch / 2, ... that fits, with those that did not."""
    too_large: list[int] = []
    while batch:
        try:
            return {"status": "ok", "batch": batch, "out_of_memory_at": too_large} | run(batch)
        except torch.OutOfMemoryError as error:
            reason = str(error).splitlines()[0]
            traceback.clear_frames(error.__traceback__)  # They hold the model's tensors.
        too_large.append(batch)
        batch //= 2
    return {"status": "out of memory", "reason": reason, "out_of_memory_at": too_large}


def attempt(run: Callable[[int], dict[str, Any]], batch: int) -> dict[str, Any]:
    """`largest`, where whatever goes wrong becomes the outcome."""
    try:
        return largest(run, batch)
    except NoReferenceError as error:
        return {"status": "skipped", "reason": str(error)}
    except Exception as error:
        lines = "".join(traceback.format_exception(error)).splitlines()
        return {
            "status": "failed",
            "reason": f"{type(error).__name__}: {error}"[:1000],
            "traceback": lines[-30:],
        }


def matmul_rate(precision: str, device: torch.device, size: int) -> float:
    """FLOP/s of a product of two square matrices: the best of 5, after one to warm up."""
    torch.backends.cuda.matmul.allow_tf32 = False
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.rand(size, size, device=device).to(dtype) for _ in "ab")
    out = torch.empty_like(a)
    times = [seconds(lambda: torch.mm(a, b, out=out), device) for _ in range(6)]
    return 2 * size**3 / min(times[1:])


def serve(connection: Any, device: str) -> None:
    """Answers jobs (job, batch, spend) from a pipe with outcomes, until it is closed."""
    where = torch.device(device)
    while True:
        try:
            job, batch, spend = connection.recv()
        except EOFError:
            return
        start = time.perf_counter()
        outcome = attempt(partial(measure, job, spend=spend, device=where), batch)
        connection.send(outcome | {"wall_seconds": time.perf_counter() - start})
