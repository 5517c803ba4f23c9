"""Trainable networks on Flax NNX: classifiers, backbones, decoders, and one training loop for all of them.

Arrays are channels-last here: images [B, H, W, C], kernels [*ell, M, K] (`operators.to_flax_kernel` converts banks).
Importing `cnninv_jax` does not load this package, which loads Flax, optax and orbax.
"""

from cnninv_jax.nn.architectures import all_cnn_b, convpool_cnn_c, parameter_table, random_cnn, vgg_cifar
from cnninv_jax.nn.augmentation import Preparation, preparation
from cnninv_jax.nn.autoencoders import AutoEncoder, EncoderClassifier
from cnninv_jax.nn.backbones import Backbone
from cnninv_jax.nn.blocks import ConvBlock, Dense, Frozen, ParameterCounts, Pool, count_parameters
from cnninv_jax.nn.checkpoints import CheckpointError
from cnninv_jax.nn.classifiers import ConvNet
from cnninv_jax.nn.convolution import conv2d
from cnninv_jax.nn.decoders import DCN, WhatWhereDecoder
from cnninv_jax.nn.evaluation import evaluate
from cnninv_jax.nn.features import FeatureClassifier, cached_features, calibrated
from cnninv_jax.nn.memory import keep_freed_pages
from cnninv_jax.nn.objectives import classification_loss, classification_metrics
from cnninv_jax.nn.pooling import max_pool, unpool, upsample
from cnninv_jax.nn.recipes import Recipe
from cnninv_jax.nn.specs import ConvLayer, DenseLayer, NetworkSpec, multiply_adds, output_shapes, parameter_counts
from cnninv_jax.nn.training import Trained, train

__all__ = [
    "DCN",
    "AutoEncoder",
    "Backbone",
    "CheckpointError",
    "ConvBlock",
    "ConvLayer",
    "ConvNet",
    "Dense",
    "DenseLayer",
    "EncoderClassifier",
    "FeatureClassifier",
    "Frozen",
    "NetworkSpec",
    "ParameterCounts",
    "Pool",
    "Preparation",
    "Recipe",
    "Trained",
    "WhatWhereDecoder",
    "all_cnn_b",
    "cached_features",
    "calibrated",
    "classification_loss",
    "classification_metrics",
    "conv2d",
    "convpool_cnn_c",
    "count_parameters",
    "evaluate",
    "keep_freed_pages",
    "max_pool",
    "multiply_adds",
    "output_shapes",
    "parameter_counts",
    "parameter_table",
    "preparation",
    "random_cnn",
    "train",
    "unpool",
    "upsample",
    "vgg_cifar",
]
