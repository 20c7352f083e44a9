"""What is written for users; `generate` writes the part that the source says already."""
