"""Mean field of the dense CRF in tensor operations, a batch of images at a time, on the CPU and on a GPU.

Krähenbühl & Koltun 2011, algorithm 1, with the Potts model and the kernels of DeepLab (Chen et al. 2017, section 3.3):
each iteration adds to log P the filtered marginals of both kernels, each divided by the filter's own normalizer, and
takes the softmax. Legend: n pixel of any image of the batch, c class.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from quintet.papers.deeplab.crf.config import CLIP, CrfConfig
from quintet.papers.deeplab.crf.permutohedral import Lattice, build, join


def positions(height: int, width: int, deviation: float, device: torch.device | str = "cpu") -> Tensor:
    """(N, 2) column and row of each pixel in standard deviations."""
    # Divided by a tensor: CUDA would multiply by the inverse of a number, and round otherwise.
    scale = torch.tensor(deviation, dtype=torch.float32, device=device)
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    grid = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([grid[1].flatten() / scale, grid[0].flatten() / scale], 1)


def appearance(image_hwc: Tensor, position: float, color: float) -> Tensor:
    """(N, 5) position and color of each pixel in standard deviations."""
    height, width, _ = image_hwc.shape
    scale = torch.tensor(color, dtype=torch.float32, device=image_hwc.device)
    colors_n3 = image_hwc.reshape(-1, 3) / scale
    return torch.cat([positions(height, width, position, image_hwc.device), colors_n3], 1)


def mean_field(probabilities: Sequence[Tensor], images: Sequence[Tensor], config: CrfConfig) -> list[Tensor]:
    """Marginals (C, H, W) of each image from probabilities (C, H, W) and uint8 images (H, W, 3) on the same device."""
    shapes = [(image.shape[0], image.shape[1]) for image in images]
    log_p_nc = torch.cat([p.float().clamp(min=CLIP).log().flatten(1).T for p in probabilities])
    near = join([build(positions(*shape, config.sg, log_p_nc.device)) for shape in shapes])
    far = join([build(appearance(image, config.sa, config.sb)) for image in images])
    weighted = [(near, config.w2 / near.normaliser()), (far, config.w1 / far.normaliser())]
    q_nc = iterate(log_p_nc, weighted, config.iterations)
    parts = q_nc.split([height * width for height, width in shapes])
    return [part.T.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]


def iterate(log_p_nc: Tensor, kernels: Sequence[tuple[Lattice, Tensor]], iterations: int) -> Tensor:
    """The marginals after so many updates; each kernel is given with its weight divided by its normalizer, (N,)."""
    q_nc = log_p_nc.softmax(1)
    for _ in range(iterations):
        energy_nc = log_p_nc.clone()
        for lattice, weight_n in kernels:
            energy_nc.addcmul_(lattice.filter(q_nc), weight_n[:, None])
        q_nc = energy_nc.softmax(1)
    return q_nc
