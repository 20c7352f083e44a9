"""8-bit checkpoints of base models: made with bitsandbytes, measured, and read by the engines."""
