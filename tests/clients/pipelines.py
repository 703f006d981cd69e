"""Tiny pipelines of diffusers with random weights: their structure is the real one's, and prompts are embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import diffusers
import torch
from torch import Tensor, nn

from sgm_sde.engine.noise import NoiseStream, resolve_seeds

CPU = torch.device("cpu")
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
CHANNELS, SIZE = 4, 8  # of latents
PIXELS = 16


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def loud(net: nn.Module) -> nn.Module:
    """The network with weights whose output is not trivial: some are initialised with zeros."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            spread = 1 / max(1, parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.02
            drawn = spread * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn + bool((parameter == 1).all()))  # factors of norms stay near 1
    return net.eval().requires_grad_(False)


def vae(channels: int = CHANNELS, **config: Any) -> Any:
    return loud(
        diffusers.AutoencoderKL(
            block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            sample_size=PIXELS, **config,
        )
    )  # fmt: skip


def unet(in_channels: int = CHANNELS, **config: Any) -> Any:
    return loud(
        diffusers.UNet2DConditionModel(
            sample_size=SIZE, in_channels=in_channels, out_channels=CHANNELS, layers_per_block=1,
            block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=8, attention_head_dim=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **config,
        )
    )  # fmt: skip


def stable_diffusion(kind: str, scheduler: Any) -> tuple[Any, dict[str, Any]]:
    pipe = getattr(diffusers, f"StableDiffusion{kind}Pipeline")(
        vae(), None, None, unet(), scheduler, None, None, requires_safety_checker=False
    )
    return pipe, {"prompt_embeds": noise((2, 5, 8), 1), "negative_prompt_embeds": noise((2, 5, 8), 2)}


def stable_diffusion_xl(kind: str, scheduler: Any) -> tuple[Any, dict[str, Any]]:
    time_ids = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 8 + 24,
    }
    pipe = getattr(diffusers, f"StableDiffusionXL{kind}Pipeline")(
        vae(), None, None, None, None, unet(**time_ids), scheduler, add_watermarker=False
    )
    pooled = {"pooled_prompt_embeds": noise((2, 8), 3), "negative_pooled_prompt_embeds": noise((2, 8), 4)}
    return pipe, {"prompt_embeds": noise((2, 5, 8), 1), "negative_prompt_embeds": noise((2, 5, 8), 2), **pooled}


def stable_diffusion_3(kind: str, scheduler: Any) -> tuple[Any, dict[str, Any]]:
    net = diffusers.SD3Transformer2DModel(
        sample_size=SIZE, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=8,
        pos_embed_max_size=16,
    )  # fmt: skip
    parts = dict.fromkeys(("text_encoder", "text_encoder_2", "text_encoder_3"))
    parts |= dict.fromkeys(("tokenizer", "tokenizer_2", "tokenizer_3"))
    pipe = getattr(diffusers, f"StableDiffusion3{kind}Pipeline")(
        transformer=loud(net), scheduler=scheduler, vae=vae(16, shift_factor=0.0), **parts
    )
    pooled = {"pooled_prompt_embeds": noise((2, 8), 3), "negative_pooled_prompt_embeds": noise((2, 8), 4)}
    return pipe, {"prompt_embeds": noise((2, 5, 16), 1), "negative_prompt_embeds": noise((2, 5, 16), 2), **pooled}


def flux(kind: str, scheduler: Any) -> tuple[Any, dict[str, Any]]:
    net = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4 * CHANNELS, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    pipe = getattr(diffusers, f"Flux{kind}Pipeline")(
        scheduler=scheduler, vae=vae(shift_factor=0.0), text_encoder=None, tokenizer=None, text_encoder_2=None,
        tokenizer_2=None, transformer=loud(net),
    )  # fmt: skip
    return pipe, {"prompt_embeds": noise((2, 5, 16), 1), "pooled_prompt_embeds": noise((2, 8), 3)}


def pixart(kind: str, scheduler: Any) -> tuple[Any, dict[str, Any]]:
    net = diffusers.PixArtTransformer2DModel(
        sample_size=SIZE, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=2,
        in_channels=CHANNELS, out_channels=2 * CHANNELS, cross_attention_dim=16, caption_channels=8,
        use_additional_conditions=False,
    )  # fmt: skip
    pipe = diffusers.PixArtAlphaPipeline(
        tokenizer=None, text_encoder=None, vae=vae(), transformer=loud(net), scheduler=scheduler
    )
    masks = {"prompt_attention_mask": torch.ones(2, 5), "negative_prompt_attention_mask": torch.ones(2, 5)}
    embeds = {"prompt_embeds": noise((2, 5, 8), 1), "negative_prompt_embeds": noise((2, 5, 8), 2)}
    return pipe, {**embeds, **masks, "negative_prompt": None, "use_resolution_binning": False}


