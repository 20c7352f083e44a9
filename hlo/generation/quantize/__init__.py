"""Makes 8-bit checkpoints of base models, and reads them."""
