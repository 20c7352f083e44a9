"""From a question to a specialty: encode, compare with examples, decide."""
