"""DeepMAD: Mathematical Architecture Design for Deep CNNs (Shen et al., CVPR 2023, arXiv 2303.02165)."""
