"""Blocks in the manner of known architectures, small enough to import in milliseconds."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SqueezeExcite(nn.Module):
    """MobileNetV3, EfficientNet, RegNet."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(8, 4, 1)
        self.fc2 = nn.Conv2d(4, 8, 1)
        self.act = nn.Hardsigmoid(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        s = F.relu(self.fc1(self.pool(x)), inplace=True)
        return x * self.act(self.fc2(s))


def _drop_path(x: Tensor, p: float, training: bool) -> Tensor:
    if p == 0.0 or not training:
        return x
    raise AssertionError("evaluation only")


class MBConv(nn.Module):
    """EfficientNet: SiLU, squeeze-excite by mean, drop path."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU())
        self.dw = nn.Conv2d(16, 16, 5, 1, 2, groups=16, bias=False)
        self.bn = nn.BatchNorm2d(16, eps=1e-3)
        self.reduce = nn.Conv2d(16, 4, 1)
        self.back = nn.Conv2d(4, 16, 1)
        self.project = nn.Conv2d(16, 8, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.bn(self.dw(self.expand(x))))
        s = self.back(F.silu(self.reduce(y.mean((2, 3), keepdim=True))))
        return x + _drop_path(self.project(y * s.sigmoid()), 0.1, self.training)


class ShuffleUnit(nn.Module):
    """ShuffleNetV2: chunk, branches, concatenate, shuffle by view and transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        x = torch.cat((a, self.branch(b)), dim=1)
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w)
        x = torch.transpose(x, 1, 2).contiguous()
        return x.view(n, c, h, w)


class DenseLayers(nn.Module):
    """DenseNet: concatenated features."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(12)])
        self.convs = nn.ModuleList([nn.Conv2d(8, 4, 3, 1, 1), nn.Conv2d(12, 4, 3, 1, 1)])

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        return F.avg_pool2d(torch.cat(features, 1), 2, 2)


class Inception(nn.Module):
    """GoogLeNet: four branches, one of them pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(8, 4, 1)
        self.b = nn.Conv2d(8, 4, (1, 7), padding=(0, 3))
        self.c = nn.Conv2d(8, 4, 3, stride=1, padding=2, dilation=2)
        self.pool = nn.MaxPool2d(3, 1, 1, ceil_mode=True)
        self.d = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.a(x), self.b(x), self.c(x), self.d(self.pool(x))]
        return torch.cat([*branches, F.avg_pool2d(x, 3, 1, 1)], 1)


class ConvNextBlock(nn.Module):
    """ConvNeXt: depthwise, permuted layer norm, linear, layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.dw = nn.Conv2d(8, 8, 7, padding=3, groups=8)
        self.norm = nn.LayerNorm(8, eps=1e-6)
        self.up, self.act, self.down = nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.dw(x).permute(0, 2, 3, 1)
        y = self.down(self.act(self.up(self.norm(y))))
        return x + self.scale * y.permute(0, 3, 1, 2)


class Attention(nn.Module):
    """timm's attention: one projection, reshape, permute, unbind."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused, self.scale = 2, fused, 4**-0.5
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class VisionTransformer(nn.Module):
    """A small ViT: patches, class token, position embedding, blocks, head."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 5, 8))
        self.norm1, self.norm2, self.norm = nn.LayerNorm(8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = Attention(fused)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        _, _, h, w = x.shape
        torch._assert(h == 8, "height")
        torch._assert(w == 8, f"width {w}")
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(self.norm(x)[:, 0])


class TorchvisionEncoder(nn.Module):
    """torchvision's ViT encoder: nn.MultiheadAttention without weights."""

    def __init__(self, batch_first: bool, weights: bool) -> None:
        super().__init__()
        self.norm, self.weights = nn.LayerNorm(8), weights
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        y, w = self.attention(y, y, y, need_weights=self.weights)
        return x + y if not self.weights else x + y + w.sum()


class WindowAttention(nn.Module):
    """Swin: shifted windows, relative position bias by indexing."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.table = nn.Parameter(torch.randn(49, 2))
        self.register_buffer("index", torch.randint(0, 49, (256,)))

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        x = torch.roll(x, shifts=(-2, -2), dims=(1, 2))
        x = x.view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        qkv = self.qkv(x).reshape(x.size(0), 16, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        scores = (q * 0.5).matmul(k.transpose(-2, -1))
        bias = self.table[self.index].view(16, 16, -1).permute(2, 0, 1).contiguous()
        scores = F.softmax(scores + bias.unsqueeze(0), dim=-1)
        x = self.proj(scores.matmul(v).transpose(1, 2).reshape(x.size(0), 16, c))
        x = x.view(b, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return torch.roll(x, shifts=(2, 2), dims=(1, 2))


class PatchMerging(nn.Module):
    """Swin: strided slices, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.reduction, self.norm = nn.Linear(32, 16, bias=False), nn.LayerNorm(32)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-3:-1]
        x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2))
        parts = [x[..., i::2, j::2, :] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class UNet(nn.Module):
    """Down, up, pad to the skip's size, concatenate."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(8, 8, 3, 2, 1), nn.ConvTranspose2d(8, 8, 2, 2)
        self.out = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.up(F.leaky_relu(self.down(x), 0.1))
        dh, dw = x.size(2) - y.size(2), x.size(3) - y.size(3)
        y = F.pad(y, [dw // 2, dw - dw // 2, dh // 2, dh - dh // 2])
        z = F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return {"out": self.out(torch.cat([x, y], 1)), "aux": z}


class Ghost(nn.Module):
    """GhostNet: cheap features, sliced."""

    def __init__(self) -> None:
        super().__init__()
        self.primary, self.cheap = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 6, 3, 1, 1, groups=6)

    def forward(self, x: Tensor) -> Tensor:
        a = self.primary(x)
        return torch.cat([a, self.cheap(a)], dim=1)[:, :8, :, :] + x


class MixerBlock(nn.Module):
    """MLP-Mixer: two transposes around a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.tokens, self.channels = nn.Linear(10, 10), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + F.gelu(self.channels(x), approximate="tanh")


IMAGE = (2, 8, 8, 8)
BLOCKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "squeeze-excite": (SqueezeExcite, IMAGE),
    "mbconv": (MBConv, IMAGE),
    "shuffle": (ShuffleUnit, IMAGE),
    "dense": (DenseLayers, IMAGE),
    "inception": (Inception, IMAGE),
    "convnext": (ConvNextBlock, IMAGE),
    "vit": (lambda: VisionTransformer(False), (2, 3, 8, 8)),
    "vit-fused": (lambda: VisionTransformer(True), (2, 3, 8, 8)),
    "encoder": (lambda: TorchvisionEncoder(True, False), (2, 10, 8)),
    "encoder-weights": (lambda: TorchvisionEncoder(True, True), (2, 10, 8)),
    "swin-attention": (WindowAttention, IMAGE),
    "swin-merging": (PatchMerging, IMAGE),
    "unet": (UNet, (2, 8, 9, 8)),
    "ghost": (Ghost, IMAGE),
    "mixer": (MixerBlock, (2, 10, 8)),
}
