"""Data kept on the device, vectorised augmentation, training, evaluation and checkpoints."""
