"""NViT: Global Vision Transformer Pruning with Hessian-Aware Saliency (Yang et al., CVPR 2023, arXiv 2110.04869)."""
