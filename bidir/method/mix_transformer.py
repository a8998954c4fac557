"""Mix Transformer B0-B5 (SegFormer, NeurIPS 2021), with the last stage at stride 16."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

Tokens = Float[Tensor, "B N D"]  # N = h * w positions of a level, D channels
Scores = Float[Tensor, "B heads N M"]  # of each of N tokens to the M that it looks at

WIDTHS = (64, 128, 320, 512)  # of the four stages, but in B0
DEPTHS = {"mit_b1": (2, 2, 2, 2), "mit_b2": (3, 4, 6, 3), "mit_b3": (3, 4, 18, 3), "mit_b4": (3, 8, 27, 3),
          "mit_b5": (3, 6, 40, 3)}  # fmt: skip
VARIANTS = {"mit_b0": ((32, 64, 160, 256), (2, 2, 2, 2)), **{name: (WIDTHS, depths) for name, depths in DEPTHS.items()}}
HEADS = (1, 2, 5, 8)
SR_RATIOS = (8, 4, 2, 1)
EPS, REDUCED_EPS = 1e-6, 1e-5  # of layer norms; the latter in patch embeddings and on reduced keys


class Attention(nn.Module):
    """Multi-head self-attention whose keys and values are taken from a spatially reduced map."""

    def __init__(self, dim: int, heads: int, sr_ratio: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, sr_ratio, stride=sr_ratio)
            self.norm = nn.LayerNorm(dim, eps=REDUCED_EPS)
        self.sr_ratio = sr_ratio

    def forward(self, x: Tokens, size: tuple[int, int], keep: bool) -> tuple[Tokens, Scores | None]:
        """Tokens -> tokens mixed by attention and, if ``keep``, q k^T: before scale and softmax."""
        batch, tokens, dim = x.shape
        q = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, D / heads)
        source = x
        if self.sr_ratio > 1:
            reduced = self.sr(x.transpose(1, 2).unflatten(2, size))  # (B, D, h / r, w / r)
            source = self.norm(reduced.flatten(2).transpose(1, 2))
        k, v = self.kv(source).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attention = q @ k.transpose(-2, -1) if keep else None  # if the map is needed: computed once and used
        fused = nn.functional.scaled_dot_product_attention
        mixed = (attention * self.scale).softmax(-1) @ v if keep else fused(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim)), attention


class MixFFN(nn.Module):
    """MLP with a depthwise 3x3 convolution that gives the tokens their position."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.dwconv = nn.Conv2d(4 * dim, 4 * dim, 3, padding=1, groups=4 * dim)

    def forward(self, x: Tokens, size: tuple[int, int]) -> Tokens:
        """Tokens of a map of ``size`` -> tokens."""
        hidden = self.dwconv(self.fc1(x).transpose(1, 2).unflatten(2, size))
        return self.fc2(nn.functional.gelu(hidden).flatten(2).transpose(1, 2))


class Block(nn.Module):
    """Attention and Mix-FFN, each residual and each dropped for a random share of the samples."""

    def __init__(self, dim: int, heads: int, sr_ratio: int, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=EPS), nn.LayerNorm(dim, eps=EPS)
        self.attention, self.mlp = Attention(dim, heads, sr_ratio), MixFFN(dim)
        self.drop = StochasticDepth(drop_path, "row")

    def forward(self, x: Tokens, size: tuple[int, int], keep: bool) -> tuple[Tokens, Scores | None]:
        mixed, attention = self.attention(self.norm1(x), size, keep)
        x = x + self.drop(mixed)
        return x + self.drop(self.mlp(self.norm2(x), size)), attention


class PatchEmbedding(nn.Module):
    """Overlapping patches as a strided convolution and a norm."""

    def __init__(self, channels: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(dim, eps=REDUCED_EPS)

    def forward(self, x: Float[Tensor, "B C H W"]) -> tuple[Tokens, tuple[int, int]]:
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2)), tuple(x.shape[-2:])


class Stage(nn.Module):
    """One resolution: patch embedding, blocks, norm."""

    def __init__(self, channels: int, dim: int, heads: int, sr_ratio: int, stride: int, rates: list[float]) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(channels, dim, 7 if stride == 4 else 3, stride)
        self.blocks = nn.ModuleList(Block(dim, heads, sr_ratio, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim, eps=EPS)

    def forward(self, x: Float[Tensor, "B C H W"], keep: int) -> tuple[Float[Tensor, "B D h w"], list[Scores]]:
        """The level above -> this level's feature, and the attention of the last ``keep`` blocks."""
        x, size = self.patch_embed(x)
        kept = []
        for i, block in enumerate(self.blocks):
            x, attention = block(x, size, keep=i >= len(self.blocks) - keep)
            kept += [] if attention is None else [attention]
        return self.norm(x).transpose(1, 2).unflatten(2, size), kept


class MixTransformer(nn.Module):
    """Image (B, 3, H, W) RGB in 0..255 -> features f1..f4 at strides 4, 8, 16, 16."""

    attention_channels = 2 * HEADS[-1]

    def __init__(self, dims: tuple[int, ...], depths: tuple[int, ...], strides=(4, 2, 2, 1)) -> None:
        super().__init__()
        self.dims = dims
        levels = dims, HEADS, SR_RATIOS, strides, depths
        rates = iter(0.1 * i / (sum(depths) - 1) for i in range(sum(depths)))  # grows with depth
        self.stages = nn.ModuleList(
            Stage(channels, dim, heads, ratio, stride, [next(rates) for _ in range(depth)])
            for channels, dim, heads, ratio, stride, depth in zip((3, *dims), *levels, strict=False)
        )
        self.register_buffer("mean", torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1), persistent=False)
        self.apply(_initialise)

    def forward(
        self, image: Float[Tensor, "B 3 H W"], attention: bool = False
    ) -> tuple[list[Float[Tensor, "B _ _ _"]], Float[Tensor, "B 16 N N"] | None]:
        """Features, and if asked q k^T of stage 4's last two blocks."""
        x, features, kept = (image - self.mean) / self.std, [], []
        for stage in self.stages:
            x, kept = stage(x, keep=2 if attention and stage is self.stages[-1] else 0)
            features.append(x)
        return features, torch.cat(kept, 1) if kept else None


def _initialise(module: nn.Module) -> None:
    """SegFormer's initial weights: truncated normal for linear layers, fan-out normal for convolutions."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        nn.init.zeros_(module.bias)
