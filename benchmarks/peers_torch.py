"""The peers of benchmarks/peers.py in PyTorch, in an environment without us.

    peers_python benchmarks/peers_torch.py NETWORK KIND PRECISION MODE BATCH

NETWORK is unet (diffusers' UNet2DModel on a patched grid) or vit (avatars64's Vision Transformer, with
PyTorch's own attention and norms). It prints title and parameters as one JSON line, then a call's seconds for
each line on standard input.
"""

from __future__ import annotations

import json
import sys
import time

import diffusers
import torch
from torch import nn
from torch.nn import functional as F

SIDE = 64
PATCH = {"unet": 2, "vit": 4}
CLASSES = 9
SAMPLING_STEPS = 20
CALLS = 3  # of which each turn takes the mean


class UNet(nn.Module):
    """The yardstick's grid, widths, blocks and attention; the timestep's width makes the parameters equal."""

    def __init__(self):
        super().__init__()
        self.network = diffusers.UNet2DModel(
            sample_size=SIDE // PATCH["unet"],
            in_channels=3 * PATCH["unet"] ** 2,
            out_channels=3 * PATCH["unet"] ** 2,
            block_out_channels=(64, 128, 128),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=64,
            norm_num_groups=32,
            resnet_time_scale_shift="scale_shift",
            time_embedding_dim=176,
        )

    def forward(self, h, t):
        """(B, 12, 32, 32), int (B,) -> (B, 12, 32, 32)."""
        return self.network(h, t).sample


class Branch(nn.Module):
    """x + gate * branch(rms(x) * (1 + scale) + shift), the three from the timestep (adaLN-Zero)."""

    def __init__(self, width: int, branch: nn.Module):
        super().__init__()
        self.branch = branch
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x, embedding, rotation):
        """(B, N, C), (B, C) -> (B, N, C)."""
        scale, shift, gate = self.modulation(embedding)[:, None].chunk(3, -1)
        h = F.rms_norm(x, x.shape[-1:]) * (1 + scale) + shift
        return x + gate * self.branch(h, rotation)


class Attention(nn.Module):
    """Attention with normed and rotated queries and keys."""

    def __init__(self, width: int, head: int):
        super().__init__()
        self.head = head
        self.query_key_value = nn.Linear(width, 3 * width)
        self.norms = nn.ModuleList([nn.RMSNorm(head), nn.RMSNorm(head)])
        self.project = nn.Linear(width, width)

    def forward(self, x, rotation):
        """(B, N, C) -> (B, N, C)."""
        query, key, value = (
            part.unflatten(-1, (-1, self.head)).transpose(1, 2)
            for part in self.query_key_value(x).chunk(3, -1)
        )
        query, key = (rotate(norm(part), rotation) for norm, part in zip(self.norms, (query, key)))
        attended = F.scaled_dot_product_attention(query.to(value.dtype), key.to(value.dtype), value)
        return self.project(attended.transpose(1, 2).flatten(2))


def rotate(x, rotation):
    """Rotary positions of (B, heads, N, d); `rotation`: cos and sin, (N, d / 2)."""
    cos, sin = rotation[:, -x.shape[2] :]
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


class SwiGLU(nn.Module):
    """silu(gate) * h, both of 8 C / 3 channels."""

    def __init__(self, width: int):
        super().__init__()
        hidden = 8 * width // 3
        self.expand = nn.Linear(width, 2 * hidden)
        self.project = nn.Linear(hidden, width)

    def forward(self, x, rotation):
        """(B, N, C) -> (B, N, C)."""
        gate, h = self.expand(x).chunk(2, -1)
        return self.project(F.silu(gate) * h)


