"""The CNN-DCN of Random DCN: VGG-16 up to a layer and its mirror image, with random weights and no training."""
