"""The peer of benchmarks/peers.py: diffusers' UNet2DModel on a patched grid, in an environment without us.

    peers_python benchmarks/peers_torch.py KIND MODE BATCH

It prints its title and parameters as one JSON line, then a call's seconds for each line on standard input.
"""

from __future__ import annotations

import json
import sys
import time

import diffusers
import torch
from torch.nn.functional import mse_loss, pixel_shuffle, pixel_unshuffle

SIDE, PATCH = 64, 2
CALLS = 3  # of which each turn takes the mean


def make_network() -> torch.nn.Module:
    """The yardstick's grid, widths, blocks and attention; the timestep's width makes the parameters equal."""
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=SIDE // PATCH,
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        block_out_channels=(64, 128, 128),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=64,
        norm_num_groups=32,
        resnet_time_scale_shift="scale_shift",
        time_embedding_dim=176,
    )


def forward_of(run, batch: int):
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
        loss = (gamma * mse_loss(run(z, t), images, reduction="none").mean((1, 2, 3))).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss)

    return call


def main() -> None:
    """Serves one variant."""
    kind, mode, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
    network = make_network()
    if mode == "channels_last":
        network = network.to(memory_format=torch.channels_last)

    def run(z, t):
        h = pixel_unshuffle(z, PATCH)
        if mode == "channels_last":
            h = h.contiguous(memory_format=torch.channels_last)
        return pixel_shuffle(network(h, t).sample, PATCH)

    compiled = torch.compile(run) if mode == "compiled" else run
    if kind == "forward":
        network.eval()
        call = forward_of(compiled, batch)
    else:
        call = train_step_of(compiled, network.parameters(), batch)
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
