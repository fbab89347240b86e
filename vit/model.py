"""The Vision Transformer: Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv 2010.11929.

    images -> patches -> tokens -> depth x Block -> LayerNorm -> class token (or mean) -> head -> logits

Eq. 1 to 8 are the paper's. Where its text and its code differ, this is the code (google-research/vision_transformer,
vit_jax/models_vit.py): biases on q, k and v, GELU by tanh. Tensors are named as in timm; `vit/cost.py` lists them.

Shape letters:
    B images           C channels, H x W pixels         K classes
    N patches          p patch side in pixels           P = C p p, numbers in a patch
    T tokens, N + 1 (N without a class token)           D width, M width of the MLP
    A attention heads  E = D / A, width of a head
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vit.config import HeadConfig, ViTConfig
from vit.heads import HiddenLayer, init_logits


class ViT(nn.Module):
    """Images in [-1, 1] to logits. Call `init_weights`, or load a state_dict, before use.

    `run_block` calls one block; replace it to wrap every block (gradient checkpointing) without the model knowing.
    """

    def __init__(self, config: ViTConfig, head: HeadConfig):
        super().__init__()
        assert head.num_classes is not None, "the manifest's classes are counted before the model is built"
        D = config.width
        self.config = config
        self.head_config = head
        self.run_block: Callable[[nn.Module, Tensor], Tensor] = _call

        self.cls_token = nn.Parameter(torch.empty(1, 1, D)) if config.pool == "cls" else None
        self.pos_embed = nn.Parameter(torch.empty(1, config.num_tokens, D))
        self.patch_embed = PatchEmbedding(config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.pre_logits: nn.Module = HiddenLayer(D, D) if head.kind == "mlp" else nn.Identity()
        self.head = nn.Linear(D, head.num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """The logits, B x K."""
        logits_BK: Tensor = self.head(self.pre_logits(self.encode(images_BCHW)))
        return logits_BK

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """The representation y that the head sees, B x D.

        Raises ValueError for images of another size than the config's: positions belong to one grid.
        """
        expected = (self.config.channels, *self.config.image_hw)
        if images_BCHW.shape[1:] != expected:
            raise ValueError(
                f"images of {tuple(images_BCHW.shape[1:])} do not fit a model for {expected} (channels, height, width)"
            )

        z_BTD: Tensor = self.patch_embed(images_BCHW)
        if self.cls_token is not None:
            z_BTD = torch.cat([self.cls_token.expand(len(z_BTD), -1, -1), z_BTD], dim=1)
        z_BTD = self.dropout(z_BTD + self.pos_embed)  # Eq. 1: z_0 = [x_class; x_p^1 E; ...; x_p^N E] + E_pos

        for block in self.blocks:
            z_BTD = self.run_block(block, z_BTD)

        # Eq. 4: y = LN(z_L^0), the class token's; or, without one, the average over the patches (appendix D.3).
        y_BD: Tensor = self.norm(z_BTD[:, 0]) if self.cls_token is not None else self.norm(z_BTD).mean(dim=1)
        return y_BD

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fill every tensor as the paper's code does, the same numbers from the same seed on any device.

        This is the only place where weights are drawn. It overwrites whatever the constructors of torch's layers leave,
        so build a large model empty: `with torch.device("meta"): model = ViT(...)`, then `model.to_empty(device=...)`.

            patch embedding, hidden layer of the head   lecun-normal, truncated; bias 0
            class token                                 0
            positions                                   N(0, 0.02)
            query, key, value, output                   xavier-uniform, each over its own D x D; bias 0
            MLP                                         xavier-uniform; bias N(0, 1e-6)
            LayerNorm                                   scale 1, bias 0
            logits                                      0; bias `head.bias_init`
        """
        draw = torch.Generator(device="cpu").manual_seed(seed)

        _lecun_normal(self.patch_embed.proj.weight, draw)
        _zero(self.patch_embed.proj.bias)
        _zero(self.cls_token)
        _normal(self.pos_embed, 0.02, draw)
        for block in self.blocks:
            assert isinstance(block, Block)
            # Each over D x D: over the fused 3D x D the same rule would give weights smaller by the square root of 2.
            for weight_DD in (*block.attn.qkv.weight.chunk(3), block.attn.proj.weight):
                _xavier_uniform(weight_DD, draw)
            _zero(block.attn.qkv.bias)
            _zero(block.attn.proj.bias)
            for dense in (block.mlp.fc1, block.mlp.fc2):
                _xavier_uniform(dense.weight, draw)
                _normal(dense.bias, 1e-6, draw)
            block.norm1.reset_parameters()
            block.norm2.reset_parameters()
        self.norm.reset_parameters()
        if isinstance(self.pre_logits, HiddenLayer):
            _lecun_normal(self.pre_logits.weight, draw)
            _zero(self.pre_logits.bias)
        init_logits(self.head, self.head_config.bias_init)


