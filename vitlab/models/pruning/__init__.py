"""Structured pruning of vision transformers: the units that can be removed, gates, export, 2:4 sparsity.

The parts that concern the network alone (nvit.md, sections 3, 4 and 9; NViT, CVPR 2023, arXiv 2110.04869). What is
removed, and when, is a method's decision.

``units``     axes of prunable units of a timm ViT, and where each unit lies in the parameters
``supported`` the networks that the map of units covers; all others are refused by name
``gates``     the masked forward pass: gates in buffers, LayerNorm over the live channels
``export``    the smaller dense network, equal to the masked one
``sparsity``  2:4 sparsity of the linear layers
"""
