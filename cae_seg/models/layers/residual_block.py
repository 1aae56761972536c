"""A BEiT block whose residual branches run in few kernels."""

import torch
from timm.models.beit import Block
from torch import Tensor, nn
from torch.nn import functional as F

from cae_seg.models.layers.stochastic import SampleDropPath
from cae_seg.models.ops.residual import CastWeights, NormLinear, ResidualLinear


class ResidualBlock(Block):
    """timm's BEiT block with the same parameters and results.

    `attn` must have `mix`, as `CAEAttention`. Dropout of projections and layers of other types
    than the published ones go timm's way.
    """

    fast_path, fast = "fused_block", True

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        """Attend, then mix channels: (B, N, C) → (B, N, C)."""
        if not (self.fast and self._fits(x)):
            return super().forward(x, shared_rel_pos_bias)
        attn, mlp = self.attn, self.mlp
        qkv, proj, fc1, fc2, biases = self._weights(x)
        parts = () if attn.q_bias is None else (attn.q_bias, attn.k_bias, attn.v_bias)
        sizes = [sum(map(len, parts)), len(proj), len(fc1), len(fc2)]
        qkv_bias, proj_bias, fc1_bias, fc2_bias = biases.split(sizes)
        h = self._norm_linear(x, self.norm1, qkv, qkv_bias if parts else None, *parts)
        h = attn.mix(h, shared_rel_pos_bias)
        mask = _mask(self.drop_path1, x)
        x = ResidualLinear.apply(x, h, proj, proj_bias, self.gamma_1, mask, attn.proj.bias)
        h = F.gelu(self._norm_linear(x, self.norm2, fc1, fc1_bias, mlp.fc1.bias))
        mask = _mask(self.drop_path2, x)
        return ResidualLinear.apply(x, h, fc2, fc2_bias, self.gamma_2, mask, mlp.fc2.bias)

    def _fits(self, x: Tensor) -> bool:
        mlp = self.mlp
        drops = any(
            layer.training and layer.p > 0
            for layer in (self.attn.proj_drop, mlp.drop1, mlp.drop2)
            if isinstance(layer, nn.Dropout)
        )
        known = type(mlp.act) is nn.GELU and isinstance(mlp.norm, nn.Identity)
        return known and not drops and x.dtype == self.norm1.weight.dtype

    def _weights(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the four matrices and all biases, in the precision of products."""
        attn, mlp = self.attn, self.mlp
        matrices = [layer.weight for layer in (attn.qkv, attn.proj, mlp.fc1, mlp.fc2)]
        biases = [attn.proj.bias, mlp.fc1.bias, mlp.fc2.bias]
        if attn.q_bias is not None:
            biases = [attn.q_bias, attn.k_bias, attn.v_bias, *biases]
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            return CastWeights.apply(dtype, len(matrices), *matrices, *biases)
        return *matrices, torch.cat([bias.detach() for bias in biases])

    @staticmethod
    def _norm_linear(
        x: Tensor, norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None, *parts: Tensor
    ) -> Tensor:
        return NormLinear.apply(x, norm.weight, norm.bias, norm.eps, weight, bias, *parts)


def _mask(drop_path: nn.Module, x: Tensor) -> Tensor | None:
    return drop_path.mask_for(x) if isinstance(drop_path, SampleDropPath) else None