class PatchEmbedding(nn.Module):
    """Cuts an image into patches x_p, in raster order, and projects each by E."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.grid = config.grid
        self.proj = PatchProjection(config.width, config.channels, config.patch_px)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        rows, columns = self.grid
        patches = images_BCHW.unflatten(2, (rows, -1)).unflatten(4, (columns, -1))  # B, C, rows, p, columns, p
        x_BNP = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        embedded_BND: Tensor = self.proj(x_BNP)
        return embedded_BND


class PatchProjection(nn.Module):
    """E: a linear layer whose weight keeps the shape D x C x p x p of the convolution that it equals."""

    def __init__(self, width: int, channels: int, patch_px: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, channels, patch_px, patch_px))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x_BNP: Tensor) -> Tensor:
        return F.linear(x_BNP, self.weight.flatten(1), self.bias)


class Block(nn.Module):
    """One layer of the encoder, LayerNorm before each part."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.mlp = MLP(config)

    def forward(self, z_BTD: Tensor) -> Tensor:
        attended_BTD: Tensor = self.attn(self.norm1(z_BTD)) + z_BTD  # Eq. 2: z'_l = MSA(LN(z_{l-1})) + z_{l-1}
        out_BTD: Tensor = self.mlp(self.norm2(attended_BTD)) + attended_BTD  # Eq. 3: z_l = MLP(LN(z'_l)) + z'_l
        return out_BTD


class Attention(nn.Module):
    """Multi-head self-attention (appendix A)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.heads = config.heads
        self.attention_dropout = config.attention_dropout
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.qkv_bias)
        self.proj = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, z_BTD: Tensor) -> Tensor:
        qkv_BT3AE: Tensor = self.qkv(z_BTD).unflatten(2, (3, self.heads, -1))  # Eq. 5: [q, k, v] = z U_qkv
        q_BATE, k_BATE, v_BATE = qkv_BT3AE.permute(2, 0, 3, 1, 4).unbind()
        dropout = self.attention_dropout if self.training else 0.0
        # Eq. 6: A = softmax(q k^T / sqrt(E)), and Eq. 7: SA(z) = A v, in one kernel
        sa_BATE = F.scaled_dot_product_attention(q_BATE, k_BATE, v_BATE, dropout_p=dropout)
        # Eq. 8: MSA(z) = [SA_1(z); ...; SA_A(z)] U_msa
        msa_BTD: Tensor = self.dropout(self.proj(sa_BATE.transpose(1, 2).flatten(2)))
        return msa_BTD


class MLP(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.gelu = nn.GELU(approximate="tanh" if config.gelu == "tanh" else "none")
        self.fc2 = nn.Linear(config.mlp_width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, z_BTD: Tensor) -> Tensor:
        hidden_BTM: Tensor = self.dropout(self.gelu(self.fc1(z_BTD)))
        out_BTD: Tensor = self.dropout(self.fc2(hidden_BTM))
        return out_BTD


def _call(block: nn.Module, z_BTD: Tensor) -> Tensor:
    out_BTD: Tensor = block(z_BTD)
    return out_BTD


# Initialisers draw on the CPU in float32 and copy, so that neither device nor precision changes the numbers.


def _zero(tensor: Tensor | None) -> None:
    if tensor is not None:
        tensor.zero_()


def _normal(tensor: Tensor, std: float, draw: torch.Generator) -> None:
    tensor.copy_(torch.empty(tensor.shape, device="cpu", dtype=torch.float32).normal_(0.0, std, generator=draw))


def _xavier_uniform(weight: Tensor, draw: torch.Generator) -> None:
    weight.copy_(nn.init.xavier_uniform_(torch.empty(weight.shape, device="cpu", dtype=torch.float32), generator=draw))


def _lecun_normal(weight: Tensor, draw: torch.Generator) -> None:
    """Variance 1 / fan-in by a normal cut off at two deviations (jax.nn.initializers.lecun_normal)."""
    std = math.sqrt(1 / weight[0].numel()) / 0.87962566103423978  # what the cut leaves of a deviation of 1
    values = torch.empty(weight.shape, device="cpu", dtype=torch.float32)
    weight.copy_(nn.init.trunc_normal_(values, std=std, a=-2 * std, b=2 * std, generator=draw))