def dit(kind: str, scheduler: Any) -> tuple[Any, dict[str, Any]]:
    net = diffusers.DiTTransformer2DModel(
        sample_size=SIZE, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=2,
        in_channels=CHANNELS, out_channels=2 * CHANNELS, num_embeds_ada_norm=1000,
    )  # fmt: skip
    return diffusers.DiTPipeline(loud(net), vae(), scheduler), {"class_labels": [3, 5]}


FAMILIES = {
    "Stable Diffusion": (stable_diffusion, ("", "Img2Img", "Inpaint")),
    "SDXL": (stable_diffusion_xl, ("", "Img2Img", "Inpaint")),
    "Stable Diffusion 3": (stable_diffusion_3, ("", "Img2Img", "Inpaint")),
    "Flux": (flux, ("", "Img2Img", "Inpaint")),
    "PixArt": (pixart, ("",)),
    "DiT": (dit, ("",)),
}
CASES = [(family, kind) for family, (_, kinds) in FAMILIES.items() for kind in kinds]
TASKS = {"": "text to image", "Img2Img": "image to image", "Inpaint": "inpainting"}
FLOWS = ("Stable Diffusion 3", "Flux")


def theirs_of(family: str) -> Any:
    """The scheduler that has the method of our `ddim`, on its own grid."""
    if family in FLOWS:
        return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    options = {"clip_sample": False, "set_alpha_to_one": True, "timestep_spacing": "trailing"}
    return diffusers.DDIMScheduler(**BETAS, **options)


def latents(family: str, kind: str, scheduler: Any, steps: int = 20, strength: float = 0.6, **options: Any) -> Tensor:
    """The latents that a pipeline ends with."""
    make, _ = FAMILIES[family]
    pipe, arguments = make(kind, scheduler)
    pipe.scheduler = scheduler
    pipe.set_progress_bar_config(disable=True)
    # One draw serves both: those of image-to-image pipelines are made inside of them.
    arguments |= {"generator": torch.Generator().manual_seed(5), "num_inference_steps": steps, "output_type": "latent"}
    if family == "DiT":
        seen: list[Tensor] = []
        decode = pipe.vae.decode
        pipe.vae.decode = lambda z, *a, **k: (seen.append(z), decode(z, *a, **k))[1]
        pipe(**arguments | {"output_type": "np"}, guidance_scale=2.0, **options)
        return seen[0]
    if kind:
        arguments |= {"image": noise((2, 3, PIXELS, PIXELS), 6).clamp(-1, 1), "strength": strength}
    if kind == "Inpaint":
        mask = torch.zeros(2, 1, PIXELS, PIXELS)
        mask[..., PIXELS // 2 :] = 1
        arguments["mask_image"] = mask
    if kind != "Img2Img" or family not in ("Stable Diffusion", "SDXL"):
        arguments |= {"height": PIXELS, "width": PIXELS}
    guidance = 3.5 if family == "Flux" else 4.0
    result: Tensor = pipe(**arguments | options, guidance_scale=guidance).images
    return result


@contextmanager
def our_noise(seed: int, batch: int, start: float) -> Iterator[None]:
    """The draws of diffusers' schedulers of few steps are those of our stream of a seed, for a run from a start."""
    stream = NoiseStream(resolve_seeds(seed, None, batch), "solver", start)

    def draw(shape: Any, generator: Any = None, device: Any = None, dtype: Any = None) -> Tensor:
        return stream.normal(tuple(shape), dtype)

    with ExitStack() as patches:
        for module in ("lcm", "tcd"):
            patches.enter_context(patch(f"diffusers.schedulers.scheduling_{module}.randn_tensor", draw))
        yield


def few_steps(kind: str, scheduler: Any, seed: int, steps: int = 4) -> Tensor:
    """The latents of a pipeline of latent consistency, with our noise of a seed in diffusers' scheduler."""
    pipe = getattr(diffusers, f"LatentConsistencyModel{kind}Pipeline")(
        vae(), None, None, unet(time_cond_proj_dim=8), scheduler, None, None, requires_safety_checker=False
    )
    pipe.scheduler = scheduler
    pipe.set_progress_bar_config(disable=True)
    arguments: dict[str, Any] = {"height": PIXELS, "width": PIXELS}
    if kind:
        arguments = {"image": noise((2, 3, PIXELS, PIXELS), 6).clamp(-1, 1), "strength": 0.6}
    with our_noise(seed, 2, 0.6 if kind else 1.0):
        result: Tensor = pipe(
            prompt_embeds=noise((2, 5, 8), 1), num_inference_steps=steps, output_type="latent",
            generator=torch.Generator().manual_seed(5), **arguments,
        ).images  # fmt: skip
    return result
