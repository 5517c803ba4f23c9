"""Trainable networks on Flax NNX: classifiers, backbones, decoders, and one training loop for all of them."""
