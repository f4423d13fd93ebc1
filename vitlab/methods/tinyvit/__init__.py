"""TinyViT: Fast Pretraining Distillation for Small Vision Transformers (Wu et al., ECCV 2022, arXiv 2207.10666)."""
