"""`python -m hoi_lightning export`: checkpoints to one folder of safetensors, for `generate`, diffusers and others."""

import argparse
import contextlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hoi_lightning import __version__
from hoi_lightning.errors import InputError
from hoi_lightning.generate import make_folder
from hoi_lightning.provenance import git_commit
from hoi_lightning.run_log import log_text

if TYPE_CHECKING:
    from hoi_lightning.tasks import FusionNet, HoiTask

PARTS = ("masknet", "fusionnet", "base")
TEXT_PARTS = ("text_encoder", "tokenizer")
CARD = """---
library_name: hoi_lightning
pipeline_tag: image-to-image
---

# {title}

{what}

Made by hoi_lightning {version}, commit {commit}. Weights are {dtype}; averaged ones where the run kept an average.

| part | checkpoint (sha256) | steps | exported at commit |
|---|---|---|---|
{parts}

{use}
"""
USE = """```python
from hoi_lightning.pipeline import HOIPipeline, load_picture

output = HOIPipeline.from_pretrained("{folder}")(load_picture("mug.jpg"), num_images=4, seed=0)
output.images[0].save("hand.png")
```"""
DIFFUSERS = """## In diffusers

By itself `StableDiffusionInpaintPipeline` blanks the object picture in the hole and shrinks the hole to latent cells by
single pixels. This FusionNet learnt with {sight} and with every cell that the hole touches, so give it both:

```python
{recipe}```

That paints what FusionNet paints of this seed over the whole picture with `RePaintSampler({steps}, "off", eta=0.0)`,
but for the soft edge; RePaint's composition and attention guidance are hoi_lightning's alone."""
RECIPE = """import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image
from safetensors.torch import load_file

folder, side, seed = "{folder}", {side}, 0
pipe = StableDiffusionInpaintPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None)
image = Image.open("object.png").convert("RGB").resize((side, side))
mask = Image.open("hole.png").convert("L").resize((side, side))  # white = to be painted
picture, hole = pipe.image_processor.preprocess(image), pipe.mask_processor.preprocess(mask)
seen = {seen}
with torch.no_grad():
    context = pipe.vae.encode(seen.to(pipe.device)).{code} * pipe.vae.config.scaling_factor
cells = F.max_pool2d(hole, pipe.vae_scale_factor)  # in the hole as soon as one pixel is
noise = np.random.default_rng(seed).standard_normal((1, *context.shape[1:]), dtype=np.float32)
painted = pipe(
    prompt_embeds=load_file(f"{{folder}}/prompt_embeds.safetensors")["prompt_embeds"],
    image=image,
    mask_image=F.interpolate(cells, scale_factor=pipe.vae_scale_factor),
    masked_image_latents=context,
    latents=torch.from_numpy(noise),
    height=side,
    width=side,
    num_inference_steps={steps},
    guidance_scale=1.0,
).images[0]
Image.composite(painted, image, mask).save("hand.png")
"""
SEEN = {  # by `object_context`
    "full": "picture  # object_context full: also what the hand will hide",
    "masked": "picture * (1 - hole)  # object_context masked: only what is outside the hole",
}
SIGHT = {"full": "whole object pictures", "masked": "object pictures without the hole's pixels"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    source = "checkpoint of a {} run, or a folder that export made of one; may come alone"
    parser.add_argument("--masknet", type=Path, help=source.format("MaskNet"))
    parser.add_argument("--fusionnet", type=Path, help=source.format("FusionNet"))
    parser.add_argument("--base", type=Path, help="checkpoint of an InpaintBase run, instead of the two")
    parser.add_argument(
        "--text-encoder",
        action="store_true",
        help="copy FusionNet's text encoder and tokenizer, too, for other prompts",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], default="float16", help="of the weights")


