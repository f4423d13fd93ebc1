"""What NViT can do besides training."""
