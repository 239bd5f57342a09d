# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quick start: one network, several repairs
#
# A network was trained for one thing only: to enlarge clean photographs four times. We hand it a
# photograph that is small *and* noisy, watch it fail, and then repair it with an **adapter**, a
# file of less than half a megabyte that changes what the same frozen network does.
#
# After this notebook you can
#
# - load a pretrained backbone and restore a photograph with it,
# - attach, swap, train, save and load adapters,
# - read a comparison of zoomed crops with PSNR.
#
# **Time:** under a minute on two CPU cores. Nothing is downloaded: the weights, the adapters and
# the photographs come with the package and its dependencies.

# %% tags=["parameters"]
profile: str = "demo"  # smoke (plumbing, no shipped adapter needed), demo, full
photo: str = "chelsea"  # one of photos6: astronaut, chelsea, coffee, rocket, china, flower
seed: int = 0  # of the training patches at the end

# %%
import time
import warnings
from pathlib import Path

import pandas as pd

warnings.filterwarnings("ignore", message="IProgress not found")  # Progress bars are text.
# %matplotlib inline

import ir_peft
from ir_peft import metrics, plots
from ir_peft.data import degradations, patches, photos
from ir_peft.experiments import PROFILES

ROOT = next(path for path in [Path.cwd(), *Path.cwd().parents] if (path / "experiments").is_dir())
SMOKE = PROFILES[profile].name == "smoke"
WORK = ROOT / "runs" / profile / "quickstart"

# %% [markdown]
# ## 1. A pretrained backbone
#
# DAT-light is a small transformer for super-resolution (Chen et al., ICCV 2023). These are its
# authors' weights for enlarging four times. `list_backbones` gives first the architectures, then
# the weights that come with the package.

# %%
print(*ir_peft.list_backbones())
model = ir_peft.load_backbone("dat_light_x4")
print(f"{ir_peft.count_parameters(model)[1]:,} parameters, x{model.scale}")

# %% [markdown]
# ## 2. A damaged photograph
#
# `lr4_noise30` shrinks a photograph four times and adds Gaussian noise of standard deviation 30
# (of 255); `lr4_jpeg30` shrinks it and compresses it as a JPEG of quality 30. Both are *hybrid*
# degradations: two kinds of damage at once. A degradation is an object, and its noise comes from
# a seed, so everybody sees the same noise.

# %%
TASKS = ("lr4_noise30", "lr4_jpeg30")
truth = next(one for one in photos.test_set("photos6") if one.name == photo)
damaged = {}
for task in TASKS:
    print(f"{task}: {degradations.TASKS[task]}")
    [(_, lq, gt)] = patches.make_test_pairs([truth], degradations.TEST_TASKS[task])
    damaged[task] = lq  # (3, h, w) in [0, 1]; gt is (3, 4h, 4w)
print(f"{truth.name}, by {truth.author} ({truth.licence}): {tuple(gt.shape)} -> {tuple(lq.shape)}")

# %% [markdown]
# ## 3. Two adapters on one network
#
# Each call reads one small file and hangs its modules into the model under a name. The 573
# thousand weights of the backbone are neither changed nor copied.

# %%
TAIL = ("norm", "conv_after_body", "upsample")
for task in TASKS:
    if SMOKE:  # A fresh adapter changes nothing: enough to test the plumbing.
        ir_peft.attach_adapter(model, "adaptir", task, modules_to_save=TAIL)
    else:
        ir_peft.load_adapter(model, f"adaptir/{task}-adaptir_tail", task)
print("attached:", *ir_peft.adapter_names(model))
ir_peft.print_trainable_parameters(model)

# %% [markdown]
# Switching between them is a matter of milliseconds, because nothing is loaded or copied.

# %%
times = []
for task in 5 * TASKS:
    began = time.perf_counter()
    ir_peft.set_adapter(model, task)
    times.append(time.perf_counter() - began)
swap = min(times)
print(f"one swap: {1000 * swap:.1f} ms; active now: {ir_peft.active_adapter(model)}")

# %% [markdown]
# ## 4. Restore
#
# Four ways to enlarge the noisy photograph: bicubic interpolation, the frozen network, the
# network with the adapter for the *other* damage, and with the right one. `disable_adapters`
# gives the frozen network back for as long as needed.