def run(args: argparse.Namespace) -> None:
    """Write `masknet/`, `fusionnet/` and `model_index.json`, or one of the two alone, or `--base`, to start from.

    Raises:
        InputError: a checkpoint is missing or of another task, nothing is given, or `--out` exists.
    """
    import torch

    from hoi_lightning.pipeline import released_or_checkpoint
    from hoi_lightning.tasks import FusionNet, InpaintBase, MaskNet

    given = {name: getattr(args, name) for name in PARTS if getattr(args, name) is not None}
    if set(given) not in ({"base"}, {"masknet"}, {"fusionnet"}, {"masknet", "fusionnet"}):
        raise InputError("give --masknet, --fusionnet or both, or --base alone")
    if args.text_encoder and set(given) == {"masknet"}:
        raise InputError("--text-encoder: a MaskNet has none; give it with --fusionnet, or leave it out")
    if args.out.exists():
        raise InputError(f"--out {args.out}: exists; choose another folder")
    cpu = torch.device("cpu")
    loaded: dict[str, HoiTask] = {}
    if args.masknet is not None:
        loaded["masknet"] = released_or_checkpoint(MaskNet, args.masknet, cpu)
    if args.fusionnet is not None:
        loaded["fusionnet"] = released_or_checkpoint(FusionNet, args.fusionnet, cpu)
    if args.base is not None:
        loaded["base"] = InpaintBase.load(args.base)
    origins = {name: _origin(name, path, loaded[name].checkpoint_hash) for name, path in given.items()}
    painter = loaded.get("fusionnet", loaded.get("base"))
    texts = _text_encoder_folder(painter) if args.text_encoder and isinstance(painter, FusionNet) else None
    make_folder(args.out)
    for name, task in loaded.items():
        task.save_pretrained(args.out if name == "base" else args.out / name, getattr(torch, args.dtype))
    if texts is not None:
        _copy_text_encoder(texts, args.out if "base" in loaded else args.out / "fusionnet")
    if len(loaded) == 2:
        index = {
            "_class_name": "HOIPipeline",
            "_hoi_lightning_version": __version__,
            **{name: [type(task).__module__, type(task).__name__] for name, task in loaded.items()},
        }
        (args.out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    _write_card(args, {name: said for name, (said, _) in origins.items()}, loaded)
    for _, files in origins.values():
        for name, data in files.items():
            (args.out / name).write_bytes(data)
    print(args.out)


def diffusers_recipe(fusionnet: "FusionNet", folder: str) -> str:
    """Python code that paints with an exported `fusionnet/` in diffusers what FusionNet paints (`RECIPE`).

    Args:
        fusionnet: what was exported.
        folder: the exported `fusionnet/`, as the code is to name it.
    """
    from diffusers import AutoencoderTiny

    tiny = isinstance(fusionnet.latents.vae, AutoencoderTiny)
    return RECIPE.format(
        folder=folder,
        side=fusionnet.image_size,
        seen=SEEN[fusionnet.object_context],
        code="latents" if tiny else "latent_dist.mode()",
        steps=fusionnet.sampler.num_steps,
    )


def _diffusers_section(fusionnet: "FusionNet", folder: str) -> str:
    recipe = diffusers_recipe(fusionnet, folder)
    return DIFFUSERS.format(sight=SIGHT[fusionnet.object_context], recipe=recipe, steps=fusionnet.sampler.num_steps)


def _text_encoder_folder(painter: "FusionNet") -> Path:
    """The diffusers folder that FusionNet started from, or its text encoder out of the hub."""
    folder = Path(painter.pretrained)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        wanted = ["model_index.json", *(f"{name}/*" for name in TEXT_PARTS)]
        with contextlib.suppress(HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError):
            folder = Path(snapshot_download(painter.pretrained, revision=painter.revision, allow_patterns=wanted))
    for name in (*TEXT_PARTS, "model_index.json"):
        if not (folder / name).exists():
            raise InputError(
                f"--text-encoder: {painter.pretrained} has no {name} that can be had; fit FusionNet on a diffusers "
                "checkpoint that has one, or leave the flag out"
            )
    return folder


def _copy_text_encoder(pretrained: Path, folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    of_pretrained = json.loads((pretrained / "model_index.json").read_text(encoding="utf-8"))
    for name in TEXT_PARTS:
        shutil.copytree(pretrained / name, folder / name)
        index[name] = of_pretrained[name]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _origin(name: str, path: Path, checkpoint_hash: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What the card says of one part, and the run's config (and log) by file name; a released part's are its own."""
    import torch

    if not path.is_dir():
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        said = {"checkpoint_sha256": checkpoint_hash, "steps": checkpoint["global_step"], "git_commit": git_commit()}
        files = {f"{name}.config.yaml": checkpoint.get("cli_config", "").encode()}
        if log := log_text(path.parent.parent):  # of <run>/checkpoints/last.ckpt
            files[f"{name}.log.csv"] = log.encode()
        return said, files
    try:
        card = json.loads((path / "card.json").read_text(encoding="utf-8"))
        said = {"git_commit": card["git_commit"], **card["parts"][name]}
    except (OSError, ValueError, LookupError, TypeError):
        raise InputError(
            f"--{name} {path}: its card.json, which says how its {name} was made, is missing or damaged; give a "
            "checkpoint, or a folder that `export` made"
        ) from None
    return said, {file.name: file.read_bytes() for file in path.glob(f"{name}.*")}


def _write_card(args: argparse.Namespace, parts: dict[str, dict[str, Any]], loaded: "dict[str, HoiTask]") -> None:
    """`card.json` and `README.md`."""
    from hoi_lightning.tasks import FusionNet

    card = {"hoi_lightning": __version__, "git_commit": git_commit(), "dtype": args.dtype, "parts": parts}
    (args.out / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    paints = "FusionNet paints hands; diffusers paints with `fusionnet/`, too, by the recipe below."
    what = {
        "base": "FusionNet is fine-tuned from it: `--model.pretrained` takes this folder.",
        "fusionnet": paints,
        "masknet": "MaskNet samples where a hand would go"
        + (f", {paints}" if "fusionnet" in parts else ": `generate --masknet` takes this folder."),
    }
    uses = [USE.format(folder=args.out.name)] if len(parts) == 2 else []
    fusionnet = loaded.get("fusionnet")
    if isinstance(fusionnet, FusionNet):
        uses.append(_diffusers_section(fusionnet, f"{args.out.name}/fusionnet"))
    text = CARD.format(
        title="An inpainting model without hands" if "base" in parts else "Hand-object interaction synthesis",
        what=what[next(iter(parts))],
        version=__version__,
        commit=card["git_commit"],
        dtype=args.dtype,
        parts="\n".join(
            f"| {name} | `{part['checkpoint_sha256']}` | {part['steps']} | {part['git_commit']} |"
            for name, part in parts.items()
        ),
        use="\n\n".join(uses),
    )
    (args.out / "README.md").write_text(text, encoding="utf-8")
