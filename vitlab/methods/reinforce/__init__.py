"""Dataset Reinforcement: Reinforce Data, Multiply Impact (Faghri et al., ICCV 2023, arXiv 2303.08983)."""
