"""Networks: timm models built, initialised from files, grouped for the optimiser, and kept as artifacts."""