class ViT(nn.Module):
    """avatars64's: 7 blocks of width 128, heads of 32, 8 class tokens from the third block on."""

    def __init__(self, width: int = 128, depth: int = 7, head: int = 32, tokens: int = 8):
        super().__init__()
        values = 3 * PATCH["vit"] ** 2
        self.grid = SIDE // PATCH["vit"]
        self.embed = nn.Sequential(nn.Linear(values, 32, bias=False), nn.Linear(32, width))
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.label = nn.Embedding(CLASSES + 1, width)
        self.places = nn.Parameter(torch.zeros(tokens, width))
        self.blocks = nn.ModuleList(
            nn.ModuleList([Branch(width, Attention(width, head)), Branch(width, SwiGLU(width))])
            for _ in range(depth)
        )
        self.head = nn.Linear(width, values)
        angles = torch.rand(tokens + self.grid**2, head // 2)
        self.register_buffer("frequencies", torch.exp(-torch.linspace(0, 9.2, width // 2)))
        self.register_buffer("rotation", torch.stack([angles.cos(), angles.sin()]))

    def forward(self, h, t):
        """(B, 48, 16, 16), int (B,) -> (B, 48, 16, 16)."""
        angles = t[:, None] * self.frequencies
        embedding = self.time(torch.cat([angles.sin(), angles.cos()], -1))
        x = self.embed(h.flatten(2).transpose(1, 2))
        for number, (attention, feed_forward) in enumerate(self.blocks, 1):
            if number == 3:
                x = torch.cat([self.label(t % CLASSES)[:, None] + self.places, x], 1)
            x = feed_forward(attention(x, embedding, self.rotation), embedding, self.rotation)
        x = self.head(F.rms_norm(x[:, len(self.places) :], x.shape[-1:]))
        return x.transpose(1, 2).unflatten(2, (self.grid, self.grid))


def forward_of(run, parameters, batch: int):
    """A function that runs one forward pass, patches and all."""
    z, t = torch.randn(batch, 3, SIDE, SIDE), torch.full((batch,), 500)

    def call():
        with torch.inference_mode():
            return float(run(z, t).sum())

    return call


def train_step_of(run, parameters, batch: int):
    """A function that runs one step as a trainer does: noise, x-prediction's loss, backward, fused Adam."""
    optimizer = torch.optim.Adam(parameters, 1e-4, fused=True)
    images = torch.rand(batch, 3, SIDE, SIDE) * 2 - 1
    alpha = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)

    def call():
        t = torch.randint(0, 1000, (batch,))
        signal, noise = alpha[t].sqrt()[:, None, None, None], (1 - alpha[t]).sqrt()[:, None, None, None]
        z = signal * images + noise * torch.randn_like(images)
        gamma = (signal / noise)[:, 0, 0, 0]
        loss = (gamma * F.mse_loss(run(z, t).float(), images, reduction="none").mean((1, 2, 3))).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss)

    return call


def sample_of(run, parameters, batch: int):
    """A function that draws images by diffusers' DPM-Solver++."""
    scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type="sample")

    def call():
        scheduler.set_timesteps(SAMPLING_STEPS)
        z = torch.randn(batch, 3, SIDE, SIDE)
        with torch.inference_mode():
            for t in scheduler.timesteps:
                z = scheduler.step(run(z, t.expand(batch)), t, z).prev_sample
        return float(z.sum())

    return call


KINDS = {"forward": forward_of, "train": train_step_of, "sample": sample_of}


def main() -> None:
    name, kind, precision, mode, batch = sys.argv[1:]
    torch.manual_seed(0)
    network = {"unet": UNet, "vit": ViT}[name]().train(kind == "train")
    if mode == "channels_last":
        network = network.to(memory_format=torch.channels_last)

    def run(z, t):
        h = F.pixel_unshuffle(z, PATCH[name])
        if mode == "channels_last":
            h = h.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "mixed_bfloat16"):
            return F.pixel_shuffle(network(h, t), PATCH[name])

    compiled = torch.compile(run) if mode == "compiled" else run
    call = KINDS[kind](compiled, network.parameters(), int(batch))
    for _ in range(2):
        call()
    title = f"diffusers {diffusers.__version__}, PyTorch {torch.__version__}"
    print(json.dumps([title, sum(p.numel() for p in network.parameters())]), flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        for _ in range(CALLS):
            call()
        print((time.perf_counter() - begin) / CALLS, flush=True)


if __name__ == "__main__":
    main()
