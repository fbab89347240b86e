"""The Vision Transformer (arXiv 2010.11929): images -> tokens -> logits. No ranks, no data, no training in here."""
