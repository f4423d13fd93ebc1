"""What TinyViT can do besides training."""
