"""Transfer: a weights folder, a linear head, a higher resolution, and the accuracy that comes of it."""
