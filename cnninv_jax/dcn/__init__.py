"""The CNN-DCN of Random DCN: VGG-16 up to a layer and its mirror image, with random weights and no training."""

from cnninv_jax.dcn.architecture import VGG16_CONVOLUTIONS as VGG16_CONVOLUTIONS
from cnninv_jax.dcn.architecture import VGG16_WIDTHS as VGG16_WIDTHS
from cnninv_jax.dcn.architecture import ConvDeconv as ConvDeconv
from cnninv_jax.dcn.architecture import Convolution as Convolution
from cnninv_jax.dcn.architecture import architecture as architecture
from cnninv_jax.dcn.architecture import conv1_1 as conv1_1
from cnninv_jax.dcn.network import Weights as Weights
from cnninv_jax.dcn.network import decode as decode
from cnninv_jax.dcn.network import features as features
from cnninv_jax.dcn.network import random_weights as random_weights
from cnninv_jax.dcn.network import reconstruct as reconstruct

__all__ = [
    "VGG16_CONVOLUTIONS",
    "VGG16_WIDTHS",
    "ConvDeconv",
    "Convolution",
    "Weights",
    "architecture",
    "conv1_1",
    "decode",
    "features",
    "random_weights",
    "reconstruct",
]