# %%
RESTORERS = ("bicubic", "frozen", *TASKS)


def restore(restorer, lq):
    """(3, h, w) -> (3, 4h, 4w), by the network with the named adapter or without any."""
    if restorer == "bicubic":
        return degradations.bicubic_resize(lq, model.scale).clamp(0, 1)
    if restorer == "frozen":
        with ir_peft.disable_adapters(model):
            return ir_peft.restore(model, lq)
    ir_peft.set_adapter(model, restorer)
    return ir_peft.restore(model, lq)


def psnr(image):
    """PSNR [dB] of the Y channel without a border of 4 pixels, as in the papers' tables."""
    return metrics.psnr(image, gt, crop_border=4, channel="y").item()


restored = {(r, task): restore(r, damaged[task]) for task in TASKS for r in RESTORERS}
scores = pd.DataFrame({task: [psnr(restored[r, task]) for r in RESTORERS] for task in TASKS})
names = ["bicubic", "frozen DAT-light", *(f"+ adapter for {task}" for task in TASKS)]
scores.index = pd.Index(names, name="PSNR-Y [dB]")
scores.round(2)

# %% [markdown]
# The frozen network is *worse* than bicubic interpolation on the noisy photograph: it was trained
# to sharpen, and it sharpens the noise. Each adapter is best on the damage it was trained for.

# %%
TASK = "lr4_noise30"
_, height, width = gt.shape
BOX = (height // 2 - 84, width // 2 - 70, 96, 96)  # top, left, height, width


def array(image):
    """(3, H, W) -> (H, W, 3) for matplotlib."""
    return image.permute(1, 2, 0).numpy()


captions = {
    "bicubic": "bicubic",
    "frozen": "frozen",
    TASKS[1]: "JPEG adapter",
    TASKS[0]: "noise adapter",
}
pixels = damaged[TASK].repeat_interleave(4, 1).repeat_interleave(4, 2)
views = {"damaged input": array(pixels)}
views |= {caption: array(restored[r, TASK]) for r, caption in captions.items()}
views |= {"ground truth": array(gt)}
under = {caption: psnr(restored[r, TASK]) for r, caption in captions.items()}
figure = plots.crops(array(gt), BOX, views, under, columns=3, title=f"{photo}, {TASK}")
plots.save_figure(figure, WORK, "crops", smoke=SMOKE)
figure

# %% [markdown]
# ## 5. Your own adapter
#
# Five lines: load, attach, train, save, load again. The training patches are cut from the
# photographs in the package; a handful of steps shows that it works, a few hundred make a useful
# adapter (notebook 03). Any method of `ir_peft.adapters.ADAPTERS` can take the place of `"lora"`.

# %%
steps = 2 if SMOKE else 10
data = patches.Patches(
    photos.train_photos(), degradations.TASKS[TASK], lq_size=16, seed=seed, length=2 * steps
)
mine = ir_peft.attach_adapter(ir_peft.load_backbone("dat_light_x4"), "lora")
result = ir_peft.train(mine, data, steps=steps, batch_size=2, lr=1e-3, log_every=1, progress=False)
folder = ir_peft.save_adapter(mine, WORK / "my_adapter")
ir_peft.load_adapter(model, folder, "mine")

ir_peft.print_trainable_parameters(mine)
size = (folder / "adapter_model.safetensors").stat().st_size
print(f"{steps} steps in {result.seconds:.1f} s; the adapter's file has {size / 1000:,.0f} kB")

# %%
assert ir_peft.adapter_names(model) == [*TASKS, "mine"]
assert swap < 0.05, f"a swap took {swap:.3f} s"
assert (WORK / "crops.png").is_file()
if not SMOKE:
    assert scores[TASKS[0]].idxmax() == names[2] and scores[TASKS[1]].idxmax() == names[3]

# %% [markdown]
# ## Where to go next
#
# - [03_adaptir](03_adaptir.ipynb): what is inside such an adapter, equation by equation, and how
#   it compares with LoRA, AdaptFormer, Houlsby's adapters, BitFit and full fine-tuning, beside
#   the paper's numbers.
# - `ir-peft restore photo.png --adapter adaptir/lr4_noise30-adaptir_tail` does section 4 for your
#   own photograph.
# - `ir-peft list` shows what exists, `ir-peft reproduce` recomputes every table and figure.
